"""Pad, in all its modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffetools.layers.base import Shape, format_shape
from caffetools.layers.concat import Concat
from caffetools.layers.convolution import Convolution
from caffetools.layers.crop import Tile
from caffetools.onnx.import_graph import Node, pad_amounts, pad_value
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power
from caffetools.onnx.import_ops.axes import take
from caffetools.onnx.import_ops.slicing import cut
from caffetools.onnx.import_ops.window import depthwise, fill_kernel

# (x - c) + c loses digits for a constant c that is far larger than the values.
_LARGEST_CONSTANT = 1e3


@importer("Pad")
def pad(writer: NetWriter, node: Node) -> None:
    """Import Pad: of a constant by convolutions whose padding does it, of values of the map by Slice and Concat, of less than nothing by Slice."""
    shape = writer.shape(node.inputs[0])
    full = pad_amounts(node, len(shape), writer.graph.constants)
    if not any(full):
        writer.alias(node)
        return
    blob, mode = writer.blob(node, node.inputs[0]), str(node.attributes.get("mode", "constant"))
    begin, end = ([max(n, 0) for n in amounts] for amounts in (full[: len(shape)], full[len(shape) :]))
    if any(n < 0 for n in full):
        more = any(begin) or any(end)
        blob, shape = _cut(writer, node, blob, full, last=not more)
        if not more:
            return
        if mode != "constant":
            raise node.error("less than no padding has layers together with padding of a constant only")
    if mode == "constant":
        _constant(writer, node, blob, list(shape), begin, end, pad_value(node, writer.graph.constants))
    else:
        _of_map(writer, node, blob, begin, end, mode)


def _cut(writer: NetWriter, node: Node, blob: str, amounts: list[int], *, last: bool) -> tuple[str, Shape]:
    """Cut axes that are padded by less than nothing; gives the blob and its shape."""
    shape = list(writer.shape(node.inputs[0]))
    axes = len(shape)
    less = [(max(-amounts[axis], 0), max(-amounts[axes + axis], 0)) for axis in range(axes)]
    shorter = [axis for axis in range(axes) if any(less[axis])]
    for axis in shorter:
        start, stop = less[axis][0], shape[axis] - less[axis][1]
        if stop <= start:
            raise node.error(f"less than no padding takes more than there is of {format_shape(writer.shape(node.inputs[0]))}")
        blob = cut(writer, node, blob, axis, shape[axis], start, stop, last=last and axis == shorter[-1])
        shape[axis] = stop - start
    return blob, tuple(shape)


def _constant(writer: NetWriter, node: Node, blob: str, shape: list[int], begin: list[int], end: list[int], value: float) -> None:
    if len(shape) < 3 or begin[0] or end[0] or abs(value) > _LARGEST_CONSTANT:
        _slabs(writer, node, blob, shape, begin, end, value)
        return
    channels, around = bool(begin[1] or end[1]), any(begin[2:]) or any(end[2:])
    if value:
        blob = power(writer, node, blob, shift=-value, last=False)
    if channels:
        outputs = shape[1] + begin[1] + end[1]
        weight = np.zeros((outputs, shape[1], *[1] * (len(shape) - 2)), np.float32)
        weight[begin[1] + np.arange(shape[1]), np.arange(shape[1])] = 1
        last = not around and not value
        layer = writer.layer(node, Convolution.TYPE, [blob], last=last, weights=[weight], hint="" if last else "channels")
        ones = [1] * (len(shape) - 2)
        fill_kernel(layer, outputs, ones, ones, [0] * len(ones), ones)
        layer.convolution_param.bias_term = False
        blob, shape[1] = layer.top[0], outputs
    if around:
        ones = [1] * (len(shape) - 2)
        blob = depthwise(writer, node, blob, shape[1], np.ones(ones), begin[2:], end[2:], ones, last=not value)
    if value:
        power(writer, node, blob, shift=value)


def _slabs(writer: NetWriter, node: Node, blob: str, shape: list[int], begin: list[int], end: list[int], value: float) -> None:
    """Put a slice of the values, times 0 and plus the constant, at both ends of each axis as often as is asked for."""
    axes = [axis for axis in range(len(shape)) if begin[axis] or end[axis]]
    for axis in axes:
        row = blob if shape[axis] == 1 else cut(writer, node, blob, axis, shape[axis], 0, 1, last=False)
        row = power(writer, node, row, scale=0, shift=value, last=False)
        parts = [_repeated(writer, node, row, axis, begin[axis]), [blob], _repeated(writer, node, row, axis, end[axis])]
        last = axis == axes[-1]
        joined = writer.layer(node, Concat.TYPE, [part for group in parts for part in group], last=last, hint="" if last else "padded")
        joined.concat_param.axis = axis
        blob, shape[axis] = joined.top[0], begin[axis] + shape[axis] + end[axis]


def _repeated(writer: NetWriter, node: Node, row: str, axis: int, count: int) -> list[str]:
    if count < 2:
        return [row] * count
    layer = writer.layer(node, Tile.TYPE, [row], last=False, hint="slab")
    layer.tile_param.axis, layer.tile_param.tiles = axis, count
    return [layer.top[0]]


def _of_map(writer: NetWriter, node: Node, blob: str, begin: list[int], end: list[int], mode: str) -> None:
    shape = writer.shape(node.inputs[0])
    axes = [axis for axis in range(len(shape)) if begin[axis] or end[axis]]
    names = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in names:
        raise node.error(f"the mode '{mode}' is not one of constant, {', '.join(names)}")
    for axis in axes:
        indices: Sequence[int] = np.pad(np.arange(shape[axis]), (begin[axis], end[axis]), mode=mode).tolist()  # type: ignore[call-overload]
        blob = take(writer, node, blob, axis, shape[axis], indices, last=axis == axes[-1])
