"""The commands to run after a fine-tuning run, with its real paths, for its report."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from caffetools.data.datasets.card import DatasetCard
from caffetools.project.config import FinetuneConfig, command
from caffetools.project.evaluate import Evaluation
from caffetools.project.next_step import find_picture, has_onnx_form
from caffetools.project.remarks import has_learned_nothing, loss_trend
from caffetools.results import Confusion, Step
from caffetools.solver.logs.training_log import TrainingLog


def after_run(card: DatasetCard, confusion: Confusion, deploy: Path, weights: Path, onnx: Path | None) -> list[Step]:
    """Return the next steps with a trained network, each with a command that works when it is pasted.

    Args:
        card: The dataset.
        confusion: The result on held-out images.
        deploy: The deploy prototxt.
        weights: The trained .caffemodel.
        onnx: The exported model; None without one.
    """
    pictures, folder = card.pictures_source, deploy.parent.parent
    picture = find_picture(deploy)
    model: list[object] = [onnx] if onnx is not None else [deploy, weights]
    steps = []
    if picture is not None:
        steps.append(
            Step("Classify an image of your own", command("classify", *model, _near(picture)), "Put its path in place of this one's.")
        )
    if pictures.is_dir() and confusion.right < confusion.total:
        errors = command("visualize", "errors", deploy, weights, card.folder, "-o", folder / "errors.png")
        steps.append(Step("Look at the wrong images", errors, "The most confident errors first; wrong labels are often among them."))
    if onnx is None and not has_onnx_form(deploy):
        # What follows is made of the ONNX model.
        return steps
    if onnx is None:
        export = command("export", deploy, weights, "-o", folder / "model.onnx")
        steps.append(Step("Export to ONNX", export, "For onnxruntime, OpenCV, TensorRT and others; the file is verified."))
    if card.train_lmdb.exists():
        out = folder / "model.int8.onnx"
        quantize = command("quantize", deploy, weights, "--calibration", card.train_lmdb, "-o", out)
        steps.append(Step("Make it smaller and faster", quantize, "An int8 model, calibrated on the training images."))
    bundle = command("bundle", deploy, weights, "--target", "onnxruntime", "-o", folder / "bundle")
    steps.append(
        Step(
            "Take it to another computer", bundle, "A folder with model, labels, preprocessing and a program; --target jetson for a Jetson."
        )
    )
    return steps


def better_run(config: FinetuneConfig, epochs: int, log: TrainingLog, result: Evaluation, images: int, batch: int) -> Step | None:
    """Return the next run where the log asks for one: longer, or shorter; None where it does not.

    Args:
        config: The run's settings.
        epochs: Epochs it was trained for.
        log: Its log.
        result: Its result on held-out images.
        images: Training images.
        batch: Images per batch.
    """
    trend = loss_trend(log)
    if trend is not None and trend.overfits:
        best = max(1, round(trend.iteration * batch / max(images, 1)))
        if best < epochs:
            return Step(
                "Train less", _with_epochs(config, best), f"The loss on held-out images was lowest after {best} of {epochs} epochs."
            )
        return None
    confusion = result.confusion
    chance = has_learned_nothing(confusion.accuracy, len(confusion.names), confusion.total, result.loss)
    if chance or (trend is not None and trend.improving):
        return Step(
            "Train longer",
            _with_epochs(config, 2 * epochs),
            f"A new run in a folder of its own; this one had {epochs} epoch{'' if epochs == 1 else 's'}.",
        )
    return None


def _with_epochs(config: FinetuneConfig, epochs: int) -> str:
    # "." has no name of its own; the new run is next to the folder all the same.
    out = config.out.parent if config.out.name else Path("..")
    out /= f"{config.out.absolute().name}-{epochs}-epochs"
    return dataclasses.replace(config, out=out, epochs=epochs).command()


def _near(path: Path) -> Path:
    """Return a path relative to the current folder where it is below it."""
    return Path(os.path.relpath(path)) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
