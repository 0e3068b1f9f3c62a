"""Files of Python 2 in converted scripts: each takes text and bytes, and what is read from a binary file is used as text."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, SupportsIndex, cast

from typing_extensions import Buffer


def open_file(file: str | os.PathLike[str] | int, mode: str = "r", buffering: int = -1) -> Any:
    """Return ``open(file, mode, buffering)``, a file that takes text and bytes in either mode."""
    # Python 2 takes 0 and 1 for text files, too.
    plain = mode.replace("U", "") or "r"
    opened: Any = builtins.open(file, plain, buffering if "b" in plain or buffering > 1 else -1)  # noqa: PTH123, SIM115
    if isinstance(opened, io.TextIOWrapper):
        encoding, errors = opened.encoding, opened.errors
        # Ends of lines are those of the file, but for mode "U".
        text = _TextFile(opened.detach(), encoding, errors, newline=None if "U" in mode or os.name == "nt" else "\n")
        text.mode = mode
        return text
    return with_text(opened)


def with_text(stream: io.IOBase | None) -> Any:
    """Return a binary stream as one that takes and gives text; other objects as they are."""
    kinds: dict[type, Any] = {io.BufferedReader: _Reader, io.BufferedWriter: _Writer, io.BufferedRandom: _Random}
    return kinds[type(stream)](cast("io.BufferedReader", stream).detach()) if type(stream) in kinds else stream


class _TextFile(io.TextIOWrapper):
    mode = "r"

    def xreadlines(self) -> Any:
        return self

    def write(self, data: str | bytes) -> int:
        if isinstance(data, str):
            return super().write(data)
        self.flush()
        return len(data) if self.buffer.write(data) else 0


class Bytes(bytes):
    """Bytes that take text as Python 2's strings do: ``data.startswith("a")``, ``data == "a"``, ``data + "a"``; then the result is text."""

    __hash__ = bytes.__hash__

    def text(self) -> str:
        """Return the bytes as text: UTF-8, else one character a byte."""
        try:
            return self.decode()
        except UnicodeDecodeError:
            return self.decode("latin-1")

    def __eq__(self, other: object) -> bool:
        return self.text() == other if isinstance(other, str) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, other: object) -> bool:
        return other in self.text() if isinstance(other, str) else super().__contains__(cast("bytes", other))

    def __add__(self, other: object) -> Any:
        return as_text(bytes(self) + bytes(to_binary(other))) if isinstance(other, str) else Bytes(super().__add__(cast("bytes", other)))

    def __radd__(self, other: str | bytes) -> Any:
        return as_text(bytes(to_binary(other)) + bytes(self)) if isinstance(other, str) else Bytes(other + bytes(self))

    def __repr__(self) -> str:
        return super().__repr__().removeprefix("b")

    def __mod__(self, values: object) -> Any:
        return self.text() % values

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        found = super().__getitem__(key)
        return Bytes(found) if isinstance(found, bytes) else found


def _mixed(name: str) -> Callable[..., Any]:
    def call(self: Bytes, *values: Any) -> Any:
        first = values[0][:1] if values and isinstance(values[0], tuple) else values[:1]
        if any(isinstance(value, str) for value in first) or (not values and isinstance(as_text(self), str)):
            return getattr(self.text(), name)(*values)
        return getattr(super(Bytes, self), name)(*values)

    return call


for _name in (
    "startswith",
    "endswith",
    "split",
    "rsplit",
    "strip",
    "lstrip",
    "rstrip",
    "replace",
    "find",
    "rfind",
    "index",
    "count",
    "partition",
):
    setattr(Bytes, _name, _mixed(_name))
for _name in ("splitlines", "lower", "upper"):
    setattr(Bytes, _name, _mixed(_name))


def as_text(data: bytes) -> str | Bytes:
    """Return bytes as text where they are UTF-8 without a zero byte."""
    try:
        return Bytes(data) if 0 in data else data.decode()
    except UnicodeDecodeError:
        return Bytes(data)


def as_strings(value: object) -> object:
    """Return bytes, also those in a tuple, as text where they can be; other values as they are."""
    if isinstance(value, tuple):
        return tuple(map(as_strings, value))
    return as_text(value) if isinstance(value, bytes) else value


class _Reader(io.BufferedReader):
    """A binary file to read: its lines are text where they can be, and all else is :class:`Bytes`."""

    def read(self, size: int | None = -1, /) -> Bytes:
        return Bytes(super().read(size))

    def readline(self, size: int | None = -1, /) -> Any:
        return as_text(super().readline(size))

    def readlines(self, hint: int = -1, /) -> list[Any]:
        lines: list[Any] = []
        total = 0
        while (hint is None or hint <= 0 or total < hint) and (line := super().readline()):
            lines.append(as_text(line))
            total += len(line)
        return lines

    def xreadlines(self) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if line := super().readline():
            return as_text(line)
        raise StopIteration


class StringBuffer(io.BytesIO):
    """``StringIO`` of Python 2: takes text and bytes; ``read`` gives bytes that take text, lines and values are text where they can be."""

    def __init__(self, initial: Buffer | str = b""):
        super().__init__(self._encode(initial))

    @property
    def len(self) -> int:
        """The number of bytes."""
        return self.getbuffer().nbytes

    def write(self, data: Buffer | str, /) -> int:
        return super().write(self._encode(data))

    @staticmethod
    def _encode(data: Buffer | str) -> Buffer:
        return data.encode() if isinstance(data, str) else data

    def read(self, size: int | None = -1, /) -> Bytes:
        return Bytes(super().read(size))

    def getvalue(self) -> Any:
        return as_text(super().getvalue())

    def readline(self, size: int | None = -1, /) -> Any:
        return as_text(super().readline(size))

    def readlines(self, hint: int | None = -1, /) -> list[Any]:
        return list(map(as_text, super().readlines(hint)))

    def __next__(self) -> Any:
        return as_text(super().__next__())


class BytesBuffer(StringBuffer):
    """``io.BytesIO``, for text of one byte a character, too."""

    @staticmethod
    def _encode(data: Buffer | str) -> Buffer:
        return to_binary(data)


class Compressed:
    """Base of the compressed files that take and give text.

    Attributes:
        BINARY: The class of Python's own file, which reads and writes bytes.
    """

    BINARY: ClassVar[type[Any]]


def binary(stream: object) -> object:
    """Return the binary file below a text file, or what reads plain bytes from a binary one; other objects as they are."""
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        return stream.buffer
    if isinstance(stream, Compressed):
        return SimpleNamespace(**{name: partial(getattr(stream.BINARY, name), stream) for name in ("read", "readline", "write")})
    if isinstance(stream, StringBuffer):
        return SimpleNamespace(**{name: partial(getattr(io.BytesIO, name), stream) for name in ("read", "readline", "readinto", "write")})
    if isinstance(stream, _Reader):
        return SimpleNamespace(**{name: partial(getattr(io.BufferedReader, name), stream) for name in ("read", "readline", "readinto")})
    return stream


class _Writer(io.BufferedWriter):
    def write(self, data: Buffer | str) -> int:
        return super().write(to_binary(data))


class _Random(io.BufferedRandom):
    def write(self, data: Buffer | str) -> int:
        return super().write(to_binary(data))


def to_binary(data: Buffer | str) -> Buffer:
    """Return text as bytes: one a character, as the str of Python 2 holds them, or UTF-8 where there are others."""
    if not isinstance(data, str):
        return data
    try:
        return data.encode("latin-1")
    except UnicodeEncodeError:
        return data.encode()
