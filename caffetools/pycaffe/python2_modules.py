"""Modules of Python 2 as converted scripts see them: text and bytes are one type there, so files need no mode for it.

``pickle`` reads and writes through files that were opened as text, and pickles of Python 2; ``csv`` works on files opened in binary
mode; ``string`` has its functions; ``subprocess`` gives text, and ``hashlib`` takes it; codecs between bytes ("hex", "base64") are methods of strings.
"""

from __future__ import annotations

import builtins
import codecs
import csv
import hashlib
import importlib
import io
import math
import os
import string
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from itertools import zip_longest
from types import ModuleType
from typing import IO, Any, SupportsRound, cast

from typing_extensions import Buffer

_PREFIX = "__python2__"
# Codecs from bytes to bytes; strings of Python 3 have no methods for them.
_BINARY = {"hex": "hex", "base64": "base64", "zlib": "zlib", "zip": "zlib", "bz2": "bz2", "uu": "uu", "quopri": "quopri"}


def install() -> None:
    """Register the modules that :func:`name_of` names."""
    for name, changed in _CHANGED.items():
        real = importlib.import_module(name)
        module = ModuleType(f"{_PREFIX}{name}")
        module.__dict__.update({key: value for key, value in vars(real).items() if not key.startswith("__")})
        module.__dict__.update(changed(real))
        sys.modules[module.__name__] = module
    # Text is Unicode in any case.
    vars(sys).setdefault("setdefaultencoding", lambda name: None)


def name_of(module: str) -> str | None:
    """Return the name under which a converted script imports ``module``; None for modules that are the same in both versions."""
    return f"{_PREFIX}{module}" if module in _CHANGED else None


def recode(value: object, method: str, codec: str, *arguments: object) -> Any:
    """Return ``value.encode(codec)`` or ``value.decode(codec)`` of Python 2.

    Args:
        value: A str, bytes or any object that has the method.
        method: "encode" or "decode".
        codec: Its name.
        arguments: Further arguments of the method.

    Returns:
        A str of one character a byte for a codec between bytes; what the method gives for others, and a str itself where it is to be
        decoded as text, which it already is.
    """
    kind = codec.lower().replace("-", "_").removesuffix("_codec")
    if isinstance(value, (str, bytes)) and kind in _BINARY:
        data = value.encode("latin-1") if isinstance(value, str) else value
        return getattr(codecs, method)(data, _BINARY[kind]).decode("latin-1")
    if isinstance(value, str) and method == "decode" and kind not in ("string_escape", "unicode_escape", "rot13"):
        return value
    if isinstance(value, str) and kind in ("string_escape", "unicode_escape"):
        escaped = codecs.decode(value, "unicode_escape") if method == "decode" else codecs.encode(value, "unicode_escape").decode("ascii")
        return str(escaped)
    if isinstance(value, str) and kind == "rot13":
        return codecs.encode(value, "rot13")
    return getattr(value, method)(codec, *arguments)


