"""The chunks of a PNG file: whether all of them are there and whole, and the file without those that change no pixel."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# About colours, sizes and texts: OpenCV does not look at them, but libpng, by which it reads, prints a warning of each that it doubts,
# such as of the colour profiles ("iCCP") that many programs write.
_UNREAD = frozenset(b"iCCP sRGB gAMA cHRM tEXt zTXt iTXt tIME pHYs oFFs sPLT hIST sCAL pCAL".split())


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the (type, first byte, byte behind the last) of each chunk up to the end mark; the last may reach beyond the data."""
    position = len(PNG)
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end


def png_ends(data: bytes) -> bool:
    """Return whether a PNG has its end mark."""
    return any(kind == b"IEND" and end <= len(data) for kind, _, end in _chunks(data))


def is_damaged(data: bytes) -> bool:
    """Return whether the checksum of a chunk is wrong."""
    whole = memoryview(data)
    return any(zlib.crc32(whole[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big") for _, start, end in _chunks(data))


def without_unread_chunks(data: bytes) -> bytes:
    """Return a PNG without the chunks that OpenCV does not read; the same bytes where there are none."""
    found = list(_chunks(data))
    if _UNREAD.isdisjoint(kind for kind, _, _ in found):
        return data
    kept = [data[start:end] for kind, start, end in found if kind not in _UNREAD]
    return b"".join([PNG, *kept])
