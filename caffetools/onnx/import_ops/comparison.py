"""Comparisons, logic and choices: true and false are 1 and 0 in a blob."""

from __future__ import annotations

import numpy as np

from caffetools.layers.activation import AbsVal, Threshold
from caffetools.layers.base import Shape
from caffetools.layers.eltwise import Eltwise
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power, product
from caffetools.onnx.import_ops.elementwise import by_constant, tiled

_LARGEST = float(np.finfo(np.float32).max)


@importer("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
def compare(writer: NetWriter, node: Node) -> None:
    """Threshold of the difference, which is 0 for equal values only."""
    output = writer.shape(node.outputs[0])
    first, second = writer.constant(node, 0), writer.constant(node, 1)
    if second is not None or first is not None:
        value, constant = (node.inputs[0], second) if second is not None else (node.inputs[1], first)
        blob = tiled(writer, node, writer.blob(node, value), writer.shape(value), output)
        numbers = np.asarray(constant, np.float64)
        limit = float(numbers.reshape(-1)[0])
        if (numbers != limit).any():
            blob, limit = by_constant(writer, node, blob, -numbers, output, add=True, last=False), 0.0
    else:
        blobs = [tiled(writer, node, writer.blob(node, value), writer.shape(value), output) for value in node.inputs]
        blob, limit = _sum(writer, node, blobs, [1, -1]), 0.0
    wanted = node.op
    if second is None and first is not None:
        # c > x is x < c.
        wanted = {"Greater": "Less", "Less": "Greater", "GreaterOrEqual": "LessOrEqual", "LessOrEqual": "GreaterOrEqual"}.get(
            wanted, wanted
        )
    if wanted == "Greater":
        _above(writer, node, blob, limit, last=True)
    elif wanted == "Less":
        _below(writer, node, blob, limit, last=True)
    elif wanted == "Equal":
        either = _sum(writer, node, [_above(writer, node, blob, limit), _below(writer, node, blob, limit)])
        _negated(writer, node, either, last=True)
    else:
        opposite = _below if wanted == "GreaterOrEqual" else _above
        _negated(writer, node, opposite(writer, node, blob, limit), last=True)


@importer("Sign")
def sign(writer: NetWriter, node: Node) -> None:
    """1 above 0, less 1 below it."""
    blob = writer.blob(node, node.inputs[0])
    layer = writer.layer(node, Eltwise.TYPE, [_above(writer, node, blob, 0.0), _below(writer, node, blob, 0.0)])
    layer.eltwise_param.coeff.extend([1, -1])


@importer("Not")
def not_(writer: NetWriter, node: Node) -> None:
    """Subtract from 1."""
    _negated(writer, node, writer.blob(node, node.inputs[0]), last=True)


@importer("And", "Or", "Xor")
def logic(writer: NetWriter, node: Node) -> None:
    """Product, maximum, or the size of the difference."""
    output = writer.shape(node.outputs[0])
    known = next(value for value in node.inputs if value not in writer.graph.constants)
    like = tiled(writer, node, writer.blob(node, known), writer.shape(known), output)
    blobs = []
    for index, value in enumerate(node.inputs):
        constant = writer.constant(node, index)
        if constant is None:
            blobs.append(tiled(writer, node, writer.blob(node, value), writer.shape(value), output))
        else:
            blobs.append(
                by_constant(
                    writer, node, power(writer, node, like, scale=0, last=False), constant.astype(np.float64), output, add=True, last=False
                )
            )
    if node.op == "And":
        product(writer, node, blobs)
    elif node.op == "Or":
        param = writer.layer(node, Eltwise.TYPE, blobs).eltwise_param
        param.operation = param.MAX
    else:
        writer.layer(node, AbsVal.TYPE, [_sum(writer, node, blobs, [1, -1])])


@importer("Where")
def where(writer: NetWriter, node: Node) -> None:
    """Import a choice: each side times 1 where it is chosen and 0 elsewhere, and their sum."""
    output = writer.shape(node.outputs[0])
    mask, sides = writer.constant(node, 0), [writer.constant(node, index) for index in (1, 2)]
    if mask is None:
        chosen = tiled(writer, node, writer.blob(node, node.inputs[0]), writer.shape(node.inputs[0]), output)
        terms = [_chosen(writer, node, index, blob, output) for index, blob in ((1, chosen), (2, _negated(writer, node, chosen)))]
        writer.set_blob(node.outputs[0], _sum(writer, node, terms))
        return
    terms = []
    for index, (side, kept) in enumerate(zip(sides, (mask, ~mask), strict=True), start=1):
        if side is None and kept.any():
            value = node.inputs[index]
            blob = tiled(writer, node, writer.blob(node, value), writer.shape(value), output)
            terms.append(blob if kept.all() else by_constant(writer, node, blob, kept.astype(np.float64), output, add=False, last=False))
    blob = terms[0] if len(terms) == 1 else _sum(writer, node, terms)
    fixed = np.where(mask, *(0.0 if side is None else side.astype(np.float64) for side in sides))
    writer.set_blob(node.outputs[0], by_constant(writer, node, blob, fixed, output, add=True, last=False) if fixed.any() else blob)


def _chosen(writer: NetWriter, node: Node, index: int, mask: str, output: Shape) -> str:
    """Return input ``index`` where ``mask``, a blob, is 1, and 0 where it is 0."""
    constant, value = writer.constant(node, index), node.inputs[index]
    if constant is not None:
        # Infinity times 0 would be NaN.
        return by_constant(writer, node, mask, np.clip(constant.astype(np.float64), -_LARGEST, _LARGEST), output, add=False, last=False)
    return product(writer, node, [mask, tiled(writer, node, writer.blob(node, value), writer.shape(value), output)], last=False)


def _above(writer: NetWriter, node: Node, blob: str, limit: float, *, last: bool = False) -> str:
    layer = writer.layer(node, Threshold.TYPE, [blob], last=last, hint="" if last else "above")
    layer.threshold_param.threshold = limit
    return str(layer.top[0])


def _below(writer: NetWriter, node: Node, blob: str, limit: float, *, last: bool = False) -> str:
    return _above(writer, node, power(writer, node, blob, scale=-1, last=False), -limit, last=last)


def _negated(writer: NetWriter, node: Node, blob: str, *, last: bool = False) -> str:
    return power(writer, node, blob, scale=-1, shift=1, last=last)


def _sum(writer: NetWriter, node: Node, blobs: list[str], coefficients: list[int] | None = None) -> str:
    layer = writer.layer(node, Eltwise.TYPE, blobs, last=False, hint="sum")
    layer.eltwise_param.coeff.extend(coefficients or [])
    return str(layer.top[0])
