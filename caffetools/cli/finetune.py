"""``caffetools finetune``: from a folder of images to a verified model, in one command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.from_config import with_options
from caffetools.cli.models import weights_file
from caffetools.cli.narrate import TerminalSink
from caffetools.cli.show import console, print_json, print_next
from caffetools.project.config import FinetuneConfig, command
from caffetools.results import share_text

if TYPE_CHECKING:
    from caffetools.project.run import FinetuneResult


@with_options(FinetuneConfig)
def finetune(
    config: FinetuneConfig, *, as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False
) -> None:
    """Fine-tune a network on your own images, and export it.

    Builds databases and a mean, retargets the network, fine-tunes it, writes the deploy prototxt, measures it on held-out images,
    exports ONNX, verifies it, and writes a report. An interrupted run resumes when the same command is given again.
    """
    from caffetools.events import ignore
    from caffetools.net.malloc_tuning import tune_for_training
    from caffetools.project.finetune import finetune as run

    tune_for_training(little_memory=config.checkpoint_memory)
    if config.weights is not None:
        config = dataclasses.replace(config, weights=weights_file(config.weights))
    with TerminalSink() as terminal:
        result, report = run(config, ignore if as_json else terminal)
    if as_json:
        print_json(_as_json(result, report))
        return
    confusion = result.evaluation.confusion
    top_5 = result.evaluation.top_5
    among = f" ({share_text(top_5, '.2%')} among the five most probable)" if top_5 is not None else ""
    console.print(f"\n{share_text(confusion.accuracy, '.2%')} of {confusion.total} held-out pictures right{among}", markup=False)
    console.print(f"Deploy: {result.deploy}\nWeights: {result.weights}\nONNX: {result.run.onnx}", markup=False)
    console.print(f"Report: {report.resolve().as_uri()}", markup=False)
    samples = result.evaluation.samples
    print_next(command("classify", result.run.onnx, samples[0].picture if samples else config.pictures))


def _as_json(result: FinetuneResult, report: Path) -> dict[str, Any]:
    confusion = result.evaluation.confusion
    return {
        "accuracy": confusion.accuracy,
        "top_5": result.evaluation.top_5,
        "loss": result.evaluation.loss,
        "held_out": confusion.total,
        "classes": result.card.classes,
        "deploy": str(result.deploy),
        "weights": str(result.weights),
        "onnx": str(result.run.onnx),
        "onnx_largest_difference": result.verification.largest,
        "remarks": result.remarks,
        "report": str(report),
    }
