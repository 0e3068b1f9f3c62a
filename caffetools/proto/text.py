"""Prototxt: reading with errors that name the place, and writing as Caffe prints.

The fields of all forks are read, of any fork (:mod:`caffetools.proto.forks.tables`). What no fork knows is kept as text where
the layer's type is unknown too, and is otherwise an error, since it is most likely a typing error (:mod:`caffetools.proto.unknown`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from caffetools.errors import DataError, NetError, PrototxtError, did_you_mean
from caffetools.proto.encoding import decode_escapes, decode_text, encode_text
from caffetools.proto.forks.dialect import missing_fields
from caffetools.proto.forks.tables import UNKNOWN
from caffetools.proto.options import read_options
from caffetools.proto.plain_text import DEEPEST, LONGEST_STRING, merge_plain
from caffetools.proto.schema import Message, NetParameter, SolverParameter
from caffetools.proto.sniff import Kind, advice_for_folder, wrong_kind
from caffetools.proto.unknown import keep_unknown, print_unknown
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
M = TypeVar("M", bound=Message)


def read_net(path: PathLike) -> NetParameter:
    """Read a network's prototxt into a ``NetParameter``, as written: nothing is upgraded or filtered.

    Raises:
        PrototxtError: the file is missing, empty, not UTF-8, or not a network; the message has file, line and column.
    """
    return parse(_read(path), NetParameter, path=path)


def read_solver(path: PathLike) -> SolverParameter:
    """Read a solver's prototxt into a ``SolverParameter``. Raises :class:`PrototxtError` as :func:`read_net` does."""
    return parse(_read(path), SolverParameter, path=path)


def parse(text: str, message_type: type[M], *, path: PathLike | None = None) -> M:
    """Parse prototxt ``text`` into a new ``message_type``; ``path`` is only used in errors.

    A dialect given by the :class:`~caffetools.proto.options.ReadOptions` must have all of the fields; ``any`` keeps unknown ones.

    Raises:
        PrototxtError: The text is not of this type; names the line.
    """
    if not text.strip():
        raise PrototxtError("the file is empty", path=path)
    if UNKNOWN in text and (reserved := re.search(rf"\b{UNKNOWN}\w*\s*:", text)):
        line = text.count("\n", 0, reserved.start()) + 1
        raise PrototxtError(f"the field '{reserved[0].rstrip(': ')}' is kept for caffetools itself", path=path, line=line)
    options = read_options()
    message = message_type()
    if "\\" in text:
        text = _with_escapes_of_cpp(text)
    try:
        if not merge_plain(text, message):
            _check_size(text, path)
            message = message_type()
            text_format.Parse(text, message)
    except text_format.ParseError:
        message = message_type()
        try:
            given = _with_one_device(text) if message_type is SolverParameter else text
            kept = keep_unknown(
                decode_escapes(_as_python_reads(given)), cast("Descriptor", message.DESCRIPTOR), lenient=options.keep_unknown
            )
            text_format.Parse(kept, message)
        except text_format.ParseError as error:
            raise _explain(error, message, text, path) from None
    if not message.IsInitialized():
        raise _incomplete(message, text, path)
    required = options.required_forks
    if required is not None and (missing := missing_fields(message, required)):
        raise PrototxtError(f"the dialect '{required}' has no field {missing[0]}", path=path, hint="leave --dialect out to read it")
    return message


_DEVICES = re.compile(r"#[^\n]*|\"[^\"\\\n]*\"|'[^'\\\n]*'|\bdevice_id\s*:\s*(\[[\s\d,]*\]|\d+)\s*[,;]?")


def _with_one_device(text: str) -> str:
    """Reduce the list of devices of a TSN solver (``device_id: [0,1]``) to the first: BVLC Caffe has one, and it changes no numbers."""
    devices = [found for found in _DEVICES.finditer(text) if found[1]]
    numbers = [str(number) for found in devices for number in re.findall(r"\d+", found[1])]
    if len(numbers) < 2:
        return text
    # Every other character keeps its line and column.
    for found in devices[1:]:
        text = text[: found.start()] + re.sub(r"[^\n]", " ", found[0]) + text[found.end() :]
    start, end = devices[0].span(1)
    return text[:start] + numbers[0] + re.sub(r"[^\n]", " ", text[start + len(numbers[0]) : end]) + text[end:]


