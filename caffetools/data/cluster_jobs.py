"""The mean and the verification of a sharded database on a cluster: a task for each shard."""

from __future__ import annotations

import base64
import os
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.cluster import Task, error_from_json, error_to_json, run_tasks
from caffetools.data.databases import CorruptRecords, open_database, shown_key
from caffetools.data.datasets.records import RecordFacts, decoded_records, record_facts
from caffetools.data.datasets.verify import Verification, check_facts
from caffetools.data.datum import record_to_array
from caffetools.data.shards import ShardedDatabase
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reported, reporter
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]


def cluster_mean(
    path: PathLike, address: str, *, skip_corrupt: int = 0, events: EventSink = ignore, cancel: CancelToken | None = None
) -> NDArray[np.float32]:
    """Compute the mean of the records of a sharded database on a cluster.

    Sums are exact (integers for bytes, float64 for floats). Up to 65,793 pictures of bytes the float32 sums of compute_image_mean are exact
    as well, and the mean equals :func:`~caffetools.data.means.compute_mean` to the last bit; beyond, Caffe's sums are rounded.

    Args:
        path: An index of shards. Another database is one task.
        address: See :func:`~caffetools.data.cluster.run_tasks`.
        skip_corrupt: How many damaged records may be left out.
        events: Receives ``Progress`` (unit ``shards``).
        cancel: Checked after each shard.

    Returns:
        (1, C, H, W), float32.

    Raises:
        DataError: As :func:`~caffetools.data.means.compute_mean`.
    """
    corrupt = CorruptRecords(skip_corrupt)
    tasks = [{"path": shard, "skip": skip_corrupt} for shard in shard_paths(path)]
    with reported("dataset", f"Computing the mean of {os.fspath(path)}", events):
        results = run_tasks(address, sum_shard, tasks, progress=reporter(events, "dataset", "shards"), cancel=cancel)
    total: NDArray[Any] | None = None
    count = 0
    for task, result in zip(tasks, results, strict=True):
        for error in result["errors"]:
            corrupt(error_from_json(error))
        if not result["count"]:
            continue
        sums = np.frombuffer(base64.b64decode(result["sums"]), result["dtype"]).reshape(result["shape"])
        if total is not None and sums.shape != total.shape:
            raise DataError(f"its records are {sums.shape}, those of the first shard {total.shape}", path=str(task["path"]))
        total = sums if total is None else total + sums
        count += int(result["count"])
    if total is None:
        raise DataError("no record can be read", path=path)
    mean: NDArray[np.float32] = total.astype(np.float32)[np.newaxis] / np.float32(count)
    return mean


def cluster_verify(
    path: PathLike,
    address: str,
    *,
    classes: int | None = None,
    allow: tuple[str, ...] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Verify a sharded database on a cluster; the faults are those of :func:`~caffetools.data.datasets.verify.verify_database`.

    Args:
        path: An index of shards. Another database is one task.
        address: See :func:`~caffetools.data.cluster.run_tasks`.
        classes: See ``verify_database``.
        allow: See ``verify_database``.
        events: Receives ``Progress`` (unit ``shards``).
        cancel: Checked after each shard.

    Raises:
        DataError: The index cannot be read, or a kind in ``allow`` is unknown.
    """
    tasks = [{"path": shard} for shard in shard_paths(path)]
    with reported("dataset", f"Verifying {os.fspath(path)}", events):
        results = run_tasks(address, read_shard, tasks, progress=reporter(events, "dataset", "shards"), cancel=cancel)
    facts = (_facts(values) for result in results for values in result["records"])
    with closing(open_database(path)) as database:
        return check_facts(facts, database, classes=classes, allow=allow)


def shard_paths(path: PathLike) -> list[str]:
    """Return the paths of the shards of an index, for workers on other machines; of another database its own.

    Raises:
        DataError: The database cannot be read.
    """
    with closing(open_database(path)) as database:
        paths = [database.path]
        if isinstance(database, ShardedDatabase):
            paths = [database.shard_path(shard) for shard in database.index.shards if shard.records]
    return [name if "://" in name else os.path.realpath(name) for name in paths]


def sum_shard(task: Task) -> Task:
    """Task: add the records of one database up. Raises :class:`DataError` where records differ in shape."""
    errors: list[DataError] = []
    corrupt = CorruptRecords(task["skip"], errors.append)
    sums: NDArray[Any] | None = None
    count = 0
    with closing(open_database(task["path"])) as database:

        def decode(record: tuple[bytes, bytes]) -> NDArray[Any] | DataError:
            try:
                return record_to_array(record[1], what=shown_key(database.path, record[0]))[0]
            except DataError as error:
                return error

        with closing(ordered_map(decode, database.records(on_error=corrupt))) as arrays:
            for array in arrays:
                if isinstance(array, DataError):
                    corrupt(array)
                    continue
                if sums is None:
                    sums = np.zeros(array.shape, np.int64 if array.dtype == np.uint8 else np.float64)
                if array.shape != sums.shape:
                    raise DataError(f"a record is {array.shape}, the first one {sums.shape}", path=database.path)
                sums = sums + array if array.dtype.kind == "f" and sums.dtype.kind == "i" else np.add(sums, array, out=sums)
                count += 1
    found = np.zeros(0) if sums is None else sums
    text = base64.b64encode(found.tobytes()).decode()
    shown = [error_to_json(error) for error in errors]
    return {"count": count, "sums": text, "dtype": found.dtype.str, "shape": found.shape, "errors": shown}


def read_shard(task: Task) -> Task:
    """Task: read and decode the records of one database, and return what is known of each."""
    with closing(open_database(task["path"])) as database, closing(decoded_records(database)) as records:
        return {"records": [_to_json(record_facts(record)) for record in records]}


def _to_json(facts: RecordFacts) -> list[Any]:
    error = None if facts.error is None else error_to_json(facts.error)
    return [facts.key, facts.raw_key.hex(), facts.label, facts.shape, facts.stated, facts.not_finite, error, facts.boxes]


def _facts(values: list[Any]) -> RecordFacts:
    key, raw, label, shape, stated, not_finite, error, boxes = values
    return RecordFacts(
        key=key,
        raw_key=bytes.fromhex(raw),
        label=label,
        shape=None if shape is None else tuple(shape),
        stated=None if stated is None else tuple(stated),
        not_finite=not_finite,
        error=None if error is None else error_from_json(error),
        boxes=None if boxes is None else tuple((box[0], box[1]) for box in boxes),
    )
