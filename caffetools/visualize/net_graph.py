"""A net as boxes and arrows: in-place layers in the box of the layer they follow, repeated blocks folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import Message

from caffetools.graph.summary import LayerSummary, summarize
from caffetools.layers.base import Shape
from caffetools.layers.registry import layer_types
from caffetools.net.phases import filter_net, make_state
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter, enum_name
from caffetools.proto.text import format_text
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.visualize.layer_facts import Setting, layer_settings

# Families of layers, by role: what a drawing colours alike. In the legend's order.
FAMILIES = {
    "data": ("Input and data", {"input", "data", "constant", "parameter"}),
    "learned": ("Learned weights", {"classifier", "recurrent"}),
    "activation": ("Activation", {"activation"}),
    "norm": ("Normalization, dropout", {"normalization", "dropout", "scale"}),
    "pooling": ("Pooling and sampling", {"pooling", "sampling"}),
    "shape": ("Merge, slice, reshape", {"merge", "concat", "permute", "rearrange", "reshape", "slice", "split"}),
    "loss": ("Loss, output, metric", {"loss", "metric", "probability", "detection"}),
    "other": ("Other", set[str]()),
}
_ATTACHED = {"activation", "norm"}  # families that join the box of the only layer they read
_MOST_PERIOD = 96  # boxes in a block that may be repeated
_LEAST_SAVED = 3  # boxes that folding must save


@dataclass(frozen=True)
class Link:
    """A blob that a layer reads or makes: its name, its shape as text, and the layers at its other end, by their places in the net."""

    blob: str
    shape: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """A layer in a box.

    Attributes:
        layer: Its name.
        type: Its Caffe type.
        family: A key of :data:`FAMILIES`.
        detail: Its settings in a few characters.
        text: Its prototxt.
        shapes: Of its tops.
        parameters, macs: As in the summary.
        note: Why something is not known.
        index: Its place in the net.
        inputs: The blobs that it reads, each with the layer that made it.
        outputs: The blobs that it makes, each with the layers that read it.
        settings: Its fields, and the defaults of its type's.
        blobs: The shapes of its parameter blobs; None where they are not known.
    """

    layer: str
    type: str
    family: str
    detail: str = ""
    text: str = ""
    shapes: tuple[str, ...] = ()
    parameters: int = 0
    macs: int = 0
    note: str = ""
    index: int = 0
    inputs: tuple[Link, ...] = ()
    outputs: tuple[Link, ...] = ()
    settings: tuple[Setting, ...] = ()
    blobs: tuple[Shape, ...] | None = None


@dataclass(frozen=True)
class Box:
    """A node of the drawing: a layer and the in-place layers that follow it, or a number of folded blocks."""

    rows: tuple[Row, ...]
    folded: int = 0

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.rows[0].layer


@dataclass(frozen=True)
class Arrow:
    """A blob from one box to another, by their places; ``label`` is its shape, such as ``96 × 55 × 55``."""

    source: int
    target: int
    blob: str
    label: str = ""


@dataclass
class NetGraph:
    """Boxes in the net's order, and arrows between them.

    Attributes:
        name: The net's name.
        boxes, arrows: Arrows lead from a box to a later one.
        parameters, macs: Of the layers whose shapes are known; ``macs`` are those of a whole batch.
        batch: Its number of items; 0 where it is not known.
        unknown: Layers whose shapes are not known, with the reason, but for those that only read such a layer.
    """

    name: str
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0
    batch: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """The number of layers, folded ones included."""
        return sum(len(box.rows) for box in self.boxes)

    @property
    def facts(self) -> list[str]:
        """The numbers of layers, parameters and multiply–accumulates as text."""
        batch = f" for a batch of {self.batch}" if self.batch > 1 else ""
        numbers = [f"{self.parameters:,} parameters", f"{self.macs:,} multiply–accumulates{batch}"]
        if self.unknown:
            numbers = [f"{number} of what is known" for number in numbers] if self.parameters else ["sizes not known"]
        return [f"{self.layers} layers", *numbers]


def net_graph(param: NetParameter, phase: int = TEST, *, shapes: Mapping[str, Shape] | None = None) -> NetGraph:
    """Return the graph of a net in one phase; layers of unknown types are drawn too, without shapes.

    Args:
        param: A ``NetParameter`` of any age.
        phase: TRAIN or TEST.
        shapes: Input shapes by blob, where the net does not have them.

    Raises:
        NetError: a bottom is made by no layer before it, or shapes do not fit.
    """
    summary = summarize(param, phase, shapes=shapes)
    messages = filter_net(upgrade_net(param), make_state(phase)).layer
    first = next((shape for layer in summary.layers if not layer.bottoms for shape in layer.shapes), None)
    unknown = tuple(f"{layer.name}: {layer.note}" for layer in summary.unknown if not layer.unknown_bottoms)
    graph = NetGraph(summary.name, parameters=summary.parameters, macs=summary.macs, batch=first[0] if first else 0, unknown=unknown)
    readers = _readers(summary.layers)
    # Blob → (index of the layer that made its present value, box, shape).
    made: dict[str, tuple[int, int, str]] = {}
    for index, (layer, message) in enumerate(zip(summary.layers, messages, strict=True)):
        sources = [(bottom, *made[bottom]) for bottom in layer.bottoms if bottom in made]
        row = _row(layer, message)
        row = replace(
            row,
            index=index,
            inputs=tuple(Link(bottom, shape, (maker,)) for bottom, maker, _, shape in sources),
            outputs=tuple(Link(top, shape, tuple(readers[index, top])) for top, shape in zip(layer.tops, row.shapes, strict=True)),
        )
        if _joins(layer, row) and sources and len(readers[sources[0][1], sources[0][0]]) == 1:
            home = sources[0][2]
            graph.boxes[home] = Box((*graph.boxes[home].rows, row))
        else:
            home = len(graph.boxes)
            graph.boxes.append(Box((row,)))
            graph.arrows += [Arrow(source, home, bottom, shape) for bottom, _, source, shape in sources]
        made.update((top, (index, home, shape)) for top, shape in zip(layer.tops, row.shapes, strict=True))
    return graph


def data_in_training_only(param: NetParameter) -> bool:
    """Return whether the net has a source of data in the TRAIN phase and none in the TEST phase, so that only the former can be drawn."""
    net = upgrade_net(param)
    train, test = (any(not layer.bottom for layer in filter_net(net, make_state(phase)).layer) for phase in (TRAIN, TEST))
    return train and not test and not net.input


def fold_repeats(graph: NetGraph) -> NetGraph:
    """Return the graph with blocks that repeat one after the other (same types, settings and wiring) folded into one box."""
    signatures = _signatures(graph)
    groups: list[list[int]] = []
    folded: list[tuple[int, int]] = []
    place = 0
    while place < len(graph.boxes):
        period, times = _best_repeat(signatures, place)
        groups += [[place + i] for i in range(period)]
        if times > 1:
            folded.append((len(groups), times - 1))
            groups.append(list(range(place + period, place + period * times)))
        place += period * times
    counts = dict(folded)
    home = {index: number for number, group in enumerate(groups) for index in group}
    boxes = [
        Box(tuple(row for index in group for row in graph.boxes[index].rows), counts.get(number, 0)) for number, group in enumerate(groups)
    ]
    arrows = dict.fromkeys(
        replace(arrow, source=home[arrow.source], target=home[arrow.target])
        for arrow in graph.arrows
        if home[arrow.source] != home[arrow.target]
    )
    return replace(graph, boxes=boxes, arrows=list(arrows))


def family_of(type_name: str, *, learned: bool = False) -> str:
    """Return the key of :data:`FAMILIES` for a layer type; ``learned`` types of no special role belong to ``learned``."""
    known = layer_types().get(type_name)
    if known is None:
        return "learned" if learned else "other"
    role = known.TRAITS.role
    return next((key for key, (_, roles) in FAMILIES.items() if role in roles), "learned" if learned else "other")


def detail_of(layer: LayerParameter) -> str:
    """Return a layer's main settings in a few characters: ``96 · 11×11 /4``, ``max 3×3 /2``; empty where there are none."""
    if layer.HasField("convolution_param"):
        param = layer.convolution_param
        extra = f" pad {_pair(param, 'pad', 0)}" if _pair(param, "pad", 0) != "0" else ""
        extra += f" dil {param.dilation[0]}" if len(param.dilation) and param.dilation[0] > 1 else ""
        extra += f" group {param.group}" if param.group > 1 else ""
        return f"{param.num_output} · {_window(param)}{extra}"
    if layer.HasField("pooling_param"):
        pooling = layer.pooling_param
        kind = enum_name(pooling, "pool").lower()
        return f"{kind} global" if pooling.global_pooling else f"{kind} {_window(pooling)}"
    if layer.HasField("inner_product_param"):
        return str(layer.inner_product_param.num_output)
    if layer.HasField("eltwise_param"):
        return enum_name(layer.eltwise_param, "operation").lower()
    if layer.HasField("dropout_param"):
        return f"{layer.dropout_param.dropout_ratio:g}"
    if layer.HasField("lrn_param"):
        return f"n {layer.lrn_param.local_size}"
    return ""


