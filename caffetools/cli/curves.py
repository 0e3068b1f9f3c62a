"""``caffetools curves``: curves of the values in training logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.options import AsJson, Force, check_output
from caffetools.cli.show import console, open_file, print_json


def curves(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOGS", help="Logs of `caffe train` or `caffetools train`, as text or JSON lines; one or more.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write: .png, .svg or .html.")] = Path("curves.png"),
    show: Annotated[bool, typer.Option("--show", help="Open the picture in the system's viewer.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw loss, accuracy and learning rate over the iterations; several logs are drawn together."""
    from caffetools.solver.logs.training_log import read_log
    from caffetools.visualize.curves import draw_curves, run_names
    from caffetools.visualize.output import check_suffix

    check_suffix(out)
    check_output(out, force=force)
    runs = {name: read_log(path) for name, path in run_names(logs).items()}
    draw_curves(runs, out)
    if as_json:
        print_json({"file": str(out), "rows": {name: {"train": len(run.train), "test": len(run.test)} for name, run in runs.items()}})
    else:
        for name, run in runs.items():
            console.print(f"{name}: {len(run.train)} rows of training, {len(run.test)} of tests", markup=False)
        console.print(f"Drawn to {out}", markup=False)
    if show:
        open_file(out)
