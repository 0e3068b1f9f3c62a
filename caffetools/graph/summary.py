"""What a network is made of: each layer's shapes, parameters, operations and memory, from the shape rules alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caffetools.errors import NetError
from caffetools.graph.inputs import as_input, guessed_tops, is_data_layer, is_input, named_shapes
from caffetools.layers.base import Shape, count
from caffetools.layers.registry import layer_types, suggestion
from caffetools.net.phases import filter_net, make_state
from caffetools.net.topology import check_blob_graph
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.upgrades.v1 import upgrade_net

_FLOAT = 4  # bytes
_UNKNOWN_TYPE = "the type "


@dataclass
class LayerSummary:
    """One layer.

    Attributes:
        name, type_name, bottoms, tops: as in the prototxt.
        shapes: of each top; None where it is not known.
        parameters: the shapes of its parameter blobs; None where they are not known. shared: how many of them other layers own.
        macs: multiply–accumulate operations of a forward pass. note: why something is not known.
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

    @property
    def parameter_count(self) -> int:
        """The number of values in its parameter blobs."""
        return sum(count(shape) for shape in self.parameters or ())


@dataclass
class Summary:
    """A net in one phase: its layers in order, and their totals.

    Attributes:
        parameters: values in all parameter blobs, shared ones once. macs: of one forward pass. blob_bytes: of all blobs as float32,
            those made in place once. unknown: the layers of which something is not known.
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
        """The layers whose type is not known here, so that nobody can tell whether they fit."""
        return [layer for layer in self.layers if layer.note.startswith(_UNKNOWN_TYPE)]

    @property
    def unknown(self) -> list[LayerSummary]:
        """The layers of which something is not known, and whose ``note`` says why."""
        return [layer for layer in self.layers if layer.note]


def summarize(param: Any, phase: int = TEST, *, shapes: Mapping[str, Shape] | None = None, batch: int | None = None) -> Summary:
    """Describe the net of ``phase``. Nothing is read, allocated or run: data layers count as inputs of the shapes they would give.

    Layers of an unknown type, data layers whose size cannot be told, and all that is below them have unknown shapes.

    Args:
        param: A ``NetParameter`` of any age.
        shapes, batch: as for :func:`~caffetools.graph.inputs.data_layers_to_inputs`.

    Raises:
        NetError: a bottom is made by no layer before it, or the shapes do not fit a layer whose type is known.
    """
    whole = upgrade_net(param)
    net = filter_net(whole, make_state(phase))
    check_blob_graph(net, whole)
    given = named_shapes(net, shapes or {})
    summary = Summary(str(net.name), "TRAIN" if phase == TRAIN else "TEST")
    known: dict[str, Shape | None] = {}
    owners: set[str] = set()
    guessed = {top for layer in net.layer for top in guessed_tops(layer)} - given.keys()
    for layer in net.layer:
        layer.phase = phase
        try:
            row = _describe(layer, [known[bottom] for bottom in layer.bottom], phase, given, batch)
        except NetError:
            guess = next((bottom for bottom in layer.bottom if bottom in guessed), None)
            if guess is None:
                raise
            row = _undescribed(layer, f"the shape of '{guess}' is not known; give --input-shape {guess}=SHAPE")
        known.update(zip(row.tops, row.shapes, strict=True))
        names = [spec.name for spec in layer.param] + [""] * len(row.parameters or ())
        for shape, name in zip(row.parameters or (), names, strict=False):
            row.shared += name in owners
            summary.parameters += 0 if name in owners else count(shape)
            owners.update({name} - {""})
        summary.macs += row.macs
        summary.layers.append(row)
    summary.blob_bytes = sum(count(shape) * _FLOAT for shape in known.values() if shape is not None)
    return summary


def _undescribed(param: Any, note: str = "") -> LayerSummary:
    return LayerSummary(param.name, param.type, list(param.bottom), list(param.top), [None] * len(param.top), note=note)


def _describe(param: Any, bottoms: list[Shape | None], phase: int, given: Mapping[str, Shape], batch: int | None) -> LayerSummary:
    row = _undescribed(param)
    layer_class = layer_types().get(param.type)
    if is_input(param) or is_data_layer(param):
        row.parameters = []
        try:
            row.shapes = [tuple(shape.dim) for shape in as_input(param, given, batch).input_param.shape]
        except NetError as error:
            row.note = error.message
    elif layer_class is None:
        row.note = f"{_UNKNOWN_TYPE}{param.type} is not known here{suggestion(param.type)}"
    elif layer_class.TRAITS.user_code:
        row.note = "its module is not run for this"
    elif None in bottoms:
        row.note = "what it reads has no known shape"
    else:
        layer = layer_class(param, phase)
        if reason := layer.unsupported():
            row.note = f"it {reason}"
            return row
        if not row.tops and layer.IS_LOSS:
            row.tops = layer.tops = [row.name]
        row.shapes = list(layer.configure([shape for shape in bottoms if shape is not None]))
        row.parameters = [spec.shape for spec in layer.specs]
        row.macs = layer.macs()
    return row
