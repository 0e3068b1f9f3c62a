"""``report``: the report of a fine-tuning run from the files in its folder; nothing else is written."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.datasets.card import load_card
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore
from caffetools.infer.classifier import Classifier
from caffetools.onnx.export import DEFAULT_OPSET
from caffetools.project.config import FinetuneConfig
from caffetools.project.evaluate import evaluate, held_out
from caffetools.project.manifest import SETTINGS, path_from_here
from caffetools.project.remarks import remarks_on, remarks_on_data, remarks_on_log
from caffetools.project.report import RunRecord, report_of
from caffetools.project.report_steps import better_run
from caffetools.project.training_schedule import plan_training
from caffetools.proto.text import read_solver
from caffetools.results import Step
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.logs.training_log import read_log
from caffetools.visualize.model import OnnxCheck
from caffetools.visualize.report import write_report

# Held-out images whose probabilities are compared between the net and the ONNX file.
_COMPARED = 64
_TOLERANCE = 1e-4


def report_run(folder: Path, out: Path | None = None, *, events: EventSink = ignore, cancel: CancelToken | None = None) -> Path:
    """Write the report of a run as it is now: of its newest snapshot, classified again, and of its log.

    Args:
        folder: The run's folder, as ``finetune`` made it.
        out: The page; None writes report.html into the folder.
        events: Receives ``Progress`` events.
        cancel: Stops the work; nothing is written then.

    Returns:
        The path of the page.

    Raises:
        CaffeToolsError: The folder is not that of a run, or the run has no snapshot yet.
        DataError: An image of the dataset was removed or damaged.
        Cancelled: ``cancel`` was set.
    """
    config = _read_config(folder)
    solver = folder / "net" / "solver.prototxt"
    prefix = folder / "net" / Path(read_solver(solver).snapshot_prefix).name
    snapshot = newest_snapshot(prefix)
    if snapshot is None:
        raise CaffeToolsError(f"{folder}: the run has no snapshot yet, so there is nothing to report; resume it with: {config.command()}")
    card = load_card(folder / "data")
    deploy = folder / "net" / "deploy.prototxt"
    classifier = Classifier(deploy, snapshot.weights)
    evaluation = evaluate(classifier, card, events=events, cancel=cancel)
    limit = read_solver(solver).max_iter
    log = read_log(Path(f"{prefix}.log"))
    remarks = [*remarks_on(evaluation.confusion), *remarks_on_log(log), *remarks_on_data(card)]
    schedule = plan_training(
        config.model,
        card.train_count,
        card.val_count,
        fine_tuning=not config.from_scratch,
        epochs=config.epochs,
        batch=config.batch,
        own_lr=1.0,
    )
    again = better_run(config, schedule.epochs, log, evaluation.confusion, card.train_count, schedule.batch)
    if snapshot.iteration < limit:
        remarks.append(f"The training is not finished: this is iteration {snapshot.iteration} of {limit}.")
        again = Step("Resume the training", config.command(), f"From iteration {snapshot.iteration} of {limit}.")
    onnx = folder / "model.onnx"
    check = _compare(classifier, onnx, [path for path, _ in held_out(card)]) if onnx.is_file() and snapshot.iteration >= limit else None
    model = Path(config.model).stem if config.model.endswith(".prototxt") else config.model
    note = f"iteration {snapshot.iteration} of {limit}, learning rate {read_solver(solver).base_lr:g}."
    record = RunRecord(
        "Results", model, note, folder, card, log, evaluation, deploy, snapshot.weights,
        config.weights if config.weights and config.weights.is_file() else None, check, remarks, config.device, config.seed, again,
    )  # fmt: skip
    page = out or folder / "report.html"
    summary = f"{config.model} learned {len(card.classes)} classes from {card.train_count} images."
    write_report(page, report_of(f"{config.model} on {len(card.classes)} classes", summary, [record], [], config.command()))
    return page


def _read_config(folder: Path) -> FinetuneConfig:
    path = folder / SETTINGS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("inputs", None)
        for name in ("pictures", "model", "weights", "mean"):
            # A model's name, or values of a mean, are no files.
            found = path_from_here(values[name], path) if values.get(name) else ""
            values |= {name: found} if found and (name == "pictures" or Path(found).is_file()) else {}
    except OSError:
        if not folder.is_dir():
            raise CaffeToolsError("there is no such folder; name the folder that caffetools finetune wrote (-o)", path=folder) from None
        above = folder.resolve().parent
        hint = f"the run is {above}" if (above / SETTINGS).is_file() else None
        raise CaffeToolsError(f"{folder}: not the folder of a run of caffetools finetune: it has no {SETTINGS}", hint=hint) from None
    except (ValueError, AttributeError, TypeError):
        raise CaffeToolsError(f"{path}: damaged; it is not what caffetools finetune wrote") from None
    try:
        return FinetuneConfig.from_dict({**values, "out": str(folder)})
    except CaffeToolsError as error:
        raise error.located(path) from None


def _compare(classifier: Classifier, onnx: Path, pictures: list[Path]) -> OnnxCheck:
    other = Classifier(onnx)
    chosen = pictures[:: max(1, len(pictures) // _COMPARED)][:_COMPARED]
    inputs = [classifier.preprocessor.centre(classifier.preprocessor.read(path)) for path in chosen]
    ours, theirs = (np.stack(one.probabilities(inputs)) for one in (classifier, other))
    return OnnxCheck(
        file=onnx.name,
        opset=DEFAULT_OPSET,
        runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        largest_difference=float(np.abs(ours - theirs).max()),
        tolerance=_TOLERANCE,
        pictures=len(chosen),
        agreeing=int((ours.argmax(1) == theirs.argmax(1)).sum()),
    )
