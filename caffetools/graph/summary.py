"""Summarize a network: each layer's shapes, parameters, operations and memory, from the shape rules alone."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from caffetools.errors import NetError
from caffetools.graph.inputs import as_input, guessed_tops, is_data_layer, is_input, named_shapes
from caffetools.layers.base import Shape, check_size
from caffetools.layers.registry import generation, is_known, layer_class, suggestion, traits
from caffetools.net.phases import filter_net, make_state
from caffetools.net.topology import check_blob_graph
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from caffetools.proto.upgrades.v1 import upgrade_net

Value = TypeVar("Value")

_FLOAT = 4  # bytes
# The fields that give a layer its place in a net and its rates; the others determine its shapes.
_PLACE = ("name", "bottom", "top", "param", "include", "exclude", "loss_weight", "propagate_down")


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a summary.

    Attributes:
        name: The layer's name.
        type_name: Its type.
        bottoms: The names of its bottoms.
        tops: The names of its tops, with the one that Caffe gives a loss layer that names none.
        shapes: The shape of each top; None where it is not known.
        parameters: The shapes of its parameter blobs; None where they are not known.
        shared: How many of the parameter blobs other layers own.
        macs: Multiply-accumulate operations of a forward pass.
        note: Why something is not known; "" where everything is.
        unknown_type: Whether that is because no class computes its type.
        unknown_bottoms: Whether that is only because a shape that it reads is not known.
    """

    name: str
    type_name: str
    bottoms: list[str]
    tops: list[str]
    shapes: list[Shape | None]
    parameters: list[Shape] | None = None
    shared: int = 0
    macs: int = 0
    note: str = ""
    unknown_type: bool = False
    unknown_bottoms: bool = False

    @property
    def parameter_count(self) -> int:
        """The number of values in its parameter blobs."""
        return sum(math.prod(shape) for shape in self.parameters or ())


