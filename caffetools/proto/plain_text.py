"""The common form of prototxt, read several times faster than by protobuf's parser.

Only what nearly every file consists of is read: fields with one plain value each, blocks in braces, comments between fields. For
anything else, a mistake included, the result is None, and protobuf's parser decides what the text is or names the fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from caffetools.proto.schema import Message, is_repeated

Value = bool | int | float | str
# How the text of a value is read, or the type of a block; whether the field is repeated.
_Field = tuple[Callable[[str], Value] | None, bool]

# A name with its value or opening brace, or a closing brace, each with the separator that may follow; a comment; anything else.
# Words and numbers are as long as protobuf's tokens: 3x is one token, not a number.
_PART = re.compile(
    r"([A-Za-z_][0-9A-Za-z_]*)\s*(?:(:?\s*\{)|:\s*(?:([0-9A-Za-z_.+-]+)|\"([^\"\\\n]*)\"|'([^'\\\n]*)')(?:\s*[,;])?)"
    r"|(\})(?:\s*[,;])?|#[^\n]*|(\S)"
)
# No net has blocks nested deeper, or longer strings: both only cost time and memory.
DEEPEST, LONGEST_STRING = 100, 1 << 20
_BLOCK, _WORD, _DOUBLE, _SINGLE, _END, _OTHER = 2, 3, 4, 5, 6, 7
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
# A zero before other digits would be an octal number, which protobuf refuses here.
_DECIMAL = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLS: dict[str, int] = {"true": True, "false": False}


def merge_plain(text: str, message: Message) -> bool:
    """Read ``text`` into the empty ``message`` as ``google.protobuf.text_format.Parse`` does.

    Returns:
        Whether all of the text has the common form. If not, the message holds a part of it and is of no use.
    """
    try:
        return _merge(text, message)
    except ValueError:
        # A number that is out of range, or a character that UTF-8 cannot hold.
        return False


def _merge(text: str, message: Message) -> bool:
    fields, above = _fields(message.DESCRIPTOR), list[tuple[Message, dict[str, _Field]]]()
    for part in _PART.finditer(text):
        kind = part.lastindex
        if kind is None:
            continue
        if kind == _END:
            if not above:
                return False
            message, fields = above.pop()
            continue
        name = part[1]
        if kind == _OTHER or name not in fields:
            return False
        read, repeated = fields[name]
        if not repeated and message.HasField(name):
            return False
        if kind == _BLOCK:
            if read is not None or len(above) == DEEPEST:
                return False
            above.append((message, fields))
            inner = getattr(message, name)
            if repeated:
                message = inner.add()
            else:
                inner.SetInParent()
                message = inner
            fields = _fields(message.DESCRIPTOR)
            continue
        # Only a text is in quotes.
        word = part[kind]
        if read is None or (kind == _WORD) is (read is str) or len(word) > LONGEST_STRING:
            return False
        value = read(word)
        if repeated:
            getattr(message, name).append(value)
        else:
            setattr(message, name, value)
    return not above


@cache
def _fields(descriptor: Descriptor) -> dict[str, _Field]:
    """Return the fields that are read here, by name: of plain types, and none that exclude each other."""
    return {
        field.name: (None if field.type == FieldDescriptor.TYPE_MESSAGE else _reader(field), is_repeated(field))
        for field in descriptor.fields
        if (field.type == FieldDescriptor.TYPE_MESSAGE or field.type in _READERS or field.type == FieldDescriptor.TYPE_ENUM)
        and field.containing_oneof is None
        and not (field.message_type is not None and field.message_type.GetOptions().map_entry)
    }


def _reader(field: FieldDescriptor) -> Callable[[str], Value]:
    return _enum(field.enum_type) if field.enum_type is not None else _READERS[field.type]


def _enum(kind: EnumDescriptor) -> Callable[[str], Value]:
    numbers = {name: value.number for name, value in kind.values_by_name.items()}
    return lambda word: _found(numbers, word)


def _found(values: dict[str, int], word: str) -> int:
    if word not in values:
        raise ValueError(word)
    return values[word]


def _bool(word: str) -> bool:
    return bool(_found(_BOOLS, word))


def _integer(word: str) -> int:
    if not _INTEGER.fullmatch(word):
        raise ValueError(word)
    return int(word)


def _decimal(word: str) -> float:
    if not _DECIMAL.fullmatch(word):
        raise ValueError(word)
    return float(word)


_READERS: dict[int, Callable[[str], Value]] = {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_FLOAT: _decimal,
    FieldDescriptor.TYPE_DOUBLE: _decimal,
    **dict.fromkeys(
        (
            FieldDescriptor.TYPE_INT32,
            FieldDescriptor.TYPE_INT64,
            FieldDescriptor.TYPE_UINT32,
            FieldDescriptor.TYPE_UINT64,
        ),
        _integer,
    ),
}
