"""``report``: the report of a fine-tuning run from the files in its folder; nothing else is written."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.datasets.card import DatasetCard, load_card
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore
from caffetools.infer.classifier import Classifier
from caffetools.onnx.export import DEFAULT_OPSET
from caffetools.project.config import FinetuneConfig
from caffetools.project.evaluate import Evaluation, evaluate, held_out
from caffetools.project.history import RunHistory, describe_environment, read_config, read_history
from caffetools.project.manifest import SETTINGS
from caffetools.project.next_step import in_place_of_a_report
from caffetools.project.remarks import remarks_on_run
from caffetools.project.report import RunRecord, report_of, title_and_summary
from caffetools.project.report_steps import better_run
from caffetools.project.training_schedule import plan_training
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import read_solver
from caffetools.results import Step
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.control import Snapshot
from caffetools.solver.logs.training_log import TrainingLog, read_log
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
    in_a_run = any((place / SETTINGS).is_file() for place in (folder, folder.resolve().parent))
    if not in_a_run and (hint := in_place_of_a_report(folder)):
        raise CaffeToolsError(f"{folder}: not the folder of a run of caffetools finetune", hint=hint)
    history = read_history(folder)
    config = read_config(folder, history)
    solver = read_solver(folder / "net" / "solver.prototxt")
    prefix = folder / "net" / Path(solver.snapshot_prefix).name
    snapshot = newest_snapshot(prefix)
    if snapshot is None:
        raise CaffeToolsError(f"{folder}: the run has no snapshot yet, so there is nothing to report; resume it with: {config.command()}")
    card = load_card(folder / "data")
    onnx = folder / "model.onnx"
    classifier = Classifier(folder / "net" / "deploy.prototxt", snapshot.weights)
    evaluation = evaluate(classifier, card, events=events, cancel=cancel)
    record = _record(folder, config, history, snapshot, solver, card, evaluation, read_log(Path(f"{prefix}.log")))
    steps: Sequence[Step] = ()
    begun = ""
    if snapshot.iteration >= solver.max_iter and onnx.is_file():
        known = history if history is not None and history.describes(snapshot.weights, onnx) else None
        record = replace(record, onnx=known.onnx if known is not None else _compare(classifier, onnx, card))
        steps, begun = (known.steps, known.folder) if known is not None else ((), "")
    page = out or folder / "report.html"
    title, summary = title_and_summary(config, card)
    write_report(page, report_of(title, summary, [record], steps, config.command(), begun))
    return page


def _record(
    folder: Path,
    config: FinetuneConfig,
    history: RunHistory | None,
    snapshot: Snapshot,
    solver: SolverParameter,
    card: DatasetCard,
    evaluation: Evaluation,
    log: TrainingLog,
) -> RunRecord:
    """Return all but the check of the exported model."""
    schedule = plan_training(
        config.model,
        card.train_count,
        card.val_count,
        fine_tuning=not config.from_scratch,
        epochs=config.epochs,
        batch=config.batch,
        base_lr=solver.base_lr,
    )
    remarks = remarks_on_run(evaluation.confusion, log, card, from_scratch=config.from_scratch, loss=evaluation.loss)
    note = schedule.describe()
    again = better_run(config, schedule.epochs, log, evaluation, card.train_count, schedule.batch)
    if snapshot.iteration < solver.max_iter:
        remarks.append(f"The training is not finished: this is iteration {snapshot.iteration} of {solver.max_iter}.")
        note = f"iteration {snapshot.iteration} of {solver.max_iter}, learning rate {solver.base_lr:g}."
        again = Step("Resume the training", config.command(), f"From iteration {snapshot.iteration} of {solver.max_iter}.")
    # A run of an earlier version has no history.
    model = Path(config.model).stem if config.model.endswith(".prototxt") else config.model
    start = config.weights
    # Its numbers are measured again, with what is here.
    environment = {**describe_environment("cpu", config.seed), "device": config.device}
    if history is not None:
        model, start, environment = history.model, history.start_from_here(folder), history.environment
    return RunRecord(
        "Results", model, note, folder, card, log, evaluation, folder / "net" / "deploy.prototxt", snapshot.weights, start, None,
        remarks, environment, again,
    )  # fmt: skip


def _compare(classifier: Classifier, onnx: Path, card: DatasetCard) -> OnnxCheck:
    """Compare the net with the exported model on some of the held-out pictures."""
    other = Classifier(onnx)
    pictures = [path for path, _ in held_out(card)]
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
