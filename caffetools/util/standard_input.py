"""Standard input in place of a file, as ``-``: read once, since lists are read several times."""

from __future__ import annotations

import io
import os
import sys
from functools import lru_cache
from typing import BinaryIO, TextIO


def open_input(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading bytes; ``-`` is standard input, whose bytes are kept for another call.

    Args:
        path: The file, or ``-``.

    Raises:
        OSError: It cannot be read.
    """
    if os.fspath(path) == "-":
        return io.BytesIO(_bytes_of(sys.stdin))
    return open(path, "rb")  # noqa: PTH123 (the caller closes it)


@lru_cache(maxsize=1)
def _bytes_of(stream: TextIO | None) -> bytes:
    return b"" if stream is None else stream.buffer.read()
