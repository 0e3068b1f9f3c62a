"""BlobProto to numpy and back, without decoding floats one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.proto import wire
from caffetools.proto.schema import BlobProto

Array = NDArray[np.float32]

_SHAPE, _DATA, _DIFF, _DOUBLE_DATA, _DOUBLE_DIFF = 7, 5, 6, 8, 9
_LEGACY = (1, 2, 3, 4)  # num, channels, height, width


def decode_blob(buffer: memoryview, start: int = 0, end: int | None = None, *, diff: bool = False) -> Array:
    """The float32 array of the BlobProto in ``buffer[start:end]``: a read-only view of it where it is stored as one run.

    Args:
        diff: Take the blob's diff instead of its data.

    Returns:
        An array of the blob's shape; old blobs without a shape field get their four axes (num, channels, height, width),
        and a blob that says nothing of its shape has no axes.

    Raises:
        WireError: the bytes are no BlobProto, or the number of values is not what the shape says.
    """
    wanted: dict[int, np.dtype[Any]] = {}
    wanted |= {_DIFF: np.dtype("<f4"), _DOUBLE_DIFF: np.dtype("<f8")} if diff else {_DATA: np.dtype("<f4"), _DOUBLE_DATA: np.dtype("<f8")}
    pieces: list[NDArray[Any]] = []
    shape: tuple[int, ...] | None = None
    legacy: dict[int, int] = {}
    for field in wire.walk(buffer, start, end):
        if field.number in wanted and field.kind != wire.VARINT:
            dtype = wanted[field.number]
            if (field.end - field.value) % dtype.itemsize:
                raise wire.WireError("a run of floats ends inside one", field.value)
            pieces.append(np.frombuffer(buffer[field.value : field.end], dtype))
        elif field.number == _SHAPE and field.kind == wire.BYTES:
            shape = _decode_shape(buffer, field)
        elif field.number in _LEGACY and field.kind == wire.VARINT:
            legacy[field.number] = wire.read_varint(buffer, field.value, field.end)[0]
    data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    if shape is None:
        # Caffe writes no shape for a blob without axes, which holds one value.
        shape = tuple(legacy.get(number, 0) for number in _LEGACY) if legacy else ()
    if data.size != math.prod(shape):
        raise wire.WireError(f"{data.size} values do not fill the shape {_times(shape)}", start)
    return data.astype(np.float32, copy=False).reshape(shape)


def encode_blob(array: NDArray[Any], *, legacy: bool = False) -> list[bytes | memoryview]:
    """``array`` as the pieces of a serialized BlobProto, fields in the order of their numbers as Caffe writes them.

    Args:
        legacy: Write num, channels, height and width (exactly four axes) in place of the shape, as Caffe's mean files do.
    """
    data = np.asarray(array, "<f4", order="C")
    head = BlobProto()
    if legacy:
        head.num, head.channels, head.height, head.width = data.shape
        shape = b""
    else:
        if data.ndim:
            head.shape.dim.extend(data.shape)
        shape, head = head.SerializeToString(), BlobProto()
    payload = memoryview(data.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    return [head.SerializeToString(), wire.bytes_key(_DATA, len(payload)), payload, shape]


def pieces_length(pieces: Iterable[bytes | memoryview]) -> int:
    """The bytes that ``pieces`` take together."""
    return sum(len(piece) for piece in pieces)


def blob_to_array(blob: Any, *, diff: bool = False) -> Array:
    """The float32 array of a ``BlobProto`` message. Raises :class:`WireError` where values and shape disagree."""
    return decode_blob(memoryview(blob.SerializeToString()), diff=diff)


def array_to_blob(array: NDArray[Any]) -> Any:
    """A ``BlobProto`` message that holds ``array`` as float32."""
    return BlobProto.FromString(b"".join(encode_blob(array)))


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
