"""Import of models with loops: those of a fixed number of steps are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from caffetools.engines.onnxruntime import open_session
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx.import_graph import ImportFailed
from caffetools.onnx.importer import import_model
from caffetools.proto.schema import TEST

STEPS, WIDTH, UNITS = 5, 4, 3
node = helper.make_node


def numbers(*shape: int) -> Any:
    return np.random.RandomState(1).randn(*shape).astype(np.float32)


def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def unknown(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def body(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], **constants: Any
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])


def model(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",), opset: int = 17, **constants: Any) -> onnx.ModelProto:
    """Nodes of the input x (1, STEPS, WIDTH), in which the loop is named ``loop``."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "loops", [value("x", 1, STEPS, WIDTH)], [unknown(name) for name in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def recurrent(condition: list[onnx.NodeProto], *, opset: int = 17, most: int = 2**62) -> onnx.ModelProto:
    """A while loop as TensorFlow has it: a place that counts, a state, what each step gives, and ``condition``, which makes ``again``."""
    step = [
        node("Gather", ["steps", "place"], ["xi"], axis=0),
        node("Concat", ["xi", "h"], ["both"], axis=1),
        node("MatMul", ["both", "w"], ["product"]),
        node("Tanh", ["product"], ["h2"]),
        node("Add", ["place", "one"], ["next"]),
        node("Identity", ["h2"], ["given"]),
        *condition,
    ]
    inputs = [value("n", kind=TensorProto.INT64), value("c", kind=TensorProto.BOOL), value("place", kind=TensorProto.INT64), unknown("h")]
    outputs = [value("again", kind=TensorProto.BOOL), value("next", kind=TensorProto.INT64), unknown("h2"), unknown("given")]
    repeated = body(step, inputs, outputs, one=np.int64(1), w=numbers(WIDTH + UNITS, UNITS))
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node("Loop", ["most", "true", "first", "h0"], ["ended", "last", "all"], name="loop", body=repeated),
        node("Transpose", ["all"], ["y"], perm=[1, 0, 2]),
    ]
    given = {"most": np.int64(most), "true": np.bool_(True), "first": np.int64(0), "h0": np.zeros((1, UNITS), np.float32)}
    return model(nodes, ("y", "last"), opset, **given, end=np.int64(STEPS))


def scan(backwards: bool) -> onnx.ModelProto:
    inner = [node("Add", ["s", "xi"], ["s2"]), node("Tanh", ["s2"], ["o"])]
    repeated = body(inner, [value("s", 1, WIDTH), value("xi", 1, WIDTH)], [value("s2", 1, WIDTH), value("o", 1, WIDTH)])
    way: dict[str, Any] = {
        "scan_input_axes": [-2],
        "scan_output_axes": [1],
        "scan_input_directions": [int(backwards)],
        "scan_output_directions": [int(backwards)],
    }
    nodes = [node("Scan", ["s0", "x"], ["sum", "y"], name="loop", body=repeated, num_scan_inputs=1, **way)]
    return model(nodes, ("y", "sum"), s0=np.zeros((1, WIDTH), np.float32))


def nested() -> onnx.ModelProto:
    """Three times: twice halved, and x added."""
    counter = [value("n", kind=TensorProto.INT64), value("c", kind=TensorProto.BOOL)]
    again = value("c", kind=TensorProto.BOOL)
    halve = body([node("Mul", ["v", "half"], ["v2"])], [*counter, unknown("v")], [again, unknown("v2")], half=np.float32(0.5))
    inner = [node("Loop", ["two", "", "v"], ["halved"], name="inner", body=halve), node("Add", ["halved", "x"], ["v2"])]
    outer = body(inner, [*counter, unknown("v")], [again, unknown("v2")], two=np.int64(2))
    return model([node("Loop", ["three", "", "x"], ["y"], name="loop", body=outer)], three=np.int64(3))


BY_PLACE = [node("Less", ["next", "end"], ["again"])]
BY_VALUE = [node("ReduceMax", ["h2"], ["top"], keepdims=0), node("Less", ["top", "top"], ["again"])]
WRITTEN_OUT = {
    "while a place is below a number": recurrent(BY_PLACE),
    "while a place is below a number, opset 11": recurrent(BY_PLACE, opset=11),
    "a number of times": recurrent([node("Identity", ["c"], ["again"])], most=STEPS),
    "over slices": scan(backwards=False),
    "over slices backwards": scan(backwards=True),
    "in a loop": nested(),
}


@pytest.mark.parametrize("target", ["bvlc", "any"])
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_loop_of_a_fixed_number_of_steps_becomes_layers(name: str, target: Any) -> None:
    proto = WRITTEN_OUT[name]
    imported = import_model(proto, target=target)
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    # Other inputs than the import's own: what it took for constant would be wrong for them.
    x = np.random.RandomState(5).randn(1, STEPS, WIDTH).astype(np.float32)
    with torch.no_grad():
        got = net({"x": torch.from_numpy(x)})
    for output, expected in open_session(proto).run({"x": x}).items():
        np.testing.assert_allclose(got[imported.outputs[output]].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_an_output_of_a_loop_may_be_left_out() -> None:
    """onnxruntime 1.32 ends the process then."""
    named, unnamed = recurrent(BY_PLACE), recurrent(BY_PLACE)
    unnamed.graph.node[1].output[0] = ""
    assert [layer.name for layer in import_model(unnamed).model.net.layer] == [layer.name for layer in import_model(named).model.net.layer]


def test_steps_that_depend_on_values_and_too_many_steps_are_refused_by_name() -> None:
    many = nested()
    (times,) = (tensor for tensor in many.graph.initializer if tensor.name == "three")
    times.CopyFrom(numpy_helper.from_array(np.array(513), "three"))
    for proto in (recurrent(BY_VALUE), many):
        with pytest.raises(ImportFailed, match=r"node 'loop' \(Loop\): .*as many steps as are the same for all inputs, at most 512"):
            import_model(proto)
