"""Gemm and MatMul: InnerProduct for constant weights, products and their sums for two values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.convolution import Convolution
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.reduction import Reduction
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import product
from caffetools.onnx.import_ops.axes import add_transpose
from caffetools.onnx.import_ops.elementwise import tiled
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.window import fill_kernel

Array = NDArray[Any]

# Products of two matrices that depend on the inputs, up to which they are written one by one (256 MB).
_MOST_PRODUCTS = 1 << 26


@importer("Gemm")
def gemm(writer: NetWriter, node: Node) -> None:
    """alpha · x · W + beta · c."""
    weight = writer.required(node, 1, "weights")
    if int(node.attributes.get("transA", 0)):
        raise node.error("its first input is transposed")
    weight = weight if int(node.attributes.get("transB", 0)) else weight.T
    bias = writer.constant(node, 2)
    if len(node.inputs) > 2 and node.inputs[2] and bias is None:
        raise node.error("its bias must be constant")
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    term = None if bias is None else np.broadcast_to(bias * beta, (1, len(weight)))[0] if bias.ndim < 2 or len(bias) == 1 else None
    if bias is not None and term is None:
        raise node.error("its bias differs from item to item")
    inner_product(writer, node, node.inputs[0], weight * np.float32(alpha) if alpha != 1 else weight, term)


@importer("MatMul")
def matmul(writer: NetWriter, node: Node) -> None:
    """x · W along the last axis."""
    weight, first = writer.constant(node, 1), writer.constant(node, 0)
    if first is not None:
        _from_the_left(writer, node, first)
        return
    if weight is None:
        _of_two(writer, node)
        return
    while weight.ndim > 2 and len(weight) == 1:
        weight = weight[0]
    if weight.ndim > 2:
        raise node.error(f"its weights have {weight.ndim} axes, and an InnerProduct's have 2")
    vector = weight.ndim == 1
    blob = inner_product(writer, node, node.inputs[0], weight.reshape(len(weight), -1).T, node.attributes.get("bias"), last=not vector)
    if vector:
        add_reshape(writer, node, blob, (*writer.shape(node.inputs[0])[:-1], 1), writer.shape(node.outputs[0]))


def _from_the_left(writer: NetWriter, node: Node, weight: Array) -> None:
    """Multiply W (…, M, K) by a value (N, …, K, P): a convolution of 1 x 1 over the K, for each of the axes between in a group of its own."""
    shape, output = writer.shape(node.inputs[1]), writer.shape(node.outputs[0])
    if len(shape) < 3 or weight.ndim < 2 or output[:-2] != shape[:-2]:
        raise node.error("of a constant and a value, the value must have a batch, and the constant no axes that the value does not have")
    leading = (1,) * (len(shape) - weight.ndim) + weight.shape[:-2]
    if leading[0] != 1:
        raise node.error("its constant differs from item to item")
    between, rows, (depth, columns) = shape[1:-2], weight.shape[-2], shape[-2:]
    groups = math.prod(between)
    full = np.broadcast_to(weight.reshape(*leading[1:], rows, depth), (*between, rows, depth))
    maps = (shape[0], groups * depth, columns, 1)
    blob = add_reshape(writer, node, writer.blob(node, node.inputs[1]), shape, maps, last=False)
    layer = writer.layer(node, Convolution.TYPE, [blob], last=False, hint="product", weights=[full.reshape(groups * rows, depth, 1, 1)])
    fill_kernel(layer, groups * rows, (1, 1), (1, 1), (0, 0), (1, 1), groups)
    layer.convolution_param.bias_term = False
    add_reshape(writer, node, layer.top[0], (shape[0], groups * rows, columns, 1), output)


def _of_two(writer: NetWriter, node: Node) -> None:
    """Two values (…, M, K) and (…, K, P): the products of all rows and columns, which Reduction adds up."""
    first, second = (writer.shape(value) for value in node.inputs)
    output = writer.shape(node.outputs[0])
    if len(first) < 3 or len(first) != len(second) or first[:-2] != second[:-2]:
        raise node.error("of two values, both must have the same axes before their last two, and a batch")
    inner, (rows, columns) = math.prod(first[1:-2]), output[-2:]
    depth = first[-1]
    if math.prod(first[:-1]) * columns * depth > _MOST_PRODUCTS:
        raise node.error(f"no layer multiplies two matrices, and one by one it is {math.prod(first[:-1]) * columns * depth} products")
    batch = first[0]
    left = add_reshape(writer, node, writer.blob(node, node.inputs[0]), first, (batch, inner * rows, 1, depth), last=False)
    left = tiled(writer, node, left, (batch, inner * rows, 1, depth), (batch, inner * rows, columns, depth))
    right = writer.blob(node, node.inputs[1])
    if columns > 1:
        order = [*range(len(second) - 2), len(second) - 1, len(second) - 2]
        right = add_transpose(writer, node, right, second, order, last=False)
        second = (*second[:-2], columns, depth)
    right = add_reshape(writer, node, right, second, (batch, inner, 1, columns * depth), last=False)
    right = tiled(writer, node, right, (batch, inner, 1, columns * depth), (batch, inner, rows, columns * depth))
    wide = (batch, inner * rows, columns, depth)
    right = add_reshape(writer, node, right, (batch, inner, rows, columns * depth), wide, last=False)
    layer = writer.layer(node, Reduction.TYPE, [product(writer, node, [left, right], last=False)], last=False, hint="total")
    layer.reduction_param.axis = 3
    add_reshape(writer, node, layer.top[0], wide[:3], output)


def inner_product(writer: NetWriter, node: Node, value: str, weight: Array, bias: Array | None, *, last: bool = True) -> str:
    """Add an InnerProduct along the last axis of ``value``; ``weight`` is (outputs, inputs); gives the blob."""
    weights = [weight, *([] if bias is None else [bias])]
    layer = writer.layer(node, InnerProduct.TYPE, [writer.blob(node, value)], last=last, hint="" if last else "product", weights=weights)
    param = layer.inner_product_param
    param.num_output, param.bias_term = len(weight), bias is not None
    axis = len(writer.shape(value)) - 1
    if axis != 1:
        param.axis = axis
    return str(layer.top[0])
