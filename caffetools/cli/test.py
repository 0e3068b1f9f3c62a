"""``caffetools test``: score a net over batches of its test data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.gflags import Level, OneGpu, Stage, chosen_device, quiet_by_glog, split
from caffetools.cli.models import complete_model, net_file, weights_file
from caffetools.cli.options import Dialect, Plugin, SkipCorrupt
from caffetools.cli.show import console, note, print_json, print_next, progress, write_log
from caffetools.errors import CaffeToolsError
from caffetools.events import on_progress
from caffetools.zoo.names import is_model

_Net = Annotated[
    Path | None,
    typer.Argument(
        metavar="NET",
        help="The net's prototxt (train_val); or a network of the zoo.",
        show_default=False,
        autocompletion=complete_model,
    ),
]


def test(
    net: _Net = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            "-w",
            metavar="FILE",
            help="Its .caffemodel; or a network of the zoo.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = "",
    iterations: Annotated[int, typer.Option("--iterations", "-n", help="Number of batches to run.")] = 50,
    model: Annotated[Path | None, typer.Option(help="The net's prototxt, as caffe test takes it.", show_default=False)] = None,
    stage: Stage = "",
    level: Level = 0,
    gpu: OneGpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    skip_corrupt: SkipCorrupt = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Score a net on its test data, as [bold]caffe test[/bold] does: the mean of every output over a number of batches."""
    given = net if net is not None else model
    if given is None or (net is not None and model is not None):
        raise CaffeToolsError("give the net's prototxt once, as NET or as --model")
    weights = weights or (str(given) if is_model(str(given)) else "")
    if not weights:
        raise CaffeToolsError("--weights is missing: the scores of a net with random weights are worthless")
    path = net_file(given, "train_val")

    from caffetools.data.layers.batch_source import tolerating_corrupt_records
    from caffetools.project.next_step import after_test
    from caffetools.solver.logs.caffe_log import GlogWriter, no_log
    from caffetools.solver.run import choose_device
    from caffetools.solver.testing import load_test_net, test_net

    on_terminal = sys.stderr.isatty()
    log = no_log if json or on_terminal or quiet_by_glog() else GlogWriter(write_log)
    place = choose_device(chosen_device(gpu, device))
    files = ",".join(str(weights_file(name)) for name in split(weights))
    with tolerating_corrupt_records(skip_corrupt, lambda error: note(f"left out: {error}")):
        loaded = load_test_net(path, files, device=place, level=level, stages=split(stage), log=log)
    with progress("testing") as advance:
        scores = test_net(loaded, iterations, log=log, events=on_progress(advance))
    if json:
        named: dict[str, list[float]] = {}
        for output in scores.outputs:
            named.setdefault(output.name, []).append(output.value)
        outputs = {name: values[0] if len(values) == 1 else values for name, values in named.items()}
        print_json({"net": str(path), "weights": weights, "iterations": iterations, "loss": scores.loss, "outputs": outputs})
        return
    console.print(f"Scores of {path} with {weights} over {iterations} batches:")
    for output in scores.outputs:
        console.print(f"  {output.name}  {output.value:.6g}", markup=False)
    print_next(after_test(given, weights))


# pytest would take it for a test where it is imported.
test.__test__ = False  # type: ignore[attr-defined]