_QUOTED_OR_COMMENT = r"#[^\n]*|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'"
_SIGNS = re.compile(_QUOTED_OR_COMMENT + r"|-((?:\s|#[^\n]*\n)+)(?=[\d.]|inf|nan)", re.IGNORECASE)
# 0 and 1 as a bool may be given in C++: 01, 0x1.
_BITS = re.compile(_QUOTED_OR_COMMENT + r"|(?<![\w.+-])0(?:[xX]0*([01])|0*([01]))(?![\w.])")


def _as_python_reads(text: str) -> str:
    """Rewrite numbers that C++'s parser, which Caffe has, reads and Python's does not; every other character keeps its line and column.

    A sign that stands apart (``power: - 1.5``) moves next to its number, and 0 and 1 in other notations become one digit.
    """
    text = _SIGNS.sub(lambda found: f"{found[1]}-" if found[1] else found[0], text)
    return _BITS.sub(lambda found: (found[1] or found[2]).ljust(len(found[0])) if found[1] or found[2] else found[0], text)


_STRINGS = re.compile(_QUOTED_OR_COMMENT)
_ESCAPES = re.compile(r"\\(?:X([0-9a-fA-F]{1,2})|(\?)|([4-7][0-7]{2})|.)", re.DOTALL)


def _with_escapes_of_cpp(text: str) -> str:
    """Rewrite the escapes in strings that C++'s parser knows and Python's takes for other characters: ``\\X41``, ``\\?``, ``\\400``."""

    def rewritten(found: re.Match[str]) -> str:
        if found[1]:
            return f"\\{int(found[1], 16):03o}"
        return "?" if found[2] else f"\\{int(found[3], 8) & 0xFF:03o}" if found[3] else found[0]

    return _STRINGS.sub(lambda string: string[0] if string[0][0] == "#" else _ESCAPES.sub(rewritten, string[0]), text)


def format_text(message: Message) -> str:
    """Return ``message`` as prototxt, with whole floats written as Caffe writes them (``lr_mult: 1``, not ``1.0``)."""
    text = text_format.MessageToString(message, as_utf8=True)
    return print_unknown(re.sub(r"^(\s*\w+: -?\d+)\.0$", r"\1", text, flags=re.MULTILINE))


def write_prototxt(path: PathLike, message: Message, *, comment: str = "") -> None:
    """Write ``message`` to ``path`` atomically, below ``comment`` (its lines are prefixed with ``# ``)."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    with atomic_write(path) as stream:
        stream.write(encode_text(head + format_text(message)))


def layer_line(path: PathLike, layer: str, field: str = "") -> int:
    """Return the 1-based line of ``field`` in the block of the layer named ``layer`` in a prototxt; 0 where there is no such layer.

    Args:
        path: The prototxt.
        layer: The layer's name.
        field: A field anywhere in the block; the line on which the block starts where it is empty or not found.
    """
    try:
        text = decode_text(Path(path).read_bytes())
    except OSError:
        return 0
    for line, block in _layer_blocks(text):
        if re.search(r"\bname\s*:\s*([\"'])" + re.escape(layer) + r"\1", block):
            found = re.search(rf"^[^#\n]*\b{re.escape(field)}\s*[:{{<]", block, re.MULTILINE) if field else None
            return line + (block.count("\n", 0, found.end()) if found else 0)
    if layer == "input" and (
        found := re.search(r"^\s*(input(?:_shape|_dim)?)\s*[:{]|[}\s](input(?:_shape|_dim)?)\s*[:{]", text, re.MULTILINE)
    ):
        # The layer that an upgrade makes of the net's own inputs.
        return text.count("\n", 0, found.start(1 if found[1] else 2)) + 1
    return 0


# Comments, strings (unrolled, so that a long one needs no stack) and braces; the last group is for words.
_SCAN = re.compile(r"#[^\n]*|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"?|'[^'\\\n]*(?:\\.[^'\\\n]*)*'?|[{}<>]|\w+")
# The same without words, which most of a file is.
_SCAN_BLOCKS = re.compile(_SCAN.pattern.removesuffix(r"|\w+"))


def _check_size(text: str, path: PathLike | None) -> None:
    """Refuse blocks nested deeper, and strings longer, than any net has: both only cost time and memory."""
    depth = 0
    for token in _SCAN_BLOCKS.finditer(text):
        first = text[token.start()]
        if first in "{<":
            depth += 1
            if depth > DEEPEST:
                line = text.count("\n", 0, token.start()) + 1
                raise PrototxtError(f"blocks are nested more than {DEEPEST} deep", path=path, line=line)
        elif first in "}>":
            depth -= 1
        elif first in "\"'" and token.end() - token.start() > LONGEST_STRING:
            line = text.count("\n", 0, token.start()) + 1
            raise PrototxtError(
                f"a string has {token.end() - token.start():,} characters; at most {LONGEST_STRING:,} are read", path=path, line=line
            )


def _layer_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every top-level ``layer`` or ``layers`` block."""
    depth, start, counted, line = 0, 0, 0, 1
    for token in _SCAN.finditer(text):
        word = token.group()
        if depth == 0 and word in ("layer", "layers"):
            start = token.start()
        elif word == "{":
            depth += 1
        elif word == "}":
            depth -= 1
            if depth == 0:
                line += text.count("\n", counted, start)
                counted = start
                yield line, text[start : token.end()]


