"""Caffe's Python tools with their own arguments: draw_net, parse_log, plot_training_log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.models import net_file
from caffetools.cli.options import AsJson, check_output, not_standard_output
from caffetools.cli.show import console, print_json

_RANKDIRS = ("TB", "BT", "LR", "RL")
_PHASES = ("ALL", "TRAIN", "TEST")
# Given by caffe_names.py: Caffe's tools replace their output files.
_Force = Annotated[bool, typer.Option("--force", hidden=True)]


def draw_net(
    net: Annotated[Path, typer.Argument(metavar="INPUT", help="The net's prototxt.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The picture to write: .png, .svg, .pdf or .dot.", show_default=False)],
    rankdir: Annotated[str, typer.Option(help="Direction of the graph: TB, BT, LR or RL.")] = "LR",
    phase: Annotated[str, typer.Option(help="Layers to draw: TRAIN, TEST or ALL.")] = "ALL",
    display_lrm: Annotated[
        bool, typer.Option("--display-lrm", "--display_lrm", help="Write the learning rate multipliers into the layers.")
    ] = False,
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw a net, as Caffe's draw_net.py does; it needs Graphviz for other files than .dot.

    Without Graphviz, .png and .svg are drawn by caffetools' own layout, as `caffetools visualize graph` does. A file
    that exists is replaced, as by Caffe's tool.
    """
    import shutil

    from caffetools.proto.schema import TEST, TRAIN
    from caffetools.proto.text import read_net
    from caffetools.proto.upgrades.v1 import upgrade_net
    from caffetools.pycaffe.draw import draw_net_to_file
    from caffetools.visualize.graph_drawing import draw_graph
    from caffetools.visualize.net_graph import net_graph

    if rankdir not in _RANKDIRS:
        raise typer.BadParameter(f"'{rankdir}' is not one of {', '.join(_RANKDIRS)}", param_hint="--rankdir")
    if phase not in _PHASES:
        raise typer.BadParameter(f"'{phase}' is not one of {', '.join(_PHASES)}", param_hint="--phase")
    check_output(out, force=force)
    param = upgrade_net(read_net(net_file(net, "train_val")))
    chosen = {"TRAIN": TRAIN, "TEST": TEST}.get(phase)
    own = shutil.which("dot") is None and out.suffix.lower() in (".png", ".svg")
    if own:
        draw_graph(net_graph(param, TRAIN if chosen == TRAIN else TEST), out, title=str(param.name), engine="own")
    else:
        draw_net_to_file(param, out, rankdir, chosen, display_lrm)
    if as_json:
        print_json({"file": str(out), "layout": "own" if own else "graphviz"})
    else:
        console.print(f"Drawing net to {out}", markup=False)


def parse_log(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A log of `caffe train` or `caffetools train`.", show_default=False)],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="OUTDIR", callback=not_standard_output, help="The folder to write LOG.train and LOG.test to.", show_default=False
        ),
    ],
    delimiter: Annotated[str, typer.Option(help="Between the columns.")] = ",",
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the values in a training log as two CSV files, as Caffe's parse_log.py does.

    The columns are NumIters, Seconds, LearningRate and the outputs of the net. Files that exist are replaced, as by Caffe's tool.
    """
    from caffetools.solver.logs.csv_files import csv_paths, write_csv
    from caffetools.solver.logs.training_log import read_log

    if len(delimiter) != 1:
        raise typer.BadParameter(f"'{delimiter}' is not one character", param_hint="--delimiter")
    paths = csv_paths(log, folder)
    check_output(*paths, force=force)
    write_csv(read_log(log), paths, delimiter=delimiter)
    if as_json:
        print_json([str(path) for path in paths])
        return
    for path in paths:
        console.print(f"Wrote {path}", markup=False)


def plot_training_log(
    chart: Annotated[
        int, typer.Argument(metavar="CHART_TYPE", min=0, max=7, help="What to draw: a number of the list above.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The picture to write: .png or .svg.", show_default=False)],
    logs: Annotated[list[Path], typer.Argument(metavar="LOG...", help="Logs of training.", show_default=False)],
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw one chart of training logs, as Caffe's plot_training_log.py does.

    Chart types: 0 test accuracy vs. iterations, 1 test accuracy vs. seconds, 2 test loss vs. iterations, 3 test loss vs. seconds,
    4 learning rate vs. iterations, 5 learning rate vs. seconds, 6 training loss vs. iterations, 7 training loss vs. seconds. A file that
    exists is replaced, as by Caffe's tool.
    """
    from caffetools.solver.logs.training_log import read_log
    from caffetools.visualize.curves import run_names
    from caffetools.visualize.training_chart import draw_training_chart

    check_output(out, force=force)
    title = draw_training_chart(chart, {name: read_log(path) for name, path in run_names(logs).items()}, out)
    if as_json:
        print_json({"file": str(out), "chart": title})
    else:
        console.print(f"{out}: {title}", markup=False)
