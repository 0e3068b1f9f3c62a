"""What a page of a net states of a selected layer: its settings with their defaults, its type's description, and its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

from caffetools.layers.registry import layer_types
from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.schema import LayerParameter, is_repeated

_APART = ("name", "type", "bottom", "top", "blobs")  # fields that are shown in other places
_MOST_VALUES = 32  # of a blob
_MOST_ENTRIES = 24  # of a repeated field


@dataclass(frozen=True)
class Setting:
    """A field of a layer: its path, without the message of its type's own settings, its value as text, and whether that is the default."""

    name: str
    value: str
    default: bool = False


@dataclass(frozen=True)
class BlobFacts:
    """A parameter blob: its name, its shape as text, and of stored weights the statistics and the first values; "" without weights."""

    name: str
    shape: str
    statistics: str = ""
    values: str = ""


def layer_settings(layer: LayerParameter) -> list[Setting]:
    """Return the fields that a layer sets, in the schema's order, then the defaults of its type's own settings.

    Defaults are those of BVLC Caffe's fields; of fields that only a fork has they are left out, unless the whole message is a fork's.
    """
    found, name = list(_set_fields(layer, "")), _own_settings(layer)
    if name:
        found = [replace(setting, name=setting.name.removeprefix(f"{name}.")) for setting in found]
        message = getattr(layer, name)
        known = field_numbers(message.DESCRIPTOR.name, ())
        for field in message.DESCRIPTOR.fields:
            scalar = not is_repeated(field) and field.message_type is None
            if scalar and not message.HasField(field.name) and field.has_default_value and (not known or field.name in known):
                found.append(Setting(field.name, _text(field, field.default_value), default=True))
    return found


def describe_type(kind: str) -> str:
    """Return what a layer type does, from its class's description; "" for an unknown type or a class without one."""
    layer = layer_types().get(kind)
    text = inspect.cleandoc(vars(layer).get("__doc__") or "") if layer is not None else ""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "")
    return "\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def blob_facts(kind: str, shapes: Sequence[Sequence[int]] | None, stored: Sequence[NDArray[Any]] = ()) -> list[BlobFacts]:
    """Describe a layer's parameter blobs.

    Args:
        kind: The layer's type, whose trait ``blobs`` names them.
        shapes: Their shapes; None where they are not known.
        stored: Their values, where weights are given. A stored blob's own shape is shown.
    """
    layer = layer_types().get(kind)
    names = layer.TRAITS.blobs if layer is not None else ()
    found = []
    for index in range(max(len(shapes or ()), len(stored))):
        name = names[index] if index < len(names) else f"blob {index}"
        if index < len(stored):
            found.append(_stored(name, np.asarray(stored[index])))
        else:
            found.append(BlobFacts(name, _shape((shapes or ())[index])))
    return found


def _stored(name: str, values: NDArray[Any]) -> BlobFacts:
    flat = values.ravel()
    if flat.size == 0:
        return BlobFacts(name, _shape(values.shape))
    finite = flat[np.isfinite(flat)].astype(np.float64)
    odd = flat.size - finite.size
    statistics = f"{odd:,} of {flat.size:,} values are not finite" if odd else ""
    if finite.size:
        numbers = f"mean {finite.mean():.4g}, deviation {finite.std():.4g}, from {finite.min():.4g} to {finite.max():.4g}"
        statistics = f"{numbers}; {statistics}" if statistics else numbers
    shown = ", ".join(f"{float(value):.5g}" for value in flat[:_MOST_VALUES])
    return BlobFacts(name, _shape(values.shape), statistics, shown + (", …" if flat.size > _MOST_VALUES else ""))


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _own_settings(layer: LayerParameter) -> str:
    """Return the field with the settings of the layer's type; "" where it has none."""
    kind = str(layer.type)
    known = layer_types().get(kind)
    if known is not None and known.TRAITS.settings:
        return known.TRAITS.settings
    plain = kind.lower()
    names = (name for name in LayerParameter.DESCRIPTOR.fields_by_name if name.endswith("_param"))
    return next((name for name in names if name.removesuffix("_param").replace("_", "") == plain), "")


def _set_fields(message: Message, path: str) -> Iterator[Setting]:
    for field, value in message.ListFields():
        name = path + field.name
        if not path and field.name in _APART:
            continue
        if not is_repeated(field):
            yield from _entry(field, name, value)
        elif field.message_type is None:
            shown = ", ".join(_text(field, entry) for entry in value[:_MOST_ENTRIES])
            yield Setting(name, shown + (", …" if len(value) > _MOST_ENTRIES else ""))
        else:
            for index, entry in enumerate(value[:_MOST_ENTRIES]):
                yield from _entry(field, f"{name}[{index}]", entry)


def _entry(field: FieldDescriptor, name: str, value: Any) -> Iterator[Setting]:
    if field.message_type is None:
        yield Setting(name, _text(field, value))
    elif value.ListFields():
        yield from _set_fields(value, f"{name}.")
    else:
        yield Setting(name, "{ }")


def _text(field: FieldDescriptor, value: Any) -> str:
    if field.enum_type is not None:
        number = field.enum_type.values_by_number.get(value)
        return number.name if number is not None else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return f"{value:.7g}" if isinstance(value, float) else str(value)
