"""Replace data layers by inputs of the same shapes, so that a net for training can be summarized and deployed without its data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from caffetools.errors import CaffeToolsError, NetError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.inputs import Input
from caffetools.layers.registry import described, layer_class, traits
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.schema import LayerParameter, NetParameter


def parse_shapes(texts: list[str]) -> dict[str, Shape]:
    """Parse shapes of a command line: ``1x3x227x227`` (under the key ``""``) or ``data=1x3x227x227``.

    Args:
        texts: The shapes.

    Returns:
        Shape by blob.

    Raises:
        CaffeToolsError: One of them is not a shape.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", sizes):
            raise CaffeToolsError(f"'{text}' is not a shape; write 1x3x227x227 (images, channels, height, width), or data=1x3x227x227")
        shapes[name] = tuple(int(n) for n in re.split("[x,]", sizes))
    return shapes


def as_shapes(given: Shape | Mapping[str, Shape] | None, batch: int = 1) -> dict[str, Shape]:
    """Return shapes by blob (``""`` is the net's first input).

    Args:
        given: One shape of the first input, or shapes by blob.
        batch: The batch size that is prepended to a (C, H, W) or (values,) of the first input.
    """
    shapes = {} if given is None else dict(given) if isinstance(given, Mapping) else {"": given}
    return {name: (batch, *shape) if len(shape) in (1, 3) and not name else shape for name, shape in shapes.items()}


def guessed_tops(layer: LayerParameter) -> list[str]:
    """Return the tops of a data layer whose shapes are guessed: labels that may be several numbers an image, where no source is there."""
    if not is_data_layer(layer) or traits(layer).label_tops == "numbers" or _known_tops(layer):
        return []
    return list(layer.top[1:])


def is_data_layer(layer: LayerParameter) -> bool:
    """Return whether ``layer`` reads data from outside of the net: a layer of any type with tops but no bottoms."""
    return not layer.bottom and bool(layer.top) and traits(layer).role not in ("input", "constant", "parameter")


def is_input(layer: LayerParameter) -> bool:
    """Return whether ``layer`` is an input of the net, whose data the caller gives."""
    return not layer.bottom and traits(layer).role == "input"


def source_param(layer: LayerParameter) -> Any:
    """Return the message of a data layer that has its source (``data_param`` and so on); None for types that are not Caffe's."""
    field = traits(layer).source
    return getattr(layer, field) if field else None


def data_layers(net: NetParameter, phase: int) -> list[Any]:
    """Return the data layers of ``phase`` that read a source: Data, ImageData, HDF5Data and WindowData."""
    state = make_state(phase)
    layers = [layer for layer in net.layer if not layer.bottom and is_data_layer(layer) and layer_included(layer, state)]
    return [layer for layer in layers if traits(layer).file_source]


def data_layers_to_inputs(param: NetParameter, shapes: Mapping[str, Shape] | None = None, *, batch: int | None = None) -> NetParameter:
    """Replace the data layers of a copy of ``param`` by Input layers of the same names, tops and rules.

    Args:
        param: A ``NetParameter`` in today's form.
        shapes: The shapes of blobs by name; ``""`` is the net's first input. Input layers that are there follow them too.
        batch: The batch size, where ``shapes`` does not give it; by default each data layer's own.

    Raises:
        NetError: A data layer's shape is not given and does not follow from its crop size, its new size or its database; or a shape
            is given for a blob that is not an input.
    """
    given = named_shapes(param, shapes or {})
    changed = NetParameter()
    changed.CopyFrom(param)
    for layer in changed.layer:
        if is_input(layer) or is_data_layer(layer):
            layer.CopyFrom(as_input(layer, given, batch))
    return changed


def dummy_data_to_inputs(param: NetParameter) -> NetParameter:
    """Return a net in which DummyData layers are Inputs of the same shapes, where its data comes from nothing else.

    In a net with other data a DummyData layer gives constants, and is kept. The net itself is returned where nothing changes.

    Args:
        param: A ``NetParameter`` of one phase, in today's form.

    Raises:
        NetError: A DummyData layer has no shape for one of its tops.
    """
    constants = [index for index, layer in enumerate(param.layer) if traits(layer).role == "constant" and layer.top]
    if not constants or any(is_input(layer) or is_data_layer(layer) for layer in param.layer):
        return param
    changed = NetParameter()
    changed.CopyFrom(param)
    for index in constants:
        layer = changed.layer[index]
        shapes = layer_class(layer.type)(layer).configure([])
        fresh = type(layer)(name=layer.name, type=Input.TYPE, top=layer.top, include=layer.include, exclude=layer.exclude)
        for shape in shapes:
            fresh.input_param.shape.add(dim=shape)
        layer.CopyFrom(fresh)
    return changed


