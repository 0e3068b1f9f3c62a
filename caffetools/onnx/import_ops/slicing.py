"""Parts of a value: Slice, Split, Gather."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from caffetools.layers.concat import Slice
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.axes import take
from caffetools.onnx.import_ops.shape import add_reshape, pick_channels
from caffetools.onnx.import_ops.window import depthwise, rename_top


@importer("Split")
def split(writer: NetWriter, node: Node) -> None:
    """Slice into as many tops."""
    axis = int(node.attributes.get("axis", 0)) % len(writer.shape(node.inputs[0]))
    sizes = [writer.shape(value)[axis] for value in node.outputs]
    if len(sizes) == 1:
        writer.alias(node)
        return
    layer = writer.layer(node, Slice.TYPE, [writer.blob(node, node.inputs[0])])
    layer.slice_param.axis = axis
    layer.slice_param.slice_point.extend(int(n) for n in np.cumsum(sizes)[:-1])
    unused = [index for index, value in enumerate(node.outputs) if not writer.graph.readers(value) and value not in writer.graph.outputs]
    writer.silence(node, [layer.top[index] for index in unused])


@importer("Slice")
def slice_(writer: NetWriter, node: Node) -> None:
    """Slice layers along each axis; with steps a convolution that picks values."""
    shape = list(writer.shape(node.inputs[0]))
    ranges = _ranges(writer, node, shape)
    if not ranges:
        writer.alias(node)
        return
    blob = writer.blob(node, node.inputs[0])
    for number, (axis, chosen) in enumerate(ranges):
        last = number == len(ranges) - 1
        if chosen.step == 1:
            blob = cut(writer, node, blob, axis, shape[axis], chosen.start, chosen.stop, last=last)
        else:
            blob = _stepped(writer, node, blob, axis, shape, chosen, last=last)
        shape[axis] = len(chosen)


def _ranges(writer: NetWriter, node: Node, shape: list[int]) -> list[tuple[int, range]]:
    """Axis and chosen places, for each axis that does not stay as it is."""
    if "starts" in node.attributes:
        starts, ends = node.attributes["starts"], node.attributes["ends"]
        axes, steps = node.attributes.get("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = (writer.required(node, index, "bounds").tolist() for index in (1, 2))
        chosen, stepped = writer.constant(node, 3), writer.constant(node, 4)
        axes = range(len(starts)) if chosen is None else chosen.tolist()
        steps = [1] * len(starts) if stepped is None else stepped.tolist()
    found = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = int(axis) % len(shape)
        chosen_range = range(shape[place])[int(start) : int(end) : int(step)]
        if not chosen_range:
            raise node.error("nothing is left")
        if chosen_range != range(shape[place]):
            found.append((place, chosen_range))
    return found


def cut(writer: NetWriter, node: Node, blob: str, axis: int, size: int, start: int, stop: int, *, last: bool) -> str:
    """Add a Slice layer whose other tops are silenced; return the blob."""
    points = [point for point in (start, stop) if 0 < point < size]
    layer = writer.layer(node, Slice.TYPE, [blob], last=False, hint=f"slice{axis}", tops=len(points) + 1)
    layer.slice_param.axis = axis
    layer.slice_param.slice_point.extend(points)
    place = 1 if start else 0
    writer.silence(node, [top for index, top in enumerate(layer.top) if index != place])
    if last:
        rename_top(writer, layer, place, node.outputs[0])
    return str(layer.top[place])


def _stepped(writer: NetWriter, node: Node, blob: str, axis: int, shape: list[int], chosen: range, *, last: bool) -> str:
    if axis == 1 and len(shape) == 4 and last:
        pick_channels(writer, node, blob, np.array(chosen), shape[1])
        return ""
    if axis < 2 or len(shape) != 4 or chosen.step < 0:
        return take(writer, node, blob, axis, shape[axis], list(chosen), last=last)
    # The kernel has its 1 at its end, so the first window picks `start`, and there are as many windows as values.
    kernel = np.zeros([chosen.start + 1 if i == axis - 2 else 1 for i in range(2)])
    kernel.reshape(-1)[-1] = 1
    stride: list[Any] = [chosen.step if i == axis - 2 else 1 for i in range(2)]
    return depthwise(writer, node, blob, shape[1], kernel, [0, 0], [0, 0], stride, last=last)


@importer("Gather")
def gather(writer: NetWriter, node: Node) -> None:
    """Import Gather: a part of an axis, or channels in another order."""
    shape = writer.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    indices = writer.required(node, 1, "indices")
    places = np.asarray(indices).reshape(-1) % shape[axis]
    blob = writer.blob(node, node.inputs[0])
    if indices.ndim > 1:
        whole_shape = (*shape[:axis], len(places), *shape[axis + 1 :])
        taken = take(writer, node, blob, axis, shape[axis], places.tolist(), last=False)
        add_reshape(writer, node, taken, whole_shape, writer.shape(node.outputs[0]))
    elif len(places) and (np.diff(places) == 1).all():
        start, stop = int(places[0]), int(places[-1]) + 1
        whole = stop - start == shape[axis]
        last = indices.ndim == 1
        part = blob if whole else cut(writer, node, blob, axis, shape[axis], start, stop, last=last)
        if whole and last:
            writer.alias(node)
        if not last:
            source = (*shape[:axis], 1, *shape[axis + 1 :])
            add_reshape(writer, node, part, source, writer.shape(node.outputs[0]))
    elif axis == 1 and len(shape) == 4:
        pick_channels(writer, node, blob, places, shape[1])
    else:
        take(writer, node, blob, axis, shape[axis], places.tolist())


@importer("GatherND")
def gather_nd(writer: NetWriter, node: Node) -> None:
    """Import GatherND of constant places: the axes that they count along become one, of which values are taken."""
    shape, skipped = writer.shape(node.inputs[0]), int(node.attributes.get("batch_dims", 0))
    indices = writer.required(node, 1, "indices")
    depth = indices.shape[-1]
    items = indices.reshape(-1, *indices.shape[skipped:])
    if (items != items[:1]).any():
        raise node.error("its indices differ from item to item")
    counted = shape[skipped : skipped + depth]
    places = np.moveaxis(items[0], -1, 0) % np.reshape(counted, (-1, *[1] * (items[0].ndim - 1)))
    flat = np.ravel_multi_index(tuple(places), counted).reshape(-1).tolist()
    rows = (*shape[:skipped], math.prod(counted), *shape[skipped + depth :])
    blob = (
        add_reshape(writer, node, writer.blob(node, node.inputs[0]), shape, rows, last=False)
        if rows != shape
        else writer.blob(node, node.inputs[0])
    )
    taken = take(writer, node, blob, skipped, rows[skipped], flat, last=False)
    add_reshape(writer, node, taken, (*rows[:skipped], len(flat), *rows[skipped + 1 :]), writer.shape(node.outputs[0]))
