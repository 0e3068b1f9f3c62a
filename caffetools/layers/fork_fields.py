"""Fields that forks added to BVLC Caffe's own messages, in a layer: those that change numbers must be honoured or refused."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from caffetools.proto.forks.effects import effects, field_text
from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.forks.tables import UNKNOWN, UNKNOWN_BYTES
from caffetools.proto.schema import LayerParameter, Message, bvlc_descriptor

# Messages of forks that change what a layer of any type computes: the fixed-point arithmetic of Ristretto and of Intel's Caffe.
_OF_ANY_LAYER = ("quantization_param",)


def fork_fields(param: LayerParameter) -> list[str]:
    """Return the fields of forks in a ``LayerParameter`` that change numbers and that are not at their default.

    A field of BVLC's messages is returned also where some layer type computes it; of a fork's own messages those that are not computed.
    A field of BVLC's with a value that only a fork has, such as ``operation: STOCHASTIC_SUM``, is returned with that value.
    """
    names = []
    for field, value in param.ListFields():
        if field.name in _OF_ANY_LAYER:
            names += [field.name] if _foreign(value) else []
        elif field.message_type is None:
            names += [] if field.name in _BVLC_LAYER or _without_effect("LayerParameter", field, value) else [field.name]
        elif _is_settings(field):
            names += _foreign(value)
    return names


def _is_settings(field: FieldDescriptor) -> bool:
    """Return whether a field of ``LayerParameter`` holds the settings of a layer type that is computed."""
    if field.name in _BVLC_LAYER:
        return field.name.endswith("_param")
    return effects("LayerParameter")[field.name].effect == "computed"


def _foreign(message: Message) -> list[str]:
    owner = message.DESCRIPTOR.name
    known = field_numbers(owner, ())
    names = []
    for field, value in message.ListFields():
        if field.name not in known:
            if _without_effect(owner, field, value):
                continue
            if known or effects(owner)[field.name].effect == "refused":
                names.append(field.name)
        if field.message_type is not None:
            # Fillers within convolution_param, for example.
            names += [name for part in (value if field.is_repeated else [value]) for name in _foreign(part)]
        elif field.enum_type is not None and field.name in known and field.name != "engine":
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


def _without_effect(owner: str, field: FieldDescriptor, value: object) -> bool:
    """Return whether a fork's field is neutral or has the value at which it does nothing."""
    if field.name in (UNKNOWN, UNKNOWN_BYTES):
        return True
    entry = effects(owner)[field.name]
    if entry.effect == "neutral" or (entry.unless and field_text(field, value) == entry.unless):
        return True
    return field.message_type is None and value == field.default_value


_BVLC_LAYER = field_numbers("LayerParameter", ())
