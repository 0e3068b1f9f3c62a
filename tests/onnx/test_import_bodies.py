"""Import of models whose nodes have graphs of their own, and of those whose numbers are not the same in each run."""

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

SHAPE = (1, 3, 4, 5)


def value(name: str, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes: list[onnx.NodeProto], *, functions: tuple[onnx.FunctionProto, ...] = (), **constants: Any) -> onnx.ModelProto:
    """Nodes from the input x to the output y."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "bodies", [value("x", SHAPE)], [value("y")], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)


def branch(op: str, output: str) -> onnx.GraphProto:
    """A branch that reads x from the graph around it; both branches of an If have values of the same names."""
    inner = f"{output[0]}_inner"
    nodes = [helper.make_node(op, ["x"], [inner], name="first"), helper.make_node("Mul", [inner, "two"], [output], name="second")]
    return helper.make_graph(nodes, op, [], [value(output)], [onnx.numpy_helper.from_array(np.float32(2), "two")])


def check_on_other_inputs(proto: onnx.ModelProto) -> None:
    """Compare the net with the model on inputs that the import has not seen: what it took for constant would be wrong for them."""
    imported = import_model(proto)
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    x = np.random.RandomState(5).randn(*SHAPE).astype(np.float32)
    with torch.no_grad():
        got = net({"x": torch.from_numpy(x)})[imported.outputs["y"]].numpy()
    np.testing.assert_allclose(got, open_session(proto).run({"x": x})["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_of_a_constant_condition_becomes_layers(condition: bool) -> None:
    choice = helper.make_node("If", ["c"], ["inner"], name="choice", then_branch=branch("Relu", "t"), else_branch=branch("Sigmoid", "t"))
    check_on_other_inputs(model([choice, helper.make_node("Add", ["inner", "x"], ["y"])], c=condition))


def test_a_branch_within_a_branch_becomes_layers() -> None:
    nested = helper.make_node("If", ["c"], ["deep"], then_branch=branch("Relu", "t"), else_branch=branch("Sigmoid", "e"))
    nodes = [helper.make_node("Tanh", ["x"], ["inner"]), nested, helper.make_node("Add", ["inner", "deep"], ["sum"])]
    outer = helper.make_graph(nodes, "outer", [], [value("sum")])
    condition = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Size", ["s"], ["n"]),
        helper.make_node("Equal", ["n", "four"], ["c"]),
    ]
    choice = helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=branch("Relu", "other"))
    check_on_other_inputs(model([*condition, choice], four=np.int64(4)))


def test_a_function_of_the_model_becomes_the_layers_of_its_body() -> None:
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    function = helper.make_function("own", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    check_on_other_inputs(model([helper.make_node("Act", ["x"], ["y"], domain="own")], functions=(function,)))


REFUSED: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "random": (
        [helper.make_node("RandomNormal", [], ["r"], name="n", shape=SHAPE)],
        r"node 'n' \(RandomNormal\): it gives other numbers in each run",
    ),
    "random like": (
        [helper.make_node("RandomNormalLike", ["x"], ["r"], name="n")],
        r"node 'n' \(RandomNormalLike\): it gives other numbers in each run",
    ),
    "condition": (
        [
            helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
            helper.make_node("Cast", ["m"], ["c"], name="m/bool", to=TensorProto.BOOL),
            helper.make_node("If", ["c"], ["r"], name="n", then_branch=branch("Relu", "t"), else_branch=branch("Sigmoid", "e")),
        ],
        r"node 'n' \(If\): .*only an If of a constant condition can be converted",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_run_is_refused(name: str) -> None:
    nodes, message = REFUSED[name]
    with pytest.raises(ImportFailed, match=message):
        import_model(model([*nodes, helper.make_node("Add", ["x", "r"], ["y"])]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4), r"input 'x' is \? x 3 x \? x 5 in the model, and 3 x 4 has 2 axes; correct --input-shape"),
        ((1, 4, 4, 5), r"input 'x' is \? x 3 x \? x 5 in the model, and 1 x 4 x 4 x 5 has other sizes where the model's are fixed"),
    ],
)
def test_a_shape_that_the_model_cannot_take_is_one_error(shape: tuple[int, ...], message: str) -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])])
    for axis in (0, 2):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"s{axis}"
    with pytest.raises(ImportFailed, match=message):
        import_model(proto, input_shapes={"x": shape})


def test_an_operator_of_another_domain_is_not_onnxs_own_of_that_name() -> None:
    """onnxruntime's Gelu is not read as ONNX's, nor a node of a group that has a merged form."""
    proto = model([helper.make_node("Gelu", ["x"], ["y"], name="n", domain="com.microsoft")])
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    reason = r"node 'n' \(com.microsoft.Gelu\): the domain 'com.microsoft' is not ONNX's own, .*before onnxruntime optimized it"
    with pytest.raises(ImportFailed, match=reason):
        import_model(proto)


def test_the_domain_of_onnxs_own_operators_may_be_written_out() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")])
    assert [layer.type for layer in import_model(proto).model.net.layer] == ["Input", "ReLU"]


def convolution(kind: type[np.floating[Any]]) -> onnx.ModelProto:
    """A convolution of an input that has another float type, with its nodes in the wrong order, as converters to fp16 write them."""
    weights = np.random.RandomState(0).randn(4, 3, 3, 3).astype(kind)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("Conv", ["c", "w"], ["y"], name="n"),
        helper.make_node("Cast", ["x"], ["c"], to=number),
    ]
    proto = model(nodes, w=weights)
    for item in (*proto.graph.input, *proto.graph.output):
        item.type.tensor_type.elem_type = number
    return proto


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floats_become_float32_and_nodes_come_into_order(kind: type[np.floating[Any]]) -> None:
    imported = import_model(convolution(kind))
    assert imported.largest_difference < 1e-6
    assert [layer.type for layer in imported.model.net.layer] == ["Input", "Convolution"]
    np.testing.assert_array_equal(imported.model.blobs["n"][0], np.random.RandomState(0).randn(4, 3, 3, 3).astype(kind).astype(np.float32))
