"""Gemm and MatMul with constant weights: InnerProduct."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer

Array = NDArray[Any]


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
    weight = writer.required(node, 1, "second input")
    if weight.ndim != 2:
        raise node.error(f"its weights have {weight.ndim} axes, and an InnerProduct's have 2")
    inner_product(writer, node, node.inputs[0], weight.T, node.attributes.get("bias"))


def inner_product(writer: NetWriter, node: Node, value: str, weight: Array, bias: Array | None) -> None:
    """Add an InnerProduct along the last axis of ``value``; ``weight`` is (outputs, inputs)."""
    weights = [weight, *([] if bias is None else [bias])]
    layer = writer.layer(node, "InnerProduct", [writer.blob(node, value)], weights=weights)
    param = layer.inner_product_param
    param.num_output, param.bias_term = len(weight), bias is not None
    axis = len(writer.shape(value)) - 1
    if axis != 1:
        param.axis = axis
