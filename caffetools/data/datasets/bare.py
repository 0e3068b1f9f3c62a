"""Databases without a dataset's lists and card: several as one, and a part of one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.databases import LmdbWriter, new_lmdb, open_database, record_key, shown_key
from caffetools.data.datasets.remote import urls_allowed
from caffetools.data.datum import parse_datum
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter

PathLike = str | os.PathLike[str]
# convert_imageset's keys are a number and the picture's path.
_NUMBER = re.compile(rb"^\d+_?")


@dataclass
class CopiedRecords:
    """The result of :func:`merge_databases` or :func:`subset_database`.

    Attributes:
        path: The new LMDB.
        records: Number of its records.
        labels: Old → new label, where they differ or were chosen; empty if labels stay.
    """

    path: str
    records: int = 0
    labels: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; the labels are strings there."""
        return {"path": self.path, "records": self.records, "labels": {str(old): new for old, new in self.labels.items()}}


@urls_allowed
def merge_databases(
    sources: Sequence[PathLike], out: PathLike, *, force: bool = False, events: EventSink = ignore, cancel: CancelToken | None = None
) -> CopiedRecords:
    """Write the records of several databases into a new LMDB, one database after the other, with new keys and their own labels.

    Args:
        sources: LMDBs, LevelDBs or indices of shards.
        out: LMDB to create.
        force: Replace an LMDB at ``out`` once the new one is complete.
        events: Receives ``Started``, ``Progress`` (unit ``records``), ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between records; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: There are fewer than two sources, one is not a database or damaged, or ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    if len({os.path.realpath(source) for source in sources}) < max(2, len(sources)):
        raise DataError("two or more different databases are needed to merge them")
    result = CopiedRecords(os.fspath(out))
    total = sum(_count(source) for source in sources)
    report = reporter(events, "dataset", "records", cancel)
    with reported("dataset", f"Merging databases into {result.path}", events):
        with new_lmdb(out, force=force) as writer:
            for source in sources:
                with closing(open_database(source)) as database, closing(database.records()) as records:
                    for key, value in records:
                        parse_datum(value, shown_key(database.path, key))
                        _put(writer, key, value)
                        report(writer.count, total)
            result.records = writer.count
        events(ArtifactWritten(task="dataset", path=result.path, what="lmdb"))
    return result


@urls_allowed
def subset_database(
    source: PathLike,
    out: PathLike,
    *,
    labels: Sequence[int] | None = None,
    per_class: int | None = None,
    seed: int = 1,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> CopiedRecords:
    """Write a part of a database as a new LMDB, in the old order, with new keys.

    Args:
        source: An LMDB, LevelDB or index of shards.
        out: LMDB to create.
        labels: Labels to take, which then count from 0 in their order; all by default, which stay as they are.
        per_class: Most records of a label; drawn at random.
        seed: Seed of the drawing.
        force: Replace an LMDB at ``out`` once the new one is complete.
        events: Receives ``Started``, ``Progress`` (unit ``records``), ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between records; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: ``source`` is not a database or is damaged, it has no record of a label, ``per_class`` is below 1, or ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    if per_class is not None and per_class < 1:
        raise DataError(f"the number of records of a label must be 1 or more, not {per_class}")
    result = CopiedRecords(os.fspath(out))
    report = reporter(events, "dataset", "records", cancel)
    with reported("dataset", f"Selecting from {os.fspath(source)}", events), closing(open_database(source)) as database:
        total = 2 * len(database)
        numbers: dict[int, list[int]] = {}
        with closing(database.records()) as records:
            for number, (key, value) in enumerate(records):
                numbers.setdefault(parse_datum(value, shown_key(database.path, key)).label, []).append(number)
                report(number + 1, total)
        chosen, result.labels = _chosen(numbers, labels, per_class, seed, source)
        with new_lmdb(out, force=force) as writer, closing(database.records()) as records:
            for number, (key, value) in enumerate(records):
                if number in chosen:
                    _put(writer, key, _relabelled(value, result.labels, shown_key(database.path, key)))
                report(total // 2 + number + 1, total)
            result.records = writer.count
        events(ArtifactWritten(task="dataset", path=result.path, what="lmdb"))
    return result


def _chosen(
    numbers: dict[int, list[int]], labels: Sequence[int] | None, per_class: int | None, seed: int, source: PathLike
) -> tuple[set[int], dict[int, int]]:
    """Return the numbers of the records to take, and old → new label."""
    for label in labels or ():
        if label not in numbers:
            raise DataError(f"no record has the label {label}", path=source, hint=f"the labels are {min(numbers)} to {max(numbers)}")
    taken: set[int] = set()
    for label in sorted(set(numbers if labels is None else labels)):
        of_label = numbers[label]
        if per_class is not None and len(of_label) > per_class:
            order = np.random.default_rng([seed, label & 0xFFFFFFFF]).permutation(len(of_label))
            of_label = [of_label[index] for index in order[:per_class]]
        taken.update(of_label)
    return taken, {} if labels is None else {old: new for new, old in enumerate(sorted(set(labels)))}


def _relabelled(value: bytes, labels: dict[int, int], what: str) -> bytes:
    datum = parse_datum(value, what)
    new = labels.get(datum.label, datum.label)
    if new == datum.label:
        return value
    datum.label = new
    relabelled: bytes = datum.SerializeToString()
    return relabelled


def _put(writer: LmdbWriter, key: bytes, value: bytes) -> None:
    writer.put(record_key(writer.count, os.fsdecode(_NUMBER.sub(b"", key))), value)


def _count(source: PathLike) -> int:
    with closing(open_database(source)) as database:
        return len(database)
