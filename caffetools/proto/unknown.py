"""Fields of a prototxt that no schema has: kept as text, and printed back where they stood in their message.

Before a prototxt is parsed, each such field becomes a string in the field ``caffetools_unknown`` that our messages have for this,
with its line ends, so that every other line keeps its number. Which ones are kept and which are errors is decided here:

- under a layer whose type BVLC Caffe does not have, fields are kept, unless they are spelled so much like a known one that they must
  be a typing error; a block named like the type (``crop_center_param`` of CropCenter) always is;
- elsewhere an unknown field is a typing error, unless the file is read leniently, which keeps all of them;
- of a field that a fork repeats and the schema has once (MobileNet-YOLO's resize_param), all but the first are kept.

A layer with such fields is not run, since nobody here knows what they would change.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_encoding
from google.protobuf.descriptor import Descriptor

from caffetools.proto.forks.dialect import bvlc_types
from caffetools.proto.forks.tables import UNKNOWN, UNKNOWN_BYTES, repeated_elsewhere
from caffetools.proto.schema import Message, is_repeated

_TOKEN = re.compile(r"#[^\n]*|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'|[\w.+-]+|[^\s]")
_STRING_NEXT = re.compile(r"(?:\s|#[^\n]*\n)*[\"']")
_OPEN, _CLOSE = "{<[", "}>]"
_QUOTES = "\"'"
# How like a known field's name one must be to be taken for a slip: a scalar's, a block's.
_CLOSE_SCALAR, _CLOSE_BLOCK = 0.82, 0.86

Value = Any  # str, bool, int, float, or a dict of lists of them


@dataclass
class _Frame:
    """A message that is open, and the layer that contains it."""

    message: Any
    layer: _Layer | None
    seen: set[str] = field(default_factory=set)


@dataclass
class _Layer:
    type: str = ""


@dataclass
class _Unknown:
    """A field that the schema does not have, or an enum value that it does not have; its text is ``text[start:end]``."""

    start: int
    end: int
    name: str
    message: Any
    layer: _Layer | None
    block: bool
    again: bool = False


@dataclass
class _Scan:
    """One walk over the tokens of a prototxt."""

    text: str
    tokens: list[tuple[int, int, str]]
    found: list[_Unknown] = field(default_factory=list)
    at: int = 0

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.tokens[place][2] if place < len(self.tokens) else ""

    def run(self, descriptor: Descriptor) -> None:
        stack = [_Frame(descriptor, None)]
        while self.at < len(self.tokens):
            word = self.peek()
            if word in _CLOSE:
                if len(stack) == 1:
                    return
                stack.pop()
                self.at += 1
            elif not (word[0].isalpha() or word[0] == "_"):
                self.at += 1
            else:
                self.field(stack)

    def field(self, stack: list[_Frame]) -> None:
        """Take one field; an opening brace of a known message pushes it."""
        frame, name, start = stack[-1], self.peek(), self.tokens[self.at][0]
        colon = self.peek(1) == ":"
        opener = self.peek(1 + colon)
        known = frame.message.fields_by_name.get(name)
        self.at += 1 + colon
        if known is None:
            self.skip()
            self.found.append(_Unknown(start, self.tokens[self.at - 1][1], name, frame.message, frame.layer, opener in ("{", "<")))
        elif (frame.message.name, name) in repeated_elsewhere() and name in frame.seen:
            self.skip()
            self.found.append(
                _Unknown(start, self.tokens[self.at - 1][1], name, frame.message, frame.layer, opener in ("{", "<"), again=True)
            )
        elif known.message_type is not None and opener in ("{", "<"):
            frame.seen.add(name)
            layer = _Layer() if known.message_type.name in ("LayerParameter", "V1LayerParameter") else frame.layer
            stack.append(_Frame(known.message_type, layer))
            self.at += 1
        else:
            value = self.peek()
            self.skip()
            if name == "type" and frame.layer is not None and frame.message.name == "LayerParameter":
                frame.layer.type = value.strip("\"'")
            if name == "type" and frame.layer is not None and _is_v1_type_of_a_fork(known, value):
                frame.layer.type = value
            if known.enum_type is not None and re.fullmatch(r"[A-Za-z_]\w*", value) and value not in known.enum_type.values_by_name:
                self.found.append(_Unknown(start, self.tokens[self.at - 1][1], name, frame.message, frame.layer, False))

    def skip(self) -> None:
        """Pass a value: a scalar (several strings are one), a list, or a block."""
        depth = 0
        while self.at < len(self.tokens):
            word = self.peek()
            if word in _CLOSE and depth == 0:
                return  # the value is missing; the parser raises the error
            depth += (word in _OPEN) - (word in _CLOSE)
            self.at += 1
            if depth == 0 and not (word[0] in "\"'" and self.peek()[:1] in ("'", '"')):
                return


def keep_unknown(text: str, descriptor: Descriptor, *, lenient: bool) -> str:
    """Return ``text`` with the unknown fields that may be kept made strings of ``caffetools_unknown``; the same text where there are none.

    Args:
        text: Prototxt.
        descriptor: The descriptor of the message that ``text`` holds.
        lenient: Keep every unknown field and enum value.
    """
    scan = _Scan(text, [(m.start(), m.end(), m.group()) for m in _TOKEN.finditer(text) if m.group()[0] != "#"])
    scan.run(descriptor)
    pieces: list[str] = []
    done = 0
    for unknown in scan.found:
        if unknown.start >= done and (lenient or _is_kept(unknown)):
            source = text[unknown.start : unknown.end]
            literal = text_encoding.CEscape(_laid_out(source).encode(), as_utf8=True)
            # A string that follows would be taken for more of this one.
            end = ";" if _STRING_NEXT.match(text, unknown.end) else ""
            pieces += [text[done : unknown.start], f'{UNKNOWN}: "{literal}"{end}', "\n" * source.count("\n")]
            done = unknown.end
    return "".join([*pieces, text[done:]])


def print_unknown(text: str) -> str:
    """Printed messages with the strings of ``caffetools_unknown`` as the fields that they hold."""
    if UNKNOWN not in text:
        return text
    # What a binary file had under numbers alone cannot be written as text.
    text = re.sub(rf"^ *{UNKNOWN_BYTES}: .*\n", "", text, flags=re.MULTILINE)

    def shown(match: re.Match[str]) -> str:
        source = text_encoding.CUnescape(match[2]).decode("utf-8", "replace")
        return "\n".join(f"{match[1]}{line}".rstrip() for line in source.split("\n"))

    return re.sub(rf'^( *){UNKNOWN}: "((?:[^"\\]|\\.)*)"$', shown, text, flags=re.MULTILINE)


def unknown_fields(message: Message) -> dict[str, list[Value]]:
    """Return the fields of ``message`` (not of messages in it) that were kept as text: name → its values in order.

    A block is a dict of the same kind; words that are neither numbers nor true or false are strings.
    """
    fields: dict[str, list[Value]] = {}
    for source in getattr(message, UNKNOWN, ()):
        tokens = [m.group() for m in _TOKEN.finditer(source) if m.group()[0] != "#"]
        _collect(tokens, fields)
    return fields


def unknown_names(message: Message) -> list[str]:
    """Return the names of all fields that were kept as text, in ``message`` and the messages in it."""
    names = list(unknown_fields(message))
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and descriptor.message_type.name != "BlobProto":
            for inner in value if is_repeated(descriptor) else [value]:
                names += unknown_names(inner)
    return names


def _collect(tokens: list[str], fields: dict[str, list[Value]]) -> None:
    stack = [fields]
    at = 0
    while at < len(tokens):
        name = tokens[at]
        at += 1
        if name in _CLOSE:
            stack.pop()
        if name in _CLOSE or name in ",;" or at >= len(tokens):
            continue
        values = stack[-1].setdefault(name, [])
        at += tokens[at] == ":"
        if tokens[at] in ("{", "<"):
            stack.append({})
            values.append(stack[-1])
        elif tokens[at] == "[":
            end = tokens.index("]", at)
            values += [_value(word) for word in tokens[at + 1 : end] if word != ","]
            at = end
        else:
            value = _value(tokens[at])
            while tokens[at][0] in _QUOTES and at + 1 < len(tokens) and tokens[at + 1][0] in _QUOTES:
                at += 1
                value += _value(tokens[at])
            values.append(value)
        at += 1


def _value(word: str) -> Value:
    if word[0] in "\"'":
        return text_encoding.CUnescape(word[1:-1]).decode("utf-8", "replace")
    if word in ("true", "false"):
        return word == "true"
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word


def _is_v1_type_of_a_fork(known: Any, value: str) -> bool:
    """Return whether ``value`` is a layer type that V1LayerParameter does not have, and not one of its own misspelled."""
    if known.enum_type is None or known.enum_type.name != "LayerType" or not re.fullmatch(r"[A-Z_]\w*", value):
        return False
    names = list(known.enum_type.values_by_name)
    close = difflib.get_close_matches(value, names, 1, _CLOSE_BLOCK)
    return value not in names and not (close and abs(len(close[0]) - len(value)) < 2)


def _is_kept(unknown: _Unknown) -> bool:
    if unknown.again:
        return True
    if unknown.layer is None or not unknown.layer.type or unknown.layer.type in bvlc_types():
        return False
    if unknown.message.name == "V1LayerParameter" and unknown.name == "type":
        return True
    if unknown.name in unknown.message.fields_by_name:
        return False  # a wrong value of a known field
    plain = unknown.name.removesuffix("_param").replace("_", "").lower()
    if unknown.block and plain == unknown.layer.type.replace("_", "").lower():
        return True
    close = difflib.get_close_matches(
        unknown.name, list(unknown.message.fields_by_name), 1, _CLOSE_BLOCK if unknown.block else _CLOSE_SCALAR
    )
    return not close


def _laid_out(source: str) -> str:
    """Return ``source`` with its lines indented by the depth of their braces, so that it reads the same wherever it is printed."""
    depth, lines = 0, []
    for line in source.split("\n"):
        words = [m.group() for m in _TOKEN.finditer(line) if m.group()[0] != "#"]
        closes = bool(words) and words[0] in _CLOSE
        lines.append("  " * max(depth - closes, 0) + line.strip())
        depth += sum((word in _OPEN) - (word in _CLOSE) for word in words)
    return "\n".join(lines)
