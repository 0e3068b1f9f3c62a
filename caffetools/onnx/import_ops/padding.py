"""Pad, in all its modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    begin, end = full[: len(shape)], full[len(shape) :]
    blob, mode = writer.blob(node, node.inputs[0]), str(node.attributes.get("mode", "constant"))
    cuts = [axis for axis in range(len(shape)) if begin[axis] < 0 or end[axis] < 0]
    if cuts:
        if len(shape) != 4 or any(begin[:2]) or any(end[:2]) or any(n > 0 for n in full):
            raise node.error("less than no padding has layers for both axes of maps only, and not together with padding")
        kept = [(-begin[axis], shape[axis] + begin[axis] + end[axis]) for axis in (2, 3)]
        crop(writer, node, blob, list(shape[2:]), kept)
    elif mode == "constant":
        _constant(writer, node, blob, begin, end, pad_value(node, writer.graph.constants))
    else:
        _of_map(writer, node, blob, begin, end, mode)


def _constant(writer: NetWriter, node: Node, blob: str, begin: list[int], end: list[int], value: float) -> None:
    shape = list(writer.shape(node.inputs[0]))
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
        layer = writer.layer(node, "Convolution", [blob], last=last, weights=[weight], hint="" if last else "channels")
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
