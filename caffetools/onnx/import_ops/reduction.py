"""Sums, means and maxima over axes, and their places."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from caffetools.layers.activation import AbsVal
from caffetools.layers.convolution import Convolution
from caffetools.layers.fork_norm import Normalize
from caffetools.layers.pooling import Pooling
from caffetools.layers.reduction import ArgMax, Reduction
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power, product
from caffetools.onnx.import_ops.axes import take
from caffetools.onnx.import_ops.elementwise import tiled
from caffetools.onnx.import_ops.pooling import add_global_pool
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.window import fill_kernel
from caffetools.proto.schema import LayerParameter

_REDUCTIONS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceL1": "ASUM", "ReduceSumSquare": "SUMSQ"}


@importer(*_REDUCTIONS, "ReduceMax", "ReduceMin", "ReduceL2")
def reduce(writer: NetWriter, node: Node) -> None:
    """Global pooling over both axes of maps, a 1 x 1 convolution over channels, Reduction over the last axes, or pooling of rows."""
    shape, output = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    axes = _axes(writer, node, len(shape))
    blob = writer.blob(node, node.inputs[0])
    if not axes:
        # As noop_with_empty_axes asks for: of each value by itself.
        _by_value(writer, node, blob)
        return
    if shape == output and all(shape[axis] == 1 for axis in axes) and node.op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        writer.alias(node)
        return
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
        layer = writer.layer(node, Convolution.TYPE, [blob], weights=[weight])
        fill_kernel(layer, 1, (1, 1), (1, 1), (0, 0), (1, 1))
        layer.convolution_param.bias_term = False
    elif node.op in _REDUCTIONS and axes == list(range(axes[0], len(shape))):
        reduced = shape[: axes[0]]
        layer = writer.layer(node, Reduction.TYPE, [blob], last=reduced == output, hint="" if reduced == output else "reduce")
        param = layer.reduction_param
        param.axis, param.operation = axes[0], getattr(param, _REDUCTIONS[node.op])
        if reduced != output:
            add_reshape(writer, node, layer.top[0], reduced, output)
    else:
        _by_pooling(writer, node, blob, axes)


def _by_pooling(writer: NetWriter, node: Node, blob: str, axes: list[int]) -> None:
    """Axes that follow one another as the height of maps (N, axes before, axes, axes after), which a window spans; the batch too, as one item."""
    source, output = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    shape = list(source)
    if axes[0] == 0:
        shape, axes = [1, *shape], [axis + 1 for axis in axes]
    sign = -1.0 if node.op == "ReduceMin" else 1.0
    if node.op == "ReduceL1":
        blob = str(writer.layer(node, AbsVal.TYPE, [blob], last=False, hint="abs").top[0])
    elif node.op in ("ReduceSumSquare", "ReduceL2", "ReduceMin"):
        blob = power(writer, node, blob, power=1 if node.op == "ReduceMin" else 2, scale=sign, last=False)
    method = "MAX" if node.op in ("ReduceMax", "ReduceMin") else "AVE"
    present: tuple[int, ...] = source
    while axes:
        first = end = axes[-1]
        while first - 1 in axes:
            first -= 1
        count = math.prod(shape[first : end + 1])
        wide = (shape[0], math.prod(shape[1:first]), count, math.prod(shape[end + 1 :]))
        blob = add_reshape(writer, node, blob, present, wide, last=False) if present != wide else blob
        layer = writer.layer(node, Pooling.TYPE, [blob], last=False, hint="pool")
        layer.pooling_param.pool = getattr(layer.pooling_param, method)
        layer.pooling_param.kernel_h, layer.pooling_param.kernel_w = count, 1
        blob, present = layer.top[0], (*wide[:2], 1, wide[3])
        if method == "AVE" and node.op != "ReduceMean":
            blob = power(writer, node, blob, scale=count, last=False)
        shape[first : end + 1] = [1] * (end + 1 - first)
        axes = [axis for axis in axes if axis < first]
    if node.op == "ReduceL2":
        blob = power(writer, node, blob, power=0.5, last=False)
    if node.op == "ReduceMin":
        blob = power(writer, node, blob, scale=-1, last=False)
    add_reshape(writer, node, blob, (*present, 0), output)


def _by_value(writer: NetWriter, node: Node, blob: str) -> None:
    """Add what a reduction over no axes computes."""
    if node.op in ("ReduceL1", "ReduceL2"):
        writer.layer(node, AbsVal.TYPE, [blob])
    elif node.op == "ReduceSumSquare":
        power(writer, node, blob, power=2)
    else:
        writer.alias(node)


def _axes(writer: NetWriter, node: Node, count: int) -> list[int]:
    """Return the axes that are reduced, sorted; none where the node asks for none."""
    axes = node.attributes.get("axes")
    if axes is None:
        given = writer.constant(node, 1)
        axes = None if given is None else given.tolist()
    if not axes and int(node.attributes.get("noop_with_empty_axes", 0)):
        return []
    return sorted(int(axis) % count for axis in axes) if axes else list(range(count))


# What gives sums of products, of which no two are equal but by chance.
_SUMS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization", "Resize"})


@importer("ArgMax", "ArgMin")
def arg_max(writer: NetWriter, node: Node) -> None:
    """Import the place of the largest or smallest value along an axis."""
    shape = writer.shape(node.inputs[0])
    axis, keeps = int(node.attributes.get("axis", 0)) % len(shape), bool(node.attributes.get("keepdims", 1))
    blob = writer.blob(node, node.inputs[0])
    if node.op == "ArgMin":
        blob = power(writer, node, blob, scale=-1, last=False)
    first = not int(node.attributes.get("select_last_index", 0))
    places = _places(writer, node, blob, axis, 1, first=first, last=keeps)
    if not keeps:
        source = tuple(1 if index == axis else n for index, n in enumerate(shape))
        add_reshape(writer, node, places, source, writer.shape(node.outputs[0]))


@importer("TopK")
def top_k(writer: NetWriter, node: Node) -> None:
    """Import the largest or smallest values along an axis, and their places: an ArgMax layer for each."""
    shape = writer.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", -1)) % len(shape)
    count = int(node.attributes["k"]) if "k" in node.attributes else int(writer.required(node, 1, "number of values").reshape(-1)[0])
    smallest = not int(node.attributes.get("largest", 1))
    blob = writer.blob(node, node.inputs[0])
    if smallest:
        blob = power(writer, node, blob, scale=-1, last=False)
    values, places = [*node.outputs, "", ""][:2]
    if _is_read(writer, values):
        target = replace(node, outputs=[values])
        layer = _add_arg_max(writer, target, blob, axis, count, last=not smallest)
        layer.argmax_param.out_max_val = True
        if smallest:
            power(writer, target, layer.top[0], scale=-1)
    if _is_read(writer, places):
        _places(writer, replace(node, outputs=[places]), blob, axis, count, first=True, last=True)


def _is_read(writer: NetWriter, value: str) -> bool:
    return bool(value) and (bool(writer.graph.readers(value)) or value in writer.graph.outputs)


def _places(writer: NetWriter, node: Node, blob: str, axis: int, count: int, *, first: bool, last: bool) -> str:
    """Add the places of the ``count`` largest values along an axis; of equal ones Caffe takes the last, which is the ``first`` of the values in reverse order."""
    maker, size = writer.graph.maker(node.inputs[0]), writer.shape(node.inputs[0])[axis]
    turned = first and (maker is None or maker.op not in _SUMS)
    if turned:
        blob = take(writer, node, blob, axis, size, range(size)[::-1], last=False)
    layer = _add_arg_max(writer, node, blob, axis, count, last=last and not turned)
    if turned:
        return power(writer, node, layer.top[0], scale=-1, shift=size - 1, last=last)
    return str(layer.top[0])


def _add_arg_max(writer: NetWriter, node: Node, blob: str, axis: int, count: int, *, last: bool) -> LayerParameter:
    layer = writer.layer(node, ArgMax.TYPE, [blob], last=last, hint="" if last else "argmax")
    layer.argmax_param.axis = axis
    if count != 1:
        layer.argmax_param.top_k = count
    return layer


@importer("LpNormalization")
def normalize(writer: NetWriter, node: Node) -> None:
    """Normalize of SSD's fork, over the channels."""
    shape = writer.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", -1)) % len(shape)
    if int(node.attributes.get("p", 2)) != 2 or axis != 1:
        raise node.error("only the L2 norm over channels has layers")
    if writer.target == "bvlc":
        square = power(writer, node, writer.blob(node, node.inputs[0]), power=2, last=False)
        rows = (shape[0], 1, shape[1], math.prod(shape[2:]))
        pooled = writer.layer(node, Pooling.TYPE, [add_reshape(writer, node, square, shape, rows, last=False)], last=False, hint="pool")
        pooled.pooling_param.pool = pooled.pooling_param.AVE
        pooled.pooling_param.kernel_h, pooled.pooling_param.kernel_w = shape[1], 1
        factor = power(writer, node, pooled.top[0], scale=shape[1], power=-0.5, last=False)
        one = (shape[0], 1, *shape[2:])
        factor = add_reshape(writer, node, factor, (*rows[:2], 1, rows[3], 0), one, last=False)
        product(writer, node, [writer.blob(node, node.inputs[0]), tiled(writer, node, factor, one, shape)])
        return
    layer = writer.layer(node, Normalize.TYPE, [writer.blob(node, node.inputs[0])], weights=[np.ones(())])
    layer.norm_param.across_spatial = math.prod(shape[2:]) == 1
    layer.norm_param.eps = 1e-30
