"""Average pooling with the same padding at both ends: the same numbers under the rule of the export's verification."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from caffetools.net.net import Net
from caffetools.onnx.export import build, export
from caffetools.onnx.pools import symmetrize_pools
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import parse

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: %d dim: %d } } }
layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { pool: AVE %s } }
"""


def net_of(height: int, width: int, pooling: str) -> Net:
    return Net(parse(NET % (height, width, pooling), NetParameter), TEST)


def unequal(graph: onnx.GraphProto) -> bool:
    """Return whether a pooling has padding that differs at both ends."""
    pads = [list(helper.get_attribute_value(item)) for node in graph.node for item in node.attribute if item.name == "pads"]
    return any(pad[: len(pad) // 2] != pad[len(pad) // 2 :] for pad in pads)


def attribute(node: onnx.NodeProto, name: str) -> object:
    return next(helper.get_attribute_value(item) for item in node.attribute if item.name == name)


@pytest.mark.parametrize(
    ("size", "pooling", "operators"),
    [
        ((32, 32), "kernel_size: 3 stride: 2", ["AveragePool"]),
        ((8, 7), "kernel_size: 3 stride: 2", ["AveragePool"]),
        ((8, 7), "kernel_size: 2 stride: 3", ["AveragePool"]),
        ((8, 7), "kernel_size: 4 stride: 3 pad: 1", ["AveragePool", "Mul"]),
        ((8, 8), "kernel_size: 3 stride: 2 pad: 1", ["AveragePool", "Mul"]),
        ((6, 7), "kernel_h: 3 kernel_w: 2 stride: 2 pad_h: 1", ["AveragePool", "Mul"]),
        ((10, 9), "kernel_size: 5 stride: 2 pad: 2", ["AveragePool", "Mul"]),
        ((5, 5), "kernel_size: 3 stride: 3 pad: 1", ["Pad", "AveragePool"]),
    ],
)
def test_the_ends_are_equal_and_the_model_is_verified(size: tuple[int, int], pooling: str, operators: list[str], tmp_path: Path) -> None:
    net = net_of(*size, pooling)
    assert unequal(build(net, dynamic_axes=())[0].proto.graph), "nothing to rewrite"
    path = tmp_path / "pool.onnx"
    export(net, path, dynamic_axes=(), symmetric_pools=True)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == operators and not unequal(model.graph)
    # onnxruntime 1.19 and 1.20 fuse a Pad into the pooling that reads it.
    assert attribute(model.graph.node[operators.index("AveragePool")], "count_include_pad") == int("Pad" in operators)


@pytest.mark.parametrize(
    ("size", "pooling"), [(9, "kernel_size: 3 stride: 2 pad: 1"), (8, "kernel_size: 2 stride: 2"), (8, "global_pooling: true")]
)
def test_equal_ends_are_kept(size: int, pooling: str) -> None:
    model, _ = build(net_of(size, size, pooling), dynamic_axes=())
    before = model.proto.SerializeToString(deterministic=True)
    assert symmetrize_pools(model) == 0 and model.proto.SerializeToString(deterministic=True) == before


def test_a_free_size_is_kept() -> None:
    model, _ = build(net_of(8, 8, "kernel_size: 3 stride: 2"), dynamic_axes=("height", "width"))
    assert symmetrize_pools(model) == 0 and unequal(model.proto.graph)
