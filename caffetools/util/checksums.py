"""SHA-256 of files and streams, read in blocks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Protocol

_BLOCK = 1 << 20


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