def _readers(layers: Sequence[LayerSummary]) -> dict[tuple[int, str], list[int]]:
    """Return (index of the maker, blob) → the indices of the layers that read this value of the blob."""
    found: dict[tuple[int, str], list[int]] = {}
    maker: dict[str, int] = {}
    for index, layer in enumerate(layers):
        for bottom in layer.bottoms:
            if bottom in maker:
                found[maker[bottom], bottom].append(index)
        for top in layer.tops:
            maker[top] = index
            found[index, top] = []
    return found


def _joins(layer: LayerSummary, row: Row) -> bool:
    """Return whether the layer is drawn in the box of the layer before it, if it alone reads that one's value."""
    return len(layer.bottoms) == len(layer.tops) == 1 and (layer.tops == layer.bottoms or row.family in _ATTACHED)


def _row(layer: LayerSummary, message: LayerParameter) -> Row:
    shapes = tuple("" if shape is None else " × ".join(map(str, shape[1:] or shape)) for shape in layer.shapes)
    family = family_of(layer.type_name, learned=layer.parameter_count > 0)
    return Row(
        layer.name,
        layer.type_name,
        family,
        detail_of(message),
        format_text(message),
        shapes,
        layer.parameter_count,
        layer.macs,
        layer.note,
        settings=tuple(layer_settings(message)),
        blobs=None if layer.parameters is None else tuple(layer.parameters),
    )


