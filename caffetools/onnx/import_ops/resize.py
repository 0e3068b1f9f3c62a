"""Resize and Upsample."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from caffetools.engines.base import EngineError
from caffetools.engines.onnxruntime import open_session
from caffetools.errors import ModelFileError
from caffetools.layers.base import Shape
from caffetools.layers.convolution import Convolution, Deconvolution
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.upsampling import Interp, Upsample
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.window import fill_kernel

Array = NDArray[Any]

# Weights of one axis up to which it is resized by a product with a matrix.
_MOST_WEIGHTS = 1 << 26


@importer("Resize", "Upsample")
def resize(writer: NetWriter, node: Node) -> None:
    """Whole factors of nearest: a deconvolution of ones; bilinear with fixed corners: Interp; all others: a matrix along each axis."""
    source, target = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    if source == target:
        writer.alias(node)
        return
    if len(source) != 4 or source[:2] != target[:2]:
        raise node.error("only maps of 2 axes are resized")
    mode = str(node.attributes.get("mode", "nearest"))
    where = str(node.attributes.get("coordinate_transformation_mode", "half_pixel" if node.op == "Resize" else "asymmetric"))
    if where == "tf_crop_and_resize":
        raise node.error("a crop given by an input (tf_crop_and_resize) has no layer")
    blob, channels = writer.blob(node, node.inputs[0]), source[1]
    factors = [m // n for n, m in zip(source[2:], target[2:], strict=True)]
    if mode == "nearest" and _copies(node, where, source, target):
        if writer.target == "any" and factors[0] == factors[1]:
            writer.layer(node, Upsample.TYPE, [blob]).upsample_param.scale = factors[0]
            return
        layer = writer.layer(node, Deconvolution.TYPE, [blob], weights=[np.ones((channels, 1, *factors))])
        fill_kernel(layer, channels, factors, factors, (0, 0), (1, 1), channels)
        layer.convolution_param.bias_term = False
    elif mode == "linear" and where == "align_corners" and writer.target == "any":
        layer = writer.layer(node, Interp.TYPE, [blob])
        layer.interp_param.height, layer.interp_param.width = target[2:]
    else:
        _by_matrices(writer, node, blob, source, target)


def _copies(node: Node, where: str, source: Shape, target: Shape) -> bool:
    """Whether each value is repeated a whole number of times."""
    whole = all(m % n == 0 for n, m in zip(source[2:], target[2:], strict=True))
    rounding = str(node.attributes.get("nearest_mode", "round_prefer_floor"))
    right = (where == "asymmetric" and rounding == "floor") or (
        where in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
    )
    return whole and (node.op == "Upsample" or right)


def _by_matrices(writer: NetWriter, node: Node, blob: str, source: Shape, target: Shape) -> None:
    """Columns by an InnerProduct along the last axis; rows by a convolution whose channels are the rows of each map."""
    batch, channels, height, width = source
    if channels * height * target[2] > _MOST_WEIGHTS:
        raise node.error(f"its rows would take {channels * height * target[2]} weights")
    rows, columns = _matrix(writer, node, source, target, 2), _matrix(writer, node, source, target, 3)
    if target[2] != height or not np.array_equal(rows, np.eye(height)):
        flat = add_reshape(writer, node, blob, source, (batch, channels * height, width, 1), last=False)
        layer = writer.layer(
            node, Convolution.TYPE, [flat], last=False, hint="rows", weights=[np.tile(rows, (channels, 1))[:, :, None, None]]
        )
        fill_kernel(layer, channels * target[2], (1, 1), (1, 1), (0, 0), (1, 1), channels)
        layer.convolution_param.bias_term = False
        done = target[3] == width and np.array_equal(columns, np.eye(width))
        blob = add_reshape(writer, node, layer.top[0], (batch, channels * target[2], width, 1), (*target[:3], width), last=bool(done))
        if done:
            return
    layer = writer.layer(node, InnerProduct.TYPE, [blob], weights=[columns])
    param = layer.inner_product_param
    param.num_output, param.axis, param.bias_term = target[3], 3, False


def _matrix(writer: NetWriter, node: Node, source: Shape, target: Shape, axis: int) -> Array:
    """Return (size after, size before): what onnxruntime's own operator makes of each place along an axis; maps are constant along the other."""
    count = source[axis]
    probe = np.zeros((1, count, *source[2:]), np.float32)
    for place in range(count):
        probe[(0, place, place) if axis == 2 else (0, place, slice(None), place)] = 1
    tensors, names = [], ["x"]
    for index, name in enumerate(node.inputs[1:], start=1):
        given = writer.constant(node, index)
        if given is None:
            if name:
                raise node.error("its sizes must be constant")
            names.append("")
            continue
        array = np.array(given)
        if array.size == 4 and array.dtype.kind == "i":
            array[:2] = 1, count
        tensors.append(onnx.numpy_helper.from_array(array, f"c{index}"))
        names.append(f"c{index}")
    made = helper.make_node(node.op, names, ["y"], **node.attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", probe.shape), ("y", None))]
    graph = helper.make_graph([made], "probe", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", writer.graph.opset)], ir_version=8)
    try:
        result = open_session(proto).run({"x": probe})["y"]
    except (EngineError, ModelFileError) as error:
        raise node.error(f"its factors for each place are not known: {error}") from None
    matrix: Array = result[0, :, 0, :].T if axis == 3 else result[0, :, :, 0].T
    return matrix
