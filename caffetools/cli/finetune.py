"""``caffetools finetune``: from a folder of pictures to a verified model, in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from caffetools.cli.narrate import ConsoleNarrator, SilentNarrator
from caffetools.cli.show import console, print_json


def finetune(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder with a folder of pictures for each class.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the run.", show_default=False)],
    model: Annotated[str, typer.Option(help="A network of the zoo, or the path of a train_val prototxt.")] = "squeezenet_v1.1",
    classes: Annotated[str, typer.Option(help="How many classes there are to be; auto counts the folders.")] = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pictures; by default enough for their number.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The .caffemodel to start from; by default the zoo's.")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start from random weights.")] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures a batch.")] = None,
    size: Annotated[str | None, typer.Option(help="Store pictures at this size: 256 or 320x240.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="The net sees squares of this side; by default its own.")] = None,
    gray: Annotated[bool, typer.Option("--gray", help="Use one channel.")] = False,
    mean: Annotated[str | None, typer.Option(help="Mean file, or values as 104,117,123 (BGR).")] = None,
    val: Annotated[float, typer.Option(help="The share of each class that is held out.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="What the split, the weights and the order are drawn with.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False,
) -> None:
    """Teach a network the classes of your own pictures, and get it ready to ship.

    Builds databases and a mean, retargets the network, fine-tunes it, writes the deploy prototxt, measures it on held-out pictures,
    exports ONNX, verifies it, and writes a report. An interrupted run goes on when the same command is given again.
    """
    from caffetools.project.finetune import Request
    from caffetools.project.finetune import finetune as run

    if classes != "auto" and not classes.lstrip("-").isdecimal():
        raise typer.BadParameter(f"'{classes}' is neither a number nor 'auto'", param_hint="--classes")
    request = Request(
        pictures=pictures,
        out=out,
        model=model,
        weights=weights,
        from_scratch=from_scratch,
        classes=None if classes == "auto" else int(classes),
        epochs=epochs,
        batch=batch,
        size=size,
        crop=crop,
        gray=gray,
        mean=mean,
        val=val,
        seed=seed,
        device=device,
    )
    done = run(request, SilentNarrator() if as_json else ConsoleNarrator())
    if done is None:
        sys.stderr.write("caffetools: stopped, with a snapshot; give the same command again to go on from there\n")
        raise typer.Exit(130)
    learned, report = done
    if as_json:
        print_json(_as_json(learned, report))
        return
    confusion = learned.evaluation.confusion
    console.print(f"\n{confusion.accuracy:.2%} of {confusion.total} held-out pictures right", markup=False)
    console.print(f"Deploy: {learned.deploy}\nWeights: {learned.weights}\nONNX: {learned.job.onnx}", markup=False)
    console.print(f"Report: {report.resolve().as_uri()}", markup=False)


def _as_json(learned: Any, report: Path) -> dict[str, Any]:
    confusion = learned.evaluation.confusion
    return {
        "accuracy": confusion.accuracy,
        "held_out": confusion.total,
        "classes": learned.card.classes,
        "deploy": str(learned.deploy),
        "weights": str(learned.weights),
        "onnx": str(learned.job.onnx),
        "onnx_largest_difference": learned.verification.largest,
        "report": str(report),
    }
