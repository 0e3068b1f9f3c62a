"""Operators that only give values another shape or order."""

from __future__ import annotations

import itertools

import numpy as np

from caffetools.layers.base import Shape
from caffetools.layers.concat import Concat
from caffetools.layers.convolution import Convolution
from caffetools.layers.crop import Tile
from caffetools.layers.permute import ShuffleChannel
from caffetools.layers.power import Power
from caffetools.layers.reduction import Reduction
from caffetools.layers.reshape import Flatten, Reshape
from caffetools.layers.scale import Bias
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.elementwise import tiled
from caffetools.onnx.import_ops.window import fill_kernel


@importer("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(writer: NetWriter, node: Node) -> None:
    """Reshape to the output's shape; the batch is copied where it stays, so that the net takes any batch size."""
    known = writer.graph.batch_axes
    batch = (known.get(node.inputs[0], -1), known.get(node.outputs[0], -1))
    given, made = (writer.shape(value) for value in (node.inputs[0], node.outputs[0]))
    add_reshape(writer, node, writer.blob(node, node.inputs[0]), given, made, batch=None if min(batch) < 0 else batch)


def add_reshape(
    writer: NetWriter, node: Node, blob: str, source: Shape, target: Shape, *, batch: tuple[int, int] | None = None, last: bool = True
) -> str:
    """Add a Flatten or Reshape; gives the blob.

    Args:
        writer: Receives the layer.
        node: The node that it is (a part of).
        blob: What is given another shape.
        source: Its shape.
        target: The shape that it gets.
        batch: The axis of the batch in both, if it is known; else it is axis 0 where that has one size in both.
        last: Whether the blob holds the node's output.
    """
    moved = batch is not None and (batch[0] != batch[1] or source[: batch[0] + 1] != target[: batch[1] + 1])
    if source == target and last and not moved:
        writer.set_blob(node.outputs[0], blob)
        return blob
    if batch is not None and moved:
        layer = writer.layer(node, Reshape.TYPE, [blob], last=last, hint="" if last else "shape")
        layer.reshape_param.shape.dim.extend([*target[: batch[1]], -1, *target[batch[1] + 1 :]])
        return str(layer.top[0])
    if len(target) == 2 and len(source) > 2 and source[:1] == target[:1]:
        return str(writer.layer(node, Flatten.TYPE, [blob], last=last, hint="" if last else "flat").top[0])
    layer = writer.layer(node, Reshape.TYPE, [blob], last=last, hint="" if last else "shape")
    # 0 copies a size, so that the net takes any batch size, be the batch at axis 0 or, behind steps, at axis 1.
    same = itertools.takewhile(lambda sizes: sizes[0] == sizes[1], zip(source, target, strict=False))
    kept = min(len(list(same)), 2 if batch is None else max(2, batch[1] + 1))
    layer.reshape_param.shape.dim.extend([*[0] * kept, *target[kept:]])
    return str(layer.top[0])


@importer("ChannelShuffle")
def channel_shuffle(writer: NetWriter, node: Node) -> None:
    """Import a pattern of Reshape, Transpose and Reshape: ShuffleChannel, or a 1 x 1 convolution that moves channels."""
    group, channels = int(node.attributes["group"]), writer.shape(node.inputs[0])[1]
    blob = writer.blob(node, node.inputs[0])
    if writer.target == "any":
        writer.layer(node, ShuffleChannel.TYPE, [blob]).shuffle_channel_param.group = group
        return
    order = np.arange(channels).reshape(group, -1).T.reshape(-1)
    pick_channels(writer, node, blob, order, channels)


def pick_channels(writer: NetWriter, node: Node, blob: str, order: np.ndarray[tuple[int, ...], np.dtype[np.int64]], channels: int) -> None:
    """Add a 1 x 1 convolution of zeros and ones whose output c is channel ``order[c]``."""
    weight = np.zeros((len(order), channels, 1, 1), np.float32)
    weight[np.arange(len(order)), order] = 1
    layer = writer.layer(node, Convolution.TYPE, [blob], weights=[weight])
    fill_kernel(layer, len(order), (1, 1), (1, 1), (0, 0), (1, 1))
    layer.convolution_param.bias_term = False


@importer("Concat")
def concat(writer: NetWriter, node: Node) -> None:
    """Concat."""
    axis = int(node.attributes["axis"]) % len(writer.shape(node.outputs[0]))
    values = [value for value in node.inputs if 0 not in writer.shape(value)]
    if len(values) == 1:
        writer.alias(node, values[0])
        return
    layer = writer.layer(node, Concat.TYPE, [_blob_or_constant(writer, node, value) for value in values])
    if axis != 1:
        layer.concat_param.axis = axis


def _blob_or_constant(writer: NetWriter, node: Node, value: str) -> str:
    """Return a value's blob; for a constant zeros that are made of the input, so that they have its batch, and Bias."""
    array = writer.graph.constants.get(value)
    source = next(iter(writer.graph.inputs))
    if array is None or array.shape[:1] != writer.graph.inputs[source][:1] or not (array == array[:1]).all():
        return writer.blob(node, value)
    reduced = writer.layer(node, Reduction.TYPE, [writer.blob(node, source)], last=False, hint="one")
    reduced.reduction_param.axis = 1
    zero = writer.layer(node, Power.TYPE, [reduced.top[0]], last=False, hint="zero")
    zero.power_param.scale = 0
    count, shape = array[0].size, tuple(array.shape)
    row = add_reshape(writer, node, zero.top[0], shape[:1], (shape[0], 1), last=False)
    tiles = writer.layer(node, Tile.TYPE, [row], last=False, hint="zeros")
    tiles.tile_param.tiles = count
    zeros = add_reshape(writer, node, tiles.top[0], (shape[0], count), (*shape, 0)[:-1], last=False) if len(shape) > 2 else tiles.top[0]
    bias = writer.layer(node, Bias.TYPE, [zeros], last=False, hint="constant", weights=[array[0]])
    bias.bias_param.num_axes = array.ndim - 1
    return str(bias.top[0])


@importer("Expand", "Tile")
def expand(writer: NetWriter, node: Node) -> None:
    """Tile along axes."""
    source, target = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    blob = writer.blob(node, node.inputs[0])
    if node.op == "Expand" or all(n == 1 or n == m for n, m in zip(source, target, strict=True)):
        if source == target:
            writer.alias(node)
        else:
            tiled(writer, node, blob, source, target, last=True)
        return
    axes = [axis for axis, (n, m) in enumerate(zip(source, target, strict=True)) if n != m]
    for axis in axes:
        last = axis == axes[-1]
        layer = writer.layer(node, Tile.TYPE, [blob], last=last, hint="" if last else "tile")
        layer.tile_param.axis, layer.tile_param.tiles = axis, target[axis] // source[axis]
        blob = layer.top[0]
