"""The fields that Caffe's forks add: the tables in schemas/, and one schema that contains all of them.

A fork's fields are specs in a file of its own, ``schemas/<name>.tsv``: rows ``message, name, number, label, type, default``, where the
label ``value`` marks a value of an enum, and rows ``layer, TYPE`` name the layer types that the fork adds.

In memory there is one schema: BVLC Caffe's, with the fields of all forks added by name. In text, where fields have no
numbers, nothing else is needed. Two forks may give one number to different fields, though. The fork that stands first in
:data:`DIALECTS` keeps its number, the others get one from :data:`FIRST_PRIVATE_NUMBER` on; BVLC's own never change. Binary files are translated
between a fork's numbers and these when they are read and written (:mod:`caffetools.proto.forks.dialect`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

# In the order in which they are asked for a field or tried on a file: the common ones first.
DIALECTS = (
    "ssd",
    "rfcn",
    "pspnet",
    "segnet",
    "shufflenet",
    "ceil",
    "yolo",
    "yolo-windows",
    "intel",
    "nvcaffe",
    "tsn",
    "openpose",
    "sphereface",
    "centerface",
    "triplet",
    "deconvnet",
    "fast-rcnn",
    "flownet",
    "pvanet",
    "openvino",
    "c3d",
    "cascade",
    "mscnn",
)
# The first number of fields whose own number is taken; 19000 to 19999 are protobuf's.
FIRST_PRIVATE_NUMBER = 20000
# The field that keeps text of no known field, in every message but those of data.
UNKNOWN = "caffetools_unknown"
UNKNOWN_NUMBER = 536870911  # the highest there is
# The one that keeps the bytes of fields that a binary file has and no dialect of it knows.
UNKNOWN_BYTES = "caffetools_unknown_bytes"
UNKNOWN_BYTES_NUMBER = 536870910

_DATA_MESSAGES = ("BlobProto", "BlobProtoVector", "BlobShape", "Datum")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {name.removeprefix("TYPE_").lower(): number for name, number in _Field.Type.items()}


class FieldSpec(NamedTuple):
    """One field (or enum value) of a fork."""

    message: str
    name: str
    number: int
    label: str
    type: str
    default: str


class ForkSchema(NamedTuple):
    """The fields, enum values and layer types of a fork."""

    fields: tuple[FieldSpec, ...]
    values: tuple[FieldSpec, ...]
    layers: frozenset[str]


@cache
def fork_schema(dialect: str) -> ForkSchema:
    """Return the schema of one of :data:`DIALECTS`."""
    specs, layers = [], set()
    text = (Path(__file__).parent / "schemas" / f"{dialect}.tsv").read_text(encoding="utf-8")
    for line in [line for line in text.splitlines() if not line.startswith("#")][1:]:
        message, name, number, label, kind, default = line.split("\t")
        if message == "layer":
            layers.add(name)
        else:
            specs.append(FieldSpec(message, name, int(number), label, kind, default))
    fields = tuple(spec for spec in specs if spec.label != "value")
    return ForkSchema(fields, tuple(spec for spec in specs if spec.label == "value"), frozenset(layers))


@cache
def repeated_elsewhere() -> frozenset[tuple[str, str]]:
    """Return the (message, field) that some forks repeat and the schema here, which takes another fork's, has once."""
    once: dict[tuple[str, str], bool] = {}
    for spec in (spec for dialect in DIALECTS for spec in fork_schema(dialect).fields):
        once.setdefault((spec.message, spec.name), spec.label != "repeated")
    repeated = {(spec.message, spec.name) for dialect in DIALECTS for spec in fork_schema(dialect).fields if spec.label == "repeated"}
    return frozenset(at for at in repeated if once[at])


def add_forks(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Add the messages, fields and enum values of every fork to ``file``, which holds BVLC Caffe's."""
    messages = dict(_messages(file, ""))
    enums = dict(_enums(file, ""))
    # By number, since the first value of an enum is its default.
    values = [spec for dialect in DIALECTS for spec in sorted(fork_schema(dialect).values, key=lambda spec: spec.number)]
    fields = [spec for dialect in DIALECTS for spec in fork_schema(dialect).fields]
    for spec in fields:
        _message(file, messages, spec.message)
    for spec in values:
        _enum(file, messages, enums, spec.message)
    # Name → number of what each message and enum has; asking protobuf's own lists each time takes long.
    have = {name: {field.name: field.number for field in message.field} for name, message in messages.items()}
    have |= {name: {value.name: value.number for value in enum.value} for name, enum in enums.items()}
    for spec in values:
        if spec.name not in have[spec.message]:
            enums[spec.message].value.add(name=spec.name, number=_take_number(spec, have[spec.message]))
    for spec in fields:
        if spec.name not in have[spec.message]:
            _add_field(messages[spec.message], spec, _take_number(spec, have[spec.message]), enums)
    for name, message in messages.items():
        if name not in _DATA_MESSAGES:
            message.field.add(name=UNKNOWN_BYTES, number=UNKNOWN_BYTES_NUMBER, label=_Field.LABEL_REPEATED, type=_Field.TYPE_BYTES)
            message.field.add(name=UNKNOWN, number=UNKNOWN_NUMBER, label=_Field.LABEL_REPEATED, type=_Field.TYPE_STRING)


def _message(file: FileDescriptorProto, messages: dict[str, Any], name: str) -> Any:
    if name not in messages:
        outer, _, inner = name.rpartition(".")
        scope = _message(file, messages, outer).nested_type if outer else file.message_type
        messages[name] = scope.add(name=inner)
    return messages[name]


def _enum(file: FileDescriptorProto, messages: dict[str, Any], enums: dict[str, Any], name: str) -> Any:
    if name not in enums:
        outer, _, inner = name.rpartition(".")
        scope = _message(file, messages, outer) if outer else file
        enums[name] = scope.enum_type.add(name=inner)
    return enums[name]


def _add_field(message: DescriptorProto, spec: FieldSpec, number: int, enums: dict[str, Any]) -> None:
    # What a fork requires can't be required of the others' files; the layers ask for it.
    label = _Field.LABEL_REPEATED if spec.label == "repeated" else _Field.LABEL_OPTIONAL
    field = message.field.add(name=spec.name, number=number, label=label)
    if spec.type in enums:
        field.type, field.type_name = _Field.TYPE_ENUM, f".caffe.{spec.type}"
    elif spec.type in _SCALARS:
        field.type = _SCALARS[spec.type]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".caffe.{spec.type}"
    if spec.default:
        field.default_value = spec.default


def _take_number(spec: FieldSpec, have: dict[str, int]) -> int:
    """Return the field's number, or the first private one where it is taken; entered in ``have``."""
    taken = set(have.values())
    number = (
        spec.number
        if spec.number not in taken
        else next(n for n in range(FIRST_PRIVATE_NUMBER, FIRST_PRIVATE_NUMBER + len(taken) + 1) if n not in taken)
    )
    have[spec.name] = number
    return number


def _messages(scope: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for message in scope.nested_type if prefix else scope.message_type:
        yield prefix + message.name, message
        yield from _messages(message, f"{prefix}{message.name}.")


def _enums(scope: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for enum in scope.enum_type:
        yield prefix + enum.name, enum
    for message in scope.nested_type if prefix else scope.message_type:
        yield from _enums(message, f"{prefix}{message.name}.")
