"""Caffe's messages, made at import from caffe.desc and the tables of its forks, in a descriptor pool of our own.

A private pool binds no generated code to one protobuf release, and a real Caffe (or another package with its own ``caffe.proto``) can
live in the same process. The messages are ordinary protobuf messages with the fields of caffe.proto and those that forks add
(:mod:`caffetools.proto.forks.tables`). Every top-level message is a name of this module; schema.pyi gives their types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from caffetools.proto.forks.tables import add_forks

__all__ = ["POOL", "TEST", "TRAIN", "Message", "bvlc_descriptor", "enum_name", "is_repeated", "message_class"]

POOL = descriptor_pool.DescriptorPool()

# Names other than those of the messages: SolverState is the class that holds a solver's arrays (caffetools.proto.model).
ALIASES = {"SolverStateMessage": "SolverState"}


def bvlc_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """Return BVLC Caffe's schema alone."""
    (file,) = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / "caffe.desc").read_bytes()).file
    return file


def message_class(name: str) -> Any:
    """Return the message class of ``name`` without its package, e.g. ``"PoolingParameter"``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"caffe.{name}"))


def enum_name(message: Message, field: str) -> str:
    """Return the name of an enum field's value: ``enum_name(layer.pooling_param, "pool")`` is ``"MAX"``."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    assert descriptor.enum_type is not None  # noqa: S101 (of a caller's constant)
    return str(descriptor.enum_type.values_by_number[getattr(message, field)].name)


def is_repeated(field: FieldDescriptor) -> bool:
    """Return whether a field's descriptor is that of a repeated one; protobuf has two ways of asking, each in some releases only."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == field.LABEL_REPEATED)


def _load() -> None:
    file = bvlc_descriptor()
    add_forks(file)
    POOL.Add(file)
    names = {message.name: message_class(message.name) for message in file.message_type}
    globals().update(names)
    globals().update({alias: names[name] for alias, name in ALIASES.items()})


_load()

_PHASES = POOL.FindEnumTypeByName("caffe.Phase").values_by_name
TRAIN: int = _PHASES["TRAIN"].number
TEST: int = _PHASES["TEST"].number
