"""Datum, the record of Caffe's databases, to numpy and back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffetools.data.images import Pixels, decode_image, to_planes
from caffetools.errors import DataError
from caffetools.proto import wire
from caffetools.proto.schema import AnnotatedDatum, Datum

# Datum's field `data`, and the number of further fields that a record with a picture has at most (unpacked floats are a field each).
_DATA, _FEW_FIELDS = 4, 16
# Different bytes after the pixels (a label each) that are remembered.
_TAILS = 4096


def array_to_datum(array: NDArray[Any], label: int | None = None) -> Datum:
    """Return a ``Datum`` of an array, as caffe.io.array_to_datum does.

    Args:
        array: (C, H, W); uint8 becomes ``data``, any other type ``float_data``.
        label: The label, if there is one.

    Raises:
        DataError: The array does not have three axes.
    """
    if array.ndim != 3:
        raise DataError(f"a Datum holds three axes (channels, height, width), not {array.ndim}")
    datum = Datum(channels=array.shape[0], height=array.shape[1], width=array.shape[2])
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(np.float64).flat)
    if label is not None:
        datum.label = label
    return datum


def annotated_datum(value: bytes) -> AnnotatedDatum | None:
    """Return the record ``value`` as SSD's AnnotatedDatum; None if it is not one, or one without a picture."""
    try:
        annotated = AnnotatedDatum.FromString(value)
    except DecodeError:
        return None
    return annotated if annotated.datum.data or annotated.datum.float_data else None


def image_to_datum(image: Pixels, label: int) -> Datum:
    """Return a ``Datum`` of a picture (H, W, C) or (H, W), uint8, BGR: field for field what convert_imageset stores."""
    datum = array_to_datum(to_planes(image), label)
    datum.encoded = False
    return datum


