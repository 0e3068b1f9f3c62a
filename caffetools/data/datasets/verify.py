"""Check a database: every record decodes, keys rise, sizes agree, labels leave no gap."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from caffetools.cancel import CancelToken
from caffetools.data.database import Database
from caffetools.data.databases import open_database
from caffetools.data.datasets.card import DatasetCard
from caffetools.data.datasets.inspect import followed
from caffetools.data.datasets.records import RecordFacts, record_facts
from caffetools.data.shards import ShardedDatabase, checksum_errors
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reported

PathLike = str | os.PathLike[str]
# Numbers with which convert_imageset and most scripts begin a key.
_NUMBER = re.compile(rb"\d{1,18}(?=_|$)")
# Number of the size and of the record, and length of its key.
_SIZE_ENTRY = struct.Struct("<IQI")
FaultKind = Literal["damaged", "order", "size", "values", "label", "gap", "rows"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(frozen=True)
class Fault:
    """Something wrong with a database.

    Attributes:
        kind: ``damaged``: a record cannot be read or decoded. ``order``: keys are numbers, and the records
            are not in the order of the numbers (named once); keys out of the database's own order are damage. ``size``: its
            size differs from most others', or from what its Datum states. ``values``: it has values that are not finite, or a box that is
            not within its picture. ``label``: its label, or that of a box, is missing, negative, or not below the number of classes. ``gap``: no record has a label.
            ``rows``: the datasets of an HDF5 file differ in their number of rows.
        key: Key of the record; empty for faults of no single record.
        message: What is wrong.
    """

    kind: FaultKind
    key: str
    message: str


@dataclass
class Verification:
    """The result of :func:`verify_database`.

    Attributes:
        path: The database.
        records: Number of records read.
        faults: The faults in the order in which they were found; those of no single record at the end.
    """

    path: str
    records: int = 0
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        faults = [{"kind": fault.kind, "key": fault.key, "message": fault.message} for fault in self.faults]
        return {"path": self.path, "records": self.records, "faults": faults}


def stated_faults(card: DatasetCard, part: str) -> tuple[FaultKind, ...]:
    """Return the kinds of faults that are none in a part of a dataset, since its card states them.

    Args:
        card: The card: pictures may keep their own sizes, and a part may be without pictures of a class.
        part: ``train``, ``val`` or ``test``.
    """
    return (*(("size",) if not card.width else ()), *(("gap",) if 0 in card.counts(part) else ()))


def verify_database(
    path: PathLike,
    *,
    classes: int | None = None,
    allow: tuple[str, ...] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Read and decode every record of a database and list what is wrong.

    Args:
        path: An LMDB or LevelDB of Datum messages.
        classes: Number of classes: labels must be below it, and each must occur. None: labels must occur from 0 to the highest.
        allow: Kinds of faults that are not listed: ``size`` for databases of mixed sizes, ``gap`` for a split without some classes…
        events: Receives ``Progress`` (unit ``records``).
        cancel: Checked between records.

    Raises:
        DataError: It is not a database, or a kind in ``allow`` is unknown.
        Cancelled: ``cancel`` was set.
    """
    _check_request(classes, allow)
    with reported("dataset", f"Verifying {os.fspath(path)}", events), closing(open_database(path)) as database:
        return check_facts(map(record_facts, followed(database, events, cancel)), database, classes=classes, allow=allow)


def check_facts(
    records: Iterable[RecordFacts], database: Database, *, classes: int | None = None, allow: tuple[str, ...] = ()
) -> Verification:
    """Return the faults of records whose facts are known, in the order of the database.

    Args:
        records: The facts about each record.
        database: The database that they are of; the checksums of its shards are compared.
        classes: See :func:`verify_database`.
        allow: See :func:`verify_database`.

    Raises:
        DataError: A kind in ``allow`` is unknown, or ``classes`` is below 1.
    """
    _check_request(classes, allow)
    checker = _Checker(classes)
    for record in records:
        checker.add(record)
    found = checker.finish()
    if isinstance(database, ShardedDatabase):
        found += [Fault("damaged", "", str(error)) for error in checksum_errors(database)]
    return Verification(database.path, checker.records, [fault for fault in found if fault.kind not in allow])


def _check_request(classes: int | None, allow: tuple[str, ...]) -> None:
    for kind in allow:
        if kind not in FAULT_KINDS:
            raise DataError(f"the kind of fault '{kind}' is unknown; it can be {', '.join(FAULT_KINDS)}")
    if classes is not None and classes < 1:
        raise DataError(f"the number of classes must be 1 or more, not {classes}")


