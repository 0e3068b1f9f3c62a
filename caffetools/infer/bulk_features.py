"""Blobs of a net for many pictures or batches, into Parquet files, in this process or on a cluster; a file for each task."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.cluster import Task
from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.events import EventSink, ignore
from caffetools.graph.inputs import is_input
from caffetools.infer.blobs import BlobOptions, BlobReader
from caffetools.infer.bulk import options_from_json, options_to_json
from caffetools.infer.bulk_run import BulkResult, RowWriter, import_arrow, noted, run_parts
from caffetools.infer.classifier import UNKNOWN_MEAN, PreprocessOptions
from caffetools.infer.sources import PICTURES_PER_FILE, Item, Source, batches, items, picture_tasks
from caffetools.layers.base import format_shape
from caffetools.net.net import Net
from caffetools.proto.text import read_net
from caffetools.util.files import atomic_write

if TYPE_CHECKING:
    import pyarrow

PathLike = str | os.PathLike[str]
_BATCHES = 50
# Columns of the pictures' files that are not blobs.
_PICTURE, _ERROR = "picture", "error"


def picture_features_to_parquet(
    deploy: PathLike,
    weights: PathLike | None,
    options: PreprocessOptions,
    blobs: Sequence[str],
    pictures: Sequence[PathLike | Source],
    out: PathLike,
    *,
    device: str = "cpu",
    batch: int = 16,
    cluster: str = "",
    per_file: int = PICTURES_PER_FILE,
    force: bool = False,
    resume: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BulkResult:
    """Run a deployed net over pictures and store blobs in Parquet files in the new folder ``out``.

    A row is a picture: its name, for each blob a column of its name with the float32 values of the picture's item (their shape is in the
    column's metadata), and error, which is None or why the picture could not be used; its blobs then are None.

    Args:
        deploy: A deploy prototxt; layers that the blobs do not need are not run.
        weights: Its .caffemodel; None for a net without parameters.
        options: Mean, scale and size, where they are not those of deploy.json.
        blobs: Names of the blobs.
        pictures: Paths, or what :func:`~caffetools.infer.sources.find_sources` returned; with a cluster those of files that every machine
            reads.
        out: Folder to create; with a cluster one that every machine writes to.
        device: ``cpu``, ``cuda`` or ``auto``.
        batch: Number of pictures that the net processes at once.
        cluster: Address of a cluster (see :func:`~caffetools.data.cluster.run_tasks`); empty for this process.
        per_file: Number of pictures in a file, and in a task.
        force: Replace an earlier output, once the new one is complete.
        resume: Continue a run with the same arguments that was killed or cancelled, if there is one.
        events: Receives ``Progress`` (unit ``images``) and ``ArtifactWritten``.
        cancel: Checked after each file; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: There are no pictures, pyarrow is not installed, or ``out`` exists.
        CaffeToolsError: The model cannot be loaded or run, or has no such blob.
        WriteFailed: ``out`` cannot be written.
    """
    names = list(dict.fromkeys(blobs))
    if not names or {_PICTURE, _ERROR} & set(names):
        raise CaffeToolsError(f"the columns '{_PICTURE}' and '{_ERROR}' are not for blobs" if names else "no blob is named")
    if Path(deploy).suffix.lower() != ".onnx" and not any(is_input(layer) for layer in read_net(deploy).layer):
        raise NetError(
            "the net has no input for pictures, but reads data of its own",
            path=deploy,
            hint="`caffetools deploy` makes a net for pictures of it",
        )
    model = {
        "deploy": os.path.abspath(deploy),  # noqa: PTH100 (links are kept: deploy.json lies next to them)
        "weights": None if weights is None else _absolute(weights),
        "options": options_to_json(options),
        "device": device,
    }
    tasks, ends = picture_tasks(pictures, {"model": model, "blobs": names, "batch": max(batch, 1)}, per_file)
    return run_parts("extract", picture_part, tasks, [out], ends, "images", cluster, force, resume, _MODELS, events, cancel)


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
    resume: bool = False,
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
        resume: Continue a run with the same arguments that was killed or cancelled, if there is one.
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
    return run_parts(
        "extract",
        feature_part,
        tasks,
        list(folders),
        [end for _, end in ranges],
        "batches",
        cluster,
        force,
        resume,
        _MODELS,
        events,
        cancel,
    )


def picture_part(task: Task) -> Task:
    """Task: run a deployed net over some pictures, and write their blobs into one Parquet file."""
    return noted(task, _picture_part)


def feature_part(task: Task) -> Task:
    """Task: run a net over some batches, and write each blob's items into one Parquet file."""
    return noted(task, _feature_part)