def _read(path: PathLike) -> str:
    """Read a prototxt in any encoding that contains ASCII: bytes that are not UTF-8 are kept."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PrototxtError(f"cannot read: {error.strerror}", path=path, hint=advice_for_folder(path, ".prototxt")) from None
    if data and (other := wrong_kind(PrototxtError, path, "a prototxt", allowed=(*_TEXTS, *_OTHER_TEXTS))):
        raise other
    if _CONTROL.search(data) and (control := _CONTROL.search(_QUOTED.sub(lambda found: b" " * len(found[0]), data))):
        raise PrototxtError(f"not a text file (byte {control.start()} is {control[0][0]}); a prototxt is expected", path=path)
    return decode_text(data.removeprefix(b"\xef\xbb\xbf"))


# Control characters, which Caffe accepts in comments and strings only.
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
_QUOTED = re.compile(rb"#[^\n]*|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'")

# Kinds of text that the parser explains best.
_TEXTS = (Kind.NET_TEXT, Kind.SOLVER_TEXT, Kind.LABEL_MAP, Kind.TEXT, Kind.EMPTY)
# Kinds that a prototxt may look like (a comment with a line of Python): named where the parser fails.
_OTHER_TEXTS = (Kind.LOG, Kind.PYTHON)


# Messages of protobuf's parser, and ours; the groups of a pattern fill the braces.
_REWORDED = [
    (r"'[\w-]+' codec can't .*", "an escape in a quoted text is not a character"),
    (r"Expected string but found: '(.*)'", "a text in quotes is expected, not {0}"),
    (r"String missing ending quote: .*", "a quote is not closed on its line"),
    (r"Couldn't parse integer: (.*)", "a whole number is expected, not {0}"),
    (r"Couldn't parse float: (.*)", "a number is expected, not {0}"),
    (r"Value out of range: (.*)", "{0} is out of range here"),
    (r'Expected "true" or "false"\.?', "true or false is expected"),
    (r'Expected "(.)"\.?', "'{0}' is expected"),
    (r"Expected identifier or number, got (.*?)\.?", "the name of a field is expected, not '{0}'"),
    (r'Message type "(?:caffe\.)?([\w.]+)" should not have multiple "(\w+)" fields\.?', "{0} has one '{1}', but this is a second one"),
]
_MOST_SHOWN = 60


def _explain(error: text_format.ParseError, message: Message, text: str, path: PathLike | None) -> PrototxtError:
    """Turn protobuf's parse error into one that also names what was probably meant."""
    line, column = error.GetLine() or 0, error.GetColumn() or 0
    what = re.sub(r"^\d+:\d+ : ", "", str(error)).strip()
    what = re.sub(r"^'.*': (.*)$", r"\1", what, flags=re.DOTALL).replace("\n", " ")
    unknown = re.search(r'Message type "(?:caffe\.)?([\w.]+)" has no field named "(\w+)"', what)
    value = re.search(r'Enum type "(?:caffe\.)?([\w.]+)" has no value named (\w+)', what)
    opened = _unclosed(text)
    if path is not None and (other := wrong_kind(PrototxtError, path, "a prototxt", allowed=_TEXTS)):
        return other
    if unknown:
        what = f"{unknown[1]} has no field '{unknown[2]}'" + _suggest(unknown[2], unknown[1], message)
    elif value:
        what = _known_values(value[1], value[2], message)
    elif line and opened and re.fullmatch(r'Expected "}"\.?', what):
        what = f"the brace opened on line {opened} is never closed"
    else:
        for pattern, words in _REWORDED:
            if found := re.fullmatch(pattern, what):
                what = words.format(*found.groups())
                break
        what += f", in: {_excerpt(text, line, column)}" if line else ""
        what += f" (the brace opened on line {opened} is never closed)" if line and opened else ""
    return PrototxtError(_printable(what), path=path, line=line, column=column)


