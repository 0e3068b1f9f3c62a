"""Fields that forks added to BVLC Caffe's own messages, in a layer: those that change numbers must be honoured or refused."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.forks.tables import UNKNOWN, UNKNOWN_BYTES
from caffetools.proto.schema import LayerParameter, Message, bvlc_descriptor

# Which code computes it, how data are read ahead, where memory is shared: the numbers stay the same, up to their precision.
_HARMLESS = {
    *("engine", "conv_algos_override", "cudnn_convolution_algo_seeker", "cudnn_math_override", "conv_algorithm", "debug"),
    *("forward_type", "backward_type", "forward_math", "backward_math", "multinode", "stats_batch_size"),
    *("cache", "precache", "threads", "parser_threads", "prefetch"),
    "reshape_every_iter",
    UNKNOWN,
    UNKNOWN_BYTES,
}

# Messages of forks that change what a layer of any type computes: the fixed-point arithmetic of Ristretto and of Intel's Caffe.
_OF_ANY_LAYER = ("quantization_param",)


def fork_fields(param: LayerParameter) -> list[str]:
    """Return the fields of a ``LayerParameter``, and of BVLC's messages in it, that a fork added and that are not at their default.

    A field of BVLC's with a value that only a fork has, such as ``operation: STOCHASTIC_SUM``, is returned with that value.
    """
    names = []
    for field, value in param.ListFields():
        if field.name in _BVLC_LAYER and field.message_type is not None and field.name.endswith("_param"):
            names += _foreign(value)
        elif field.name in _OF_ANY_LAYER:
            names += [field.name] if _foreign(value) else []
        elif field.name not in _BVLC_LAYER and field.message_type is None and not _harmless(field, value):
            names.append(field.name)
    return names


def _foreign(message: Message) -> list[str]:
    known = field_numbers(message.DESCRIPTOR.name, ())
    names = []
    for field, value in message.ListFields():
        if field.name not in known:
            names += [] if _harmless(field, value) else [field.name]
        elif field.message_type is not None:
            # Fillers within convolution_param, for example.
            names += [name for part in (value if field.is_repeated else [value]) for name in _foreign(part)]
        elif field.enum_type is not None and field.name not in _HARMLESS:
            values = value if field.is_repeated else [value]
            given = [field.enum_type.values_by_number[number].name for number in values]
            names += [f"{field.name}: {name}" for name in given if name not in _bvlc_values(field.enum_type)]
    return names


def _bvlc_values(enum: EnumDescriptor) -> frozenset[str]:
    """Return the names of the values that BVLC Caffe's schema gives ``enum``."""
    return _bvlc_enums()[enum.full_name]


@cache
def _bvlc_enums() -> dict[str, frozenset[str]]:
    file = bvlc_descriptor()
    found = {f"{file.package}.{enum.name}": enum for enum in file.enum_type}
    found |= {f"{file.package}.{message.name}.{enum.name}": enum for message in file.message_type for enum in message.enum_type}
    return {name: frozenset(value.name for value in enum.value) for name, enum in found.items()}


def _harmless(field: FieldDescriptor, value: object) -> bool:
    return field.name in _HARMLESS or (field.message_type is None and value == field.default_value)


_BVLC_LAYER = field_numbers("LayerParameter", ())
