"""Sums, means and maxima over axes, and ArgMax."""

from __future__ import annotations

import math

import numpy as np

from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power
from caffetools.onnx.import_ops.pooling import add_global_pool
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.window import fill_kernel

_REDUCTIONS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceL1": "ASUM", "ReduceSumSquare": "SUMSQ"}


@importer(*_REDUCTIONS, "ReduceMax")
def reduce(writer: NetWriter, node: Node) -> None:
    """Global pooling over both axes of maps, a 1 x 1 convolution over channels, or Reduction over the last axes."""
    shape = writer.shape(node.inputs[0])
    axes = _axes(writer, node, len(shape))
    blob, output = writer.blob(node, node.inputs[0]), writer.shape(node.outputs[0])
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    if len(shape) == 4 and axes == [2, 3] and node.op in ("ReduceMean", "ReduceSum", "ReduceMax"):
        scale = shape[2] * shape[3] if node.op == "ReduceSum" else 1
        direct = kept == output
        blob = add_global_pool(writer, node, "MAX" if node.op == "ReduceMax" else "AVE", blob, last=direct and scale == 1)
        if scale != 1:
            blob = power(writer, node, blob, scale=scale, last=direct)
        if not direct:
            add_reshape(writer, node, blob, kept, output)
    elif len(shape) == 4 and axes == [1] and kept == output and node.op in ("ReduceMean", "ReduceSum"):
        weight = np.full((1, shape[1], 1, 1), 1 / shape[1] if node.op == "ReduceMean" else 1, np.float32)
        layer = writer.layer(node, "Convolution", [blob], weights=[weight])
        fill_kernel(layer, 1, (1, 1), (1, 1), (0, 0), (1, 1))
        layer.convolution_param.bias_term = False
    elif node.op != "ReduceMax" and axes == list(range(axes[0], len(shape))):
        reduced = shape[: axes[0]]
        layer = writer.layer(node, "Reduction", [blob], last=reduced == output, hint="" if reduced == output else "reduce")
        param = layer.reduction_param
        param.axis, param.operation = axes[0], getattr(param, _REDUCTIONS[node.op])
        if reduced != output:
            add_reshape(writer, node, layer.top[0], reduced, output)
    else:
        raise node.error(f"over axes {axes} of {len(shape)} it has no layer")


def _axes(writer: NetWriter, node: Node, count: int) -> list[int]:
    axes = node.attributes.get("axes")
    if axes is None:
        given = writer.constant(node, 1)
        axes = None if given is None else given.tolist()
    return sorted(int(axis) % count for axis in axes) if axes else list(range(count))


@importer("ArgMax")
def arg_max(writer: NetWriter, node: Node) -> None:
    """ArgMax along an axis; of equal values Caffe gives the last."""
    shape = writer.shape(node.inputs[0])
    axis, keeps = int(node.attributes.get("axis", 0)) % len(shape), bool(node.attributes.get("keepdims", 1))
    layer = writer.layer(node, "ArgMax", [writer.blob(node, node.inputs[0])], last=keeps, hint="" if keeps else "argmax")
    layer.argmax_param.axis = axis
    if not keeps:
        source = tuple(1 if index == axis else n for index, n in enumerate(shape))
        add_reshape(writer, node, layer.top[0], source, writer.shape(node.outputs[0]))


@importer("LpNormalization")
def normalize(writer: NetWriter, node: Node) -> None:
    """Normalize of SSD's fork, over the channels."""
    shape = writer.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", -1)) % len(shape)
    if int(node.attributes.get("p", 2)) != 2 or axis != 1 or writer.target == "bvlc":
        raise node.error("only the L2 norm over channels has a layer (Normalize), and only with --target ssd or any")
    layer = writer.layer(node, "Normalize", [writer.blob(node, node.inputs[0])], weights=[np.ones(())])
    layer.norm_param.across_spatial = math.prod(shape[2:]) == 1
    layer.norm_param.eps = 1e-30
