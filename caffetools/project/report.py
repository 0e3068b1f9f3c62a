"""The report of one or several fine-tuning runs."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import DataError, NetError
from caffetools.graph.summary import summarize
from caffetools.onnx.export import DEFAULT_OPSET
from caffetools.onnx.model import file_size
from caffetools.project.config import FinetuneConfig
from caffetools.project.evaluate import Evaluation
from caffetools.project.history import CPU_THREADS, describe_environment
from caffetools.project.remarks import accuracy_interval, has_learned_nothing
from caffetools.project.report_steps import after_run, better_run
from caffetools.project.run import FinetuneResult
from caffetools.proto.text import read_net
from caffetools.results import Step, share_text
from caffetools.solver.logs.training_log import TrainingLog
from caffetools.visualize.cam import grad_cam
from caffetools.visualize.colormaps import overlay
from caffetools.visualize.explanations import last_feature_layer, score_blob
from caffetools.visualize.filters import LayerWeights, find_weights
from caffetools.visualize.model import Explanation, FileEntry, FilterChange, KeyFigure, LayerRow, OnnxCheck, Phase, Report
from caffetools.visualize.picture_net import PictureNet
from caffetools.zoo.cards import get_card
from caffetools.zoo.names import is_model

MOST_EXPLANATIONS = 8
_MOST_LETTERS = 200  # of a list of classes


@dataclass(frozen=True)
class RunRecord:
    """One training, as a report describes it.

    Attributes:
        title: Title of its part of the report.
        model: Name of the network.
        note: How it was trained, in a sentence.
        out: Folder of the run.
        card: The dataset.
        log: The training log.
        evaluation: Result on the held-out images.
        deploy: The deploy prototxt.
        weights: The trained .caffemodel.
        start: The weights it started from; None for random ones.
        onnx: Check of the exported file; None where there is none.
        remarks: What the reader should know, a sentence each.
        environment: Software, device and seed, by name.
        again: A better run to do next, or how to resume this one; None where there is none.
    """

    title: str
    model: str
    note: str
    out: Path
    card: DatasetCard
    log: TrainingLog
    evaluation: Evaluation
    deploy: Path
    weights: Path
    start: Path | None
    onnx: OnnxCheck | None
    remarks: Sequence[str]
    environment: Mapping[str, str]
    again: Step | None = None


def make_report(
    title: str, summary: str, learned: Sequence[FinetuneResult], titles: Sequence[str], steps: Sequence[Step], repeat: str
) -> Report:
    """Return the report of one or several trainings, a phase each; network, ONNX check and files are those of the last.

    Args:
        title: Of the report.
        summary: What was done.
        learned: The trainings.
        titles: The phases' titles.
        steps: Everything that was done.
        repeat: The one command that does it all again.
    """
    return report_of(title, summary, [_record(item, name) for item, name in zip(learned, titles, strict=True)], steps, repeat)


def report_of(title: str, summary: str, runs: Sequence[RunRecord], steps: Sequence[Step], repeat: str, folder: str = "") -> Report:
    """Return the report of recorded runs; ``folder`` is where the steps' paths start from, the rest is as for :func:`make_report`."""
    here = str(Path.cwd())
    last = runs[-1]
    confusion = last.evaluation.confusion
    remarks = [remark for item in runs for remark in item.remarks]
    chance = has_learned_nothing(confusion.accuracy, len(confusion.names), confusion.total, last.evaluation.loss)
    failed = chance or (last.onnx is not None and not last.onnx.passed)
    good = False if failed else None if remarks else True
    return Report(
        title=title,
        summary=summary,
        created=time.strftime("%Y-%m-%d %H:%M"),
        figures=_figures(runs, steps),
        steps=steps,
        phases=[_phase(item) for item in runs],
        network=_network(last.deploy),
        onnx=last.onnx,
        files=_files(runs),
        repeat=[repeat],
        next_steps=[*([last.again] if last.again else []), *after_run(last.card, confusion, last.deploy, last.weights, _exported(last))],
        environment=last.environment,
        verdict=_verdict(last),
        good=good,
        remarks=remarks,
        card=_model_card(last),
        folder="" if last.deploy.is_absolute() else here,
        steps_folder="" if folder == here else folder,
    )


