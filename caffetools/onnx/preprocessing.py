"""Preprocessing as nodes in front of a graph: uint8 (N, H, W, 3) RGB in, the net's float32 (N, 3, H, W) out, in the net's channel order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from caffetools.errors import ExportError
from caffetools.onnx.model import OnnxModel


@dataclass(frozen=True)
class InGraphPreprocessing:
    """``(pixel − mean) · scale`` of RGB pixels, channels in the net's order.

    Attributes:
        blob: The net's input of pictures, (N, C, H, W).
        mean: (C, 1, 1) values or (C, H, W) image in the net's channel order.
        scale: The factor after the mean is subtracted.
        channel_order: What the net takes: ``"BGR"``, ``"RGB"``, or ``"GRAY"`` for one channel.
    """

    blob: str
    mean: NDArray[np.float32]
    scale: float = 1.0
    channel_order: str = "BGR"


def prepend_preprocessing(model: OnnxModel, how: InGraphPreprocessing, opset: int) -> None:
    """Make the model take uint8 pictures: input ``BLOB`` becomes (N, H, W, C), RGB or grey.

    Raises:
        ExportError: The graph has no input of that name and of four axes.
    """
    graph = model.proto.graph
    place = next((index for index, value in enumerate(graph.input) if value.name == how.blob), None)
    if place is None or len(graph.input[place].type.tensor_type.shape.dim) != 4:
        raise ExportError(f"the graph has no input '{how.blob}' of pictures (N x C x H x W) to preprocess")
    n, c, h, w = (_size(dim) for dim in graph.input[place].type.tensor_type.shape.dim)
    if isinstance(c, str) or c not in (1, 3):
        raise ExportError(f"pictures have 1 or 3 channels, but the input '{how.blob}' has {c}")
    inner = f"{how.blob}/preprocessed"
    for node in graph.node:
        node.input[:] = [inner if name == how.blob else name for name in node.input]
    nodes = _nodes(model, how, inner, c)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    float_value = helper.make_tensor_value_info(inner, TensorProto.FLOAT, [n, c, h, w])
    graph.value_info.append(float_value)
    graph.input[place].CopyFrom(helper.make_tensor_value_info(how.blob, TensorProto.UINT8, [n, h, w, c]))


def _nodes(model: OnnxModel, how: InGraphPreprocessing, target: str, channels: int) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    value = how.blob

    def add(op: str, constant: NDArray[Any] | None = None, result: str = "", **attributes: Any) -> None:
        nonlocal value
        number = len(nodes) + 1
        inputs = [value]
        if constant is not None:
            name = f"{how.blob}/preprocess_{number}_by"
            model.weights[name] = constant
            inputs.append(name)
        value = result or f"{how.blob}/preprocess_{number}"
        nodes.append(helper.make_node(op, inputs, [value], name=f"{how.blob}/preprocess/{op}_{number}", **attributes))

    add("Cast", to=TensorProto.FLOAT)
    add("Transpose", perm=[0, 3, 1, 2])
    if channels == 3 and how.channel_order != "RGB":
        add("Gather", np.array([2, 1, 0], np.int64), axis=1)
    add("Sub", np.asarray(how.mean, np.float32)[None])
    add("Mul", np.array(how.scale, np.float32), result=target)
    return nodes


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_param or (int(dim.dim_value) if dim.HasField("dim_value") else None)
