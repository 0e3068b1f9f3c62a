"""Inference over many pictures into Parquet files, in this process or on a cluster; a file for each task.

The files are the same wherever they are written: a task is a range of the pictures, and its file is named by its number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.cluster import Task
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore
from caffetools.infer.bulk_run import BulkResult as BulkResult
from caffetools.infer.bulk_run import import_arrow, noted, run_parts, write_table
from caffetools.infer.classifier import UNKNOWN_MEAN, ClassificationResult, Classifier, PictureModel, PreprocessOptions
from caffetools.infer.detector import DetectionResult, Detector
from caffetools.infer.sources import PICTURES_PER_FILE, Item, Source, batches, items, picture_tasks

PathLike = str | os.PathLike[str]
T = TypeVar("T")
M = TypeVar("M", Classifier, Detector)


def classify_to_parquet(
    deploy: PathLike,
    weights: PathLike | None,
    options: PreprocessOptions,
    pictures: Sequence[PathLike | Source],
    out: PathLike,
    *,
    engine: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    output: str | None = None,
    top: int = 5,
    batch: int = 16,
    oversample: bool = False,
    cluster: str = "",
    per_file: int = PICTURES_PER_FILE,
    force: bool = False,
    resume: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BulkResult:
    """Classify pictures into Parquet files in the new folder ``out``: columns picture, index, label, probability (lists of ``top``) and error.

    Args:
        deploy: A deploy prototxt or an ONNX file.
        weights: Its .caffemodel; None for ONNX.
        options: Mean, labels, scale and size.
        pictures: Paths, or what :func:`~caffetools.infer.sources.find_sources` returned; with a cluster those of files that every machine
            reads.
        out: Folder to create; with a cluster one that every machine writes to.
        engine: ``torch`` or ``onnxruntime``; None takes that of the file's kind.
        device: ``cpu``, ``cuda`` or ``auto``.
        precision: As for :func:`~caffetools.infer.load.open_engine`.
        output: Blob of the probabilities; None if the net has only one output.
        top: Number of classes for each picture.
        batch: Number of pictures that the net processes at once.
        oversample: See :meth:`~caffetools.infer.classifier.Classifier.classify`.
        cluster: Address of a cluster (see :func:`~caffetools.data.cluster.run_tasks`); empty for this process.
        per_file: Number of pictures in a file, and in a task.
        force: Replace an earlier output, once the new one is complete.
        resume: Continue a run with the same arguments that was killed or cancelled, if there is one.
        events: Receives ``Progress`` (unit ``images``) and ``ArtifactWritten``.
        cancel: Checked after each file; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: There are no pictures, pyarrow is not installed, or ``out`` exists.
        CaffeToolsError: The model cannot be loaded or run.
        WriteFailed: ``out`` cannot be written.
    """
    model = _model(deploy, weights, options, engine, device, precision, output)
    common = {"model": model, "top": top, "batch": batch, "oversample": oversample}
    tasks, ends = picture_tasks(pictures, common, per_file)
    return run_parts(
        "classify",
        classify_part,
        tasks,
        [out],
        ends,
        "images",
        cluster,
        force,
        resume,
        _MODELS,
        events,
        cancel,
    )


def detect_to_parquet(
    deploy: PathLike,
    weights: PathLike | None,
    options: PreprocessOptions,
    pictures: Sequence[PathLike | Source],
    out: PathLike,
    *,
    engine: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    output: str | None = None,
    threshold: float = 0.0,
    top: int | None = None,
    batch: int = 1,
    cluster: str = "",
    per_file: int = PICTURES_PER_FILE,
    force: bool = False,
    resume: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BulkResult:
    """Detect objects in pictures, into Parquet files in the new folder ``out``.

    A row is a picture: columns picture, width, height; index, label, score, xmin, ymin, xmax, ymax (lists of its objects, best first, in
    pixels); and error.

    Args:
        deploy: A deploy prototxt or an ONNX file whose output has a row for each object.
        weights: Its .caffemodel; None for ONNX.
        options: Mean, labels, scale and size.
        pictures: See :func:`classify_to_parquet`.
        out: Folder to create; with a cluster one that every machine writes to.
        engine: ``torch`` or ``onnxruntime``; None takes that of the file's kind.
        device: ``cpu``, ``cuda`` or ``auto``.
        precision: As for :func:`~caffetools.infer.load.open_engine`.
        output: Blob of the objects; None if the net has only one output.
        threshold: Lowest score, from 0 to 1.
        top: Most objects of a picture; None stores all.
        batch: Number of pictures that the net processes at once.
        cluster: Address of a cluster; empty for this process.
        per_file: Number of pictures in a file, and in a task.
        force: Replace an earlier output, once the new one is complete.
        resume: Continue a run with the same arguments that was killed or cancelled, if there is one.
        events: Receives ``Progress`` (unit ``images``) and ``ArtifactWritten``.
        cancel: Checked after each file.

    Raises:
        DataError: There are no pictures, pyarrow is not installed, or ``out`` exists.
        CaffeToolsError: The model cannot be loaded or run.
        WriteFailed: ``out`` cannot be written.
    """
    model = _model(deploy, weights, options, engine, device, precision, output)
    common = {"model": model, "top": top, "batch": batch, "threshold": threshold}
    tasks, ends = picture_tasks(pictures, common, per_file)
    return run_parts("detect", detect_part, tasks, [out], ends, "images", cluster, force, resume, _MODELS, events, cancel)


def classify_part(task: Task) -> Task:
    """Task: classify some pictures into one Parquet file."""
    return noted(task, _classify_part)


def detect_part(task: Task) -> Task:
    """Task: detect objects in some pictures, into one Parquet file."""
    return noted(task, _detect_part)


def _classify_part(task: Task) -> Task:
    classifier = _classifier(json.dumps(task["model"], sort_keys=True))

    def classify(found: list[Item]) -> list[ClassificationResult]:
        results = classifier.classify(
            [item.picture for item in found if not isinstance(item.picture, DataError)],
            top=task["top"],
            batch=task["batch"],
            oversample=task["oversample"],
            channel_order="BGR",
        )
        return [replace(result, picture=item.name) for item, result in zip(found, results, strict=True)]

    def failed(item: Item, error: str) -> ClassificationResult:
        return ClassificationResult(item.name, error=error)

    results = _results(task, classify, failed)
    arrow = import_arrow(task["paths"][0])
    guesses = [result.guesses for result in results]
    columns = {
        "picture": arrow.array([result.picture for result in results], arrow.string()),
        "index": arrow.array([[guess.index for guess in row] for row in guesses], arrow.list_(arrow.int32())),
        "label": arrow.array([[guess.label for guess in row] for row in guesses], arrow.list_(arrow.string())),
        "probability": arrow.array([[guess.probability for guess in row] for row in guesses], arrow.list_(arrow.float32())),
        "error": arrow.array([result.error for result in results], arrow.string()),
    }
    write_table(task["paths"][0], arrow.table(columns))
    return _outcome(results, classifier)


def _detect_part(task: Task) -> Task:
    detector = _detector(json.dumps(task["model"], sort_keys=True))

    def detect(found: list[Item]) -> list[DetectionResult]:
        return detector.detect(
            [item.picture for item in found if not isinstance(item.picture, DataError)],
            threshold=task["threshold"],
            top=task["top"],
            batch=task["batch"],
            names=[item.name for item in found],
            channel_order="BGR",
        )

    def failed(item: Item, error: str) -> DetectionResult:
        return DetectionResult(item.name, error=error)

    results = _results(task, detect, failed)
    arrow = import_arrow(task["paths"][0])
    objects = [result.objects for result in results]
    numbers = arrow.list_(arrow.float32())
    columns = {
        "picture": arrow.array([result.picture for result in results], arrow.string()),
        "width": arrow.array([result.width for result in results], arrow.int32()),
        "height": arrow.array([result.height for result in results], arrow.int32()),
        "index": arrow.array([[item.index for item in row] for row in objects], arrow.list_(arrow.int32())),
        "label": arrow.array([[item.label for item in row] for row in objects], arrow.list_(arrow.string())),
        "score": arrow.array([[item.score for item in row] for row in objects], numbers),
    }
    for place, name in enumerate(("xmin", "ymin", "xmax", "ymax")):
        columns[name] = arrow.array([[item.box[place] for item in row] for row in objects], numbers)
    columns["error"] = arrow.array([result.error for result in results], arrow.string())
    write_table(task["paths"][0], arrow.table(columns))
    return _outcome(results, detector)


def _outcome(results: Sequence[ClassificationResult | DetectionResult], model: PictureModel) -> Task:
    warnings = [] if model.preprocessing.mean_known else [UNKNOWN_MEAN]
    return {"rows": len(results), "errors": [result.error for result in results if result.error], "warnings": warnings}


def _results(task: Task, infer: Callable[[list[Item]], list[T]], failed: Callable[[Item, str], T]) -> list[T]:
    """Return a result for each picture of a task; no more than a batch of them is in memory."""
    results: list[T] = []
    for group in batches(items(task), task["batch"]):
        usable = iter(infer([item for item in group if not isinstance(item.picture, DataError)]))
        for item in group:
            results.append(failed(item, str(item.picture)) if isinstance(item.picture, DataError) else next(usable))
    return results


def options_to_json(options: PreprocessOptions) -> Task:
    """Return preprocessing options as JSON, with absolute paths. Raises :class:`DataError` for a mean image in memory."""
    mean, labels = options.mean, options.labels
    if isinstance(mean, np.ndarray):
        mean = mean.tolist() if mean.ndim == 1 else None
        if mean is None:
            raise DataError("a mean image of the program cannot be sent to other processes; write it to a file")
    if isinstance(mean, str | os.PathLike) and Path(mean).exists():
        mean = os.path.abspath(mean)  # noqa: PTH100
    if isinstance(labels, str | os.PathLike):
        labels = os.path.abspath(labels)  # noqa: PTH100
    values = {"mean": mean, "labels": labels, "scale": options.scale, "resize": options.resize}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def options_from_json(values: Task) -> PreprocessOptions:
    """Return the options that :func:`options_to_json` made JSON of."""
    return PreprocessOptions(values["mean"], values["labels"], values["scale"], tuple(values["resize"]) if values["resize"] else None)


def _model(
    deploy: PathLike,
    weights: PathLike | None,
    options: PreprocessOptions,
    engine: str | None,
    device: str,
    precision: str,
    output: str | None,
) -> Task:
    return {
        "deploy": os.path.abspath(deploy),  # noqa: PTH100 (links are kept: deploy.json lies next to them)
        "weights": None if weights is None else os.path.abspath(weights),  # noqa: PTH100
        "options": options_to_json(options),
        "engine": engine,
        "device": device,
        "precision": precision,
        "output": output,
    }


@lru_cache(maxsize=1)
def _classifier(model: str) -> Classifier:
    return _opened(Classifier, model)


@lru_cache(maxsize=1)
def _detector(model: str) -> Detector:
    return _opened(Detector, model)


def _opened(kind: type[M], model: str) -> M:
    values = json.loads(model)
    options = options_from_json(values["options"])
    how = {name: values[name] for name in ("engine", "device", "precision", "output")}
    return kind(values["deploy"], values["weights"], options, **how)


# What keeps models open between the tasks of a process.
_MODELS = (_classifier, _detector)
