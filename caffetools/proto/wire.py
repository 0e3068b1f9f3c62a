"""The protobuf wire format, only as far as weights need it: repeated floats are viewed as bytes, never decoded one by one.

A message is walked field by field without decoding what is inside; see the protobuf encoding guide for the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes end too early or are not a protobuf message; ``offset`` counts from the start of the buffer walked."""

    def __init__(self, what: str, offset: int):
        self.offset = offset
        super().__init__(what)


class Field(NamedTuple):
    """One field of a message: its bytes are ``buffer[start:end]``, key included; the value of a bytes field begins at ``value``."""

    number: int
    kind: int
    start: int
    value: int
    end: int


def walk(buffer: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message that lies in ``buffer[start:end]``, in order. Raises :class:`WireError`."""
    end = len(buffer) if end is None else end
    position = start
    while position < end:
        begin = position
        key, position = read_varint(buffer, position, end)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value = position
            _, position = read_varint(buffer, position, end)
        elif kind == BYTES:
            length, value = read_varint(buffer, position, end)
            position = value + length
        elif kind in (FIXED32, FIXED64):
            value, position = position, position + (4 if kind == FIXED32 else 8)
        else:
            raise WireError(f"wire type {kind} is not valid", begin)
        if number == 0:
            raise WireError("field number 0 is not valid", begin)
        if position > end:
            raise WireError(f"a field of {position - value} bytes extends past the end", begin)
        yield Field(number, kind, begin, value, position)


def read_varint(buffer: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return (value, position behind it) of the varint at ``position``. Raises :class:`WireError`."""
    value = shift = 0
    while True:
        if position >= end:
            raise WireError("the bytes end inside a number", position)
        if shift > 63:
            raise WireError("a number is longer than 10 bytes", position)
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def varint(value: int) -> bytes:
    """Return ``value`` (not negative) as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_key(number: int, length: int) -> bytes:
    """Return the key and the length that precede the ``length`` bytes of a bytes field."""
    return varint(number << 3 | BYTES) + varint(length)
