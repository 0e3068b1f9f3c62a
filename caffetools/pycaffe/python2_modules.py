"""Modules of Python 2 as converted scripts see them: text and bytes are one type there, so files need no mode for it.

``pickle`` reads and writes through files that were opened as text, and pickles of Python 2; ``csv`` works on files opened in binary
mode; ``string`` has its functions; ``subprocess`` gives text, and ``hashlib`` takes it; codecs between bytes ("hex", "base64") are methods of
strings; ``math.floor`` gives a float, and modules that are gone (``md5``, ``sets``) are there.
"""

from __future__ import annotations

import builtins
import codecs
import collections.abc
import csv
import errno
import hashlib
import importlib
import importlib.util
import inspect
import io
import itertools
import math
import numbers
import operator
import os
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import IO, Any, cast

from typing_extensions import Buffer

from caffetools.pycaffe import python2_files, python2_lmdb, python2_random
from caffetools.pycaffe.python2_numbers import Long, divide, divide_into, is_long

_PREFIX = "__python2__"
# Files to which the last print statement ended with a comma, by id.
_AFTER_COMMA: set[int] = set()
# Behind these a print statement writes no space.
_BREAKS = ("\n", "\t", "\r")
# Codecs from bytes to bytes; strings of Python 3 have no methods for them.
_BINARY = {"hex": "hex", "base64": "base64", "zlib": "zlib", "zip": "zlib", "bz2": "bz2", "uu": "uu", "quopri": "quopri"}


def install() -> None:
    """Register the modules that :func:`name_of` names."""
    for name, changed in _CHANGED.items():
        if importlib.util.find_spec(name) is None:
            continue
        real = importlib.import_module(name)
        module = ModuleType(f"{_PREFIX}{name}")
        module.__dict__.update({key: value for key, value in vars(real).items() if not key.startswith("__")})
        module.__dict__.update(changed(real))
        sys.modules[module.__name__] = module
    for name, (source, made) in _REMOVED.items():
        module = ModuleType(f"{_PREFIX}{name}")
        module.__dict__.update(made(importlib.import_module(source)))
        sys.modules[module.__name__] = module
    # Text is Unicode in any case, and an exception lasts no longer than its handler.
    vars(sys).setdefault("setdefaultencoding", lambda name: None)
    vars(sys).setdefault("exc_clear", lambda: None)
    vars(os.path).setdefault("walk", _walk)
    vars(os).setdefault("errno", errno)
    vars(inspect).setdefault("getargspec", _arguments_of)
    if not hasattr(threading.Thread, "isAlive"):
        setattr(threading.Thread, "isAlive", threading.Thread.is_alive)  # noqa: B010


def name_of(module: str) -> str | None:
    """Return the name under which a converted script imports ``module``; None for modules that are the same in both versions."""
    return f"{_PREFIX}{module}" if module in _CHANGED or module in _REMOVED else None


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


def print_text(
    *values: object,
    sep: str | None = " ",
    end: str | None = "\n",
    file: IO[str] | None = None,
    flush: bool = False,
    comma: bool | None = None,
) -> None:
    """Print as Python 2: bytes are text there, and floats have 12 digits. ``comma``: whether the statement ends with one; None: a call of the function.

    Such a comma gives a space before what the next statement prints to the same file; a statement writes none behind a line's end.
    """
    stream = sys.stdout if file is None else file
    texts = [shown(value) for value in values]
    if comma is None:
        text = (" " if sep is None else sep).join(texts)
    else:
        text = "".join(part if part[-1:] in _BREAKS else f"{part} " for part in texts[:-1]) + "".join(texts[-1:])
    if id(stream) in _AFTER_COMMA and values:
        text = f" {text}"
    _AFTER_COMMA.discard(id(stream))
    if comma and text and text[-1] not in _BREAKS:
        _AFTER_COMMA.add(id(stream))
    builtins.print(text, end="" if comma else end, file=stream, flush=flush)


