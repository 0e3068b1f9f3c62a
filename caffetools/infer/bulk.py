"""Inference over many pictures or batches into Parquet files, in this process or on a cluster; a file for each task.

The files are the same wherever they are written: a task is a range of the pictures or batches, and its file is named by its number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffetools.cancel import CancelToken
from caffetools.data.cluster import Task, Worker, run_tasks
from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.errors import CaffeToolsError, DataError
from caffetools.events import ArtifactWritten, EventSink, Progress, ignore, reported
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.net.net import Net
from caffetools.util.files import atomic_write
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
PART = "part-{:05d}.parquet"
# Written into each folder last, with the number of rows: a folder without it is not complete.
SUMMARY = "summary.json"
_PICTURES, _BATCHES = 2000, 50


@dataclass
class BulkResult:
    """What was written.

    Attributes:
        folders: The folders of Parquet files.
        rows: Number of rows in each folder.
        errors: What is wrong with each picture that could not be read.
    """

    folders: list[str]
    rows: int = 0
    errors: list[str] = field(default_factory=list)


def classify_to_parquet(
    deploy: PathLike,
    weights: PathLike | None,
    options: PreprocessOptions,
    pictures: Sequence[PathLike],
    out: PathLike,
    *,
    engine: str | None = None,
    device: str = "cpu",
    output: str | None = None,
    top: int = 5,
    batch: int = 16,
    oversample: bool = False,
    cluster: str = "",
    per_file: int = _PICTURES,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BulkResult:
    """Classify pictures into Parquet files in the new folder ``out``: columns picture, index, label, probability (lists of ``top``) and error.

    Args:
        deploy: A deploy prototxt or an ONNX file.
        weights: Its .caffemodel; None for ONNX.
        options: Mean, labels, scale and size.
        pictures: Paths; with a cluster those of files that every machine reads.
        out: Folder to create; with a cluster one that every machine writes to.
        engine: ``torch`` or ``onnxruntime``; None takes that of the file's kind.
        device: ``cpu``, ``cuda`` or ``auto``.
        output: Blob of the probabilities; None if the net has only one output.
        top: Number of classes for each picture.
        batch: Number of pictures that the net processes at once.
        oversample: See :meth:`~caffetools.infer.classifier.Classifier.classify`.
        cluster: Address of a cluster (see :func:`~caffetools.data.cluster.run_tasks`); empty for this process.
        per_file: Number of pictures in a file, and in a task.
        force: Replace an earlier output, once the new one is complete.
        events: Receives ``Progress`` (unit ``images``) and ``ArtifactWritten``.
        cancel: Checked after each file; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: There are no pictures, pyarrow is not installed, or ``out`` exists.
        CaffeToolsError: The model cannot be loaded or run.
        WriteFailed: ``out`` cannot be written.
    """
    if not pictures:
        raise DataError("there are no pictures to classify")
    model = {
        "deploy": os.path.abspath(deploy),  # noqa: PTH100 (links are kept: deploy.json lies next to them)
        "weights": None if weights is None else os.path.abspath(weights),  # noqa: PTH100
        "options": _options_json(options),
        "engine": engine,
        "device": device,
        "output": output,
    }
    names = [os.fspath(name) for name in pictures]
    common = {"model": model, "top": top, "batch": batch, "oversample": oversample}
    ranges = [(start, min(start + per_file, len(names))) for start in range(0, len(names), per_file)]
    tasks = [{**common, "pictures": names[first:end]} for first, end in ranges]
    return _run(classify_part, tasks, [out], ranges, "images", cluster, force, events, cancel)


def features_to_parquet(
    net: PathLike,
    weights: PathLike,
    blobs: Sequence[str],
    folders: Sequence[PathLike],
    batches: int,
    *,
    device: str = "cpu",
    cluster: str = "",
    per_file: int = _BATCHES,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BulkResult:
    """Run a net over batches of its own data and store blobs in Parquet files: columns record (number) and values (float32 of one item).

    Args:
        net: The prototxt with a data layer, in the TEST phase.
        weights: The .caffemodel.
        blobs: Names of the blobs.
        folders: One folder to create for each blob; with a cluster ones that every machine writes to.
        batches: Number of batches.
        device: ``cpu``, ``cuda``…
        cluster: Address of a cluster; empty for this process. Each task starts at its own batch, and reads no others.
        per_file: Number of batches in a file, and in a task.
        force: Replace earlier outputs, once the new ones are complete.
        events: Receives ``Progress`` (unit ``batches``) and ``ArtifactWritten``.
        cancel: Checked after each file.

    Raises:
        DataError: pyarrow is not installed, a folder exists, or the net has data that cannot be read from a batch in the middle on.
        CaffeToolsError: The net cannot be loaded, or has no such blob.
        WriteFailed: A folder cannot be written.
    """
    if len(blobs) != len(folders) or not blobs:
        raise CaffeToolsError(f"{len(blobs)} blob(s) are named for {len(folders)} folder(s); give one for each")
    if batches < 1:
        raise CaffeToolsError(f"the number of batches must be at least 1, not {batches}")
    model = {"net": os.path.abspath(net), "weights": _absolute(weights), "device": device, "folder": os.getcwd()}  # noqa: PTH100, PTH109
    ranges = [(start, min(start + per_file, batches)) for start in range(0, batches, per_file)]
    tasks = [{"model": model, "blobs": list(blobs), "first": first, "end": end} for first, end in ranges]
    return _run(feature_part, tasks, list(folders), ranges, "batches", cluster, force, events, cancel)


def classify_part(task: Task) -> Task:
    """Task: classify some pictures into one Parquet file."""
    classifier = _classifier(json.dumps(task["model"], sort_keys=True))
    results = classifier.classify(task["pictures"], top=task["top"], batch=task["batch"], oversample=task["oversample"])
    arrow = import_arrow(task["paths"][0])
    guesses = [result.guesses for result in results]
    columns = {
        "picture": arrow.array([result.picture for result in results], arrow.string()),
        "index": arrow.array([[guess.index for guess in row] for row in guesses], arrow.list_(arrow.int32())),
        "label": arrow.array([[guess.label for guess in row] for row in guesses], arrow.list_(arrow.string())),
        "probability": arrow.array([[guess.probability for guess in row] for row in guesses], arrow.list_(arrow.float32())),
        "error": arrow.array([result.error for result in results], arrow.string()),
    }
    _write(task["paths"][0], arrow.table(columns))
    return {"rows": len(results), "errors": [result.error for result in results if result.error]}


def feature_part(task: Task) -> Task:
    """Task: run a net over some batches, and write each blob's items into one Parquet file."""
    blobs: list[str] = task["blobs"]
    net = _feature_net(json.dumps(task["model"], sort_keys=True))
    _check_blobs(net, blobs)
    _start_at(net, task["first"])
    found: list[list[np.ndarray[Any, Any]]] = [[] for _ in blobs]
    for _ in range(task["first"], task["end"]):
        with torch.inference_mode():
            values = net(keep=blobs)
        for parts, name in zip(found, blobs, strict=True):
            parts.append(np.ascontiguousarray(values[name].float().cpu().numpy(), np.float32))
    arrow = import_arrow(task["paths"][0])
    rows = 0
    for path, parts in zip(task["paths"], found, strict=True):
        items = np.concatenate(parts)
        rows, size = len(items), items[0].size
        numbers = arrow.array(np.arange(rows) + task["first"] * len(parts[0]), arrow.int64())
        table = arrow.table({"record": numbers, "values": arrow.FixedSizeListArray.from_arrays(items.reshape(-1), size)})
        _write(path, table.replace_schema_metadata({"shape": json.dumps(items.shape[1:])}))
    return {"rows": rows, "errors": []}


