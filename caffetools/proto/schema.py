"""Caffe's messages, made at import from caffe.desc and the tables of its forks, in a descriptor pool of our own.

A private pool means that no generated code is bound to one protobuf release, and that a real Caffe (or another package with
its own ``caffe.proto``) can live in the same process. The messages are ordinary protobuf messages; their fields are those of
caffe.proto, which lies beside this file, and those that forks add (:mod:`caffetools.proto.forks.tables`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from caffetools.proto.forks.tables import add_forks

# A message of Caffe's schema. The classes are made at run time, so type checkers see Any.
Message = Any

POOL = descriptor_pool.DescriptorPool()


def bvlc_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """BVLC Caffe's schema alone."""
    (file,) = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / "caffe.desc").read_bytes()).file
    return file


def _load() -> None:
    file = bvlc_descriptor()
    add_forks(file)
    POOL.Add(file)


def message_class(name: str) -> Any:
    """The message class of ``name`` without its package, e.g. ``"PoolingParameter"``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"caffe.{name}"))


_load()

BlobProto = message_class("BlobProto")
BlobProtoVector = message_class("BlobProtoVector")
BlobShape = message_class("BlobShape")
Datum = message_class("Datum")
FillerParameter = message_class("FillerParameter")
LayerParameter = message_class("LayerParameter")
NetParameter = message_class("NetParameter")
NetState = message_class("NetState")
NetStateRule = message_class("NetStateRule")
ParamSpec = message_class("ParamSpec")
SolverParameter = message_class("SolverParameter")
SolverStateMessage = message_class("SolverState")
TransformationParameter = message_class("TransformationParameter")

_PHASES = POOL.FindEnumTypeByName("caffe.Phase").values_by_name
TRAIN: int = _PHASES["TRAIN"].number
TEST: int = _PHASES["TEST"].number


def enum_name(message: Message, field: str) -> str:
    """The name of an enum field's value: ``enum_name(layer.pooling_param, "pool")`` is ``"MAX"``."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    return str(descriptor.enum_type.values_by_number[getattr(message, field)].name)


def is_repeated(field: Any) -> bool:
    """Whether a field's descriptor is that of a repeated one; protobuf has two ways of asking, each in some releases only."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == field.LABEL_REPEATED)