def format_text(text: str, values: object) -> str:
    """Return ``text % values``, where bytes are text, and ``%s`` gives a float 12 digits."""
    if not isinstance(values, tuple):
        return text % ({key: _Shown.of(value) for key, value in values.items()} if isinstance(values, dict) else _Shown.of(values))
    return text % tuple(map(_Shown.of, values))


class _Shown(float):
    """A float whose text is that of Python 2."""

    def __str__(self) -> str:
        return str_of(float(self))

    @staticmethod
    def of(value: object) -> object:
        if type(value) is int and is_long(value):
            return Long(value)
        return _Shown(value) if isinstance(value, float) else _text(value)


def str_of(value: object, *codec: str) -> str:
    """Return ``str(value)``: a float with 12 digits, and bytes as text; or ``unicode(value, codec)``."""
    if codec:
        return value.decode(*codec) if isinstance(value, bytes) else str(value)
    if isinstance(value, float) and math.isfinite(value):
        text = f"{float(value):.12g}"
        return text if set(text) & set(".e") else f"{text}.0"
    return str(_text(value))


def ordinal(character: str | bytes | int) -> int:
    """Return ``ord(character)``; a byte of a string is an int already."""
    return character if isinstance(character, int) else ord(character)


def translate(text: str, table: str | dict[int, int] | None, deleted: str) -> str:
    """Return ``text.translate(table, deleted)``: without the characters ``deleted``, the others looked up in ``table``."""
    kept = "".join(character for character in text if character not in deleted)
    return kept if table is None else kept.translate(table)


def buffer_of(value: Buffer | str, offset: int = 0, size: int = -1) -> python2_files.Bytes:
    """Return ``buffer(value, offset, size)``, as a copy: the bytes of text, an array or anything that has a buffer."""
    data = bytes(memoryview(python2_files.to_binary(value)).cast("B"))[offset:]
    return python2_files.Bytes(data if size < 0 else data[:size])


def message_of(value: object) -> Any:
    """Return ``value.message``; of an exception without one its only argument, or an empty str where it has several or none."""
    if isinstance(value, BaseException) and not hasattr(value, "message"):
        return value.args[0] if len(value.args) == 1 else ""
    return getattr(value, "message")  # noqa: B009


def to_bytes(value: object) -> Any:
    """Return ``value.tostring()``; the bytes of an array, whose method NumPy has renamed."""
    data = getattr(value, "tobytes" if hasattr(value, "tobytes") else "tostring")()
    return python2_files.Bytes(data) if isinstance(data, bytes) else data


