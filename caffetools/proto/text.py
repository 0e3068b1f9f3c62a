"""Prototxt: reading with errors that name the place, and writing as Caffe prints."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from caffetools.errors import PrototxtError
from caffetools.files import write_text
from caffetools.proto.schema import NetParameter, SolverParameter

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
    """Parse prototxt ``text`` into a new ``message_type``; ``path`` is only used in errors."""
    if not text.strip():
        raise PrototxtError("the file is empty", path=path)
    message = message_type()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _explain(error, message, text, path) from None
    return message


def format_text(message: Any) -> str:
    """``message`` as prototxt, with whole floats written as Caffe writes them (``lr_mult: 1``, not ``1.0``)."""
    text = text_format.MessageToString(message, as_utf8=True)
    return re.sub(r"^(\s*\w+: -?\d+)\.0$", r"\1", text, flags=re.MULTILINE)


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


def _explain(error: text_format.ParseError, message: Any, text: str, path: PathLike | None) -> PrototxtError:
    """Turn protobuf's parse error into one that also says what was probably meant."""
    line, column = error.GetLine() or 0, error.GetColumn() or 0
    what = re.sub(r"^\d+:\d+ : ", "", str(error)).strip()
    what = re.sub(r"^'(.*)': (.*)$", r"\2, in: \1", what, flags=re.DOTALL).replace("\n", " ")
    unknown = re.search(r'Message type "(?:caffe\.)?([\w.]+)" has no field named "(\w+)"', what)
    if unknown:
        what = f"{unknown[1]} has no field '{unknown[2]}'" + _suggest(unknown[2], unknown[1], message)
    elif line and _unclosed(text):
        opened = _unclosed(text)
        what += f" (the brace opened on line {opened} is never closed)"
    return PrototxtError(what, path=path, line=line, column=column)


def _suggest(word: str, message_name: str, message: Any) -> str:
    try:
        fields = message.DESCRIPTOR.file.pool.FindMessageTypeByName(f"caffe.{message_name}").fields_by_name
    except KeyError:
        return ""
    close = difflib.get_close_matches(word, list(fields), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _unclosed(text: str) -> int:
    """The line of the last opening brace that has no partner, or 0."""
    opened: list[int] = []
    for token in re.finditer(r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[{}]", text):
        if token.group() == "{":
            opened.append(text.count("\n", 0, token.start()) + 1)
        elif token.group() == "}" and opened:
            opened.pop()
    return opened[-1] if opened else 0
