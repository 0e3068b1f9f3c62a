"""``caffe.proto.caffe_pb2``: every message and enum value of Caffe's schema, by name. The messages are those caffetools itself uses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf import reflection as _reflection
from google.protobuf import symbol_database as _symbol_database
from google.protobuf.internal import enum_type_wrapper

from caffetools.proto import schema

__all__ = ["DESCRIPTOR", "TEST", "TRAIN", "_descriptor", "_message", "_reflection", "_sym_db", "_symbol_database", "enum_type_wrapper"]

_sym_db = _symbol_database.Default()

DESCRIPTOR = schema.POOL.FindMessageTypeByName("caffe.NetParameter").file
TRAIN, TEST = schema.TRAIN, schema.TEST


def __getattr__(name: str) -> Any:
    if name in DESCRIPTOR.message_types_by_name:
        return schema.message_class(name)
    if name in DESCRIPTOR.enum_types_by_name:
        return enum_type_wrapper.EnumTypeWrapper(DESCRIPTOR.enum_types_by_name[name])
    for enum in DESCRIPTOR.enum_types_by_name.values():
        if name in enum.values_by_name:
            return enum.values_by_name[name].number
    if name.isupper() and name in (descriptors := _private_descriptors()):
        return descriptors[name]
    raise AttributeError(f"Caffe's schema has no message or enum '{name}'")


def __dir__() -> list[str]:
    return sorted([*DESCRIPTOR.message_types_by_name, *DESCRIPTOR.enum_types_by_name, *_private_descriptors(), *__all__])


@cache
def _private_descriptors() -> dict[str, Any]:
    """Return all descriptors under protoc's private names: ``_LAYERPARAMETER``, ``_V1LAYERPARAMETER_LAYERTYPE``."""
    package = f"{DESCRIPTOR.package}."
    found = [*DESCRIPTOR.enum_types_by_name.values()]
    for message in DESCRIPTOR.message_types_by_name.values():
        found += _with_nested(message)
    return {f"_{one.full_name.removeprefix(package).replace('.', '_').upper()}": one for one in found}


def _with_nested(message: Any) -> Iterator[Any]:
    yield message
    yield from message.enum_types
    for nested in message.nested_types:
        yield from _with_nested(nested)