def import_arrow(path: PathLike) -> Any:
    """Return the module pyarrow, with its Parquet part. Raises :class:`DataError` if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("writing Parquet needs pyarrow: pip install 'caffetools[parquet]'", path=path) from None
    return pyarrow


def _run(
    worker: Worker,
    tasks: list[Task],
    folders: Sequence[PathLike],
    ranges: list[tuple[int, int]],
    unit: str,
    cluster: str,
    force: bool,
    events: EventSink,
    cancel: CancelToken | None,
) -> BulkResult:
    """Run the tasks, each of which writes a file into each of the folders, and complete the folders."""
    import_arrow(folders[0])
    result = BulkResult([os.fspath(folder) for folder in folders])
    total = ranges[-1][1]

    def progress(done: int, count: int) -> None:
        events(Progress(task="classify", done=total if done == count else done * total // count, total=total, unit=unit))

    with reported("classify", f"Writing {', '.join(result.folders)}", events), _new_folders(folders, force) as works:
        for number, task in enumerate(tasks):
            task["paths"] = [str(Path(work, PART.format(number)).absolute()) for work in works]
        try:
            outcomes = run_tasks(cluster, worker, tasks, progress=progress, cancel=cancel)
        finally:
            for cached in (_classifier, _feature_net):
                cached.cache_clear()
        result.rows = sum(outcome["rows"] for outcome in outcomes)
        result.errors = [error for outcome in outcomes for error in outcome["errors"]]
        for work in works:
            with atomic_write(work / SUMMARY, "w") as stream:
                stream.write(json.dumps({"rows": result.rows, "files": len(tasks), "errors": len(result.errors)}) + "\n")
    for folder in result.folders:
        events(ArtifactWritten(task="classify", path=folder, what="parquet"))
    return result


@contextmanager
def _new_folders(folders: Sequence[PathLike], force: bool) -> Iterator[list[Path]]:
    with ExitStack() as stack:
        yield [stack.enter_context(new_folder(path, force=force, replaceable=lambda old: (old / SUMMARY).is_file())) for path in folders]


def _write(path: str, table: Any) -> None:
    import pyarrow.parquet

    with atomic_write(path) as stream:
        pyarrow.parquet.write_table(table, stream)


def _absolute(weights: PathLike) -> str:
    return ",".join(os.path.abspath(name.strip()) for name in os.fspath(weights).split(","))  # noqa: PTH100


def _options_json(options: PreprocessOptions) -> Task:
    """Return the options as JSON, with absolute paths."""
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


@lru_cache(maxsize=1)
def _classifier(model: str) -> Classifier:
    values = json.loads(model)
    given = values["options"]
    options = PreprocessOptions(given["mean"], given["labels"], given["scale"], tuple(given["resize"]) if given["resize"] else None)
    return Classifier(
        values["deploy"], values["weights"], options, engine=values["engine"], device=values["device"], output=values["output"]
    )


@lru_cache(maxsize=1)
def _feature_net(model: str) -> Net:
    from caffetools.solver.run import choose_device
    from caffetools.solver.testing import load_test_net

    values = json.loads(model)
    if os.getcwd() != values["folder"]:  # noqa: PTH109
        os.chdir(values["folder"])  # in a worker's process: paths of a net are relative to the caller's folder
    return load_test_net(values["net"], values["weights"], device=choose_device(values["device"]))


def _check_blobs(net: Net, blobs: list[str]) -> None:
    for name in blobs:
        if name not in net.blob_shapes:
            raise CaffeToolsError(f"the net '{net.name}' has no blob '{name}'; it has {', '.join(net.blob_shapes)}")


def _start_at(net: Net, batch: int) -> None:
    """Let the data layers of ``net`` continue with the batch of this number."""
    for layer in net.layers:
        if isinstance(layer, ReadingLayer):
            layer.close()
            layer.skip_batches(batch)
        elif layer.IS_DATA and batch:
            raise DataError("its data cannot be read from a batch in the middle on", layer=layer.name, hint="leave out --cluster")
