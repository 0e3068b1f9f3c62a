"""Average pooling with the same padding at both ends, for converters that know no other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from caffetools.onnx.model import OnnxModel


def symmetrize_pools(model: OnnxModel) -> int:
    """Rewrite AveragePool nodes whose padding differs at both ends, which pnnx leaves as an operator that ncnn does not have.

    Windows that reach beyond the end of the map come from ``ceil_mode`` instead; zeros of the padding that count come from a Pad in front.
    The pooled sizes and means are the same. A node whose map has a free size, or for which ``ceil_mode`` gives other windows, is kept.

    Args:
        model: A model with the shapes of its values; changed in place. The names of values and nodes are kept.

    Returns:
        The number of nodes rewritten.
    """
    graph = model.proto.graph
    shapes = {info.name: _map_size(info) for field in (graph.value_info, graph.output, graph.input) for info in field}
    kept: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        new = _rewritten(model, node, shapes) if node.op_type == "AveragePool" else []
        count += bool(new)
        kept += new or [node]
    del graph.node[:]
    graph.node.extend(kept)
    return count


def _map_size(info: onnx.ValueInfoProto) -> list[int]:
    """Return the height and width of a value; zeros where they are free."""
    return [dim.dim_value for dim in info.type.tensor_type.shape.dim][2:]


def _rewritten(model: OnnxModel, node: onnx.NodeProto, shapes: dict[str, list[int]]) -> list[onnx.NodeProto]:
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    kernel, strides, pads = given["kernel_shape"], given["strides"], given["pads"]
    axes = len(kernel)
    begin, end = pads[:axes], pads[axes:]
    size = shapes.get(node.input[0], [])
    if begin == end or not all(size) or len(size) != axes:
        return []
    if given.get("count_include_pad"):
        return _after_pad(model, node, kernel, strides, pads)
    each = list(zip(size, kernel, strides, begin, end, strict=True))
    if any(_ceil_windows(n, k, s, b) != (n + b + e - k) // s + 1 for n, k, s, b, e in each):
        return []
    return [_average(node, node.input[0], kernel, strides, [*begin, *begin], ceil_mode=1)]


def _ceil_windows(size: int, kernel: int, stride: int, pad: int) -> int:
    """Return the windows along an axis when sizes round up and a window that would start beyond the map is dropped."""
    last = -(-(size + 2 * pad - kernel) // stride)
    return last + int(last * stride < size + pad)


def _after_pad(
    model: OnnxModel, node: onnx.NodeProto, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]
) -> list[onnx.NodeProto]:
    axes = len(kernel)
    name, padded = f"{node.output[0]}/pads", f"{node.output[0]}/padded"
    model.weights[name] = np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64)
    pad = helper.make_node("Pad", [node.input[0], name], [padded], name=f"{node.name}/pad", mode="constant")
    # Zeros count: onnxruntime 1.19 and 1.20 fuse the Pad into the pooling.
    return [pad, _average(node, padded, kernel, strides, [0] * 2 * axes, include_pad=1)]


def _average(
    node: onnx.NodeProto,
    source: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    *,
    ceil_mode: int = 0,
    include_pad: int = 0,
) -> onnx.NodeProto:
    return helper.make_node(
        "AveragePool",
        [source],
        list(node.output),
        name=node.name,
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        ceil_mode=ceil_mode,
        count_include_pad=include_pad,
    )