def named_shapes(param: NetParameter, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return ``shapes`` with the name of the net's first input in the place of ``""``. Raises :class:`NetError` for names of no input."""
    if not shapes:
        return {}
    inputs = [top for layer in param.layer if not layer.bottom and (is_input(layer) or is_data_layer(layer)) for top in layer.top]
    named = {(inputs[0] if not name and inputs else name): shape for name, shape in shapes.items()}
    unknown = [name for name in named if name not in inputs]
    if unknown:
        raise NetError(f"the net '{param.name}' has no input '{unknown[0]}'; its inputs are {', '.join(dict.fromkeys(inputs)) or 'none'}")
    for name, shape in named.items():
        if any(size < 1 for size in shape):
            raise NetError(f"the input '{name}' cannot be {format_shape(shape)}: each size must be at least 1")
    return named


def as_input(layer: LayerParameter, shapes: Mapping[str, Shape], batch: int | None = None) -> LayerParameter:
    """Return the Input layer that stands for a data layer (or an Input layer with other shapes). Raises :class:`NetError` as above."""
    given = _input_shapes(layer) if is_input(layer) else _data_shapes(layer, shapes, batch)
    fresh = type(layer)(name=layer.name, type=Input.TYPE, top=layer.top, include=layer.include, exclude=layer.exclude)
    for top, shape in zip(layer.top, given, strict=True):
        fresh.input_param.shape.add(dim=shapes.get(top, shape))
    return fresh


def data_shape(layer: LayerParameter, batch: int | None = None) -> Shape:
    """Return the shape (N, C, H, W) of a data layer's first top, from its settings and its source, if that exists.

    Where only the size is known there are 3 channels, or 1 for grey layers.

    Raises:
        NetError: The size is not known.
    """
    source, transform = source_param(layer), layer.transform_param
    count = batch or getattr(source, "batch_size", 0) or 1
    stored = stored_item(layer) or _mean_shape(layer)
    channels = stored[0] if stored else _channels(layer)
    if transform.crop_size:
        return (count, channels, transform.crop_size, transform.crop_size)
    resized = transform.resize_param
    if resized.height and resized.width:
        return (count, channels, resized.height, resized.width)
    if stored:
        return (count, *stored)
    try:
        items = item_shapes(layer)
    except CaffeToolsError as error:
        raise NetError(f"the size of its data is not known: {error.message}; give --input-shape", layer=layer.name) from None
    if items:
        return (count, *items[0])
    if first := _first_batch(layer):
        return (batch or first[0][0], *first[0][1:])
    name = getattr(source, "source", "")
    reason = f"its source '{name}' is not there" if name else "it names no source"
    raise NetError(f"the size of its data is not known: it crops nothing and {reason}; give --input-shape", layer=layer.name)


def _data_shapes(layer: LayerParameter, given: Mapping[str, Shape], batch: int | None) -> list[Shape]:
    first = layer.top[0]
    shape = given[first] if first in given else data_shape(layer, batch)
    if any(top not in given for top in layer.top[1:]) and (items := _known_tops(layer)):
        return [shape, *((shape[0], *item) for item in items[1:])]
    if traits(layer).source and traits(layer).label_tops == "any" and any(top not in given for top in layer.top[2:]):
        raise NetError("the shapes of its blobs are not known; give --input-shape NAME=SHAPE for each", layer=layer.name)
    # All other tops are taken for labels, mostly of one number a picture; see guessed_tops.
    return [shape] + [_class_of(layer).label_shape(index, shape) for index in range(1, len(layer.top))]


def _known_tops(layer: LayerParameter) -> list[Shape]:
    """Return the shape of one item of each top, for layers whose tops may be anything and whose source is there; else an empty list."""
    if traits(layer).label_tops == "any":
        with suppress(CaffeToolsError):
            return item_shapes(layer) or [shape[1:] for shape in _first_batch(layer)]
    return []


def _first_batch(layer: LayerParameter) -> list[Shape]:
    """Return the shapes of the first batch of a data layer whose source no field of Caffe's names, as in plugins; else an empty list.

    Raises:
        NetError: The layer cannot read it.
    """
    facts = traits(layer)
    if facts.role != "data" or facts.source or facts.user_code:
        return []
    kind, whole = _class_of(layer), type(layer)()
    whole.CopyFrom(layer)
    # A deploy net has lost the labels.
    whole.top.extend(f"{layer.name}/{number}" for number in range(len(whole.top), kind.TOPS[0]))
    try:
        return list(kind(whole).configure([]))
    except Exception as error:
        what = error.message if isinstance(error, CaffeToolsError) else f"{type(error).__name__}: {error}"
        raise NetError(f"the size of its data is not known: {what}; give --input-shape", layer=layer.name) from error


def _input_shapes(layer: LayerParameter) -> list[Shape]:
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
    if len(shapes) not in (1, len(layer.top)):
        raise NetError(f"gives {len(shapes)} shape(s) for {len(layer.top)} top(s)", layer=layer.name)
    return shapes * len(layer.top) if len(shapes) == 1 else shapes


def _channels(layer: LayerParameter) -> int:
    transform = layer.transform_param
    if transform.force_gray:
        return 1
    return len(transform.mean_value) if len(transform.mean_value) > 1 else _class_of(layer).item_channels(layer)


def stored_item(layer: LayerParameter) -> Shape | None:
    """Return the shape (C, H, W) of a data layer's items before they are transformed, where its settings or its source give it."""
    return _class_of(layer).stored_item(layer)


def item_shapes(layer: LayerParameter) -> list[Shape] | None:
    """Return the shape of one item of each top of a data layer, as its source gives it; None where no source is there.

    Raises:
        CaffeToolsError: The source cannot be read, or the layer's settings are wrong.
    """
    return _class_of(layer).item_shapes(layer)


def _class_of(layer: LayerParameter) -> type[Layer]:
    return described(layer.type) or Layer


def _mean_shape(layer: LayerParameter) -> Shape | None:
    """Return (C, H, W) of a mean file, where that is there; pictures have its size."""
    path = Path(layer.transform_param.mean_file)
    if not layer.transform_param.mean_file or not path.is_file():
        return None
    with suppress(CaffeToolsError):
        mean = read_binaryproto(path)
        return tuple(mean.shape[-3:]) if mean.ndim >= 3 else None
    return None