def _picture_part(task: Task) -> Task:
    reader = _blob_reader(json.dumps(task["model"], sort_keys=True), tuple(task["blobs"]))
    arrow = import_arrow(task["paths"][0])
    shapes = [reader.net.blob_shapes[name][1:] for name in task["blobs"]]
    fields = [_field(name, shape) for name, shape in zip(task["blobs"], shapes, strict=True)]
    schema = arrow.schema([arrow.field(_PICTURE, arrow.string()), *fields, arrow.field(_ERROR, arrow.string())])
    errors: list[str] = []
    size = 4 * sum(int(np.prod(shape)) for shape in shapes)
    with _rows(task["paths"][0], schema) as rows:
        for group in batches(items(task), task["batch"]):
            for item, values in zip(group, _values(reader, group, shapes), strict=True):
                if isinstance(values, str):
                    errors.append(values)
                    rows.add([item.name, *(None for _ in shapes), values], size)
                else:
                    rows.add([item.name, *values, None], size)
    warnings = [] if reader.preprocessing.mean_known else [UNKNOWN_MEAN]
    return {"rows": rows.rows, "errors": errors, "warnings": warnings}


def _values(reader: BlobReader, group: list[Item], shapes: list[tuple[int, ...]]) -> Iterator[list[NDArray[np.float32]] | str]:
    """Yield for each item its values of each blob, flat; or why it cannot be used."""
    inputs: dict[int, NDArray[np.float32]] = {}
    errors: dict[int, str] = {}
    for index, item in enumerate(group):
        try:
            if isinstance(item.picture, DataError):
                raise item.picture
            inputs[index] = reader.prepare(item.picture, channel_order="BGR")
        except DataError as error:
            errors[index] = str(error)
    found: dict[int, list[NDArray[np.float32]]] = {index: [] for index in inputs}
    blobs = reader.compute(np.concatenate(list(inputs.values()))) if inputs else {}
    for (name, blob), shape in zip(blobs.items(), shapes, strict=bool(blobs)):
        if blob.shape != (len(inputs), *shape):
            raise NetError(
                f"blob '{name}' is {format_shape(blob.shape)} for {len(inputs)} picture(s), without an item of {format_shape(shape)} for each"
            )
        for row, values in zip(found.values(), blob.reshape(len(inputs), -1), strict=True):
            row.append(values)
    for index in range(len(group)):
        yield errors[index] if index in errors else found[index]


def _feature_part(task: Task) -> Task:
    blobs: list[str] = task["blobs"]
    net = _feature_net(json.dumps(task["model"], sort_keys=True))
    _check_blobs(net, blobs)
    _start_at(net, task["first"])
    writers: list[RowWriter] = []
    with ExitStack() as stack:
        for batch in range(task["first"], task["end"]):
            with torch.inference_mode():
                values = net(keep=blobs)
            arrays = [np.atleast_1d(np.ascontiguousarray(values[name].float().cpu().numpy(), np.float32)) for name in blobs]
            if not writers:
                writers = [stack.enter_context(_numbered(*where)) for where in zip(task["paths"], arrays, strict=True)]
            for writer, array in zip(writers, arrays, strict=True):
                for number, row in enumerate(array.reshape(len(array), -1), batch * len(array)):
                    writer.add([number, row], row.nbytes)
    return {"rows": writers[-1].rows, "errors": []}


@contextmanager
def _numbered(path: str, first: NDArray[np.float32]) -> Iterator[RowWriter]:
    """Yield a writer of the items of a blob, with their numbers, given its values of a batch."""
    import pyarrow as arrow

    values = arrow.list_(arrow.float32(), first[0].size)
    shape = {"shape": json.dumps(first.shape[1:])}
    with _rows(path, arrow.schema([("record", arrow.int64()), ("values", values)], metadata=shape)) as rows:
        yield rows


def _field(name: str, shape: tuple[int, ...]) -> Any:
    import pyarrow as arrow

    # Lists of any length, as pyarrow up to 23 cannot read rows without values (pictures that could not be used) of lists of one length.
    return arrow.field(name, arrow.list_(arrow.float32()), metadata={"shape": json.dumps(shape)})


@contextmanager
def _rows(path: str, schema: pyarrow.Schema) -> Iterator[RowWriter]:
    """Yield a writer of a Parquet file, which is complete or does not appear."""
    with atomic_write(path) as stream:
        writer = RowWriter(stream, schema)
        yield writer
        writer.close()


def _absolute(weights: PathLike) -> str:
    return ",".join(os.path.abspath(name.strip()) for name in os.fspath(weights).split(","))  # noqa: PTH100


@lru_cache(maxsize=1)
def _blob_reader(model: str, blobs: tuple[str, ...]) -> BlobReader:
    values = json.loads(model)
    options = options_from_json(values["options"])
    reader = BlobReader(values["deploy"], values["weights"], options, BlobOptions(blobs), device=values["device"])
    # A mean or net that does not fit is an error of its own, not one of each picture.
    _ = reader.preprocessor
    return reader


@lru_cache(maxsize=1)
def _feature_net(model: str) -> Net:
    from caffetools.solver.run import choose_device
    from caffetools.solver.testing import load_test_net

    values = json.loads(model)
    if os.getcwd() != values["folder"]:  # noqa: PTH109
        os.chdir(values["folder"])  # in a worker's process: paths of a net are relative to the caller's folder
    return load_test_net(values["net"], values["weights"], device=choose_device(values["device"]))


# What keeps models open between the tasks of a process.
_MODELS = (_blob_reader, _feature_net)


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
