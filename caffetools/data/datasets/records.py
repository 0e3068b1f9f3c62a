"""The records of any database, decoded: what ``dataset inspect``, ``verify`` and ``export`` go through."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.databases import Database, shown_key
from caffetools.data.datum import annotated_datum, datum_to_array, parse_datum
from caffetools.data.lmdb_file import Record
from caffetools.errors import DataError
from caffetools.proto.schema import Datum
from caffetools.util.threads import ordered_map

# First bytes of a picture's file → format and name ending.
_FORMATS = {
    b"\xff\xd8\xff": ("JPEG", ".jpg"),
    b"\x89PNG": ("PNG", ".png"),
    b"BM": ("BMP", ".bmp"),
    b"GIF8": ("GIF", ".gif"),
    b"RIFF": ("WebP", ".webp"),
    b"II*\0": ("TIFF", ".tif"),
    b"MM\0*": ("TIFF", ".tif"),
}
# Records that a thread decodes at a time.
_CHUNK = 16


@dataclass(frozen=True)
class Box:
    """A box of SSD's AnnotatedDatum.

    Attributes:
        label: Its class.
        corners: xmin, ymin, xmax, ymax, as shares of the picture's sides.
    """

    label: int
    corners: tuple[float, float, float, float]

    @property
    def fault(self) -> str:
        """What is wrong with the corners; empty if nothing is."""
        low_x, low_y, high_x, high_y = self.corners
        if not all(-1e-6 <= value <= 1 + 1e-6 for value in self.corners):
            return "is not within the picture"
        return "has its corners in the wrong order" if high_x < low_x or high_y < low_y else ""


@dataclass(frozen=True)
class DecodedRecord:
    """A record of a database.

    Attributes:
        key: Its key as text; bytes that are not UTF-8 are replaced.
        raw_key: Its key; empty if the database could not give the record, which is then yielded up to a page early.
        label: Its label; None if the Datum has none, or if boxes have the labels.
        encoding: ``raw``, ``float_data``, or the format of the picture's file inside (``JPEG``, ``PNG``…).
        array: (C, H, W), uint8, uint16 or float32; None if it cannot be decoded.
        stated: (C, H, W) that an encoded Datum gives for its picture; None if it gives none.
        data: The picture's file; empty if the record holds pixels.
        error: Why it cannot be decoded.
        annotated: Whether it is an AnnotatedDatum of SSD.
        boxes: The boxes of an AnnotatedDatum whose annotations have a type; None for other records.
        damage: Why the picture's file is damaged, though it can be decoded in part.
    """

    key: str
    raw_key: bytes
    label: int | None = None
    encoding: str = ""
    array: NDArray[Any] | None = None
    stated: tuple[int, int, int] | None = None
    data: bytes = b""
    error: DataError | None = None
    annotated: bool = False
    boxes: tuple[Box, ...] | None = None
    damage: DataError | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """Its label, or those that its boxes have; empty if there is none."""
        if self.boxes is not None:
            return tuple(sorted({box.label for box in self.boxes}))
        return () if self.label is None else (self.label,)


@dataclass(frozen=True)
class RecordFacts:
    """What ``dataset verify`` has to know of a record.

    Attributes:
        key: Its key as text.
        raw_key: Its key; empty if the database could not give the record.
        label: Its label; None if the Datum has none.
        shape: (C, H, W); None if it cannot be decoded.
        stated: (C, H, W) that an encoded Datum gives for its picture; None if it gives none.
        not_finite: Number of its values that are NaN or infinite.
        error: Why it cannot be decoded, or what of it is damaged.
        boxes: Label and fault of each box (see :class:`Box`); None for a record that is classified by one label.
    """

    key: str
    raw_key: bytes
    label: int | None
    shape: tuple[int, ...] | None
    stated: tuple[int, ...] | None
    not_finite: int
    error: DataError | None
    boxes: tuple[tuple[int, str], ...] | None = None


def record_facts(record: DecodedRecord) -> RecordFacts:
    """Return the facts about a decoded record, without its values."""
    array = record.array
    not_finite = 0 if array is None or array.dtype.kind != "f" else int((~np.isfinite(array)).sum())
    shape = None if array is None else array.shape
    boxes = None if record.boxes is None else tuple((box.label, box.fault) for box in record.boxes)
    return RecordFacts(record.key, record.raw_key, record.label, shape, record.stated, not_finite, record.error or record.damage, boxes)


def decoded_records(database: Database) -> Generator[DecodedRecord, None, None]:
    """Yield every record of ``database`` in the order of the keys, decoded by several threads; damaged ones with their error.

    A page of the database that cannot be read ends the iteration with a record that has an error and maybe no key.
    """
    with closing(ordered_map(_decode_chunk, _chunks(database))) as chunks:
        for chunk in chunks:
            yield from chunk


def file_suffix(data: bytes) -> str:
    """Return the name ending for a picture's file: ``.jpg``, ``.png``…; ``.bin`` if the format is not known."""
    return _format(data)[1]


