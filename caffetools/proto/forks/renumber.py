"""Translating serialized messages between a fork's field numbers and those of our schema, byte for byte where nothing differs.

A *plan* maps, for each message, its field numbers to others. A number that the fork does not know may mean another field here; such a
field's bytes go into the field ``caffetools_unknown_bytes`` that our messages have for this, and come out when the message is
written. So nothing is lost or misread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from caffetools.proto import wire
from caffetools.proto.forks.tables import UNKNOWN_BYTES_NUMBER, UNKNOWN_NUMBER, fork_schema
from caffetools.proto.schema import POOL, bvlc_descriptor, is_repeated

# Messages whose fields are the same everywhere, or of no concern here.
_OPAQUE = ("BlobProto", "BlobShape")


class Target(NamedTuple):
    """The target of a field: its number, how it may be encoded, what message it is, and how its enum values change."""

    number: int
    kinds: tuple[int, ...]
    message: str | None
    values: dict[int, int]
    repeated: bool


class Plan:
    """For each message, its fields by their number in the bytes to be read; made for those messages only that are met.

    Attributes:
        dialects: those to read, or to write. writing: whether the bytes are ours, to be written as a fork's.
    """

    def __init__(self, dialects: tuple[str, ...], *, writing: bool):
        self.dialects, self.writing = dialects, writing
        self._fields: dict[str, Mapping[int, Target]] = {}

    def fields(self, message: str) -> Mapping[int, Target]:
        """Return the fields of ``message``; none for a message that neither a net nor a solver contains."""
        if message not in self._fields:
            read = dict(_numbers(message, self.dialects)) if message in _message_names() else {}
            self._fields[message] = _reversed(read) if self.writing else read
        return self._fields[message]


class UnplannedField(ValueError):
    """A field for which the plan has no number. ``message`` and ``number`` identify it."""

    def __init__(self, message: str, number: int):
        self.message, self.number = message, number
        super().__init__(f"{message} {number}")


def renumber(buffer: memoryview, message: str, plan: Plan, mismatches: list[int] | None = None) -> bytes:
    """Return the message in ``buffer`` with its field numbers changed by ``plan``.

    Args:
        buffer: The serialized message.
        message: The name of its type.
        plan: The numbers to change.
        mismatches: Gets the number of every field that is not known or not encoded as its type is. With it, a part that can't be
            read is such a field, and left out; without it, an error.

    Raises:
        WireError: the bytes are not a message. UnplannedField: writing, a field has no number in the fork.
    """
    fields = plan.fields(message)
    pieces: list[tuple[int, bytes]] = []
    unknown: list[bytes] = []
    seen: set[int] = set()
    for item in wire.walk(buffer):
        target = fields.get(item.number)
        # No writer gives a single value twice: it is another field then, which must not lose all but its last value.
        twice = target is not None and not target.repeated and item.number in seen
        seen.add(item.number)
        if target is None or item.kind not in target.kinds or twice:
            if mismatches is not None:
                mismatches.append(item.number)
            unknown.append(_unknown(buffer, item, message, plan, known=target is not None))
            continue
        body: bytes | memoryview = buffer[item.value : item.end]
        if target.message is not None:
            try:
                body = renumber(buffer[item.value : item.end], target.message, plan, mismatches)
            except wire.WireError:
                if mismatches is None:
                    raise
                mismatches.append(item.number)
                continue
        elif target.values:
            body = _renumber_values(buffer, item, target.values)
        head = wire.bytes_key(target.number, len(body)) if item.kind == wire.BYTES else wire.varint(target.number << 3 | item.kind)
        pieces.append((target.number, head + body))
    rest = b"".join(unknown)
    if plan.writing:
        # As protobuf writes: known fields by number, then the unknown ones as they came.
        pieces.sort(key=lambda piece: piece[0])
    elif rest:
        rest = wire.bytes_key(UNKNOWN_BYTES_NUMBER, len(rest)) + rest
    return b"".join(piece for _, piece in pieces) + rest


def _unknown(buffer: memoryview, item: wire.Field, message: str, plan: Plan, *, known: bool) -> bytes:
    if plan.writing and item.number == UNKNOWN_BYTES_NUMBER:
        return bytes(buffer[item.value : item.end])
    if plan.writing and not known and item.number in POOL.FindMessageTypeByName(f"caffe.{message}").fields_by_number:
        raise UnplannedField(message, item.number)
    return bytes(buffer[item.start : item.end])


def _renumber_values(buffer: memoryview, item: wire.Field, values: Mapping[int, int]) -> bytes:
    body, position = b"", item.value
    while position < item.end:
        value, position = wire.read_varint(buffer, position, item.end)
        body += wire.varint(values.get(value, value))
    return body


@cache
def reading_plan(dialects: tuple[str, ...]) -> Plan:
    """From the numbers of ``dialects`` (the first counts where they clash; none is BVLC Caffe) to ours."""
    return Plan(dialects, writing=False)


@cache
def writing_plan(dialects: tuple[str, ...]) -> Plan:
    """From our numbers to those of ``dialects``."""
    return Plan(dialects, writing=True)


def _reversed(fields: Mapping[int, Target]) -> dict[int, Target]:
    """From our numbers to the fork's; where two of the fork's are one of ours, the first counts."""
    return {
        target.number: target._replace(number=number, values={new: old for old, new in target.values.items()})
        for number, target in reversed(list(fields.items()))
    }


@cache
def field_numbers(message: str, dialects: tuple[str, ...]) -> Mapping[str, int]:
    """Field name → number of ``message`` in ``dialects``; a field whose number another one has taken is left out."""
    numbers: dict[int, str] = {}
    for dialect in dialects:
        for spec in fork_schema(dialect).fields:
            if spec.message == message:
                numbers.setdefault(spec.number, spec.name)
    forks_own = set(numbers.values())
    for name, number in _bvlc_numbers().get(message, {}).items():
        if name not in forks_own:
            numbers.setdefault(number, name)
    return {name: number for number, name in reversed(numbers.items())}


def _numbers(message: str, dialects: tuple[str, ...]) -> Iterable[tuple[int, Target]]:
    descriptor = POOL.FindMessageTypeByName(f"caffe.{message}")
    for name, number in field_numbers(message, dialects).items():
        yield number, _target(descriptor.fields_by_name[name], dialects)
    if descriptor.fields_by_number.get(UNKNOWN_NUMBER) is not None:
        yield UNKNOWN_NUMBER, Target(UNKNOWN_NUMBER, (wire.BYTES,), None, {}, repeated=True)


def _target(field: FieldDescriptor, dialects: tuple[str, ...]) -> Target:
    if field.message_type is not None and _short(field.message_type) in _OPAQUE:
        return Target(field.number, (wire.BYTES,), None, {}, is_repeated(field))
    if field.message_type is not None:
        return Target(field.number, (wire.BYTES,), _short(field.message_type), {}, is_repeated(field))
    kind = {"float": wire.FIXED32, "double": wire.FIXED64, "string": wire.BYTES, "bytes": wire.BYTES}.get(_type(field), wire.VARINT)
    kinds = (kind, wire.BYTES) if is_repeated(field) else (kind,)
    return Target(field.number, kinds, None, _values(field.enum_type, dialects) if field.enum_type is not None else {}, is_repeated(field))


def _type(field: FieldDescriptor) -> str:
    kinds = {field.TYPE_FLOAT: "float", field.TYPE_DOUBLE: "double", field.TYPE_STRING: "string", field.TYPE_BYTES: "bytes"}
    return kinds.get(field.type, "varint")


def _values(enum: EnumDescriptor, dialects: tuple[str, ...]) -> dict[int, int]:
    """Return the fork's value → ours, where they differ."""
    changed: dict[int, int] = {}
    for dialect in dialects:
        for spec in fork_schema(dialect).values:
            if spec.message == _short(enum):
                ours = enum.values_by_name[spec.name].number
                if ours != spec.number:
                    changed.setdefault(spec.number, ours)
    return changed


def _short(descriptor: Descriptor | EnumDescriptor) -> str:
    return str(descriptor.full_name).removeprefix("caffe.")


@cache
def _bvlc_numbers() -> Mapping[str, Mapping[str, int]]:
    return {message.name: {field.name: field.number for field in message.field} for message in bvlc_descriptor().message_type}


@cache
def _message_names() -> frozenset[str]:
    """Return the names of the messages that a net or a solver contains."""
    names: set[str] = set()

    def visit(descriptor: Descriptor) -> None:
        name = _short(descriptor)
        if name in names or name in _OPAQUE:
            return
        names.add(name)
        for field in descriptor.fields:
            if field.message_type is not None:
                visit(field.message_type)

    for root in ("NetParameter", "SolverParameter"):
        visit(POOL.FindMessageTypeByName(f"caffe.{root}"))
    return frozenset(names)
