"""LRN across channels in operators that onnxruntime computes several times as fast as its own LRN."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from caffetools.onnx.model import OnnxModel

# The sum over the neighboring channels becomes a convolution with all channels; beyond so many it would cost more than it saves.
_MOST_CHANNELS = 512


def expand_lrn(model: onnx.ModelProto) -> int:
    """Replace each LRN node: x / (bias + alpha / size * sum of x^2)^beta with the sum as a 1x1 convolution of a band matrix.

    For the usual beta of 0.75 the power is two square roots, else Pow. For float32 on the CPU: in fp16 the squares may overflow.

    Args:
        model: A model with the shapes of its values; changed in place. The names of LRN's inputs and outputs are kept.

    Returns:
        The number of nodes replaced; one whose number of channels is not known, or above 512, is left as it is.
    """
    graph = model.graph
    infos = {info.name: info for field in (graph.value_info, graph.output, graph.input) for info in field}
    kept: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        channels = _channels(infos, node) if node.op_type == "LRN" else 0
        if 0 < channels <= _MOST_CHANNELS:
            kept += _expanded(graph, node, channels)
            count += 1
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return count


def expand_lrn_in(model: OnnxModel) -> int:
    """Replace the LRN nodes of a model whose weights are arrays, as :func:`expand_lrn` does."""
    count = expand_lrn(model.proto)
    model.weights.update((tensor.name, numpy_helper.to_array(tensor)) for tensor in model.proto.graph.initializer)
    del model.proto.graph.initializer[:]
    return count


def _channels(infos: dict[str, onnx.ValueInfoProto], node: onnx.NodeProto) -> int:
    for name in (node.output[0], node.input[0]):
        dims = infos[name].type.tensor_type.shape.dim if name in infos else []
        if len(dims) > 1 and dims[1].dim_value:
            return int(dims[1].dim_value)
    return 0


def _expanded(graph: onnx.GraphProto, node: onnx.NodeProto, channels: int) -> list[onnx.NodeProto]:
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    alpha, beta, bias, size = given.get("alpha", 1e-4), given.get("beta", 0.75), given.get("bias", 1.0), given["size"]
    x, y = node.input[0], node.output[0]
    distance = np.subtract.outer(np.arange(channels), np.arange(channels))
    # As ONNX defines it: floor((size - 1) / 2) channels before, ceil((size - 1) / 2) after.
    band = (distance <= (size - 1) // 2) & (-distance <= size // 2)
    constants = {
        "band": np.where(band, np.float32(alpha) / size, 0).astype(np.float32)[:, :, None, None],
        "bias": np.full(channels, bias, np.float32),
    }
    steps = [("Mul", (x, x), "square"), ("Conv", ("square", "band", "bias"), "scale")]
    if abs(beta - 0.75) < 1e-6:
        steps += [
            ("Sqrt", ("scale",), "root"),
            ("Sqrt", ("root",), "fourth"),
            ("Mul", ("root", "fourth"), "power"),
            ("Div", (x, "power"), y),
        ]
    else:
        constants["beta"] = np.array(-beta, np.float32)
        steps += [("Pow", ("scale", "beta"), "power"), ("Mul", (x, "power"), y)]
    graph.initializer.extend(numpy_helper.from_array(array, f"{y}/lrn/{name}") for name, array in constants.items())
    local = {name: f"{y}/lrn/{name}" for name in (*constants, "square", "scale", "root", "fourth", "power")} | {x: x, y: y}
    nodes = []
    for operator, inputs, made in steps:
        label = made if made != y else "quotient"
        nodes.append(helper.make_node(operator, [local[name] for name in inputs], [local[made]], name=f"{node.name}/{label}"))
    # OpenCV's importer asks for it, though the weights have it.
    nodes[1].attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    return nodes
