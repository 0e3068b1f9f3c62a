"""The size that a picture's header states, read without decoding it."""

from __future__ import annotations

import struct
from contextlib import suppress

# The beginning of a JPEG.
JPEG = b"\xff\xd8"
# Bytes at the beginning of a JPEG 2000 or AVIF in which its size is looked for.
_BOXES = 4096


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the header of a JPEG, PNG, GIF, BMP, WebP, TIFF, JPEG 2000 or AVIF; None for what is none of these."""
    with suppress(struct.error, IndexError):
        if data.startswith(JPEG):
            return _jpeg_size(data)
        if data.startswith(b"\x89PNG"):
            return _unpacked(">II", data, 16)
        if data.startswith(b"GIF8"):
            return _unpacked("<HH", data, 6)
        if data.startswith(b"BM"):
            width, height = _unpacked("<HH", data, 18) if data[14] == 12 else _unpacked("<ii", data, 18)
            return abs(width), abs(height)
        if data[8:12] == b"WEBP":
            return _webp_size(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff_size(data)
        if data.startswith(b"\xff\x4f\xff\x51"):
            return _unpacked(">II", data, 8)
        if data[4:8] in (b"jP  ", b"ftyp"):
            box, avif = (data.find(name, 0, _BOXES) for name in (b"ihdr", b"ispe"))
            if data[4:8] == b"ftyp" and avif >= 0:
                return _unpacked(">II", data, avif + 8)
            return _unpacked(">II", data, box + 4)[::-1] if box >= 0 else None
    return None


def _unpacked(form: str, data: bytes, offset: int) -> tuple[int, int]:
    first, second = struct.unpack_from(form, data, offset)
    return first, second


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the size in the frame's header: the marks C0 … CF, apart from those of Huffman tables, arithmetic coding and extensions."""
    position = 2
    while position + 9 <= len(data):
        mark = data[position + 1]
        if data[position] != 0xFF or mark == 0xFF:
            position += 1
        elif 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            return _unpacked(">HH", data, position + 5)[::-1]
        elif mark in (0x00, 0x01) or 0xD0 <= mark <= 0xD8:
            position += 2
        elif mark in (0xD9, 0xDA):
            return None
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = _unpacked("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Return the size in the first directory of a TIFF or BigTIFF: its tags 256 and 257."""
    order, big = "<" if data.startswith(b"II") else ">", 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    found: dict[int, int] = {}
    entry, first = (20, start + 8) if big else (12, start + 2)
    for offset in range(first, first + entry * min(count, 4096), entry):
        tag, kind = struct.unpack_from(order + "HH", data, offset)
        if tag in (256, 257) and kind in (3, 4, 16):
            (found[tag],) = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}[kind], data, offset + (12 if big else 8))
    return (found[256], found[257]) if len(found) == 2 else None