def title_and_summary(config: FinetuneConfig, card: DatasetCard) -> tuple[str, str]:
    """Return the title and the summary of the report of one run."""
    classes, model = len(card.classes), _title(config.model)
    return f"{model} on {classes} classes", f"{model} was trained on {classes} classes with {card.train_count} images."


def _title(model: str) -> str:
    """Return the name by which a model of the zoo is known (LeNet for ``lenet``); that of another net is left as it is."""
    return get_card(model).title if is_model(model) else model


def _verdict(item: RunRecord) -> str:
    confusion = item.evaluation.confusion
    text = f"{_title(item.model)} recognizes {share_text(confusion.accuracy)} of {confusion.total} images that it was not trained on; "
    text += f"guessing gives {1 / len(confusion.names):.1%}."
    if item.onnx is not None:
        text += " The ONNX file gives the same numbers." if item.onnx.passed else " The ONNX file gives other numbers: do not use it."
    return text


def _exported(item: RunRecord) -> Path | None:
    return item.out / item.onnx.file if item.onnx is not None else None


def _record(item: FinetuneResult, title: str) -> RunRecord:
    run, schedule = item.run, item.schedule
    config = run.config
    again = better_run(config, schedule.epochs, item.log, item.evaluation, item.card.train_count, schedule.batch)
    return RunRecord(
        title, run.model, schedule.describe(), config.out, item.card, item.log, item.evaluation, item.deploy, item.weights, run.weights,
        onnx_check(item), item.remarks, describe_environment(config.device, config.seed), again,
    )  # fmt: skip


def _figures(runs: Sequence[RunRecord], steps: Sequence[Step]) -> list[KeyFigure]:
    figures = []
    for item in runs:
        confusion = item.evaluation.confusion
        low, high = accuracy_interval(confusion.right, confusion.total)
        note = f"{confusion.right} of {confusion.total} held-out images; 95% interval {low:.0%} to {high:.0%}"
        figures.append(KeyFigure(share_text(confusion.accuracy), "accuracy" if len(runs) == 1 else f"accuracy, {item.title}", note))
    last = runs[-1]
    if last.evaluation.top_5 is not None:
        figures.append(KeyFigure(share_text(last.evaluation.top_5), "top-5 accuracy", "true class among the five most probable"))
    figures.append(
        KeyFigure(f"{last.evaluation.loss:.3g}", "loss", f"on held-out images; guessing: {math.log(len(last.card.classes)):.3g}")
    )
    error = last.evaluation.calibration.error
    figures.append(KeyFigure(f"{error:.1%}", "calibration error", "distance between confidence and accuracy"))
    if steps:
        threads = last.environment[CPU_THREADS]
        note = f"{threads} CPU thread{'' if threads == '1' else 's'}"
        figures.append(KeyFigure(f"{sum(step.seconds or 0 for step in steps):.0f} s", "from images to ONNX", note))
    if last.onnx is not None:
        size = file_size(last.out / last.onnx.file) / 1e6
        figures.append(KeyFigure(f"{size:.1f} MB", "ONNX model", f"{last.onnx.largest_difference:.0e} from caffetools"))
    return figures


def _phase(item: RunRecord) -> Phase:
    start = f"started from {item.start.name}" if item.start else "started from random weights"
    names = _first(item.card.classes)
    return Phase(
        item.title,
        f"{_title(item.model)} on {names}; {start}; {item.note}",
        item.evaluation.confusion,
        item.evaluation.samples,
        {_title(item.model): item.log},
        _filters(item),
        item.evaluation.calibration,
        _explanations(item),
        item.evaluation.class_losses,
    )


def _first(names: Sequence[str]) -> str:
    """Return as many names as fit into a few lines, at least one."""
    length, shown = 0, 0
    while shown < len(names) and (shown == 0 or length + len(names[shown]) <= _MOST_LETTERS):
        length += len(names[shown]) + 2
        shown += 1
    return ", ".join([*names[:shown], *(["…"] if shown < len(names) else [])])


