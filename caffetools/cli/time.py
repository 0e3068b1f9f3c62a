"""``caffetools time``: how long each layer takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.gflags import Level, OneGpu, Stage, chosen_device, quiet_by_glog, split
from caffetools.cli.models import complete_model, net_file, weights_file
from caffetools.cli.numbers import INT32
from caffetools.cli.options import Dialect, Engine, EngineImage, Plugin
from caffetools.cli.show import console, print_json, progress_sink, verbosity, write_log
from caffetools.errors import CaffeToolsError

if TYPE_CHECKING:
    from caffetools.solver.timing import Timings


def time(
    net: Annotated[
        Path | None,
        typer.Argument(
            metavar="NET", help="The net's prototxt, or a network of the zoo.", show_default=False, autocompletion=complete_model
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The net's prototxt, as Caffe's flag.", show_default=False)] = None,
    weights: Annotated[
        str, typer.Option("--weights", "-w", metavar="FILE", help="Weights (.caffemodel) to load; by default the fillers' values.")
    ] = "",
    iterations: Annotated[int, typer.Option("--iterations", "-n", max=INT32, help="Number of forward and backward passes.")] = 50,
    phase: Annotated[str, typer.Option(metavar="TRAIN|TEST", help="Phase whose layers to run.")] = "TRAIN",
    stage: Stage = "",
    level: Level = 0,
    gpu: OneGpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    engine: Engine = "caffetools",
    engine_image: EngineImage = "",
    caffe_format: Annotated[
        bool, typer.Option("--caffe-format", help="Print the lines of caffe time; the default where the output is piped.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the times as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Measure the layers of a net, as [bold]caffe time[/bold] does: mean milliseconds forward and backward.

    Each layer is waited for, so a whole pass can take less than the sum.
    """
    given = net if net is not None else model
    if given is None or (net is not None and model is not None):
        raise CaffeToolsError("give the net's prototxt once, as NET or as --model")
    path = net_file(given, "train_val" if phase == "TRAIN" else "deploy")
    if phase not in ("TRAIN", "TEST"):
        raise CaffeToolsError(f"--phase is TRAIN or TEST, not '{phase}'")
    from caffetools.solver.run import choose_device

    spoken = not json and (caffe_format or not (sys.stdout.isatty() or verbosity.quiet))
    files = [str(weights_file(name)) for name in split(weights)]
    if engine != "caffetools" or engine_image:
        from caffetools.cli.train_caffe import caffe_flags
        from caffetools.solver.caffe_process import time_with_caffe

        flags = caffe_flags(engine, {"gpu": gpu, "stage": stage, "level": level, "phase": phase})
        echo = write_log if spoken and not quiet_by_glog() else None
        timings, place = time_with_caffe(path, files, iterations, image=engine_image or None, arguments=flags, echo=echo), "real Caffe"
    else:
        place = str(choose_device(chosen_device(gpu, device)))
        timings = _timings(path, files, iterations, place, phase, stage, level, spoken=spoken)
    if json:
        _print_json(path, place, timings)
    elif not spoken:
        _print_table(path, place, timings)


def _timings(path: Path, weights: list[str], iterations: int, device: str, phase: str, stage: str, level: int, *, spoken: bool) -> Timings:
    """Measure our own engine."""
    import torch

    from caffetools.net.net import Net
    from caffetools.net.weights import load_weights
    from caffetools.proto.schema import TEST, TRAIN
    from caffetools.proto.text import format_text
    from caffetools.solver.logs.caffe_log import GlogWriter, log_net, no_log
    from caffetools.solver.timing import time_net

    # caffe time prints to stderr, as all of glog does.
    log = GlogWriter(write_log) if spoken and not quiet_by_glog() else no_log
    place = torch.device(device)
    built = Net.from_file(path, TRAIN if phase == "TRAIN" else TEST, level=level, stages=split(stage))
    log("caffe.cpp:343", "Use CPU.") if place.type == "cpu" else log("caffe.cpp:339", f"Use GPU with device ID {place.index or 0}")
    log_net(log, built, format_text(built.param))
    for name in weights:
        load_weights(built, name)
    with progress_sink("Timing") as sink:
        return time_net(built.to(place), iterations, log=log, events=sink)


def _print_table(path: Path, device: str, timings: Timings) -> None:
    from rich.table import Table

    whole = timings.forward + timings.backward
    table = Table(title=f"{path} on {device}, mean of {timings.iterations} iterations, in ms", title_justify="left", box=None)
    for column in ("layer", "type"):
        table.add_column(column, no_wrap=True)
    for column in ("forward", "backward", "share"):
        table.add_column(column, justify="right")
    for layer in timings.layers:
        share = (layer.forward + layer.backward) / whole if whole else 0.0
        table.add_row(layer.name, layer.type, f"{layer.forward:.3f}", f"{layer.backward:.3f}", f"{share:.1%}")
    table.add_row("all layers", "", f"{timings.forward:.3f}", f"{timings.backward:.3f}", "", style="bold")
    console.print(table)
    console.print(f"Forward and backward: {timings.iteration:.3f} ms an iteration.")


def _print_json(path: Path, device: str, timings: Timings) -> None:
    layers = [{"name": t.name, "type": t.type, "forward_ms": t.forward, "backward_ms": t.backward} for t in timings.layers]
    means = {"forward_ms": timings.forward, "backward_ms": timings.backward, "iteration_ms": timings.iteration}
    print_json({"net": str(path), "device": device, "iterations": timings.iterations, **means, "layers": layers})
