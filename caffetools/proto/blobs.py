"""BlobProto to numpy and back, without decoding floats one by one."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.proto import wire
from caffetools.proto.schema import BlobProto

Array = NDArray[np.float32]


class LegacyArray(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """A float32 array of four axes that a file describes by num, channels, height and width rather than by a shape.

    It is written in that form again: only then does Caffe accept another number of axes, such as (1, 1, 1, C) for a bias of C values.
    """


_SHAPE, _DATA, _DIFF, _DOUBLE_DATA, _DOUBLE_DIFF = 7, 5, 6, 8, 9
_LONGEST_AXIS = 2**31 - 1  # of a C++ int
_LEGACY = (1, 2, 3, 4)  # num, channels, height, width
# NVCaffe's: the type of the values (its enum Type), and the values as bytes; of the data, of the diff.
_RAW, _RAW_DIFF = (10, 12), (11, 13)
_RAW_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f8"), 1: np.dtype("<f4"), 2: np.dtype("<f2")}


def decode_blob(buffer: memoryview, start: int = 0, end: int | None = None, *, diff: bool = False) -> Array:
    """Decode the BlobProto in ``buffer[start:end]`` to a float32 array: a read-only view of it where it is stored as one run of float32.

    Values may be stored as float or double, or as NVCaffe's raw bytes of half, float or double.

    Args:
        buffer: The bytes, of a mapped file for instance.
        start: Where the message begins.
        end: Where it ends; by default at the end of ``buffer``.
        diff: Decode the diff instead of the data.

    Returns:
        An array of the blob's shape. Old blobs without a shape field are a :class:`LegacyArray` of four axes (num, channels, height,
        width), and a blob with neither has no axes.

    Raises:
        WireError: The bytes are not a BlobProto, or the number of values is not that of the shape.
    """
    wanted: dict[int, np.dtype[Any]] = {}
    wanted |= {_DIFF: np.dtype("<f4"), _DOUBLE_DIFF: np.dtype("<f8")} if diff else {_DATA: np.dtype("<f4"), _DOUBLE_DATA: np.dtype("<f8")}
    raw_type, raw_data = _RAW_DIFF if diff else _RAW
    pieces: list[NDArray[Any]] = []
    shape: tuple[int, ...] | None = None
    legacy: dict[int, int] = {}
    for field in wire.walk(buffer, start, end):
        if field.number in wanted and field.kind != wire.VARINT:
            dtype = wanted[field.number]
            if (field.end - field.value) % dtype.itemsize:
                raise wire.WireError("a run of floats ends inside one", field.value)
            pieces.append(np.frombuffer(buffer[field.value : field.end], dtype))
        elif field.number == raw_type and field.kind == wire.VARINT:
            # Its number is lower than that of the values, so it stands before them.
            wanted[raw_data] = _raw_dtype(buffer, field)
        elif field.number == _SHAPE and field.kind == wire.BYTES:
            shape = _decode_shape(buffer, field)
        elif field.number in _LEGACY and field.kind == wire.VARINT:
            legacy[field.number] = wire.read_varint(buffer, field.value, field.end)[0]
    data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    is_legacy = shape is None and bool(legacy)
    if shape is None:
        # Caffe writes no shape for a blob without axes, which holds one value.
        shape = tuple(legacy.get(number, 0) for number in _LEGACY) if legacy else ()
    if any(dim > _LONGEST_AXIS for dim in shape):
        raise wire.WireError(f"the shape {_times(shape)} has an axis that is negative or too long", start)
    if data.size != math.prod(shape):
        raise wire.WireError(f"{data.size} values do not fill the shape {_times(shape)}", start)
    array = data.astype(np.float32, copy=False).reshape(shape)
    return array.view(LegacyArray) if is_legacy else array


def release_pages(array: NDArray[Any]) -> None:
    """Give back the memory that holds ``array``'s part of a mapped file; the values are read again when they are used again.

    Without it a file that is copied value by value stays in memory next to its copy until nothing refers to the file. Arrays that are
    not views of a file mapped for reading, and systems without ``madvise``, are left alone.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not array.flags.c_contiguous or array.flags.writeable:
        return
    whole = np.frombuffer(mapped, np.uint8)
    first = array.ctypes.data - whole.ctypes.data
    # The pages at both ends may hold others' values, which costs a read of a page from the system's cache at most.
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, start, min(first + array.nbytes, whole.size) - start)


def encode_blob(array: NDArray[Any], *, legacy: bool = False, diff: NDArray[Any] | None = None) -> list[bytes | memoryview]:
    """Serialize ``array`` as a BlobProto in pieces, fields in the order of their numbers as Caffe writes them.

    Args:
        array: Numbers of any shape; no axes give a blob without a shape, as in Caffe.
        legacy: Write num, channels, height and width (exactly four axes) in place of the shape, as Caffe's mean files do;
            a :class:`LegacyArray` is always written so.
        diff: The blob's diff, of the same shape, to be stored too.
    """
    data = np.asarray(array, "<f4", order="C")
    legacy = legacy or (isinstance(array, LegacyArray) and data.ndim == 4)
    head = BlobProto()
    if legacy:
        head.num, head.channels, head.height, head.width = data.shape
        shape = b""
    else:
        if data.ndim:
            head.shape.dim.extend(data.shape)
        shape, head = head.SerializeToString(), BlobProto()
    stored: list[bytes | memoryview] = []
    for number, values in ((_DATA, data), (_DIFF, diff)):
        if values is not None:
            payload = memoryview(np.asarray(values, "<f4", order="C").reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            stored += [wire.bytes_key(number, len(payload)), payload]
    return [head.SerializeToString(), *stored, shape]


def pieces_length(pieces: Iterable[bytes | memoryview]) -> int:
    """Return the total length of ``pieces`` in bytes."""
    return sum(len(piece) for piece in pieces)


def blob_to_array(blob: BlobProto, *, diff: bool = False) -> Array:
    """Return a ``BlobProto`` message as a float32 array. Raises :class:`WireError` where values and shape disagree."""
    return decode_blob(memoryview(blob.SerializeToString()), diff=diff)


def array_to_blob(array: NDArray[Any]) -> BlobProto:
    """Return a ``BlobProto`` message that holds ``array`` as float32."""
    return BlobProto.FromString(b"".join(encode_blob(array)))


def _raw_dtype(buffer: memoryview, field: wire.Field) -> np.dtype[Any]:
    kind = wire.read_varint(buffer, field.value, field.end)[0]
    if kind not in _RAW_TYPES:
        raise wire.WireError(f"a blob of NVCaffe's type {kind} holds no weights", field.start)
    return _RAW_TYPES[kind]


def fits_stored(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether a blob stored with one shape can be used for the ``wanted`` one.

    Files of Caffe's first years store every blob with four axes, the missing ones in front: (1, 1, outputs, inputs) for a matrix.
    Earlier releases of caffetools stored a blob without axes with one.
    """
    return (
        stored == wanted
        or (stored == (1,) and wanted == ())
        or (len(stored) == 4 and len(wanted) < 4 and stored == (1,) * (4 - len(wanted)) + wanted)
    )


def _decode_shape(buffer: memoryview, field: wire.Field) -> tuple[int, ...]:
    dims: list[int] = []
    for inner in wire.walk(buffer, field.value, field.end):
        if inner.number != 1:
            continue
        position = inner.value
        while position < inner.end:  # one dim, or a packed run of them
            dim, position = wire.read_varint(buffer, position, inner.end)
            dims.append(dim)
    return tuple(dims)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"