def image_to_record(image: Pixels, label: int) -> bytes:
    """Return ``image_to_datum(image, label)`` serialized, without the copies that a message makes.

    Args:
        image: (H, W, C) or (H, W), uint8, BGR.
        label: The label.
    """
    import cv2

    channels = image.shape[2] if image.ndim == 3 else 1
    planes = np.empty((channels, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    header = Datum(channels=channels, height=image.shape[0], width=image.shape[1]).SerializeToString()
    # Field 4 (data), its length as a varint, and the fields after it.
    return b"".join((header, b"\x22", wire.varint(planes.nbytes), planes.data, Datum(label=label, encoded=False).SerializeToString()))


def encoded_to_datum(data: bytes, label: int) -> Datum:
    """Return a ``Datum`` that holds a picture's file, as ``convert_imageset --encoded`` stores it: without the size."""
    return Datum(data=data, label=label, encoded=True)


def is_encoded(value: bytes) -> bool:
    """Return whether the record ``value`` ends like one of convert_imageset with ``encoded: true``, its last field."""
    return value.endswith(b"\x38\x01")


def parse_datum(value: bytes, what: str) -> Datum:
    """Return the ``Datum`` in the record ``value``. Raises :class:`DataError` with ``what`` (database and key) if it is not one."""
    if not value:
        raise DataError(f"{what}: the record is empty")
    try:
        datum = Datum.FromString(value)
    except DecodeError:
        raise DataError(f"{what}: the record is damaged: its {len(value)} bytes are not a Datum") from None
    if not (datum.data or datum.float_data):
        if annotated_datum(value) is not None:
            raise DataError(f"{what}: the record is a picture with boxes (SSD's AnnotatedDatum), not a Datum")
        raise DataError(f"{what}: the record holds no pixels")
    return datum


def record_to_array(
    value: bytes, *, color: bool | None = None, what: str = "the record", any_depth: bool = False
) -> tuple[NDArray[Any], int]:
    """Return the values and the label of the ``Datum`` in a record, without copying pixels if possible.

    Args:
        value: The record.
        color: See :func:`datum_to_array`.
        what: The record's name (database and key) for errors.
        any_depth: See :func:`datum_to_array`.

    Returns:
        The array of :func:`datum_to_array`, maybe a view of ``value``, and the label.

    Raises:
        DataError: As :func:`parse_datum` and :func:`datum_to_array`.
    """
    known = _layout
    if known is not None and (label := known.label(value)) is not None:
        return np.frombuffer(value, np.uint8, known.end - known.begin, known.begin).reshape(known.shape), label
    view = memoryview(value)
    rest: list[memoryview] = []
    data: memoryview | None = None
    begin = end = 0
    try:
        for number, item in enumerate(wire.walk(view)):
            if item.number == _DATA and item.kind == wire.BYTES and data is None:
                begin, end = item.value, item.end
                data = view[begin:end]
            elif number < _FEW_FIELDS:
                rest.append(view[item.start : item.end])
            else:
                data = None
                break
        datum = Datum.FromString(b"".join(rest))
        if data and not datum.encoded and not datum.HasField("data"):
            array = _shaped(np.frombuffer(data, np.uint8), datum, what)
            if isinstance(value, bytes):
                _remember(value, begin, end, array.shape, datum.label)
            return array, datum.label
    except (wire.WireError, DecodeError):
        pass  # the parser of the whole record raises the error
    datum = parse_datum(value, what)
    return datum_to_array(datum, color=color, what=what, any_depth=any_depth), datum.label


class _Layout:
    """The bytes around the pixels of a record, which those of its database share: equal bytes need to be parsed once.

    Args:
        head: The bytes before the pixels.
        end: Offset of the end of the pixels.
        shape: (C, H, W).
    """

    def __init__(self, head: bytes, end: int, shape: tuple[int, int, int]):
        self.head, self.begin, self.end, self.shape = head, len(head), end, shape
        self.tails: dict[bytes, int] = {}

    def label(self, value: bytes) -> int | None:
        """Return the label of a record of this layout; None for one of another, or with other bytes after its pixels."""
        return self.tails.get(value[self.end :]) if isinstance(value, bytes) and value.startswith(self.head) else None


# That of the record that was parsed last; only ever replaced, so threads may share it.
_layout: _Layout | None = None


def _remember(value: bytes, begin: int, end: int, shape: tuple[int, int, int], label: int) -> None:
    global _layout
    known = _layout
    if known is None or known.end != end or known.head != value[:begin] or len(known.tails) >= _TAILS:
        known = _Layout(value[:begin], end, shape)
    known.tails[value[end:]] = label
    _layout = known


def find_pixels(address: int, size: int) -> tuple[int, tuple[int, int, int]] | None:
    """Return the address and the shape (C, H, W) of the pixels of a record that lies in memory.

    Args:
        address: Where the record begins.
        size: Its size in bytes.

    Returns:
        None if it holds anything but plain pixels, or is damaged: then :func:`record_to_array` reads it, or has the reason.
    """
    for _ in range(2):
        known = _layout
        fits = known is not None and known.end <= size and ctypes.string_at(address, known.begin) == known.head
        if known is not None and fits and ctypes.string_at(address + known.end, size - known.end) in known.tails:
            return address + known.begin, known.shape
        try:
            record_to_array(ctypes.string_at(address, size))
        except DataError:
            break
    return None


def datum_to_array(
    datum: Datum,
    *,
    color: bool | None = None,
    what: str = "the datum",
    any_depth: bool = False,
    on_damaged: Callable[[DataError], None] | None = None,
) -> NDArray[Any]:
    """Return the values of a ``Datum``.

    Args:
        datum: The message.
        color: How an encoded picture is decoded: True for BGR, False for gray, None for what is stored. Pixels are not changed.
        what: The record's name for errors.
        any_depth: With ``color=None``, also accept encoded pictures of 16 bits, which Caffe refuses.
        on_damaged: See :func:`~caffetools.data.images.decode_image`.

    Returns:
        (C, H, W): uint8 (uint16 for pictures of 16 bits), or float32 if the Datum has ``float_data``. Not always writable.

    Raises:
        DataError: the picture inside cannot be decoded, or the sizes do not fit the values; ``what`` names the record.
    """
    if datum.encoded:
        return to_planes(decode_image(datum.data, color=color, what=what, any_depth=any_depth, on_damaged=on_damaged))
    data = datum.data
    return _shaped(np.frombuffer(data, np.uint8) if data else np.array(datum.float_data, np.float32), datum, what)


def _shaped(array: NDArray[Any], datum: Datum, what: str) -> NDArray[Any]:
    shape = (datum.channels, datum.height, datum.width)
    if min(shape) < 1 or array.size != shape[0] * shape[1] * shape[2]:
        raise DataError(f"{what}: {array.size} values do not fill the stated size {shape[0]} x {shape[1]} x {shape[2]}")
    return array.reshape(shape)