def _signatures(graph: NetGraph) -> list[tuple[Any, ...]]:
    inputs: list[list[int]] = [[] for _ in graph.boxes]
    for arrow in graph.arrows:
        inputs[arrow.target].append(arrow.target - arrow.source)
    return [
        (tuple((row.type, row.detail) for row in box.rows), tuple(sorted(offsets)))
        for box, offsets in zip(graph.boxes, inputs, strict=True)
    ]


def _best_repeat(signatures: Sequence[tuple[Any, ...]], place: int) -> tuple[int, int]:
    """Return (boxes in a block, how often it occurs from ``place`` on) of the repetition that saves most; (1, 1) where none is worth it."""
    best, saved = (1, 1), _LEAST_SAVED - 1
    for period in range(1, min(_MOST_PERIOD, (len(signatures) - place) // 2) + 1):
        if signatures[place] != signatures[place + period]:
            continue
        block, times = signatures[place : place + period], 1
        while signatures[place + period * times : place + period * (times + 1)] == block:
            times += 1
        if period * (times - 1) > saved:
            best, saved = (period, times), period * (times - 1)
    return best


def _window(param: Message) -> str:
    stride = _pair(param, "stride", 1)
    return f"{_pair(param, 'kernel_size', 1, short='kernel')}" + (f" /{stride}" if stride != "1" else "")


def _pair(param: Message, name: str, default: int, *, short: str = "") -> str:
    high, wide = getattr(param, f"{short or name}_h"), getattr(param, f"{short or name}_w")
    if high or wide:
        return f"{high}×{wide}"
    value = getattr(param, name)
    sizes = [int(value)] if isinstance(value, int) else [int(size) for size in value]
    if name == "kernel_size":
        return "×".join(map(str, sizes if len(sizes) > 1 else (sizes or [default]) * 2))
    return "×".join(map(str, sizes)) if sizes else str(default)