def _text(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def shown(value: object) -> str:
    """Return the text that ``print`` writes for a value."""
    return str(str_of(value) if isinstance(value, float) else _text(value))


def children_of(element: Iterable[object]) -> Any:
    """Return ``element.getchildren()``, which elements of XML no longer have."""
    method = getattr(element, "getchildren", None)
    return list(element) if method is None else method()


def elements_of(element: object, *tags: str, **options: str) -> Any:
    """Return ``element.getiterator(tag)``, which elements of XML no longer have."""
    method: Callable[..., object] = getattr(element, "getiterator" if hasattr(element, "getiterator") else "iter")
    return method(*tags, **options)


def _through_text_files(real: ModuleType) -> dict[str, Any]:
    """Return the functions of ``pickle``, the module ``real``, that converted scripts call; nothing else in caffetools unpickles."""

    # The bytes of Python 2's strings are NumPy's data too: Latin-1 keeps them.
    def load(stream: object) -> object:
        return real.load(python2_files.binary(stream), encoding="latin1")

    def loads(data: str | bytes) -> object:
        return real.loads(data.encode("latin-1") if isinstance(data, str) else data, encoding="latin1")

    def dump(value: object, stream: object, protocol: int | None = None) -> None:
        real.dump(value, python2_files.binary(stream), protocol)

    return {"load": load, "loads": loads, "dump": dump}


def _texts_of_commands(real: ModuleType) -> dict[str, Any]:
    """Return what of ``subprocess``, the module ``real``, takes and gives text in Python 2."""

    class Popen(real.Popen):  # type: ignore[name-defined,misc]
        def __init__(self, *args: object, **options: object):
            super().__init__(*args, **options)
            for name in ("stdin", "stdout", "stderr"):
                setattr(self, name, python2_files.with_text(getattr(self, name)))

        def communicate(self, input: str | bytes | None = None) -> tuple[object, object]:
            given = input if input is None or self.text_mode else python2_files.to_binary(input)
            out, err = super().communicate(given)
            return _text(out), _text(err)

    output = lambda *args, **options: _text(real.check_output(*args, **options))  # noqa: E731
    return {"Popen": Popen, "check_output": output, "getstatusoutput": _status_of_command}


class _Whole(float):
    """What ``math.floor`` and ``math.ceil`` give: a float, which ``range`` takes as it takes integers."""

    def __index__(self) -> int:
        return int(self)

    def __str__(self) -> str:
        return str_of(float(self))


def _arguments_of(function: Callable[..., object]) -> tuple[object, ...]:
    """Return ``inspect.getargspec(function)``."""
    found = inspect.getfullargspec(function)
    return _ArgSpec(found.args, found.varargs, found.varkw, found.defaults)


_ArgSpec = collections.namedtuple("_ArgSpec", ["args", "varargs", "keywords", "defaults"])


def _taking_text(real: ModuleType) -> dict[str, Any]:
    """Return the functions of ``struct``, ``zlib`` and the like, the module ``real``, which take and give bytes, for text."""

    def changed(function: Callable[..., object]) -> Callable[..., object]:
        def call(*values: object, **options: object) -> object:
            given = [python2_files.to_binary(value) if isinstance(value, str) else value for value in values]
            return python2_files.as_strings(function(*given, **options))

        return call

    own = {name: changed(value) for name, value in vars(real).items() if not name.startswith("_") and inspect.isroutine(value)}
    # Names of Python 2, gone since 3.9.
    older = {"encodestring": "encodebytes", "decodestring": "decodebytes"}
    return {**own, **{name: own[new] for name, new in older.items() if new in own and name not in own}}


class _UserDict(collections.UserDict[Any, Any]):
    def has_key(self, key: object) -> bool:
        return key in self


def _hash_module(real: ModuleType, name: str, alias: str = "") -> dict[str, Any]:
    made = _hashes_of_text(real)[name]
    return {"new": made, alias or name: made}


def _status_of_command(command: str) -> tuple[int, str]:
    """Return ``commands.getstatusoutput(command)``: the status as ``wait`` gives it, and the output."""
    status, output = subprocess.getstatusoutput(command)  # noqa: S605
    return (status << 8 if status >= 0 else -status), output


def _walk(top: str, visit: Callable[[Any, str, list[str]], object], arg: object) -> None:
    """Call ``visit(arg, folder, names)`` for a folder and all below it, as ``os.path.walk``."""
    for folder, folders, files in os.walk(top):
        names = folders + files
        visit(arg, folder, names)
        folders[:] = [name for name in folders if name in names]


def _hashes_of_text(real: ModuleType) -> dict[str, Any]:
    """Return the functions of ``hashlib``, the module ``real``, for text and bytes."""

    class Hash:
        def __init__(self, made: hashlib._Hash, data: str | bytes = b""):
            self._made = made
            self.update(data)

        def update(self, data: str | bytes) -> None:
            self._made.update(python2_files.to_binary(data))

        def __getattr__(self, name: str) -> object:
            return getattr(self._made, name)

    names = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    return {
        **{name: (lambda data=b"", _name=name: Hash(real.new(_name), data)) for name in names},
        "new": lambda name, data=b"": Hash(real.new(name), data),
    }


def _compressed(real: ModuleType) -> dict[str, Any]:
    """Return the files of ``gzip`` or ``bz2``, the module ``real``: they take text, and give text where it can be."""
    name = "GzipFile" if hasattr(real, "GzipFile") else "BZ2File"

    class File(python2_files.Compressed, getattr(real, name)):  # type: ignore[misc]
        BINARY = getattr(real, name)

        def write(self, data: str | bytes) -> int:
            return int(super().write(python2_files.to_binary(data)))

        def read(self, size: int = -1) -> Any:
            return python2_files.Bytes(super().read(size))

        def readline(self, size: int = -1) -> Any:
            return python2_files.as_text(super().readline(size))

        def readlines(self, size: int = -1) -> list[Any]:
            return list(self)

        def __next__(self) -> Any:
            if line := self.readline():
                return line
            raise StopIteration

    def open_file(filename: str | os.PathLike[str] | IO[bytes], mode: str = "rb", compresslevel: int = 9) -> Any:
        return File(filename, mode.replace("t", ""), compresslevel=compresslevel)

    return {name: File, "open": open_file}


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
    "zfill": lambda text, width: str(text).zfill(width),
    **{"join": _join, "joinfields": _join, "atoi": int, "atol": int, "atof": float, "maketrans": str.maketrans},
    **{"letters": string.ascii_letters, "lowercase": string.ascii_lowercase, "uppercase": string.ascii_uppercase},
}
_ITERTOOLS: dict[str, Any] = {
    "izip": zip,
    "imap": map,
    "ifilter": filter,
    "ifilterfalse": itertools.filterfalse,
    "izip_longest": itertools.zip_longest,
}
_OPERATOR: dict[str, Any] = {
    **{"div": divide, "__div__": divide, "idiv": divide_into, "__idiv__": divide_into},
    "isCallable": callable,
    "sequenceIncludes": operator.contains,
    "isSequenceType": lambda value: hasattr(value, "__getitem__") and not isinstance(value, dict),
    "isMappingType": lambda value: isinstance(value, collections.abc.Mapping),
    "isNumberType": lambda value: isinstance(value, numbers.Number),
    "repeat": operator.mul,
}
_TYPES: dict[str, Any] = {
    **{"ListType": list, "DictType": dict, "DictionaryType": dict, "TupleType": tuple, "FileType": io.IOBase, "FloatType": float},
    **{"IntType": int, "LongType": Long, "BooleanType": bool, "ComplexType": complex, "NoneType": type(None), "SliceType": slice},
    **{"StringType": str, "UnicodeType": str, "StringTypes": (str,), "TypeType": type, "ObjectType": object, "XRangeType": range},
    **{"ClassType": type, "InstanceType": object},
}
_CHANGED: dict[str, Callable[[ModuleType], dict[str, Any]]] = {
    **{"pickle": _through_text_files, "csv": lambda _: _CSV, "string": lambda _: _STRING},
    **{"subprocess": _texts_of_commands, "hashlib": _hashes_of_text, "itertools": lambda _: _ITERTOOLS},
    **{"operator": lambda _: _OPERATOR, "gzip": _compressed, "bz2": _compressed},
    **{name: _taking_text for name in ("struct", "zlib", "binascii", "base64")},
    "io": lambda _: {"StringIO": python2_files.StringBuffer, "BytesIO": python2_files.BytesBuffer},
    "random": lambda _: python2_random.FUNCTIONS,
    "types": lambda _: _TYPES,
    "lmdb": python2_lmdb.names_for_text,
    "math": lambda real: {name: (lambda x, _name=name: _Whole(getattr(real, _name)(x))) for name in ("floor", "ceil")},
}
# Modules that are gone, and the one that each is made of.
_REMOVED: dict[str, tuple[str, Callable[[ModuleType], dict[str, Any]]]] = {
    "md5": ("hashlib", lambda real: _hash_module(real, "md5")),
    "sha": ("hashlib", lambda real: _hash_module(real, "sha1", "sha")),
    "sets": ("builtins", lambda real: {"Set": set, "ImmutableSet": frozenset, "BaseSet": (set, frozenset)}),
    "UserDict": ("collections", lambda real: {"UserDict": _UserDict, "IterableUserDict": _UserDict}),
}
