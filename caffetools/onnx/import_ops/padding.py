"""Pad, in all its modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffetools.layers.base import Shape
from caffetools.layers.convolution import Convolution
from caffetools.onnx.import_graph import Node, pad_amounts, pad_value
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power
from caffetools.onnx.import_ops.axes import take
from caffetools.onnx.import_ops.window import crop, depthwise, fill_kernel

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
    """Cut maps where they are padded by less than nothing; gives the blob and its shape."""
    shape = writer.shape(node.inputs[0])
    axes = len(shape)
    less = [(max(-amounts[axis], 0), max(-amounts[axes + axis], 0)) for axis in range(axes)]
    if axes != 4 or any(map(any, less[:2])):
        raise node.error("less than no padding has layers for both axes of maps only")
    kept = [(before, shape[axis] - before - behind) for axis, (before, behind) in enumerate(less) if axis > 1]
    if any(length < 1 for _, length in kept):
        raise node.error(f"less than no padding takes more than there is of maps of {shape[2]} x {shape[3]}")
    blob = crop(writer, node, blob, list(shape[2:]), kept, last=last)
    return blob, (*shape[:2], *(length for _, length in kept))


def _constant(writer: NetWriter, node: Node, blob: str, shape: list[int], begin: list[int], end: list[int], value: float) -> None:
    if len(shape) < 3 or begin[0] or end[0]:
        raise node.error(f"a constant has layers for channels and maps only, not for axes of {len(shape)}")
    if abs(value) > _LARGEST_CONSTANT:
        raise node.error(f"a constant of {value:g} has layers only before a MaxPool; up to {_LARGEST_CONSTANT:g} it has others")
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


def _of_map(writer: NetWriter, node: Node, blob: str, begin: list[int], end: list[int], mode: str) -> None:
    shape = writer.shape(node.inputs[0])
    axes = [axis for axis in range(len(shape)) if begin[axis] or end[axis]]
    names = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in names:
        raise node.error(f"the mode '{mode}' is not one of constant, {', '.join(names)}")
    for axis in axes:
        indices: Sequence[int] = np.pad(np.arange(shape[axis]), (begin[axis], end[axis]), mode=mode).tolist()  # type: ignore[call-overload]
        blob = take(writer, node, blob, axis, shape[axis], indices, last=axis == axes[-1])
