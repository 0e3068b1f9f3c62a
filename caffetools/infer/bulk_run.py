"""The run of tasks that write Parquet files, and what a run that was killed leaves for the next one.

A task leaves a note of its result next to its file, so that a run that was killed continues with the tasks that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.cluster import Task, Worker, run_tasks
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, Progress, Warned, reported
from caffetools.util.files import atomic_write, write_text
from caffetools.util.folders import new_folder, remove

if TYPE_CHECKING:
    import pyarrow

PathLike = str | os.PathLike[str]
PART = "part-{:05d}.parquet"
# Written into each folder last, with the number of rows: a folder without it is not complete. Readers of Parquet folders pass over names
# that begin with "_".
SUMMARY = "_summary.json"
# That of earlier versions, which such readers took for a file of rows.
_OLD_SUMMARY = "summary.json"
# Bytes of values that are written as one group of rows.
_GROUP_BYTES = 1 << 25
# Notes on finished tasks, as long as a run is not complete.
_STATE = "state"


class Cached(Protocol):
    """A function with a cache."""

    def cache_clear(self) -> None:
        """Forget what was returned."""


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


def run_parts(
    kind: str,
    worker: Worker,
    tasks: list[Task],
    folders: Sequence[PathLike],
    ends: list[int],
    unit: str,
    cluster: str,
    force: bool,
    resume: bool,
    cached: Sequence[Cached],
    events: EventSink,
    cancel: CancelToken | None,
) -> BulkResult:
    """Run the tasks, the ``ends`` of whose ranges are given; each writes a file into each of the folders. Then complete the folders.

    Args:
        kind: What the events name as their task: ``classify``, ``detect`` or ``extract``.
        worker: Does a task; see :func:`noted`.
        tasks: The tasks, without ``paths`` and ``note``, which are added.
        folders: The folders to create.
        ends: How many pictures or batches there are up to the end of each task.
        unit: What is counted.
        cluster: Address of a cluster; empty for this process.
        force: Replace earlier folders.
        resume: Continue a run that was killed or cancelled.
        cached: Functions that keep a model, to be cleared at the end.
        events: Receives ``Progress`` and ``ArtifactWritten``.
        cancel: Checked after each task.
    """
    import_arrow(folders[0])
    result = BulkResult([os.fspath(folder) for folder in folders])
    total = ends[-1]

    def progress(done: int, count: int) -> None:
        events(Progress(task=kind, done=total if done == count else done * total // count, total=total, unit=unit))

    with reported(kind, f"Writing {', '.join(result.folders)}", events):
        with _new_folders(folders, force, resume) as works:
            _check_state(works[0] / _STATE, worker, tasks, folders[0])
            for number, task in enumerate(tasks):
                task["note"] = str((works[0] / _STATE / f"{number:05d}.json").absolute())
                task["paths"] = [str(Path(work, PART.format(number)).absolute()) for work in works]
            try:
                outcomes = run_tasks(cluster, worker, tasks, progress=progress, cancel=cancel)
            finally:
                for function in cached:
                    function.cache_clear()
            result.rows = sum(outcome["rows"] for outcome in outcomes)
            result.errors = [error for outcome in outcomes for error in outcome["errors"]]
            for warning in dict.fromkeys(text for outcome in outcomes for text in outcome.get("warnings", ())):
                events(Warned(task=kind, message=warning))
            remove(works[0] / _STATE)
            for work in works:
                with atomic_write(work / SUMMARY, "w") as stream:
                    stream.write(json.dumps({"rows": result.rows, "files": len(tasks), "errors": len(result.errors)}) + "\n")
        for folder in result.folders:
            events(ArtifactWritten(task=kind, path=folder, what="parquet"))
    return result


@contextmanager
def _new_folders(folders: Sequence[PathLike], force: bool, resume: bool) -> Iterator[list[Path]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(new_folder(path, force=force, replaceable=_is_result, resumable=True, resume=resume)) for path in folders
        ]


def _is_result(folder: Path) -> bool:
    return (folder / SUMMARY).is_file() or (folder / _OLD_SUMMARY).is_file()


def _check_state(state: Path, worker: Worker, tasks: list[Task], out: PathLike) -> None:
    """Create the folder of notes; raise :class:`DataError` if it is that of a run with other arguments."""
    digest = hashlib.sha256(worker.__name__.encode())
    for task in tasks:
        digest.update(json.dumps(task, sort_keys=True).encode())
    model = tasks[0]["model"]
    options = model.get("options", {})
    for name in (model.get("deploy"), model.get("net"), *(model["weights"] or "").split(","), options.get("mean"), options.get("labels")):
        if isinstance(name, str) and Path(name).is_file():
            status = Path(name).stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    path = state / "run.json"
    if path.is_file():
        if json.loads(path.read_text("utf-8"))["run"] != digest.hexdigest():
            raise DataError("the run to resume had other arguments, pictures or models", path=out, hint="run without --resume")
        return
    remove(state)
    state.mkdir()
    write_text(path, json.dumps({"run": digest.hexdigest()}))


def noted(task: Task, work: Worker) -> Task:
    """Do a task that was not done before, and note its result."""
    note = Path(task["note"])
    if note.is_file():
        found: Task = json.loads(note.read_text("utf-8"))
        return found
    result = work(task)
    write_text(note, json.dumps(result))
    return result


def import_arrow(path: PathLike) -> Any:
    """Return the module pyarrow, with its Parquet part. Raises :class:`DataError` if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("writing Parquet needs pyarrow: pip install 'caffetools[parquet]'", path=path) from None
    return pyarrow


class RowWriter:
    """Writes a Parquet file of blobs' values, group of rows by group of rows, so that few of them are in memory at a time.

    Args:
        stream: The file.
        schema: Of pyarrow: columns of any kind, and of fixed-size lists of float32.

    Attributes:
        rows: Number of rows so far.
    """

    def __init__(self, stream: IO[bytes], schema: pyarrow.Schema):
        import pyarrow.parquet

        self._writer = pyarrow.parquet.ParquetWriter(stream, schema)
        self._schema = schema
        self._columns: list[list[Any]] = [[] for _ in schema]
        self._bytes = self.rows = 0

    def add(self, values: Sequence[Any], size: int) -> None:
        """Add a row: a value for each column, arrays (values) float32 or None for the fixed-size lists; ``size`` is its number of bytes."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self._bytes, self.rows = self._bytes + size, self.rows + 1
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left and the end of the file."""
        if self._columns[0] or not self.rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as arrow

        made = []
        for kind, column in zip(self._schema.types, self._columns, strict=True):
            arrays = [row for row in column if isinstance(row, np.ndarray)]
            if arrays and arrow.types.is_list(kind):
                ends = np.cumsum([0, *(0 if row is None else row.size for row in column)], dtype=np.int32)
                values = arrow.array(np.concatenate(arrays, axis=None))
                missing = arrow.array([row is None for row in column])
                made.append(arrow.ListArray.from_arrays(arrow.array(ends), values, type=kind, mask=missing))
            elif arrays:
                made.append(arrow.FixedSizeListArray.from_arrays(np.concatenate(arrays, axis=None), type=kind))
            else:
                made.append(arrow.array(column, kind))
            column.clear()
        self._writer.write_table(arrow.table(made, schema=self._schema))
        self._bytes = 0


def write_table(path: str, table: pyarrow.Table) -> None:
    """Write a table of pyarrow as a Parquet file, complete or not at all."""
    import pyarrow.parquet

    with atomic_write(path) as stream:
        pyarrow.parquet.write_table(table, stream)
