"""Arithmetic of two or more values, and of values and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.base import Shape, format_shape
from caffetools.layers.crop import Tile
from caffetools.layers.eltwise import Eltwise
from caffetools.layers.reshape import Flatten, Reshape
from caffetools.layers.scale import Bias, Scale
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import add_clip, power, product

Array = NDArray[Any]


@importer("Add", "Sub", "Mul", "Div")
def arithmetic(writer: NetWriter, node: Node) -> None:
    """Two values, or a value and a constant."""
    first, second = writer.constant(node, 0), writer.constant(node, 1)
    if first is not None and second is None:
        _with_constant(writer, node, node.inputs[1], first, reversed_=True)
    elif second is not None:
        _with_constant(writer, node, node.inputs[0], second, reversed_=False)
    else:
        _of_two(writer, node)


def _with_constant(writer: NetWriter, node: Node, value: str, constant: Array, *, reversed_: bool) -> None:
    blob, shape = writer.blob(node, value), writer.shape(value)
    if writer.shape(node.outputs[0]) != shape:
        blob = tiled(writer, node, blob, shape, writer.shape(node.outputs[0]))
        shape = writer.shape(node.outputs[0])
    number: NDArray[np.float64] = np.asarray(constant, np.float64)
    if node.op in ("Sub", "Div") and reversed_:
        # c − x and c / x.
        blob = power(writer, node, blob, scale=-1.0 if node.op == "Sub" else 1.0, power=-1.0 if node.op == "Div" else 1.0, last=False)
    elif node.op == "Sub":
        number = -number
    elif node.op == "Div":
        number = 1 / number
    by_constant(writer, node, blob, number, shape, add=node.op in ("Add", "Sub"))


def by_constant(
    writer: NetWriter, node: Node, blob: str, number: NDArray[np.float64], shape: Shape, *, add: bool, last: bool = True
) -> str:
    """Add a constant to a blob, or multiply the two: Power for one number, else Bias or Scale; gives the blob.

    Args:
        writer: Receives the layer.
        node: The node that it is (a part of).
        blob: What is changed.
        number: The constant, of any shape that can be repeated to ``shape``.
        shape: The blob's shape.
        add: Whether the constant is added; else it is a factor.
        last: Whether the blob holds the node's output.
    """
    if (number == number.reshape(-1)[0]).all():
        scalar = float(number.reshape(-1)[0])
        return power(writer, node, blob, shift=scalar if add else 0.0, scale=1.0 if add else scalar, last=last)
    axis, array = _placed(node, number, shape)
    hint = "" if last else "plus" if add else "times"
    layer = writer.layer(node, Bias.TYPE if add else Scale.TYPE, [blob], last=last, hint=hint, weights=[array])
    param = layer.bias_param if add else layer.scale_param
    if axis != 1:
        param.axis = axis
    if array.ndim != 1:
        param.num_axes = array.ndim
    return str(layer.top[0])


def _placed(node: Node, constant: NDArray[np.float64], shape: Shape) -> tuple[int, Array]:
    """Return the axis from which on a constant lies along ``shape``, and the constant without the axes of 1 around it."""
    if constant.ndim > len(shape):
        raise node.error(f"its constant has more axes than its input ({format_shape(shape)})")
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    used = [axis for axis in range(full.ndim) if full.shape[axis] != 1]
    first, last = used[0], used[-1]
    inner = np.broadcast_to(full, (*full.shape[:first], *shape[first : last + 1], *full.shape[last + 1 :]))
    return first, np.ascontiguousarray(inner).reshape(shape[first : last + 1])


def _of_two(writer: NetWriter, node: Node) -> None:
    shapes = [writer.shape(value) for value in node.inputs]
    output = writer.shape(node.outputs[0])
    blobs = [writer.blob(node, value) for value in node.inputs]
    small = next((index for index, shape in enumerate(shapes) if shape != output), None)
    if small is not None and shapes[1 - small] == output and _is_per_channel(shapes[small], output) and (node.op in ("Add", "Mul")):
        # A factor or a term for each map: Scale or Bias with a second bottom (N, C).
        operand = flat(writer, node, blobs[small], shapes[small])
        layer = writer.layer(node, Scale.TYPE if node.op == "Mul" else Bias.TYPE, [blobs[1 - small], operand])
        (layer.scale_param if node.op == "Mul" else layer.bias_param).axis = 0
        return
    blobs = [tiled(writer, node, blob, shape, output) for blob, shape in zip(blobs, shapes, strict=True)]
    if node.op == "Div":
        blobs[1] = power(writer, node, blobs[1], power=-1.0, last=False)
    if node.op in ("Mul", "Div"):
        product(writer, node, blobs)
        return
    layer = writer.layer(node, Eltwise.TYPE, blobs)
    layer.eltwise_param.operation = layer.eltwise_param.SUM
    if node.op == "Sub":
        layer.eltwise_param.coeff.extend([1, -1])


def _is_per_channel(shape: Shape, output: Shape) -> bool:
    return len(shape) == len(output) > 2 and shape[:2] == output[:2] and all(n == 1 for n in shape[2:])


def flat(writer: NetWriter, node: Node, blob: str, shape: Shape) -> str:
    """Return (N, C, 1, …) as (N, C)."""
    layer = writer.layer(node, Flatten.TYPE, [blob], last=False, hint="flat")
    return str(layer.top[0])


def tiled(writer: NetWriter, node: Node, blob: str, shape: Shape, output: Shape, *, last: bool = False) -> str:
    """Return ``blob`` repeated along its axes of 1 until it has the shape ``output``."""
    if shape == output:
        return blob
    if len(shape) != len(output):
        layer = writer.layer(node, Reshape.TYPE, [blob], last=False, hint="axes")
        layer.reshape_param.shape.dim.extend([1] * (len(output) - len(shape)) + list(shape))
        blob, shape = layer.top[0], (*[1] * (len(output) - len(shape)), *shape)
    axes = [axis for axis, (have, wanted) in enumerate(zip(shape, output, strict=True)) if have != wanted]
    for axis in axes:
        final = last and axis == axes[-1]
        layer = writer.layer(node, Tile.TYPE, [blob], last=final, hint="" if final else "tile")
        layer.tile_param.axis, layer.tile_param.tiles = axis, output[axis]
        blob = layer.top[0]
    return blob


@importer("Sum", "Max", "Min", "Mean")
def several(writer: NetWriter, node: Node) -> None:
    """Any number of values; the maximum or minimum of a value and a number."""
    constants = [writer.constant(node, index) for index in range(len(node.inputs))]
    if any(constant is not None for constant in constants):
        _with_bound(writer, node, constants)
        return
    output = writer.shape(node.outputs[0])
    blobs = [tiled(writer, node, writer.blob(node, value), writer.shape(value), output) for value in node.inputs]
    if len(blobs) == 1:
        writer.alias(node)
        return
    if node.op == "Min":
        blobs = [power(writer, node, blob, scale=-1, last=False) for blob in blobs]
    layer = writer.layer(node, Eltwise.TYPE, blobs, last=node.op != "Min", hint="max" if node.op == "Min" else "")
    param = layer.eltwise_param
    param.operation = param.MAX if node.op in ("Max", "Min") else param.SUM
    if node.op == "Mean":
        param.coeff.extend([1 / len(blobs)] * len(blobs))
    if node.op == "Min":
        power(writer, node, layer.top[0], scale=-1)


def _with_bound(writer: NetWriter, node: Node, constants: list[Array | None]) -> None:
    if node.op == "Sum":
        _sum_with_constants(writer, node, constants)
        return
    values = [value for value, constant in zip(node.inputs, constants, strict=True) if constant is None]
    numbers = {float(n) for constant in constants if constant is not None for n in np.asarray(constant).reshape(-1)}
    if len(values) != 1 or len(numbers) != 1 or node.op not in ("Max", "Min"):
        raise node.error("of a constant and values only the maximum or minimum of one value and one number can be converted")
    bound = numbers.pop()
    add_clip(writer, node, writer.blob(node, values[0]), *((bound, None) if node.op == "Max" else (None, bound)))


def _sum_with_constants(writer: NetWriter, node: Node, constants: list[Array | None]) -> None:
    shape = writer.shape(node.outputs[0])
    values = [value for value, constant in zip(node.inputs, constants, strict=True) if constant is None]
    blobs = [tiled(writer, node, writer.blob(node, value), writer.shape(value), shape) for value in values]
    blob = blobs[0] if len(blobs) == 1 else str(writer.layer(node, Eltwise.TYPE, blobs, last=False, hint="sum").top[0])
    total = sum(np.asarray(constant, np.float64) for constant in constants if constant is not None)
    by_constant(writer, node, blob, np.asarray(total), shape, add=True)


@importer("Pow")
def to_the_power(writer: NetWriter, node: Node) -> None:
    """Power with a constant exponent."""
    exponent = np.asarray(writer.required(node, 1, "exponent")).reshape(-1)
    if not (exponent == exponent[0]).all():
        raise node.error("its exponent must be one number")
    power(writer, node, writer.blob(node, node.inputs[0]), power=float(exponent[0]))


@importer("Sqrt", "Reciprocal", "Neg")
def of_one(writer: NetWriter, node: Node) -> None:
    """Power."""
    exponent = {"Sqrt": 0.5, "Reciprocal": -1.0, "Neg": 1.0}[node.op]
    power(writer, node, writer.blob(node, node.inputs[0]), power=exponent, scale=-1.0 if node.op == "Neg" else 1.0)
