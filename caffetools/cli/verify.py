"""``caffetools verify``: the same inputs through several engines or models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import DeployArgument, WeightsArgument, deployed
from caffetools.cli.options import Dialect, Mean, Plugin, Resize, Scale, given_options, refuse_options
from caffetools.cli.show import console, print_json, print_next, print_table, progress_sink
from caffetools.util.arguments import MOST_SEED32

if TYPE_CHECKING:
    from caffetools.infer.compare import Candidate, OutputComparison


def verify(
    deploy: DeployArgument,
    weights: WeightsArgument,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="ONNX files, TensorRT engines, or other models as DEPLOY:WEIGHTS, to compare with.", show_default=False
        ),
    ] = None,
    engines: Annotated[
        str, typer.Option(help="Engines that run DEPLOY: torch, onnxruntime, opencv, caffe, tensorrt. The first is the reference.")
    ] = "torch,onnxruntime",
    pictures: Annotated[
        list[str] | None,
        typer.Option("--pictures", "--images", help="Picture, folder or pattern to compare on; by default random inputs. May be repeated."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Pictures to take at most, spread evenly over all.")] = 500,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference allowed, relative to an output's largest value.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED32, help="Seed of random inputs.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Run DEPLOY with WEIGHTS through several engines, and other models, on the same inputs, and compare the outputs.

    Prints the largest and mean difference, the cosine, how often the best class is the same, and the speed.
    An engine that runs but differs by more than --tolerance is a failure (exit code 1), and so is a MODEL that cannot be run.
    DEPLOY may also be an ONNX file, which has its weights in it: `caffetools verify before.onnx after.onnx`.
    opencv and caffe run in environments of their own: `caffetools engine add opencv4|caffe`. tensorrt needs its package and an NVIDIA GPU.
    """
    from caffetools.data.images import parse_size
    from caffetools.infer.classifier import PreprocessOptions, find_pictures, spread
    from caffetools.infer.compare import Candidate, compare_engines
    from caffetools.project.next_step import after_verify

    _check_options(pictures)
    names = _engine_names(engines)
    prepared = PreprocessOptions(mean=mean, scale=scale, resize=parse_size(resize) if resize else None)
    others = [_candidate(text) for text in models or []]
    if _has_weights(deploy):
        # It has its weights in it: what follows are the others.
        own = [Candidate(deploy, engine=name) for name in names] if "--engines" in given_options() else [Candidate(deploy)]
        own += [] if str(weights) == "-" else [_candidate(str(weights))]
    else:
        net, parameters, prepared = deployed(deploy, weights, prepared)
        own = [Candidate(net, parameters, name) for name in names]
    if len(own) + len(others) < 2:
        raise typer.BadParameter("nothing to compare with: name a second engine, or a MODEL", param_hint="--engines")
    found = find_pictures(pictures or [])
    files = spread(found, most)
    with progress_sink("Comparing") as events:
        rows = compare_engines(own[0], [*own[1:], *others], images=files, options=prepared, seed=seed, events=events)
    if json:
        print_json([{**row.__dict__, "relative": row.relative} for row in rows])
    else:
        _print(rows, len(files), len(found), tolerance)
    if _failed(rows, {candidate.name for candidate in others}, tolerance):
        raise typer.Exit(1)
    if not json and not _has_weights(deploy):
        print_next(after_verify(deploy, weights))


def _engine_names(engines: str) -> list[str]:
    from caffetools.infer.load import ENGINES

    names = [name.strip() for name in engines.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("name at least one engine", param_hint="--engines")
    if unknown := [name for name in names if name not in ENGINES]:
        raise typer.BadParameter(f"unknown engine '{unknown[0]}'; known are {', '.join(ENGINES)}", param_hint="--engines")
    return names


def _failed(rows: list[OutputComparison], models: set[str], tolerance: float) -> bool:
    """Return whether a row is a failure: a difference, other outputs, or a model that was named and cannot be run; not an engine that is not here."""
    if all(row.reason for row in rows[1:]):
        return True
    return any(row.failed and (row.output or row.candidate in models) if row.reason else not row.relative <= tolerance for row in rows)


# What prepares pictures.
_OF_PICTURES = ("--most", "--mean", "--scale", "--resize")


def _check_options(pictures: list[str] | None) -> None:
    given = given_options()
    if pictures:
        refuse_options({"--seed"}.intersection(given), "is for random inputs, and --images gives pictures")
    else:
        refuse_options((option for option in _OF_PICTURES if option in given), "is for --images, and the inputs are random here")


def _has_weights(model: Path | str) -> bool:
    """Return whether a file of this name has its weights in it: an ONNX file, or an engine that TensorRT built."""
    from caffetools.engines.base import ENGINE_SUFFIXES

    return Path(model).suffix.lower() in (".onnx", *ENGINE_SUFFIXES)


def _candidate(text: str) -> Candidate:
    from caffetools.infer.compare import Candidate

    if _has_weights(text):
        return Candidate(text)
    model, _, weights = text.partition(":")
    if not weights:
        raise typer.BadParameter(f"'{text}' is neither an ONNX file, a TensorRT engine nor DEPLOY:WEIGHTS", param_hint="MODEL")
    return Candidate(model, weights)


def _print(rows: list[OutputComparison], pictures: int, of: int, tolerance: float) -> None:
    if pictures:
        console.print(f"On {pictures} of {of} pictures:" if pictures < of else f"On {pictures} pictures:")
    print_table(
        ("engine: model", "output", ">largest", ">relative", ">mean", ">cosine", ">top-1", ">ms", ""),
        (_cells(row, tolerance) for row in rows),
    )


def _cells(row: OutputComparison, tolerance: float) -> list[str]:
    if row.reason:
        return [row.candidate, row.output, "", "", "", "", "", "", row.reason]
    top1 = "" if row.top1 is None else f"{row.top1:.1%}"
    numbers = [f"{row.largest:.3g}", f"{row.relative:.1e}", f"{row.mean:.3g}", f"{row.cosine:.6f}", top1, f"{row.milliseconds:.1f}"]
    return [row.candidate, row.output, *numbers, "" if row.relative <= tolerance else f"differs by more than {tolerance:g}"]