_Chunk = list[tuple[str, Record] | DecodedRecord]


def _chunks(database: Database) -> Iterator[_Chunk]:
    chunk: _Chunk = []
    # The reader calls it with the record's error before it yields the records that follow.
    damaged: list[DataError] = []
    records = database.records(on_error=damaged.append)
    try:
        for record in records:
            chunk += [_damaged(error) for error in damaged]
            damaged.clear()
            chunk.append((database.path, record))
            if len(chunk) >= _CHUNK:
                yield chunk
                chunk = []
    except DataError as error:
        damaged.append(error)
    yield chunk + [_damaged(error) for error in damaged]


def _damaged(error: DataError) -> DecodedRecord:
    return DecodedRecord(error.record or "", b"", error=error)


def _decode_chunk(chunk: _Chunk) -> list[DecodedRecord]:
    return [item if isinstance(item, DecodedRecord) else _decode(*item) for item in chunk]


def _decode(path: str, record: Record) -> DecodedRecord:
    raw, value = record
    key, what = raw.decode("utf-8", "replace"), shown_key(path, raw)
    annotated, boxes = False, None
    try:
        datum = parse_datum(value, what)
    except DataError as error:
        inner = _annotated(value)
        if inner is None:
            return DecodedRecord(key, raw, error=error)
        (datum, boxes), annotated = inner, True
    label = int(datum.label) if datum.HasField("label") and boxes is None else None
    data = bytes(datum.data) if datum.encoded else b""
    encoding = _format(data)[0] if datum.encoded else "raw" if datum.data else "float_data"
    stated = (int(datum.channels), int(datum.height), int(datum.width))
    given = stated if datum.encoded and min(stated) > 0 else None
    damage: list[DataError] = []
    try:
        array = datum_to_array(datum, what=what, any_depth=True, on_damaged=damage.append)
    except DataError as error:
        return DecodedRecord(key, raw, label, encoding, None, given, data, error, annotated, boxes)
    return DecodedRecord(key, raw, label, encoding, array, given, data, None, annotated, boxes, damage[0] if damage else None)


def _annotated(value: bytes) -> tuple[Datum, tuple[Box, ...] | None] | None:
    """Return the Datum inside of SSD's AnnotatedDatum and its boxes, if it states their type; None if ``value`` is not one."""
    found = annotated_datum(value)
    if found is None:
        return None
    if not found.HasField("type"):
        return found.datum, None
    boxes = []
    for group in found.annotation_group:
        for annotation in group.annotation:
            box = annotation.bbox
            boxes.append(Box(int(group.group_label), (box.xmin, box.ymin, box.xmax, box.ymax)))
    return found.datum, tuple(boxes)


def _format(data: bytes) -> tuple[str, str]:
    return next((found for start, found in _FORMATS.items() if data.startswith(start)), ("unknown format", ".bin"))
