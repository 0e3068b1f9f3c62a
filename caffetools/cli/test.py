"""``caffetools test``: score a net over batches of its test data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.gflags import Level, OneGpu, Stage, chosen_device, quiet_by_glog, split
from caffetools.cli.models import complete_model, net_file, weights_file
from caffetools.cli.numbers import INT32
from caffetools.cli.options import Dialect, Engine, EngineImage, Plugin, Precision, SkipCorrupt
from caffetools.cli.show import console, note, print_json, print_next, progress_sink, verbosity, write_log
from caffetools.errors import CaffeToolsError
from caffetools.net.precision_modes import check_mode
from caffetools.zoo.names import is_model

if TYPE_CHECKING:
    from caffetools.solver.testing import TestScores

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
    iterations: Annotated[int, typer.Option("--iterations", "-n", max=INT32, help="Number of batches to run.")] = 50,
    model: Annotated[Path | None, typer.Option(help="The net's prototxt, as caffe test takes it.", show_default=False)] = None,
    stage: Stage = "",
    level: Level = 0,
    gpu: OneGpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    precision: Precision = "fp32",
    engine: Engine = "caffetools",
    engine_image: EngineImage = "",
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
        raise CaffeToolsError("--weights is missing: the scores of a net with random weights are worthless", hint=_right_use(given))
    path = net_file(given, "train_val")
    _check_precision(precision, ours=engine == "caffetools" and not engine_image)
    from caffetools.project.next_step import after_test

    files = [str(weights_file(name)) for name in split(weights)]
    quiet = json or verbosity.quiet or quiet_by_glog()
    if engine != "caffetools" or engine_image:
        from caffetools.cli.train_caffe import caffe_flags
        from caffetools.solver.caffe_process import score_with_caffe

        flags = caffe_flags(engine, {"gpu": gpu, "stage": stage, "level": level})
        echo = None if quiet else write_log
        scores = score_with_caffe(path, files, iterations, image=engine_image or None, arguments=flags, echo=echo)
    else:
        scores = _scores(path, files, iterations, chosen_device(gpu, device), precision, stage, level, skip_corrupt, quiet=quiet)
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


def _check_precision(precision: str, *, ours: bool) -> None:
    check_mode(precision)
    if precision != "fp32" and not ours:
        raise CaffeToolsError(f"real Caffe computes in fp32 only; leave out --engine, or --precision {precision}")


def _right_use(net: Path) -> str:
    """Return the command with the newest weights of the net, if there are some."""
    from caffetools.project.config import command
    from caffetools.project.next_step import find_weights

    weights = find_weights(net) if net.is_file() else None
    return f"example: {command('test', net, '--weights', weights)}" if weights is not None else ""


def _scores(
    path: Path, weights: list[str], iterations: int, device: str, precision: str, stage: str, level: int, skip_corrupt: int, *, quiet: bool
) -> TestScores:
    """Score by our own engine."""
    from caffetools.data.layers.batch_source import tolerating_corrupt_records
    from caffetools.net.precision import set_precision
    from caffetools.solver.logs.caffe_log import GlogWriter, no_log
    from caffetools.solver.run import choose_device
    from caffetools.solver.testing import load_test_net, test_net

    log = no_log if quiet or sys.stderr.isatty() else GlogWriter(write_log)
    with tolerating_corrupt_records(skip_corrupt, lambda error: note(f"left out: {error}")):
        loaded = load_test_net(path, ",".join(weights), device=choose_device(device), level=level, stages=split(stage), log=log)
    with progress_sink("Testing") as sink:
        return test_net(set_precision(loaded, precision), iterations, log=log, events=sink)


# pytest would take it for a test where it is imported.
test.__test__ = False  # type: ignore[attr-defined]
