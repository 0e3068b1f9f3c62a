"""What differs between two networks, or between two files of weights, layer by layer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor

from caffetools.layers.shapes import Shape, format_shape
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text
from caffetools.proto.upgrades.v1 import upgrade_net

ONLY_FIRST, ONLY_SECOND, CHANGED, MOVED = "only in the first", "only in the second", "changed", "moved"


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        layer: its name; "" for the net itself. kind: ``only in the first``, ``only in the second``, ``changed`` or ``moved``.
        field: what of it, as a path: ``convolution_param.num_output``. before, after: as text; "" where there is nothing.
    """

    layer: str
    kind: str
    field: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class WeightsDifference:
    """A layer of two weights files.

    Attributes:
        kind: ``only in the first``, ``only in the second`` or ``changed``. first, second: the shapes of its blobs.
        largest: the largest absolute difference of a value; None where shapes differ or one has none. relative: that as a part of the
            first's largest value.
    """

    layer: str
    kind: str
    first: list[Shape]
    second: list[Shape]
    largest: float | None = None
    relative: float | None = None


def diff_nets(first: NetParameter, second: NetParameter) -> list[Difference]:
    """Return what differs between two ``NetParameter``s of any age, brought to today's form; nothing where they are equal.

    Layers are matched by name (and, where a file has a name twice, as data layers of both phases, by their order).
    """
    one, two = upgrade_net(first), upgrade_net(second)
    found = [_changed("", field, a, b) for field, a, b in _fields(_without_layers(one), _without_layers(two))]
    ours, theirs = _by_name(one), _by_name(two)
    for key, layer in ours.items():
        if key not in theirs:
            found.append(Difference(key[0], ONLY_FIRST, "type", str(layer.type), ""))
            continue
        found += [_changed(key[0], field, a, b) for field, a, b in _fields(layer, theirs[key])]
    found += [Difference(key[0], ONLY_SECOND, "type", "", str(layer.type)) for key, layer in theirs.items() if key not in ours]
    return found + list(_moved(list(ours), list(theirs)))


def diff_weights(first: Caffemodel, second: Caffemodel) -> list[WeightsDifference]:
    """Return the layers whose blobs differ in two models, in the first's order; nothing where all values are the same."""
    found = []
    for name in dict.fromkeys([*first.blobs, *second.blobs]):
        ours, theirs = first.blobs.get(name), second.blobs.get(name)
        shapes = [tuple(a.shape) for a in ours or ()], [tuple(a.shape) for a in theirs or ()]
        if ours is None or theirs is None:
            found.append(WeightsDifference(name, ONLY_SECOND if ours is None else ONLY_FIRST, *shapes))
        elif shapes[0] != shapes[1]:
            found.append(WeightsDifference(name, CHANGED, *shapes))
        elif not all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True)):
            with np.errstate(invalid="ignore", over="ignore"):
                gaps = [float(np.abs(a - b.astype(np.float64)).max(initial=0)) for a, b in zip(ours, theirs, strict=True)]
                scale = max(float(np.abs(a).max(initial=0)) for a in ours)
            # A NaN on one side only is as different as can be.
            largest = float("nan") if any(gap != gap for gap in gaps) else max(gaps)
            found.append(WeightsDifference(name, CHANGED, *shapes, largest, largest / scale if scale else None))
    return found


def describe_shapes(shapes: list[Shape]) -> str:
    """Return the shapes of a layer's blobs in words: ``96 x 3 x 11 x 11, 96``."""
    return ", ".join(format_shape(shape) for shape in shapes)


def _by_name(net: NetParameter) -> dict[tuple[str, int], Any]:
    layers: dict[tuple[str, int], Any] = {}
    for layer in net.layer:
        again = sum(1 for name, _ in layers if name == layer.name)
        layers[layer.name, again] = layer
    return layers


def _without_layers(net: NetParameter) -> NetParameter:
    copy = type(net)()
    copy.CopyFrom(net)
    copy.ClearField("layer")
    return copy


def _fields(first: NetParameter, second: NetParameter, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, before, after) of every field that differs between two messages of one type, at any depth."""
    ours, theirs = ({field.name: (field, value) for field, value in message.ListFields()} for message in (first, second))
    for name in dict.fromkeys([*ours, *theirs]):
        field = (ours.get(name) or theirs[name])[0]
        before, after = (side[name][1] if name in side else None for side in (ours, theirs))
        if before == after:
            continue
        if field.message_type is not None and not _repeated(before, after):
            given: Any = before if before is not None else after
            empty = type(given)()
            yield from _fields(before if before is not None else empty, after if after is not None else empty, f"{path}{name}.")
        else:
            yield f"{path}{name}", _text(field, before), _text(field, after)


def _repeated(*values: object) -> bool:
    return any(value is not None and hasattr(value, "add") for value in values)


def _text(field: FieldDescriptor, value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "append") or hasattr(value, "add"):
        return ", ".join(_text(field, one) for one in value)
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name) if value in field.enum_type.values_by_number else str(value)
    if field.message_type is not None:
        return "{ " + " ".join(format_text(value).split()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _changed(layer: str, field: str, before: str, after: str) -> Difference:
    return Difference(layer, CHANGED, field, before, after)


def _moved(ours: list[tuple[str, int]], theirs: list[tuple[str, int]]) -> Iterator[Difference]:
    """Layers that stand elsewhere among those that both nets have: all but a longest common order of them."""
    places = {key: place for place, key in enumerate(theirs)}
    common = [key for key in ours if key in places]
    kept = set(_longest_rising([places[key] for key in common]))
    for key in common:
        if places[key] not in kept:
            before = ours.index(key)
            yield Difference(key[0], MOVED, "place", str(before + 1), str(places[key] + 1))


def _longest_rising(numbers: list[int]) -> list[int]:
    """Return a longest rising part of a list of different numbers (patience sorting)."""
    tops: list[int] = []
    behind: dict[int, int | None] = {}
    for number in numbers:
        pile = bisect_left(tops, number)
        behind[number] = tops[pile - 1] if pile else None
        tops[pile : pile + 1] = [number]
    chain: list[int] = []
    last: int | None = tops[-1] if tops else None
    while last is not None:
        chain.append(last)
        last = behind[last]
    return chain[::-1]
