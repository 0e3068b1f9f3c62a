"""What C libraries print to ``stderr``, caught in the thread that prints it.

libjpeg reports there, and nowhere else, that the data of a picture are damaged.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from caffetools.util.process_settings import shared_setting

_Write = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_UNBUFFERED = 2  # _IONBF
_caught = threading.local()


class _Functions(ctypes.Structure):
    """``cookie_io_functions_t`` of the C library: what a stream of the program's own calls."""

    _fields_ = (("read", ctypes.c_void_p), ("write", _Write), ("seek", ctypes.c_void_p), ("close", ctypes.c_void_p))


@contextmanager
def native_messages() -> Iterator[list[str]]:
    """Collect the lines that C code prints to ``stderr`` in this thread during the block; other threads' lines are printed as they are.

    Only C's own stream is replaced, so that Python's and what is written to the file descriptor are untouched. Where the C library has no
    streams of the program's own (other than glibc and musl), nothing is collected and the lines are printed.

    Yields:
        The lines, complete at the end of the block.
    """
    lines: list[str] = []
    found = _stream
    if found is None:
        yield lines
        return
    pieces: list[bytes] = []
    with shared_setting("C's stderr", lambda: _replace_stderr(*found)):
        before = getattr(_caught, "pieces", None)
        _caught.pieces = pieces
        try:
            yield lines
        finally:
            _caught.pieces = before
            if pieces:
                lines += b"".join(pieces).decode("utf-8", "replace").splitlines()


def _write(_: Any, data: int, length: int) -> int:
    """Take what a C library prints; a thread that is in no block of :func:`native_messages` prints it."""
    content = ctypes.string_at(data, length)
    pieces = getattr(_caught, "pieces", None)
    if pieces is not None:
        pieces.append(content)
    else:
        with suppress(OSError):
            os.write(2, content)
    return length


_functions = _Functions(None, _Write(_write), None, None)


def _open_stream() -> tuple[ctypes.c_void_p, int] | None:
    """Return C's variable ``stderr`` and a C stream that calls :func:`_write`; None where the C library has no such streams."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        library.fopencookie.restype = ctypes.c_void_p
        library.fopencookie.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Functions)
        library.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        variable = ctypes.c_void_p.in_dll(library, "stderr")
        stream: int | None = library.fopencookie(None, b"w", _functions)
        if stream:
            library.setvbuf(stream, None, _UNBUFFERED, 0)
    except (OSError, AttributeError, ValueError):
        return None
    return (variable, stream) if stream else None


def _replace_stderr(variable: ctypes.c_void_p, stream: int) -> Callable[[], object]:
    before = variable.value
    variable.value = stream

    def restore() -> None:
        variable.value = before

    return restore


_stream = _open_stream()
