"""Import of comparisons, logic, choices and places, of values that are equal too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from caffetools.engines.onnxruntime import open_session
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx.import_graph import ImportFailed
from caffetools.onnx.importer import import_model
from caffetools.proto.schema import TEST

SHAPE = (2, 3, 4, 5)
MASK = np.random.RandomState(0).rand(3, 4, 1) > 0.5
NUMBERS = np.float32([[0.5], [-1], [0], [2]])


def model(steps: list[tuple[str, str, str]], **constants: Any) -> onnx.ModelProto:
    """Nodes from the inputs a and b to the output y, each as (operator, inputs, output); an operator may have attributes: ``Cast to=1``."""
    nodes = []
    for index, (op, inputs, output) in enumerate(steps):
        name, *settings = op.split()
        attributes = {key: int(number) for key, number in (setting.split("=") for setting in settings)}
        nodes.append(helper.make_node(name, inputs.split(), output.split(), name=f"{name}{index}", **attributes))
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "ab"]
    kind = TensorProto.INT64 if steps[-1][0].startswith("ArgM") else TensorProto.FLOAT
    tensors = [onnx.numpy_helper.from_array(np.asarray(constant), name) for name, constant in constants.items()]
    graph = helper.make_graph(nodes, "several", given, [helper.make_tensor_value_info("y", kind, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compare_on_equal_values(proto: onnx.ModelProto) -> None:
    """Compare net and model on whole numbers, many of which are equal to one another and to the constants."""
    imported = import_model(proto)
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    random = np.random.RandomState(5)
    feed = {name: random.randint(-2, 3, SHAPE).astype(np.float32) for name in "ab"}
    with torch.no_grad():
        got = net({name: torch.from_numpy(value) for name, value in feed.items()})[imported.outputs["y"]].numpy()
    np.testing.assert_array_equal(got, open_session(proto).run(feed)["y"])


FLOAT = "Cast to=1"
COMPARISONS = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"]


@pytest.mark.parametrize("inputs", ["a b", "a one", "one a", "a rows", "rows a"])
@pytest.mark.parametrize("op", COMPARISONS)
def test_a_comparison_is_1_where_it_is_true(op: str, inputs: str) -> None:
    compare_on_equal_values(model([(op, inputs, "c"), ("Add", "a b", "unused"), (FLOAT, "c", "y")], one=np.float32(1), rows=NUMBERS))


CHAINS: dict[str, list[tuple[str, str, str]]] = {
    "both": [("Greater", "a one", "c"), ("Less", "b one", "d"), ("And", "c d", "e"), (FLOAT, "e", "y")],
    "one of them": [("Greater", "a one", "c"), ("Less", "b one", "d"), ("Or", "c d", "e"), (FLOAT, "e", "y")],
    "one alone": [("Greater", "a b", "c"), ("Less", "b one", "d"), ("Xor", "c d", "e"), ("Not", "e", "f"), (FLOAT, "f", "y")],
    "both, with a constant": [("Equal", "a b", "c"), ("And", "c mask", "e"), (FLOAT, "e", "y")],
    "one of them, with a constant": [("Equal", "a b", "c"), ("Or", "mask c", "e"), (FLOAT, "e", "y")],
    "true where it is not 0": [("Cast to=9", "a", "c"), (FLOAT, "c", "y")],
    "sign": [("Sign", "a", "y")],
    "choice of two": [("Greater", "a b", "c"), ("Where", "c a b", "y")],
    "choice of a value and a number": [("Greater", "a one", "c"), ("Where", "c one b", "y")],
    "choice by a constant": [("Where", "mask a b", "y")],
    "choice by a constant of a value and a number": [("Where", "mask a low", "y")],
    "choice by a constant of a number and a value": [("Where", "mask rows b", "y")],
    "choice by a constant that is always true": [("Where", "true a b", "y")],
    "choice to a larger shape": [("ArgMax axis=2", "a", "p"), (FLOAT, "p", "c"), ("Where", "mask c rows", "y")],
    "places": [("ArgMax axis=1", "a", "c"), (FLOAT, "c", "y")],
    "whole numbers": [("ArgMax axis=-1", "a", "y")],
    "places of sums": [("Conv", "a weights", "c"), ("Relu", "c", "d"), ("ArgMin axis=1", "d", "e"), (FLOAT, "e", "y")],
    "values of TopK": [("TopK axis=1", "a two", "y d")],
    "last places": [("ArgMax axis=1 select_last_index=1 keepdims=0", "a", "c"), (FLOAT, "c", "y")],
    "places of TopK": [("TopK axis=3", "a two", "c d"), (FLOAT, "d", "y")],
    "places of the smallest": [("TopK axis=2 largest=0", "a two", "c d"), (FLOAT, "d", "y")],
}
CONSTANTS = {
    "one": np.float32(1),
    "low": np.float32(-np.inf),
    "true": np.array(True),
    "mask": MASK,
    "rows": NUMBERS,
    "two": np.int64([2]),
    "weights": np.eye(3, dtype=np.float32)[:, :, None, None],
}


@pytest.mark.parametrize("name", CHAINS)
def test_values_that_are_equal_give_what_the_model_gives(name: str) -> None:
    compare_on_equal_values(model(CHAINS[name], **CONSTANTS))


def test_a_cast_that_rounds_is_refused() -> None:
    with pytest.raises(ImportFailed, match=r"node 'Cast0' \(Cast\): Caffe has no layer that rounds values to whole numbers"):
        import_model(model([("Cast to=7", "a", "c"), (FLOAT, "c", "y")]))