@dataclass
class Summary:
    """A net in one phase: its layers in order, and their totals.

    Attributes:
        name: The net's name.
        phase: ``TRAIN`` or ``TEST``.
        layers: The layers, in order.
        parameters: Values in all parameter blobs, shared ones once.
        macs: Multiply-accumulate operations of one forward pass.
        blob_bytes: Bytes of all blobs as float32, those computed in place once.
    """

    name: str
    phase: str
    layers: list[LayerSummary] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0
    blob_bytes: int = 0

    @property
    def parameter_bytes(self) -> int:
        """The bytes of all parameters as float32."""
        return self.parameters * _FLOAT

    @property
    def unknown_types(self) -> list[LayerSummary]:
        """The layers of types that no class computes."""
        return [layer for layer in self.layers if layer.unknown_type]

    @property
    def unknown(self) -> list[LayerSummary]:
        """The layers of which something is not known, and whose ``note`` states why."""
        return [layer for layer in self.layers if layer.note]

    def __str__(self) -> str:
        """The layers as a table of text, and the totals."""
        rows = [("Layer", "Type", "Output", "Parameters", "MACs"), *map(_as_text, self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                text.rjust(width) if column > 2 else text.ljust(width) for column, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        totals = f"{len(self.layers)} layers, {self.parameters:,} parameters, {self.macs:,} multiply-accumulates"
        return "\n".join(line.rstrip() for line in (f"{self.name or 'a net without a name'} in the {self.phase} phase", *lines, totals))


def _as_text(layer: LayerSummary) -> tuple[str, str, str, str, str]:
    shapes = ", ".join("?" if shape is None else "x".join(map(str, shape)) or "scalar" for shape in layer.shapes)
    parameters = "?" if layer.parameters is None else f"{layer.parameter_count:,}" if layer.parameters else ""
    return layer.name, layer.type_name, shapes, parameters, f"{layer.macs:,}" if layer.macs else ""


def summarize(param: NetParameter, phase: int = TEST, *, shapes: Mapping[str, Shape] | None = None, batch: int | None = None) -> Summary:
    """Describe the net of a phase. Nothing is allocated or run; data layers count as inputs of the shapes that they would give.

    Layers of an unknown type, data layers of unknown size, and all layers below them have unknown shapes. Summaries of the same net,
    phase and input shapes are computed once.

    Args:
        param: A ``NetParameter`` of any age.
        phase: ``TRAIN`` or ``TEST``.
        shapes: Shapes of input blobs by name; ``""`` is the net's first input.
        batch: The batch size, where ``shapes`` does not state it; by default each data layer's own.

    Raises:
        NetError: A bottom is produced by no layer before it, or the shapes do not fit a layer whose type is known.
    """
    whole = upgrade_net(param)
    net = filter_net(whole, make_state(phase))
    given = named_shapes(net, shapes or {})
    inputs = {i: _describe_input(layer, given, batch) for i, layer in enumerate(net.layer) if is_input(layer) or is_data_layer(layer)}
    sizes = tuple((i, tuple(row.shapes), row.note) for i, row in inputs.items())
    key = (net.SerializeToString(deterministic=True), phase, sizes, tuple(sorted(given.items())), generation())
    found = _nets.get(key)
    if found is None:
        check_blob_graph(net.layer, whole)
        found = _nets.put(key, _summarize(net, phase, given, inputs))
    return replace(found, layers=list(found.layers))


def parameter_shapes(
    layers: Sequence[LayerParameter], whole: NetParameter, phase: int, shapes: Mapping[str, Shape] | None = None
) -> list[list[Shape] | None]:
    """Derive the shapes of all parameter blobs of a phase, without the rest of a summary, which takes several times as long.

    Args:
        layers: The layers of the phase, in order.
        whole: The net that has them, in today's form.
        phase: ``TRAIN`` or ``TEST``.
        shapes: Shapes of input blobs by name; ``""`` is the net's first input.

    Returns:
        For each layer the shapes of its blobs; None where they are not known.

    Raises:
        NetError: As :func:`summarize`.
    """
    given = named_shapes(filter_net(whole, make_state(phase)), shapes) if shapes else {}
    guessed = {top for layer in layers if not layer.bottom for top in guessed_tops(layer)} - given.keys()
    known: dict[str, Shape | None] = {}
    found: list[list[Shape] | None] = []
    for layer in layers:
        bottoms, tops = list(layer.bottom), list(layer.top)
        if not bottoms and (is_input(layer) or is_data_layer(layer)):
            row = _describe_input(layer, given, None)
            known.update(zip(tops, row.shapes, strict=True))
            found.append(row.parameters)
            continue
        try:
            given_shapes = [known[bottom] for bottom in bottoms]
        except KeyError:
            # The check raises an error that says why.
            check_blob_graph(layers, whole)
            raise
        if not known.keys().isdisjoint(tops) and any(top in known and top not in bottoms for top in tops):
            check_blob_graph(layers, whole)
        facts = _derive(layer, given_shapes, phase, guessed)
        shapes_of_tops: Sequence[Shape | None] = facts.tops or [None] * len(tops)
        known.update(zip(tops, shapes_of_tops, strict=False))
        found.append(facts.parameters)
    return found


def _summarize(net: NetParameter, phase: int, given: Mapping[str, Shape], inputs: Mapping[int, LayerSummary]) -> Summary:
    summary = Summary(str(net.name), "TRAIN" if phase == TRAIN else "TEST")
    known: dict[str, Shape | None] = {}
    owners: set[str] = set()
    guessed = {top for layer in net.layer for top in guessed_tops(layer)} - given.keys()
    for index, layer in enumerate(net.layer):
        row = inputs[index] if index in inputs else _describe(layer, [known[bottom] for bottom in layer.bottom], phase, guessed)
        known.update(zip(row.tops, row.shapes, strict=True))
        names = [spec.name for spec in layer.param] + [""] * len(row.parameters or ())
        shared = 0
        for shape, name in zip(row.parameters or (), names, strict=False):
            shared += name in owners
            summary.parameters += 0 if name in owners else math.prod(shape)
            owners.update({name} - {""})
        summary.macs += row.macs
        summary.layers.append(replace(row, shared=shared) if shared else row)
    summary.blob_bytes = sum(math.prod(shape) * _FLOAT for shape in known.values() if shape is not None)
    return summary


def _describe_input(layer: LayerParameter, given: Mapping[str, Shape], batch: int | None) -> LayerSummary:
    row = _undescribed(layer)
    try:
        shapes: list[Shape | None] = [tuple(shape.dim) for shape in as_input(layer, given, batch).input_param.shape]
    except NetError as error:
        return replace(row, parameters=[], note=error.message)
    for top, shape in zip(row.tops, shapes, strict=False):
        if shape is not None:
            check_size(layer.name, top, shape)
    return replace(row, parameters=[], shapes=shapes)


def _undescribed(layer: LayerParameter, note: str = "", *, unknown_type: bool = False) -> LayerSummary:
    tops = list(layer.top)
    return LayerSummary(layer.name, layer.type, list(layer.bottom), tops, [None] * len(tops), note=note, unknown_type=unknown_type)


def _describe(layer: LayerParameter, bottoms: Sequence[Shape | None], phase: int, guessed: set[str]) -> LayerSummary:
    facts = _derive(layer, bottoms, phase, guessed)
    if facts.note:
        row = _undescribed(layer, facts.note, unknown_type=facts.unknown_type)
        return replace(row, unknown_bottoms=facts is _UNKNOWN_BOTTOMS)
    tops = list(layer.top) or [layer.name] * len(facts.tops)
    return LayerSummary(layer.name, layer.type, list(layer.bottom), tops, list(facts.tops), facts.parameters, macs=facts.macs)


@dataclass(frozen=True)
class _Facts:
    """What a layer's settings and its bottoms' shapes determine; with a ``note`` nothing is known, for the reason that it states."""

    tops: list[Shape]
    parameters: list[Shape] | None
    macs: int = 0
    note: str = ""
    unknown_type: bool = False


def _unknown(note: str, *, unknown_type: bool = False) -> _Facts:
    return _Facts([], None, note=note, unknown_type=unknown_type)


_UNKNOWN_BOTTOMS = _unknown("what it reads has no known shape")


def _derive(layer: LayerParameter, bottoms: Sequence[Shape | None], phase: int, guessed: set[str]) -> _Facts:
    kind = layer.type
    if not is_known(kind):
        return _unknown(f"the type {kind} is not known here{suggestion(kind)}", unknown_type=True)
    found = traits(layer)
    if found.user_code:
        return _unknown("its module is not run for this")
    if found.role == "classifier" and found.outputs and not getattr(layer, found.settings).HasField(found.outputs):
        # As the classifiers of DIGITS' networks do.
        return _unknown(f"its {found.outputs} is not given: DIGITS fills in the number of classes, and so does retarget --classes N")
    shapes = [shape for shape in bottoms if shape is not None]
    if len(shapes) < len(bottoms):
        return _UNKNOWN_BOTTOMS
    try:
        return _layer_facts(layer, shapes, phase)
    except NetError:
        guess = next((bottom for bottom in layer.bottom if bottom in guessed), None)
        if guess is None:
            raise
        return _unknown(f"the shape of '{guess}' is not known; give --input-shape {guess}=SHAPE")


def _layer_facts(param: LayerParameter, bottoms: list[Shape], phase: int) -> _Facts:
    settings = type(param)()
    settings.CopyFrom(param)
    for name in _PLACE:
        settings.ClearField(name)
    key = (settings.SerializeToString(deterministic=True), len(param.top), tuple(bottoms), phase, generation())
    found = _layers.get(key)
    return _layers.put(key, _compute_facts(param, bottoms, phase)) if found is None else found


def _compute_facts(param: LayerParameter, bottoms: list[Shape], phase: int) -> _Facts:
    copy = type(param)()
    copy.CopyFrom(param)
    copy.phase = phase
    layer = layer_class(param.type)(copy, phase)
    if reason := layer.unsupported():
        return _unknown(f"it {reason}")
    if not layer.tops and layer.IS_LOSS:
        layer.tops = [layer.name]
    tops = list(layer.configure(bottoms))
    return _Facts(tops, [spec.shape for spec in layer.specs], layer.macs())


class _Cache(Generic[Value]):
    """The values that were used last, by key; may be used from several threads."""

    def __init__(self, size: int):
        self._size, self._values, self._lock = size, OrderedDict[Hashable, Value](), threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> Value:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


_nets: _Cache[Summary] = _Cache(16)
_layers: _Cache[_Facts] = _Cache(20_000)
