"""Checksums: SHA-256 of files and streams, read in blocks, and CRC-32C of arrays."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 20
# Of CRC-32C.
_POLYNOMIAL = 0x82F63B78  # reflected
_ONES = 0xFFFFFFFF
# Below this many bytes the plain loop is faster.
_SHORT = 256
_Table = NDArray[np.uint32]


class Hasher(Protocol):
    """An object of :mod:`hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Take in ``data``."""


def feed(hasher: Hasher, stream: IO[bytes]) -> None:
    """Update ``hasher`` with all that is left of ``stream``."""
    while block := stream.read(_BLOCK):
        hasher.update(block)


def stream_sha256(stream: IO[bytes]) -> str:
    """Return the SHA-256 of what is left of ``stream`` as hexadecimal digits."""
    hasher = hashlib.sha256()
    feed(hasher, stream)
    return hasher.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. Raises :class:`OSError`."""
    with Path(path).open("rb") as stream:
        return stream_sha256(stream)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of ``data``.

    Long data is cut into rows of equal length, whose checksums NumPy computes side by side; as the checksum is linear over GF(2), they
    are then combined row by row.
    """
    table, crc, start = _table(), _ONES, 0
    if len(data) > _SHORT:
        width = 1 << len(data).bit_length() // 2  # few different widths, as each has its tables
        rows = np.frombuffer(data, np.uint8, count=len(data) // width * width).reshape(-1, width)
        values = np.asarray(table, np.uint32)
        sums = np.zeros(len(rows), np.uint32)
        for column in np.ascontiguousarray(rows.T):
            sums = values[(sums ^ column) & 0xFF] ^ (sums >> np.uint32(8))
        first, second, third, fourth = _shift_tables(width)
        for row in sums.tolist():
            crc = first[crc & 0xFF] ^ second[crc >> 8 & 0xFF] ^ third[crc >> 16 & 0xFF] ^ fourth[crc >> 24] ^ row
        start = rows.size
    for byte in data[start:]:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ _ONES


def masked_crc32c(data: bytes) -> int:
    """Return the checksum as LevelDB and TFRecord store it: rotated and shifted, so that checksums of checksums differ."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ONES


@cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


@cache
def _shift_tables(count: int) -> tuple[list[int], ...]:
    """Return, for each of the four bytes of a checksum, what ``count`` zero bytes after it make of the byte's values."""
    table = _table()
    bits = []
    for bit in range(32):
        crc = 1 << bit
        for _ in range(count):
            crc = table[crc & 0xFF] ^ crc >> 8
        bits.append(crc)
    return tuple([_combined(bits[8 * place : 8 * place + 8], value) for value in range(256)] for place in range(4))


def _combined(bits: list[int], value: int) -> int:
    result = 0
    for bit, image in enumerate(bits):
        if value >> bit & 1:
            result ^= image
    return result
