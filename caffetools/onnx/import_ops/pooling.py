"""Pooling: ONNX rounds sizes down (or up) by other rules than Caffe, so windows that only one of them has are cut off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from caffetools.layers.pooling import Pooling, Window
from caffetools.layers.scale import Scale
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.window import crop, depthwise, window_pads
from caffetools.proto.schema import PoolingParameter


@importer("GlobalAveragePool", "GlobalMaxPool")
def global_pool(writer: NetWriter, node: Node) -> None:
    """Pooling whose window is the map."""
    shape, blob = writer.shape(node.inputs[0]), writer.blob(node, node.inputs[0])
    method, flat = "MAX" if node.op == "GlobalMaxPool" else "AVE", len(shape) == 4
    if not flat:
        blob = add_reshape(writer, node, blob, shape, (*shape[:2], math.prod(shape[2:]), 1), last=False)
    blob = add_global_pool(writer, node, method, blob, last=flat)
    if not flat:
        add_reshape(writer, node, blob, (*shape[:2], 1, 1), writer.shape(node.outputs[0]))


def add_global_pool(writer: NetWriter, node: Node, method: str, blob: str, *, last: bool = True) -> str:
    """Add a global pooling; gives the blob."""
    layer = writer.layer(node, Pooling.TYPE, [blob], last=last, hint="" if last else "pool")
    layer.pooling_param.pool = getattr(layer.pooling_param, method)
    layer.pooling_param.global_pooling = True
    top: str = layer.top[0]
    return top


@importer("MaxPool", "AveragePool")
def pool(writer: NetWriter, node: Node) -> None:
    """MAX or AVE over windows of maps."""
    if any(name and writer.graph.readers(name) for name in node.outputs[1:]):
        raise node.error("it gives the places of the maxima, which Caffe numbers in another way")
    del node.outputs[1:]
    shape = writer.shape(node.inputs[0])
    if len(shape) == 3:
        _over_one_axis(writer, node)
        return
    if len(shape) != 4:
        raise node.error(f"Caffe pools maps of 2 axes only, not {len(shape) - 2}")
    kernel = [int(n) for n in node.attributes["kernel_shape"]]
    stride = [int(n) for n in node.attributes.get("strides", [1, 1])]
    if any(int(n) != 1 for n in node.attributes.get("dilations", [1, 1])):
        raise node.error("Caffe's pooling has no dilation")
    begin, end = window_pads(writer, node, kernel, stride, [1, 1])
    average = node.op == "AveragePool"
    blob, size = writer.blob(node, node.inputs[0]), list(shape[2:])
    output = list(writer.shape(node.outputs[0])[2:])
    if kernel == size and not any(begin) and not any(end):
        add_global_pool(writer, node, "AVE" if average else "MAX", blob)
        return
    inside = average and not int(node.attributes.get("count_include_pad", 0))
    pad, skipped, blob, size = _even_padding(writer, node, blob, size, kernel, stride, begin, end, average=average and not inside)
    _add_pool(writer, node, blob, size, kernel, stride, pad, skipped, output, (begin, end) if inside else None)


def _over_one_axis(writer: NetWriter, node: Node) -> None:
    """Pool (N, C, L) as maps (N, C, L, 1)."""
    wide, pooled = f"{node.inputs[0]}/wide/{node.name}", f"{node.outputs[0]}/wide"
    graph, source, target = writer.graph, node.inputs[0], node.outputs[0]
    graph.shapes |= {wide: (*graph.shapes[source], 1), pooled: (*graph.shapes[target], 1)}
    graph.sample |= {wide: graph.sample[source][..., None], pooled: graph.sample[target][..., None]}
    begin, *end = node.attributes.get("pads", [0, 0])
    attributes = dict(node.attributes) | {"pads": [begin, 0, *end, 0]}
    for name in ("kernel_shape", "strides", "dilations"):
        attributes[name] = [*node.attributes.get(name, [1]), 1]
    if "auto_pad" in attributes:
        del attributes["pads"]
    writer.set_blob(wide, add_reshape(writer, node, writer.blob(node, source), graph.shapes[source], graph.shapes[wide], last=False))
    pool(writer, Node(node.op, node.name, [wide], [pooled], attributes))
    add_reshape(writer, node, writer.blob(node, pooled), graph.shapes[pooled], graph.shapes[target])


def _even_padding(
    writer: NetWriter,
    node: Node,
    blob: str,
    size: list[int],
    kernel: list[int],
    stride: list[int],
    begin: list[int],
    end: list[int],
    *,
    average: bool,
) -> tuple[list[int], list[int], str, list[int]]:
    """Return a padding that Caffe can have, how many windows at the beginning are then too many, and the maps to pool."""
    pad = [max(b, 0) for b in begin]
    skipped = [0, 0]
    # Padding at the end alone is what Caffe's rounding up adds, where it does.
    for axis in range(2):
        if begin[axis] >= end[axis] or _windows(size[axis], kernel[axis], stride[axis], begin[axis]) >= _wanted(writer, node, axis):
            continue
        more = next((m for m in range(stride[axis], kernel[axis], stride[axis]) if begin[axis] + m >= end[axis]), None)
        if more is not None and begin[axis] + more < kernel[axis] and not average:
            pad[axis], skipped[axis] = begin[axis] + more, more // stride[axis]
            continue
        if average or _is_not_negative(writer, node.inputs[0]):
            return [0, 0], [0, 0], *_padded(writer, node, blob, size, begin, end)
        raise node.error(f"padding of {begin[axis]} and {end[axis]} has no counterpart, and the maps may be negative")
    if average and any(b != e for b, e in zip(begin, end, strict=True)):
        return [0, 0], [0, 0], *_padded(writer, node, blob, size, begin, end)
    return pad, skipped, blob, size


def _windows(size: int, kernel: int, stride: int, pad: int) -> int:
    return Window.over((size, size), (kernel, kernel), (stride, stride), (pad, pad)).output[0]


def _wanted(writer: NetWriter, node: Node, axis: int) -> int:
    return int(writer.shape(node.outputs[0])[2 + axis])


def _padded(writer: NetWriter, node: Node, blob: str, size: list[int], begin: list[int], end: list[int]) -> tuple[str, list[int]]:
    """Zeros around the maps by a convolution of their own."""
    channels = writer.shape(node.inputs[0])[1]
    padded = depthwise(writer, node, blob, channels, np.ones((1, 1)), begin, end, [1, 1], last=False)
    return padded, [n + b + e for n, b, e in zip(size, begin, end, strict=True)]


def _is_not_negative(writer: NetWriter, value: str) -> bool:
    maker = writer.graph.maker(value)
    return maker is not None and maker.op in ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs")


def _add_pool(
    writer: NetWriter,
    node: Node,
    blob: str,
    size: list[int],
    kernel: list[int],
    stride: list[int],
    pad: list[int],
    skipped: list[int],
    output: list[int],
    inside: tuple[list[int], list[int]] | None,
) -> None:
    """The pooling, what is cut off of it, and for means of values inside of the map alone their factor."""
    average = node.op == "AveragePool"
    floor = False
    window = Window.over((size[0], size[1]), (kernel[0], kernel[1]), (stride[0], stride[1]), (pad[0], pad[1]))
    if list(window.output) != [o + s for o, s in zip(output, skipped, strict=True)] and writer.target == "any":
        down = Window.over((size[0], size[1]), (kernel[0], kernel[1]), (stride[0], stride[1]), (pad[0], pad[1]), floor=True)
        if list(down.output) == [o + s for o, s in zip(output, skipped, strict=True)]:
            window, floor = down, True
    if any(have < o + s for have, o, s in zip(window.output, output, skipped, strict=True)):
        raise node.error(f"Caffe's pooling gives {list(window.output)} windows, of which {output} are needed")
    exact = list(window.output) == output
    factor = None if inside is None else _factor(window, inside, output, skipped, size)
    layer = writer.layer(node, Pooling.TYPE, [blob], last=exact and factor is None, hint="" if exact and factor is None else "pool")
    _fill(layer.pooling_param, kernel, stride, pad, average=average, floor=floor)
    blob = layer.top[0]
    if not exact:
        kept = list(zip(skipped, output, strict=True))
        blob = crop(writer, node, blob, list(window.output), kept, last=factor is None)
    if factor is not None:
        scaled = writer.layer(node, Scale.TYPE, [blob], weights=[factor])
        scaled.scale_param.axis, scaled.scale_param.num_axes = 2, 2


def _factor(window: Window, inside: tuple[list[int], list[int]], output: list[int], skipped: list[int], size: list[int]) -> Any:
    """Return (H', W') Caffe's divisor over the number of values inside of the map; None where they are the same everywhere."""
    shares = (window.divisor_map() / window.valid_counts()).numpy()
    shares = shares[skipped[0] : skipped[0] + output[0], skipped[1] : skipped[1] + output[1]]
    return None if (shares == 1).all() else shares


def _fill(param: PoolingParameter, kernel: list[int], stride: list[int], pad: list[int], *, average: bool, floor: bool) -> None:
    param.pool = param.AVE if average else param.MAX
    for name, values, default in (("kernel_size", kernel, None), ("stride", stride, 1), ("pad", pad, 0)):
        if values[0] == values[1]:
            if values[0] != default:
                setattr(param, name, values[0])
        else:
            short = name.removesuffix("_size")
            setattr(param, f"{short}_h", values[0])
            setattr(param, f"{short}_w", values[1])
    if floor:
        param.round_mode = param.FLOOR
