"""Texts of Caffe's files, which may hold any bytes: those that are not UTF-8 are kept, and written back as they were.

Caffe takes names and paths as bytes, and editors on Windows write GBK or Latin-1. Protobuf in Python wants Unicode, so a byte that is not
UTF-8 becomes one character of Unicode's last private area (U+10FF80 to U+10FFFF), which no text uses, and a byte again when it is written.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any

from caffetools.proto import wire

if TYPE_CHECKING:
    from google.protobuf.message import Message

_BASE = 0x10FF00
_KEPT = re.compile("[\U0010ff80-\U0010ffff]")
# How the characters that stand for bytes begin in UTF-8.
_MARKS = (b"\xf4\x8f\xbe", b"\xf4\x8f\xbf")


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_BASE + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("caffetools-keep", _keep_bytes)


def decode_text(data: bytes) -> str:
    """Decode UTF-8; a byte that is not becomes one private character."""
    return data.decode("utf-8", "caffetools-keep")


def encode_text(text: str) -> bytes:
    """Encode as UTF-8; the inverse of :func:`decode_text`."""
    if not _KEPT.search(text):
        return text.encode("utf-8", "surrogateescape")
    pieces = re.split("([\U0010ff80-\U0010ffff]+)", text)
    return b"".join(
        bytes(ord(c) - _BASE for c in piece) if index % 2 else piece.encode("utf-8", "surrogateescape")
        for index, piece in enumerate(pieces)
    )


def system_path(text: str) -> str:
    """Return a path from a file as the system knows it: bytes that are not UTF-8 as Python's file functions take them."""
    return _KEPT.sub(lambda found: bytes([ord(found[0]) - _BASE]).decode("utf-8", "surrogateescape"), text)


def decode_escapes(text: str) -> str:
    """Replace runs of ``\\351`` and ``\\xe9`` in a prototxt that are not UTF-8 by private characters, which protobuf takes."""

    def replaced(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        values = [int(e[1:], 8) if e[1] != "x" else int(e[2:], 16) for e in re.findall(r"\\x[0-9a-fA-F]{2}|\\[0-7]{3}", found[1])]
        if all(value < 0x80 for value in values):
            return found[0]
        return "".join(c if ord(c) >= 0x80 else f"\\{ord(c):03o}" for c in decode_text(bytes(v & 0xFF for v in values)))

    return re.sub(r"((?:\\[0-3][0-7]{2}|\\x[0-9a-fA-F]{2})+)|\\.", replaced, text)


def repair_strings(message: Message) -> None:
    """Replace string fields that protobuf gives as bytes, since they are not UTF-8, by text; in place, in all inner messages."""
    for field, value in message.ListFields():
        many = not isinstance(value, (str, bytes)) and hasattr(value, "__len__")
        if field.message_type is not None:
            for inner in value if many else [value]:
                repair_strings(inner)
        elif field.type == field.TYPE_STRING:
            if many and any(isinstance(item, bytes) for item in value):
                texts = [decode_text(item) if isinstance(item, bytes) else item for item in value]
                message.ClearField(field.name)
                getattr(message, field.name).extend(texts)
            elif isinstance(value, bytes):
                setattr(message, field.name, decode_text(value))


def restore_strings(data: bytes, descriptor: Any) -> bytes:
    """Return a serialized message with the private characters of its string fields turned into the bytes they stand for."""
    return data if not any(mark in data for mark in _MARKS) else _restored(memoryview(data), descriptor)


def _restored(view: memoryview, descriptor: Any) -> bytes:
    pieces: list[bytes | memoryview] = []
    for item in wire.walk(view):
        field = descriptor.fields_by_number.get(item.number)
        if field is None or item.kind != wire.BYTES or (field.message_type is None and field.type != field.TYPE_STRING):
            pieces.append(view[item.start : item.end])
            continue
        body = view[item.value : item.end]
        if field.message_type is None:
            new = encode_text(bytes(body).decode("utf-8", "caffetools-keep"))
        else:
            new = _restored(body, field.message_type)
        pieces += [wire.bytes_key(item.number, len(new)), new]
    return b"".join(pieces)
