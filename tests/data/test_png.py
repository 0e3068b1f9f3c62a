"""PNG files whose chunks libpng doubts: the same pixels, or one error, and nothing printed."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from caffetools.data.images import decode_image
from caffetools.data.png import PNG, is_damaged, png_ends, without_unread_chunks
from caffetools.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
FILE = cv2.imencode(".png", PIXELS)[1].tobytes()
HEADER_ENDS = 33


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*more: bytes) -> bytes:
    return FILE[:HEADER_ENDS] + b"".join(more) + FILE[HEADER_ENDS:]


@pytest.mark.parametrize(
    "more",
    [
        (chunk(b"iCCP", b"x\0\0" + zlib.compress(b"abc")),),
        (chunk(b"gAMA", b"\0\0"),),
        (chunk(b"sRGB", b"\0"), chunk(b"sRGB", b"\0")),
        (chunk(b"tEXt", b"Comment\0one"), chunk(b"zTXt", b"Comment\0\0damaged")),
    ],
    ids=["profile too short", "gamma too short", "twice", "text"],
)
def test_what_libpng_warns_of_changes_no_pixel_and_is_not_printed(more: tuple[bytes, ...], capfd: pytest.CaptureFixture[str]) -> None:
    np.testing.assert_array_equal(decode_image(with_chunks(*more)), PIXELS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("at", [60, len(FILE) // 2, len(FILE) - 20])
def test_a_damaged_picture_is_one_error_and_nothing_is_printed(at: int, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = bytearray(FILE)
    damaged[at] ^= 0xFF
    with pytest.raises(DataError, match="a.png: not a picture that OpenCV can decode, or a damaged one"):
        decode_image(bytes(damaged), what="a.png")
    assert capfd.readouterr() == ("", "")


def test_a_file_without_such_chunks_is_decoded_as_it_is() -> None:
    assert without_unread_chunks(FILE) is FILE
    assert not is_damaged(FILE) and png_ends(FILE) and not png_ends(FILE[:-1])


def test_transparent_and_indexed_pictures_keep_what_gives_their_pixels() -> None:
    clear = np.random.default_rng(1).integers(0, 256, (9, 7, 4)).astype(np.uint8)
    stored = cv2.imencode(".png", clear)[1].tobytes()
    marked = stored[:HEADER_ENDS] + chunk(b"tIME", bytes(7)) + stored[HEADER_ENDS:]
    np.testing.assert_array_equal(decode_image(marked), decode_image(stored))
    colours, rows = bytes(range(12)), zlib.compress(b"".join(b"\0" + bytes([i, 3 - i]) for i in range(4)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 4, 8, 3, 0, 0, 0))
    indexed = PNG + header + chunk(b"gAMA", b"") + chunk(b"PLTE", colours) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    expected = np.array([[[3 * j + 2, 3 * j + 1, 3 * j] for j in (i, 3 - i)] for i in range(4)], np.uint8)
    np.testing.assert_array_equal(decode_image(indexed), expected)