def _filters(item: RunRecord) -> list[LayerWeights | FilterChange]:
    after = find_weights(item.weights)
    if item.start is not None and item.start.is_file():
        # A layer that was replaced has no earlier weights of its name.
        with suppress(DataError):
            before = find_weights(item.start, after.name)
            if np.shape(before.weights) == np.shape(after.weights):
                return [FilterChange(before, after)]
    return [after]


def _explanations(item: RunRecord) -> list[Explanation]:
    """Grad-CAM for some samples, the wrong ones first; none for nets without positions in front of their scores."""
    model = PictureNet(item.deploy, item.weights)
    try:
        blob = score_blob(model.net)
        layer = last_feature_layer(model.net, blob)
    except NetError:
        return []
    wrong = [sample for sample in item.evaluation.samples if sample.wrong][: MOST_EXPLANATIONS // 2]
    right = [sample for sample in item.evaluation.samples if not sample.wrong]
    explanations = []
    for sample in wrong + right[: MOST_EXPLANATIONS - len(wrong)]:
        prepared = model.prepare(str(sample.picture))
        unit = item.card.classes.index(sample.predicted)
        heat = grad_cam(model.net, prepared.input, layer=layer, blob=blob, unit=unit)
        large = np.asarray(cv2.resize(heat, prepared.shown.shape[1::-1], interpolation=cv2.INTER_LINEAR))
        laid = overlay(prepared.shown, large)
        explanations.append(
            Explanation(prepared.shown, laid, f"Grad-CAM at {layer}", sample.predicted, sample.probability, sample.true, sample.name)
        )
    return explanations


def _model_card(item: RunRecord) -> dict[str, str]:
    card, confusion = item.card, item.evaluation.confusion
    scored = [score for score in confusion.scores() if score.accuracy is not None]
    worst = min(scored, key=lambda score: score.accuracy or 0.0)
    size = f"{card.width} x {card.height}" if card.width else "of their own sizes"
    return {
        "Task": f"classify images into {len(card.classes)} classes: {_first(card.classes)}",
        "Network": f"{item.model}, " + (f"fine-tuned from {item.start.name}" if item.start else "trained from random weights"),
        "Training data": f"{card.train_count} images from {card.pictures}, stored {size}, {'one channel' if card.channels == 1 else 'BGR'}",
        "Measured on": f"{confusion.total} held-out images of the same source; other sources may give other numbers",
        "Accuracy": f"{share_text(confusion.accuracy, '.2%')}; lowest for {worst.name}: {share_text(worst.accuracy or 0.0)} of {worst.pictures} image{'s' * (worst.pictures != 1)}",
        "Calibration": f"expected error {item.evaluation.calibration.error:.2%}; probabilities are the softmax of the scores",
        "Limits": "every image gets one of the classes, also one that shows none of them",
    }


def _network(deploy: Path) -> list[LayerRow]:
    return [
        LayerRow(layer.name, layer.type_name, layer.shapes[0] or (), layer.parameter_count, layer.macs)
        for layer in summarize(read_net(deploy)).layers
    ]


def onnx_check(item: FinetuneResult) -> OnnxCheck:
    """Return the check of the model that a run exported, as a report shows it."""
    check = item.verification
    return OnnxCheck(
        file=item.run.onnx.name,
        opset=DEFAULT_OPSET,
        runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        largest_difference=check.largest,
        tolerance=check.tolerance,
        pictures=item.evaluation.confusion.total,
        agreeing=item.agreeing,
    )


def _files(runs: Sequence[RunRecord]) -> list[FileEntry]:
    entries = []
    for item in runs:
        for path, what in (
            (item.card.train_lmdb, "training images, LMDB of Datum"),
            (item.card.val_lmdb, "held-out images"),
            (item.card.mean_file, "mean of the images"),
            (item.card.labels_file, "class names"),
            (item.deploy.parent / "train_val.prototxt", "network for training"),
            (item.deploy.parent / "solver.prototxt", "training settings"),
            (item.deploy, "network for use"),
            (item.weights, "weights"),
            (item.out / item.onnx.file if item.onnx else None, "ONNX model"),
        ):
            if path is not None and path.exists():
                entries.append(FileEntry(str(path), _size(path), what))
    return entries


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.iterdir())
    return file_size(path) if path.suffix == ".onnx" else path.stat().st_size