def _incomplete(message: Any, text: str, path: PathLike | None) -> PrototxtError:
    """Return an error for the first field that must be given and is not."""
    missing = message.FindInitializationErrors()[0]
    place = re.match(r"layer\[(\d+)\]\.(.+)", missing)
    if not place:
        return PrototxtError(f"{missing} must be given", path=path)
    starts = [line for line, _ in _layer_blocks(text)]
    index = int(place[1])
    name = message.layer[index].name
    return PrototxtError(
        f"layer '{name}': {place[2]} must be given", path=path, line=starts[index] if len(starts) == len(message.layer) else 0
    )


def _excerpt(text: str, line: int, column: int) -> str:
    """Return the line at a place of the text, or the part of it that can be shown."""
    lines = text.split("\n")
    whole = lines[line - 1] if line <= len(lines) else ""
    if len(whole.strip()) <= _MOST_SHOWN:
        return whole.strip()
    start = max(0, min(column - 1 - _MOST_SHOWN // 3, len(whole) - _MOST_SHOWN))
    part = whole[start : start + _MOST_SHOWN].strip()
    return f"{'…' if start else ''}{part}{'…' if start + _MOST_SHOWN < len(whole) else ''}"


def _printable(text: str) -> str:
    """Return ``text`` on one line that a terminal can show."""
    return re.sub(r"\?{4,}", "???", "".join(c if c.isprintable() else "?" for c in text))


def _suggest(word: str, message_name: str, message: Message) -> str:
    if message_name == message.DESCRIPTOR.name:
        for other, kind, wanted in ((SolverParameter, "a solver", "a net"), (NetParameter, "a net", "a solver")):
            if message_name != other.DESCRIPTOR.name and word in other.DESCRIPTOR.fields_by_name:
                return f"; this is {kind}'s prototxt, and {wanted}'s is expected"
    try:
        fields = message.DESCRIPTOR.file.pool.FindMessageTypeByName(f"caffe.{message_name}").fields_by_name
    except KeyError:
        return ""
    if message_name == "NetParameter" and word == "item":
        return "; this is a map of labels, and a net's prototxt is expected"
    if word in ("layer", "layers"):
        return "; is a closing brace missing before it?"
    return did_you_mean(word, fields) or "; if it is a fork's field, --dialect any keeps it"


def _known_values(enum_name: str, word: str, message: Message) -> str:
    known = list(message.DESCRIPTOR.file.pool.FindEnumTypeByName(f"caffe.{enum_name}").values_by_name)
    return f"{enum_name.rpartition('.')[2]} has no value '{word}'; it is one of {', '.join(known)}"


def _unclosed(text: str) -> int:
    """Return the line of the last opening brace without a closing one, or 0."""
    opened: list[int] = []
    for token in _SCAN.finditer(text):
        if token.group() == "{":
            opened.append(token.start())
        elif token.group() == "}" and opened:
            opened.pop()
    return text.count("\n", 0, opened[-1]) + 1 if opened else 0


@contextmanager
def error_context(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give errors about a layer that are raised inside the file ``path``, and the line of the field at fault or of the layer's block."""
    try:
        yield
    except (NetError, DataError) as error:
        if error.path is not None or (error.layer is None and isinstance(error, DataError)):
            raise
        field = error.field if isinstance(error, NetError) else ""
        raise error.located(path, layer_line(path, error.layer, field) if error.layer else 0) from None
