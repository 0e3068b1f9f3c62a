"""Import of LSTM, GRU and RNN: every direction and state against onnxruntime, any batch size, and real Caffe where it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from caffetools.engines.onnxruntime import open_session
from caffetools.infer.compare import Candidate, compare_engines
from caffetools.infer.import_model import torch_to_onnx
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx.import_net import Target
from caffetools.onnx.importer import import_model
from caffetools.proto.schema import TEST
from tests.onnx.conftest import expect_refusal

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 5, 6
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def recurrent(
    op: str, direction: str = "forward", state: str = "", outputs: str = "y h c", inputs: dict[str, Any] | None = None, **attributes: Any
) -> onnx.ModelProto:
    """One node; its first state is ``""`` (none), ``constant`` or ``input``; ``inputs`` are further constants, by their place."""
    random = np.random.RandomState(2)
    directions, gates, batch = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[op], attributes.pop("batch", BATCH)
    steps = attributes.pop("steps", STEPS)
    shapes = {"w": (gates * HIDDEN, INPUTS), "r": (gates * HIDDEN, HIDDEN), "b": (2 * gates * HIDDEN,)}
    constants: dict[str, Any] = {name: random.randn(directions, *shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    names = ["h0", "c0"][: 2 if op == "LSTM" else 1]
    given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (steps, batch, INPUTS))]
    if state == "constant":
        constants |= {name: np.tile(random.randn(directions, 1, HIDDEN).astype(np.float32), (1, batch, 1)) for name in names}
    elif state == "input":
        given += [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (directions, batch, HIDDEN)) for name in names]
    read = ["x", "w", "r", "b", "", *(names if state else [""] * len(names)), *[""] * (op == "LSTM")]
    for name, constant in (inputs or {}).items():
        constants[name] = constant
        read[{"lengths": 4, "h0": 5, "peepholes": 7}[name]] = name
    made = [name if name in outputs.split() else "" for name in ("y", "h", "c")[: 1 + len(names)]]
    node = helper.make_node(op, read, made, name="n", hidden_size=HIDDEN, direction=direction, **attributes)
    tensors = [onnx.numpy_helper.from_array(np.asarray(constant), name) for name, constant in constants.items()]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in made if name]
    graph = helper.make_graph([node], "recurrent", given, values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("outputs", ["y", "y h c", "h", "h c"])
@pytest.mark.parametrize("state", ["", "constant", "input"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_every_direction_and_state_gives_the_models_numbers(op: str, direction: str, state: str, outputs: str) -> None:
    for steps in (1, STEPS):
        imported = import_model(recurrent(op, direction, state, outputs, steps=steps))
        assert imported.largest_difference < 1e-6
        assert imported.outputs.keys() == {name for name in outputs.split() if op == "LSTM" or name != "c"}


class Sequence(torch.nn.Module):
    """Two recurrent layers of torch, as its exporter writes them."""

    def __init__(self, kind: str, *, bidirectional: bool):
        super().__init__()
        self.layers = getattr(torch.nn, kind)(INPUTS, HIDDEN, 2, bidirectional=bidirectional)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)[0]
        return y


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_of_torch_need_no_moved_axes_and_take_any_batch_size(kind: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    module = Sequence(kind, bidirectional=bidirectional).eval()
    imported = import_model(onnx.load_from_string(torch_to_onnx(module, {"x": (STEPS, 1, INPUTS)})))
    assert not {"Reshape", "Permute"} & {layer.type for layer in imported.model.net.layer}
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    x = torch.randn(STEPS, BATCH, INPUTS)
    with torch.no_grad():
        np.testing.assert_allclose(net({"x": x})[net.outputs[0]].numpy(), module(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("target", ["bvlc", "ssd"])
@pytest.mark.parametrize("state", ["", "input"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_batch_that_is_first_may_have_any_size(op: str, state: str, target: Target) -> None:
    """With ``layout``, which onnxruntime does not run, and with the transposes that torch writes."""
    proto = recurrent(op, "bidirectional", state)
    proto.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    for value in proto.graph.input:
        first, second = value.type.tensor_type.shape.dim[:2]
        second.dim_value, first.dim_param = first.dim_value, "n"
    imported = import_model(proto, target=target)
    assert imported.largest_difference < 1e-6
    assert not imported.batch_limit


def test_a_second_run_begins_with_the_first_state_again() -> None:
    proto = recurrent("LSTM", "bidirectional", outputs="y")
    imported = import_model(proto)
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    x = np.random.RandomState(5).randn(STEPS, BATCH, INPUTS).astype(np.float32)
    expected = open_session(proto).run({"x": x})["y"]
    for _ in range(2):
        with torch.no_grad():
            np.testing.assert_allclose(net({"x": torch.from_numpy(x)})["y"].numpy(), expected, atol=1e-5)


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "lengths": (recurrent("LSTM", inputs={"lengths": np.int32([1, 2, STEPS])}), "its sequences have lengths of their own"),
    "steps": (recurrent("GRU", steps=600), "written step by step its 600 steps would take 64800 weights; there may be 512 steps"),
    "activations": (recurrent("RNN", activations=["ThresholdedRelu"]), "its activation ThresholdedRelu is not one of Relu, Sigmoid"),
    "first states of items": (
        recurrent("RNN", inputs={"h0": np.random.RandomState(0).rand(1, BATCH, HIDDEN).astype(np.float32)}),
        "its first state is a constant that differs from item to item",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_caffes_layers_do_not_have_is_refused(name: str) -> None:
    expect_refusal(*REFUSED[name])


def test_settings_that_change_nothing_are_taken() -> None:
    given = {"lengths": np.int32([STEPS] * BATCH), "peepholes": np.zeros((1, 3 * HIDDEN), np.float32)}
    import_model(recurrent("LSTM", inputs=given, activations=["Sigmoid", "Tanh", "Tanh"]))


PEEPHOLES = {"peepholes": np.random.RandomState(1).randn(2, 3 * HIDDEN).astype(np.float32)}
UNROLLED: dict[str, tuple[str, dict[str, Any]]] = {
    "reset behind the product": ("GRU", {"linear_before_reset": 1}),
    "GRU that clips": ("GRU", {"clip": 0.4}),
    "other activations of a GRU": (
        "GRU",
        {"activations": ["HardSigmoid", "Relu"] * 2, "activation_alpha": [0.25, 0.3], "activation_beta": [0.4, 0.6]},
    ),
    "peepholes": ("LSTM", {"inputs": PEEPHOLES}),
    "clip": ("LSTM", {"clip": 0.5}),
    "coupled gates": ("LSTM", {"input_forget": 1}),
    "coupled gates with peepholes": ("LSTM", {"input_forget": 1, "inputs": PEEPHOLES}),
    "other activations of an LSTM": ("LSTM", {"activations": ["HardSigmoid", "Softplus", "Elu"] * 2}),
    "Relu": ("RNN", {"activations": ["Relu"] * 2}),
    "numbers in order": ("RNN", {"activations": ["LeakyRelu", "Affine"], "activation_alpha": [0.2, 0.7], "activation_beta": [0.1]}),
    "ScaledTanh": ("RNN", {"activations": ["ScaledTanh"] * 2, "activation_alpha": [1.5, 0.5], "activation_beta": [0.5, 2.0]}),
}


@pytest.mark.parametrize("state", ["", "constant", "input"])
@pytest.mark.parametrize("name", UNROLLED)
def test_what_caffes_layers_do_not_have_is_written_step_by_step(name: str, state: str) -> None:
    op, settings = UNROLLED[name]
    imported = import_model(recurrent(op, "bidirectional", state, **settings))
    assert imported.largest_difference < 1e-6
    assert not {"LSTM", "RNN"} & {layer.type for layer in imported.model.net.layer}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.usefixtures("real_caffe")
def test_real_caffe_gives_the_numbers_of_imported_layers(op: str, tmp_path: Path) -> None:
    for number, (direction, state) in enumerate((direction, state) for direction in DIRECTIONS for state in ("", "constant", "input")):
        deploy, weights = import_model(recurrent(op, direction, state)).write(tmp_path / str(number))
        for row in compare_engines(Candidate(deploy, weights), [Candidate(deploy, weights, "caffe")], repeats=0):
            assert not row.reason
            assert row.relative < 1e-5
