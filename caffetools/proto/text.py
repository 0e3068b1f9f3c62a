"""Prototxt: reading with errors that name the place, and writing as Caffe prints.

The fields of all forks are read, whatever fork a file is of (:mod:`caffetools.proto.forks.tables`). What no fork knows is kept as text where
the layer's type is unknown too, and else an error, since it is most likely a slip (:mod:`caffetools.proto.unknown`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from caffetools.errors import PrototxtError, did_you_mean
from caffetools.proto.forks.dialect import missing_fields
from caffetools.proto.forks.tables import UNKNOWN
from caffetools.proto.options import read_options
from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.proto.unknown import keep_unknown, print_unknown
from caffetools.util.files import write_text

PathLike = str | os.PathLike[str]


def read_net(path: PathLike) -> Any:
    """Read a network's prototxt into a ``NetParameter``, as written: nothing is upgraded or filtered.

    Raises:
        PrototxtError: the file is missing, empty, not UTF-8, or not a network; the message has file, line and column.
    """
    return parse(_read(path), NetParameter, path=path)


def read_solver(path: PathLike) -> Any:
    """Read a solver's prototxt into a ``SolverParameter``. Raises :class:`PrototxtError` as :func:`read_net` does."""
    return parse(_read(path), SolverParameter, path=path)


def parse(text: str, message_type: Any, *, path: PathLike | None = None) -> Any:
    """Parse prototxt ``text`` into a new ``message_type``; ``path`` is only used in errors.

    A dialect given by the :class:`~caffetools.proto.options.ReadOptions` must have all of the fields; ``any`` keeps unknown ones.
    """
    if not text.strip():
        raise PrototxtError("the file is empty", path=path)
    if reserved := re.search(rf"\b{UNKNOWN}\w*\s*:", text):
        line = text.count("\n", 0, reserved.start()) + 1
        raise PrototxtError(f"the field '{reserved[0].rstrip(': ')}' is kept for caffetools itself", path=path, line=line)
    options = read_options()
    message = message_type()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError:
        message = message_type()
        try:
            text_format.Parse(keep_unknown(text, message.DESCRIPTOR, lenient=options.keep_unknown), message)
        except text_format.ParseError as error:
            raise _explain(error, message, text, path) from None
    if not message.IsInitialized():
        raise _incomplete(message, text, path)
    required = options.required_forks
    if required is not None and (missing := missing_fields(message, required)):
        raise PrototxtError(f"the dialect '{required}' has no field {missing[0]}", path=path, hint="leave --dialect out to read it")
    return message


def format_text(message: Any) -> str:
    """``message`` as prototxt, with whole floats written as Caffe writes them (``lr_mult: 1``, not ``1.0``)."""
    text = text_format.MessageToString(message, as_utf8=True)
    return print_unknown(re.sub(r"^(\s*\w+: -?\d+)\.0$", r"\1", text, flags=re.MULTILINE))


def write_prototxt(path: PathLike, message: Any, *, comment: str = "") -> None:
    """Write ``message`` to ``path`` atomically, below ``comment`` (its lines are prefixed with ``# ``)."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    write_text(path, head + format_text(message))


def layer_line(path: PathLike, layer: str) -> int:
    """The 1-based line on which the block of the layer named ``layer`` starts in a prototxt; 0 when it is not found."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return 0
    for line, block in _layer_blocks(text):
        if re.search(r"\bname\s*:\s*([\"'])" + re.escape(layer) + r"\1", block):
            return line
    return 0


def _layer_blocks(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every top-level ``layer`` or ``layers`` block."""
    depth, start = 0, 0
    for token in re.finditer(r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[{}]|\w+", text):
        word = token.group()
        if depth == 0 and word in ("layer", "layers"):
            start = token.start()
        elif word == "{":
            depth += 1
        elif word == "}":
            depth -= 1
            if depth == 0:
                yield text.count("\n", 0, start) + 1, text[start : token.end()]


def _read(path: PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrototxtError(f"not a text file (byte {error.start} is not UTF-8); a prototxt is expected", path=path) from None
    except OSError as error:
        raise PrototxtError(f"cannot read: {error.strerror}", path=path) from None


# What protobuf's parser says, and what we say; the groups of a pattern fill the braces.
_REWORDED = [
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


def _explain(error: text_format.ParseError, message: Any, text: str, path: PathLike | None) -> PrototxtError:
    """Turn protobuf's parse error into one that also says what was probably meant."""
    line, column = error.GetLine() or 0, error.GetColumn() or 0
    what = re.sub(r"^\d+:\d+ : ", "", str(error)).strip()
    what = re.sub(r"^'.*': (.*)$", r"\1", what, flags=re.DOTALL).replace("\n", " ")
    unknown = re.search(r'Message type "(?:caffe\.)?([\w.]+)" has no field named "(\w+)"', what)
    value = re.search(r'Enum type "(?:caffe\.)?([\w.]+)" has no value named (\w+)', what)
    opened = _unclosed(text)
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
    """An error for the first field that must be given and is not."""
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
    """What stands at a place of the text: its line, or the part of it that can be shown."""
    lines = text.split("\n")
    whole = lines[line - 1] if line <= len(lines) else ""
    if len(whole.strip()) <= _MOST_SHOWN:
        return whole.strip()
    start = max(0, min(column - 1 - _MOST_SHOWN // 3, len(whole) - _MOST_SHOWN))
    part = whole[start : start + _MOST_SHOWN].strip()
    return f"{'…' if start else ''}{part}{'…' if start + _MOST_SHOWN < len(whole) else ''}"


def _printable(text: str) -> str:
    """``text`` on one line that a terminal can show."""
    return re.sub(r"\?{4,}", "???", "".join(c if c.isprintable() else "?" for c in text))


def _suggest(word: str, message_name: str, message: Any) -> str:
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


def _known_values(enum_name: str, word: str, message: Any) -> str:
    known = list(message.DESCRIPTOR.file.pool.FindEnumTypeByName(f"caffe.{enum_name}").values_by_name)
    return f"{enum_name.rpartition('.')[2]} has no value '{word}'; it is one of {', '.join(known)}"


def _unclosed(text: str) -> int:
    """The line of the last opening brace that has no partner, or 0."""
    opened: list[int] = []
    for token in re.finditer(r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[{}]", text):
        if token.group() == "{":
            opened.append(text.count("\n", 0, token.start()) + 1)
        elif token.group() == "}" and opened:
            opened.pop()
    return opened[-1] if opened else 0
