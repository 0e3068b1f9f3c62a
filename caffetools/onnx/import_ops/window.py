"""Conv, ConvTranspose, SpaceToDepth, DepthToSpace: what Convolution and Deconvolution do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.concat import Slice
from caffetools.layers.convolution import Convolution, Deconvolution
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, clean_name, importer
from caffetools.proto.schema import LayerParameter

Array = NDArray[Any]


@importer("Conv")
def conv(writer: NetWriter, node: Node) -> None:
    """Convolution; padding that differs at both ends becomes zeros in the kernel."""
    weight = writer.required(node, 1, "weights")
    bias = writer.constant(node, 2)
    if len(node.inputs) > 2 and node.inputs[2] and bias is None:
        raise node.error("its bias must be constant")
    spatial = weight.ndim - 2
    stride, dilation = (list(node.attributes.get(key, [1] * spatial)) for key in ("strides", "dilations"))
    begin, end = window_pads(writer, node, weight.shape[2:], stride, dilation)
    weight, pad = symmetric(node, weight, begin, end, dilation)
    layer = writer.layer(node, Convolution.TYPE, [writer.blob(node, node.inputs[0])], weights=[weight, *([] if bias is None else [bias])])
    fill_kernel(layer, weight.shape[0], weight.shape[2:], stride, pad, dilation, int(node.attributes.get("group", 1)))
    layer.convolution_param.bias_term = bias is not None


def symmetric(node: Node, weight: Array, begin: list[int], end: list[int], dilation: list[int]) -> tuple[Array, list[int]]:
    """Weights and a padding that is the same at both ends, for one that is not: the kernel grows by zeros where it reaches further."""
    pads, more = [], []
    for first, last, step in zip(begin, end, dilation, strict=True):
        pad = max(first, last)
        # The kernel grows by whole steps of its dilation.
        while (pad - first) % step or (pad - last) % step:
            pad += 1
            if pad > max(first, last) + step:
                raise node.error(f"padding of {first} and {last} does not fit a dilation of {step}")
        pads.append(pad)
        more.append(((pad - first) // step, (pad - last) // step))
    if any(a or b for a, b in more):
        weight = np.pad(weight, [(0, 0), (0, 0), *more])
    return weight, pads


def fill_kernel(
    layer: LayerParameter,
    outputs: int,
    kernel: Iterable[int],
    stride: Iterable[int],
    pad: Iterable[int],
    dilation: Iterable[int],
    group: int = 1,
) -> None:
    """Fill in ``convolution_param``; one number for all axes where they agree."""
    param = layer.convolution_param
    param.num_output = outputs
    for name, values in (("kernel_size", kernel), ("stride", stride), ("pad", pad), ("dilation", dilation)):
        numbers = [int(n) for n in values]
        if name != "kernel_size" and all(n == (0 if name == "pad" else 1) for n in numbers):
            continue
        getattr(param, name).extend(numbers[:1] if len(set(numbers)) == 1 else numbers)
    if group != 1:
        param.group = group


@importer("ConvTranspose")
def conv_transpose(writer: NetWriter, node: Node) -> None:
    """Deconvolution; output padding becomes zeros at the kernel's end, and uneven padding is cut off afterwards."""
    weight, bias = writer.required(node, 1, "weights"), writer.constant(node, 2)
    spatial, group = weight.ndim - 2, int(node.attributes.get("group", 1))
    stride, dilation = (list(node.attributes.get(key, [1] * spatial)) for key in ("strides", "dilations"))
    size, output = (writer.shape(value)[2:] for value in (node.inputs[0], node.outputs[0]))
    extents = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    whole = [s * (n - 1) + e for n, s, e in zip(size, stride, extents, strict=True)]
    begin = _transposed_begin(node, whole, list(output), spatial)
    more = [max(o + b - w, 0) for o, b, w in zip(output, begin, whole, strict=True)]
    if any(m % d for m, d in zip(more, dilation, strict=True)):
        raise node.error("its output padding does not fit its dilation")
    weight = np.pad(weight, [(0, 0), (0, 0), *((0, m // d) for m, d in zip(more, dilation, strict=True))])
    ends = [w + m - b - o for w, m, b, o in zip(whole, more, begin, output, strict=True)]
    pad = [min(b, e) for b, e in zip(begin, ends, strict=True)]
    even = all(b == e for b, e in zip(begin, ends, strict=True))
    weights = [weight, *([] if bias is None else [bias])]
    layer = writer.layer(node, Deconvolution.TYPE, [writer.blob(node, node.inputs[0])], last=even, weights=weights)
    fill_kernel(layer, weight.shape[1] * group, weight.shape[2:], stride, pad, dilation, group)
    layer.convolution_param.bias_term = bias is not None
    if not even:
        kept = [(b - p, o) for b, p, o in zip(begin, pad, output, strict=True)]
        total = [o + (b - p) + (e - p) for b, p, e, o in zip(begin, pad, ends, output, strict=True)]
        crop(writer, node, layer.top[0], total, kept, channels=weight.shape[1] * group)


def _transposed_begin(node: Node, whole: list[int], output: list[int], spatial: int) -> list[int]:
    mode = str(node.attributes.get("auto_pad", "NOTSET"))
    if mode == "NOTSET" and "output_shape" not in node.attributes:
        return list(node.attributes.get("pads", [0] * 2 * spatial))[:spatial]
    cut = [max(w - o, 0) for w, o in zip(whole, output, strict=True)]
    return [c // 2 if mode == "SAME_UPPER" else c - c // 2 for c in cut]


def crop(
    writer: NetWriter, node: Node, blob: str, size: list[int], kept: list[tuple[int, int]], *, channels: int = 0, last: bool = True
) -> str:
    """Cut maps of ``size`` to ``kept``, (first, length) of each spatial axis, by Slice layers; gives the blob."""
    axes = [axis for axis, (n, (_, length)) in enumerate(zip(size, kept, strict=True)) if length != n]
    for axis in axes:
        first, length = kept[axis]
        points = [point for point in (first, first + length) if 0 < point < size[axis]]
        final = last and axis == axes[-1]
        layer = writer.layer(node, Slice.TYPE, [blob], last=False, hint=f"crop{axis + 2}", tops=len(points) + 1)
        layer.slice_param.axis = axis + 2
        layer.slice_param.slice_point.extend(points)
        place = 1 if first else 0
        writer.silence(node, [top for index, top in enumerate(layer.top) if index != place])
        if final:
            rename_top(writer, layer, place, node.outputs[0])
        blob = layer.top[place]
    return blob


def rename_top(writer: NetWriter, layer: LayerParameter, index: int, value: str) -> None:
    """Give top ``index`` of a layer the name of an ONNX value, which it holds."""
    blob = clean_name(value)
    layer.top[index] = blob
    writer.set_blob(value, blob)


def depthwise(
    writer: NetWriter,
    node: Node,
    blob: str,
    channels: int,
    kernel: Array,
    begin: list[int],
    end: list[int],
    stride: list[int],
    last: bool = True,
) -> str:
    """Convolve each channel by itself with ``kernel`` (kH, kW); return the blob."""
    weight, pads = symmetric(node, np.broadcast_to(kernel, (channels, 1, *kernel.shape)), begin, end, [1] * kernel.ndim)
    layer = writer.layer(node, Convolution.TYPE, [blob], last=last, weights=[weight], hint="" if last else "select")
    fill_kernel(layer, channels, weight.shape[2:], stride, pads, [1] * kernel.ndim, channels)
    layer.convolution_param.bias_term = False
    top: str = layer.top[0]
    return top


@importer("SpaceToDepth")
def space_to_depth(writer: NetWriter, node: Node) -> None:
    """Import SpaceToDepth: a convolution whose kernels each pick one place of a block."""
    size, channels = int(node.attributes["blocksize"]), writer.shape(node.inputs[0])[1]
    weight = np.zeros((size * size * channels, channels, size, size), np.float32)
    for row in range(size):
        for column in range(size):
            for channel in range(channels):
                weight[(row * size + column) * channels + channel, channel, row, column] = 1
    layer = writer.layer(node, Convolution.TYPE, [writer.blob(node, node.inputs[0])], weights=[weight])
    fill_kernel(layer, len(weight), (size, size), (size, size), (0, 0), (1, 1))
    layer.convolution_param.bias_term = False


@importer("DepthToSpace")
def depth_to_space(writer: NetWriter, node: Node) -> None:
    """Import DepthToSpace: a deconvolution whose kernels each put their channel at one place of a block."""
    size, channels = int(node.attributes["blocksize"]), writer.shape(node.inputs[0])[1]
    outputs = channels // (size * size)
    rows_first = str(node.attributes.get("mode", "DCR")) == "DCR"
    weight = np.zeros((channels, outputs, size, size), np.float32)
    for row in range(size):
        for column in range(size):
            for output in range(outputs):
                place = (row * size + column) * outputs + output if rows_first else output * size * size + row * size + column
                weight[place, output, row, column] = 1
    layer = writer.layer(node, Deconvolution.TYPE, [writer.blob(node, node.inputs[0])], weights=[weight])
    fill_kernel(layer, outputs, (size, size), (size, size), (0, 0), (1, 1))
    layer.convolution_param.bias_term = False


def window_pads(
    writer: NetWriter, node: Node, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    """Padding at the beginning and the end of each spatial axis, ``auto_pad`` resolved."""
    spatial = len(kernel)
    mode = str(node.attributes.get("auto_pad", "NOTSET"))
    if mode in ("NOTSET", "VALID"):
        pads = [int(n) for n in node.attributes.get("pads", [0] * 2 * spatial)] if mode == "NOTSET" else [0] * 2 * spatial
        return pads[:spatial], pads[spatial:]
    begin, end = [], []
    for n, k, s, d in zip(writer.shape(node.inputs[0])[2:], kernel, stride, dilation, strict=True):
        total = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
        first = total // 2 if mode == "SAME_UPPER" else total - total // 2
        begin.append(first)
        end.append(total - first)
    return begin, end
