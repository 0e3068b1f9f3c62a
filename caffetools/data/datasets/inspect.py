"""What a database holds: counts, sizes, encodings, labels, statistics of the pixels, and a sheet of its pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.databases import Database, open_database
from caffetools.data.datasets.moments import ChannelStatistics, Moments
from caffetools.data.datasets.records import DecodedRecord, decoded_records
from caffetools.data.datasets.sheet import Tiles
from caffetools.data.shards import is_index
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter
from caffetools.util.files import text_lines

PathLike = str | os.PathLike[str]
# Keys of damaged records that are listed.
_MOST_KEYS = 100


@dataclass
class DatabaseSummary:
    """What :func:`inspect_database` found.

    Attributes:
        path: The database.
        backend: ``lmdb`` or ``leveldb``.
        records: Number of records, damaged ones included.
        damaged: Number of records that cannot be decoded.
        first_key: Key of the first record.
        last_key: Key of the last record.
        data_bytes: Size of the records' files or pixels, in bytes.
        shapes: ``CxHxW`` → number of records.
        encodings: Encoding and type of values, such as ``JPEG``, ``raw`` or ``PNG uint16`` → number of records.
        labels: Label → number of records; of records with boxes, number of those with a box of the label.
        unlabelled: Number of records without a label.
        annotated: Number of records that are SSD's AnnotatedDatum.
        boxes: Number of their boxes.
        damaged_keys: Keys of the first 100 damaged records; empty for one whose key cannot be read.
        statistics: Number of channels and type of values, such as ``3 uint8`` → statistics.
    """

    path: str
    backend: str
    records: int = 0
    damaged: int = 0
    first_key: str = ""
    last_key: str = ""
    data_bytes: int = 0
    shapes: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)
    labels: dict[int, int] = field(default_factory=dict)
    unlabelled: int = 0
    annotated: int = 0
    boxes: int = 0
    damaged_keys: list[str] = field(default_factory=list)
    statistics: dict[str, ChannelStatistics] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; the labels are strings there."""
        return {**asdict(self), "labels": {str(label): count for label, count in self.labels.items()}}


def inspect_database(
    path: PathLike,
    *,
    sheet: PathLike | None = None,
    names: list[str] | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatabaseSummary:
    """Read a database through and summarize it.

    Args:
        path: An LMDB or LevelDB of Datum messages.
        sheet: Image file to write with a row of pictures for each label, such as ``sheet.png``.
        names: Class names for the sheet; label i at place i.
        events: Receives ``Progress`` (unit ``records``) and ``ArtifactWritten``.
        cancel: Checked between records.

    Raises:
        DataError: It is not a database, or no record of it can be read.
        RunFailed: The sheet cannot be written.
        Cancelled: ``cancel`` was set.
    """
    with reported("dataset", f"Inspecting {os.fspath(path)}", events), closing(open_database(path)) as database:
        collector = _Collector(DatabaseSummary(os.fspath(path), backend_of(path)))
        tiles = Tiles()
        for record in followed(database, events, cancel):
            collector.add(record)
            if sheet is not None and record.array is not None:
                for label in record.labels or (None,):
                    tiles.add(label, record.array)
        summary = collector.summary()
        if summary.damaged == summary.records:
            raise DataError("no record can be decoded", path=path, hint=f"the first error: {collector.first_error}")
        if sheet is not None:
            tiles.write(sheet, summary.labels, names, unlabelled=summary.unlabelled)
            events(ArtifactWritten(task="dataset", path=os.fspath(sheet), what="sheet"))
    return summary


def followed(database: Database, events: EventSink, cancel: CancelToken | None) -> Iterator[DecodedRecord]:
    """Yield the decoded records of ``database``, with a ``Progress`` event after each hundredth."""
    report, total = reporter(events, "dataset", "records", cancel), len(database)
    step, done = max(1, total // 100), 0
    with closing(decoded_records(database)) as records:
        for record in records:
            if cancel is not None:
                cancel.raise_if_cancelled("reading the database")
            yield record
            done += 1
            if done % step == 0:
                report(done, total)


def read_names(path: PathLike) -> list[str]:
    """Return the class names in a file, one a line (``labels.txt``). Raises :class:`DataError` if it cannot be read."""
    try:
        return text_lines(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot read the class names: {reason}", path=path) from None


def backend_of(path: PathLike) -> str:
    """Return ``lmdb``, ``leveldb`` or ``shards``: the kind of database at ``path``."""
    if is_index(path):
        return "shards"
    folder = Path(path)
    return "leveldb" if (folder / "CURRENT").is_file() and not (folder / "data.mdb").exists() else "lmdb"


def shape_text(array: NDArray[Any]) -> str:
    """Return ``CxHxW`` of an array."""
    return "x".join(map(str, array.shape))


class _Collector:
    """Adds up what the records hold."""

    def __init__(self, summary: DatabaseSummary):
        self._summary = summary
        self._shapes: Counter[str] = Counter()
        self._encodings: Counter[str] = Counter()
        self._labels: Counter[int] = Counter()
        self._moments: dict[str, Moments] = {}
        self.first_error: DataError | None = None

    def add(self, record: DecodedRecord) -> None:
        summary = self._summary
        summary.records += 1
        summary.first_key = summary.first_key or record.key
        summary.last_key = record.key or summary.last_key
        if record.error is not None or record.array is None:
            summary.damaged += 1
            if len(summary.damaged_keys) < _MOST_KEYS:
                summary.damaged_keys.append(record.key)
            self.first_error = self.first_error or record.error
            return
        array = record.array
        summary.annotated += record.annotated
        summary.boxes += len(record.boxes or ())
        summary.data_bytes += len(record.data) or array.nbytes
        self._shapes[shape_text(array)] += 1
        self._encodings[record.encoding + (f" {array.dtype}" if array.dtype == np.uint16 else "")] += 1
        summary.unlabelled += not record.labels
        self._labels.update(record.labels)
        self._moments.setdefault(f"{len(array)} {array.dtype}", Moments(len(array))).add(array)

    def summary(self) -> DatabaseSummary:
        summary = self._summary
        summary.shapes = dict(self._shapes.most_common())
        summary.encodings = dict(self._encodings.most_common())
        summary.labels = dict(sorted(self._labels.items()))
        summary.statistics = {name: moments.statistics() for name, moments in sorted(self._moments.items())}
        return summary
