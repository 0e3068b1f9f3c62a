"""``caffe.proto.caffe_pb2``: every message and enum value of Caffe's schema, by name. The messages are those caffetools itself uses."""

from __future__ import annotations

from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from caffetools.proto import schema

DESCRIPTOR = schema.POOL.FindMessageTypeByName("caffe.NetParameter").file
TRAIN, TEST = schema.TRAIN, schema.TEST


def __getattr__(name: str) -> Any:
    if name in DESCRIPTOR.message_types_by_name:
        return schema.message_class(name)
    if name in DESCRIPTOR.enum_types_by_name:
        return EnumTypeWrapper(DESCRIPTOR.enum_types_by_name[name])
    raise AttributeError(f"Caffe's schema has no message or enum '{name}'")


def __dir__() -> list[str]:
    return sorted([*DESCRIPTOR.message_types_by_name, *DESCRIPTOR.enum_types_by_name, "DESCRIPTOR", "TEST", "TRAIN"])