class _Checker:
    def __init__(self, classes: int | None):
        self.records, self._classes = 0, classes
        self._numbered: list[tuple[int, Fault]] = []
        self._last = -1
        self._all_numbered = True
        self._order: tuple[int, Fault] | None = None
        self._sizes = _Sizes()
        self._labels: Counter[int] = Counter()
        self._unlabelled: list[tuple[int, str]] = []

    def add(self, record: RecordFacts) -> None:
        number = self.records
        self.records += 1
        self._check_order(record)
        if record.error is not None:
            error = record.error
            self._fault("damaged", record, f"{error.message}; {error.hint}" if error.record is not None and error.hint else str(error))
        if record.shape is not None:
            self._check_array(record, record.shape)
            self._sizes.add(_shown(record.shape), number, record.key)
        if record.boxes is not None:
            self._check_boxes(record, record.boxes)
        elif record.label is not None:
            self._check_label(record, record.label)
        elif record.error is None:
            self._unlabelled.append((number, record.key))

    def finish(self) -> list[Fault]:
        self._numbered += self._sizes.unusual()
        self._sizes.close()
        if self._order is not None and self._all_numbered:
            self._numbered.append(self._order)
        if self._labels:
            self._numbered += [(n, Fault("label", key, "it has no label, which Caffe reads as 0")) for n, key in self._unlabelled]
        faults = [fault for _, fault in sorted(self._numbered, key=lambda item: item[0])]
        highest = self._classes if self._classes is not None else max(self._labels, default=-1) + 1
        missing = _ranges(self._labels, highest)
        if missing and (self._labels or self._classes is not None):
            reach = f"the highest label is {highest - 1}" if self._classes is None else f"the number of classes is {self._classes}"
            faults.append(Fault("gap", "", f"no record has the label(s) {', '.join(missing)}; {reach}"))
        return faults

    def _check_order(self, record: RecordFacts) -> None:
        """Compare the number at the key's start with the one before; keys of another form have no numbers to compare."""
        if not record.raw_key:
            return
        found = _NUMBER.match(record.raw_key)
        if found is None:
            self._all_numbered = False
            return
        number = int(found[0])
        if number < self._last and self._order is None:
            text = f"its number comes after {self._last}: databases order keys as bytes, and these are not padded with zeros"
            self._order = self.records - 1, Fault("order", record.key, text)
        self._last = number

    def _check_label(self, record: RecordFacts, label: int, what: str = "") -> None:
        if label < 0:
            self._fault("label", record, f"{what}its label {label} is negative")
        elif self._classes is not None and label >= self._classes:
            self._fault("label", record, f"{what}its label {label} is not below the number of classes, {self._classes}")
        else:
            self._labels[label] += 1

    def _check_boxes(self, record: RecordFacts, boxes: tuple[tuple[int, str], ...]) -> None:
        # Label 0 is the background, which no box has.
        self._labels[0] += 1
        for number, (label, fault) in enumerate(boxes, 1):
            self._check_label(record, label, f"box {number}: ")
            if fault:
                self._fault("values", record, f"box {number} {fault}")

    def _check_array(self, record: RecordFacts, shape: tuple[int, ...]) -> None:
        stated = record.stated
        if stated is not None and stated[1:] != shape[1:]:
            self._fault("size", record, f"its picture is {_shown(shape)}, but its Datum states {_shown(stated)}")
        if record.not_finite:
            self._fault("values", record, f"{record.not_finite} of its values are not finite (NaN or infinite)")

    def _fault(self, kind: FaultKind, record: RecordFacts, message: str) -> None:
        self._numbered.append((self.records - 1, Fault(kind, record.key, message)))


class _Sizes:
    """The size of each record. Which one is the usual is known at the end, so keys are kept in a temporary file, not in memory."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)

    def add(self, size: str, number: int, key: str) -> None:
        self._counts[size] += 1
        which = self._numbers.setdefault(size, len(self._numbers))
        text = key.encode("utf-8", "surrogatepass")
        self._file.write(_SIZE_ENTRY.pack(which, number, len(text)) + text)

    def unusual(self) -> Iterator[tuple[int, Fault]]:
        """Yield the number and fault of each record that has another size than most."""
        if len(self._counts) < 2:
            return
        usual, count = self._counts.most_common(1)[0]
        names = list(self._numbers)
        self._file.seek(0)
        while head := self._file.read(_SIZE_ENTRY.size):
            which, number, length = _SIZE_ENTRY.unpack(head)
            key = self._file.read(length).decode("utf-8", "surrogatepass")
            if names[which] != usual:
                fault = f"its size is {names[which]}, but that of {count} record(s) is {usual}"
                yield number, Fault("size", key, fault)

    def close(self) -> None:
        self._file.close()


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _ranges(labels: Counter[int], count: int) -> list[str]:
    """Return the labels below ``count`` that do not occur, as ``3`` or ``5-9``; in steps over ``labels``, since a label may be huge."""
    found, start = [], 0
    for label in [*sorted(label for label in labels if label < count), count]:
        if label > start:
            found.append(str(start) if label == start + 1 else f"{start}-{label - 1}")
        start = label + 1
    return found