def print_text(*values: object, sep: str | None = " ", end: str | None = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Print as Python 2: bytes are text there."""
    builtins.print(*map(_text, values), sep=sep, end=end, file=file, flush=flush)


def format_text(text: str, values: object) -> str:
    """Return ``text % values``, where bytes are text."""
    if isinstance(values, tuple):
        return text % tuple(_text(value) for value in values)
    return text % ({key: _text(value) for key, value in values.items()} if isinstance(values, dict) else _text(values))


def round_half_away(number: SupportsRound[Any], ndigits: int = 0) -> Any:
    """Round as Python 2: halves away from zero, to a float. Arrays and other types round themselves."""
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        return round(number, ndigits)
    step = Decimal(1).scaleb(-ndigits)
    return float((Decimal(number) / step).quantize(Decimal(1), ROUND_HALF_UP) * step) if abs(number) < 1e15 else float(number)


def map_none(_: None, *sequences: Iterable[object]) -> list[Any]:
    """Return ``map(None, …)``: the items of one sequence, or tuples of those of several, filled up with None."""
    return list(sequences[0]) if len(sequences) == 1 else list(zip_longest(*sequences))


def octal(number: int) -> str:
    """Return ``oct(number)``: ``010`` for 8."""
    digits = f"{abs(number):o}"
    return ("-" if number < 0 else "") + (digits if digits == "0" else f"0{digits}")


def open_file(file: str | os.PathLike[str] | int, mode: str = "r", buffering: int = -1) -> Any:
    """Return ``open(file, mode, buffering)``, a file that takes text and bytes in either mode."""
    # Python 2 takes 0 and 1 for text files, too.
    opened: Any = builtins.open(file, mode, buffering if "b" in mode or buffering > 1 else -1)  # noqa: PTH123, SIM115
    if isinstance(opened, io.TextIOWrapper):
        encoding, errors = opened.encoding, opened.errors
        text = _TextFile(opened.detach(), encoding, errors)
        text.mode = mode
        return text
    kinds: dict[type, Any] = {io.BufferedWriter: _Writer, io.BufferedRandom: _Random}
    return kinds[type(opened)](opened.detach()) if type(opened) in kinds else opened


class _TextFile(io.TextIOWrapper):
    mode = "r"

    def write(self, data: str | bytes) -> int:
        if isinstance(data, str):
            return super().write(data)
        self.flush()
        return len(data) if self.buffer.write(data) else 0


class _Writer(io.BufferedWriter):
    def write(self, data: Buffer | str) -> int:
        return super().write(_to_binary(data))


class _Random(io.BufferedRandom):
    def write(self, data: Buffer | str) -> int:
        return super().write(_to_binary(data))


def _to_binary(data: Buffer | str) -> Buffer:
    """Return text as bytes: one a character, as the str of Python 2 holds them, or UTF-8 where there are others."""
    if not isinstance(data, str):
        return data
    try:
        return data.encode("latin-1")
    except UnicodeEncodeError:
        return data.encode()


def message_of(value: object) -> Any:
    """Return ``value.message``; of an exception without one its only argument, or an empty str where it has several or none."""
    if isinstance(value, BaseException) and not hasattr(value, "message"):
        return value.args[0] if len(value.args) == 1 else ""
    return getattr(value, "message")  # noqa: B009


def to_bytes(value: object) -> Any:
    """Return ``value.tostring()``; the bytes of an array, whose method NumPy has renamed."""
    return getattr(value, "tobytes" if hasattr(value, "tobytes") else "tostring")()


def _text(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _binary(stream: object) -> object:
    """Return the binary file below a text file; other objects as they are."""
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        return stream.buffer
    return stream


def _through_text_files(real: ModuleType) -> dict[str, Any]:
    """Return the functions of ``pickle``, the module ``real``, that converted scripts call; nothing else in caffetools unpickles."""

    # The bytes of Python 2's strings are NumPy's data too: Latin-1 keeps them.
    def load(stream: object) -> object:
        return real.load(_binary(stream), encoding="latin1")

    def loads(data: str | bytes) -> object:
        return real.loads(data.encode("latin-1") if isinstance(data, str) else data, encoding="latin1")

    def dump(value: object, stream: object, protocol: int | None = None) -> None:
        real.dump(value, _binary(stream), protocol)

    return {"load": load, "loads": loads, "dump": dump}


def _texts_of_commands(real: ModuleType) -> dict[str, Any]:
    """Return what of ``subprocess``, the module ``real``, takes and gives text in Python 2; the streams of a process remain binary."""

    class Popen(real.Popen):  # type: ignore[name-defined,misc]
        def communicate(self, input: str | bytes | None = None) -> tuple[object, object]:
            given = input if input is None or self.text_mode else _to_binary(input)
            out, err = super().communicate(given)
            return _text(out), _text(err)

    return {"Popen": Popen, "check_output": lambda *args, **options: _text(real.check_output(*args, **options))}


def _hashes_of_text(real: ModuleType) -> dict[str, Any]:
    """Return the functions of ``hashlib``, the module ``real``, for text and bytes."""

    class Hash:
        def __init__(self, made: hashlib._Hash, data: str | bytes = b""):
            self._made = made
            self.update(data)

        def update(self, data: str | bytes) -> None:
            self._made.update(_to_binary(data))

        def __getattr__(self, name: str) -> object:
            return getattr(self._made, name)

    names = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    return {
        **{name: (lambda data=b"", _name=name: Hash(real.new(_name), data)) for name in names},
        "new": lambda name, data=b"": Hash(real.new(name), data),
    }


class _TextOver:
    """The writing side of a binary file, for text."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text.encode())


def _writable(stream: IO[bytes] | IO[str]) -> IO[str] | _TextOver:
    return _TextOver(cast("IO[bytes]", stream)) if isinstance(stream, (io.BufferedIOBase, io.RawIOBase)) else cast("IO[str]", stream)


def _lines(rows: Iterable[str | bytes]) -> Iterator[str]:
    return (row.decode() if isinstance(row, bytes) else row for row in rows)


def _join(words: Iterable[str], sep: str = " ") -> str:
    return sep.join(words)


_METHODS = (
    *("upper", "lower", "strip", "lstrip", "rstrip", "split", "rsplit", "replace", "find", "rfind", "index", "rindex", "count"),
    *("zfill", "center", "ljust", "rjust", "capitalize", "swapcase", "expandtabs", "translate"),
)
_CSV: dict[str, Any] = {
    "writer": lambda stream, *rest, **options: csv.writer(_writable(stream), *rest, **options),
    "reader": lambda rows, *rest, **options: csv.reader(_lines(rows), *rest, **options),
    "DictReader": lambda f, *rest, **options: csv.DictReader(_lines(f), *rest, **options),
    "DictWriter": lambda f, *rest, **options: csv.DictWriter(_writable(f), *rest, **options),
}
_STRING: dict[str, Any] = {
    **{name: (lambda text, *rest, _name=name: getattr(text, _name)(*rest)) for name in _METHODS},
    **{"join": _join, "joinfields": _join, "atoi": int, "atol": int, "atof": float, "maketrans": str.maketrans},
    **{"letters": string.ascii_letters, "lowercase": string.ascii_lowercase, "uppercase": string.ascii_uppercase},
}
_CHANGED: dict[str, Callable[[ModuleType], dict[str, Any]]] = {
    **{"pickle": _through_text_files, "csv": lambda _: _CSV, "string": lambda _: _STRING},
    **{"subprocess": _texts_of_commands, "hashlib": _hashes_of_text},
}
