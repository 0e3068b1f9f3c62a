"""``caffetools classify``: what a deployed net sees in pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from caffetools.cli.options import Dialect, Plugin
from caffetools.cli.show import console, print_json, progress, show_warnings, write_error


def classify(
    deploy: Annotated[Path, typer.Argument(metavar="DEPLOY", help="The deploy prototxt, or an ONNX file.", show_default=False)],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[WEIGHTS] PICTURE...",
            help="The .caffemodel (none, or -, for an ONNX file), then pictures, folders of them, or patterns.",
            show_default=False,
        ),
    ],
    mean: Annotated[str | None, typer.Option(help="Mean file (.binaryproto, .npy), or values as 104,117,123 (BGR).")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor after the mean is taken off.")] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="Resize whole pictures to 256 or 320x240, then crop the centre. Else the mean image's size, or the net's."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Class names, one a line.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for each picture.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="How many pictures the net sees at once.")] = 16,
    oversample: Annotated[bool, typer.Option("--oversample", help="Average ten crops: corners and centre, mirrored too.")] = False,
    engine: Annotated[str | None, typer.Option(help="torch or onnxruntime; else what the file asks for.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    output: Annotated[str | None, typer.Option(help="The blob of the probabilities, where the net has several outputs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Classify pictures: the most probable classes of each.

    Mean, scale, size and labels are those of deploy.json next to DEPLOY, or of the ONNX file's metadata, unless given.
    A picture that cannot be read is reported, the others are classified, and the exit code is 2.
    """
    from caffetools.data.images import parse_size
    from caffetools.events import fan_out, on_progress
    from caffetools.infer.classifier import Classifier, Options, find_pictures

    weights, names = _split(deploy, files)
    options = Options(mean=mean, labels=labels, scale=scale, resize=parse_size(resize) if resize else None)
    pictures = find_pictures(names)
    classifier = Classifier(deploy, weights, options, engine=engine, device=device, output=output)
    with progress("classifying") as advance:
        results = classifier.classify(
            pictures, top=top, batch=batch, oversample=oversample, events=fan_out([on_progress(advance), show_warnings])
        )
    if json:
        print_json([asdict(result) for result in results])
    else:
        _show(results)
    broken = [result for result in results if result.error]
    for result in broken:
        write_error(f"error: {result.error}")
    if broken:
        if len(results) > 1:
            write_error(f"{len(broken)} of {len(results)} pictures could not be read")
        raise typer.Exit(2)


def _split(deploy: Path, files: list[str]) -> tuple[str | None, list[str]]:
    """The weights (None for an ONNX file) and the pictures."""
    if deploy.suffix.lower() == ".onnx":
        weights, pictures = None, files[1:] if files[0] == "-" else files
    else:
        weights, pictures = files[0], files[1:]
    if not pictures:
        wanted = "at least one picture" if deploy.suffix.lower() == ".onnx" else "the .caffemodel and at least one picture"
        raise typer.BadParameter(f"{deploy} needs {wanted} after it", param_hint="PICTURE")
    return weights, pictures


def _show(results: list[Any]) -> None:
    for result in results:
        if result.error:
            continue
        console.print(result.picture, style="bold", markup=False)
        for guess in result.guesses:
            console.print(f"  {guess.probability:6.4f}  {guess.label}", markup=False)
