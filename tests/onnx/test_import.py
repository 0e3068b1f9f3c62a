"""Import of ONNX models: single operators, torchvision's classifiers, our own nets and back; against onnxruntime and real Caffe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from caffetools.engines.onnxruntime import open_session
from caffetools.infer.compare import Candidate, compare_engines
from caffetools.infer.import_model import torch_to_onnx
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx import import_net
from caffetools.onnx.export import build, to_onnx
from caffetools.onnx.import_graph import ImportFailed, Node
from caffetools.onnx.importer import ImportedNet, import_model
from caffetools.proto.schema import TEST
from tests.net.test_golden_nets import FOLDER, golden_net
from tests.onnx.conftest import expect_refusal

MAPS = (1, 4, 9, 10)

# The layers of BVLC Caffe 1.0 that an import may use.
BVLC = set(
    "AbsVal ArgMax BNLL BatchNorm Bias Concat Convolution Deconvolution ELU Eltwise Exp Flatten InnerProduct Input LRN Log PReLU Pooling "  # noqa: SIM905
    "Power ReLU Reduction Reshape Scale Sigmoid Silence Slice Softmax Split TanH Threshold Tile".split()
)


def model(
    op: str, *shapes: tuple[int, ...], constants: tuple[Any, ...] = (), opset: int = 17, outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """One operator of inputs x0, x1, … and constants; a constant of None is an input that is left out."""
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    given = [(f"c{i}", constant) for i, constant in enumerate(constants)]
    names = [*(value.name for value in inputs), *(name if constant is not None else "" for name, constant in given)]
    tops = [f"y{i}" for i in range(outputs)] if outputs > 1 else ["y"]
    node = helper.make_node(op, names, tops, name="n", **attributes)
    tensors = [onnx.numpy_helper.from_array(np.asarray(constant), name) for name, constant in given if constant is not None]
    values = [helper.make_tensor_value_info(top, TensorProto.FLOAT, None) for top in tops]
    graph = helper.make_graph([node], "one", inputs, values, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def numbers(*shape: int) -> Any:
    return np.random.RandomState(1).randn(*shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def check(proto: onnx.ModelProto, target: str = "bvlc") -> ImportedNet:
    """Import, and compare at twice the batch, which nothing in the net may fix."""
    imported = import_model(proto, target=target)
    assert imported.largest_difference < 1e-5
    if target == "bvlc":
        assert {layer.type for layer in imported.model.net.layer} <= BVLC
    return imported


CONV = numbers(6, 4, 3, 3)
OPERATORS: dict[str, onnx.ModelProto] = {
    "conv of uneven padding": model("Conv", MAPS, constants=(CONV, numbers(6)), pads=[0, 1, 2, 0], strides=[2, 1]),
    "conv of uneven padding, dilated": model("Conv", MAPS, constants=(CONV,), pads=[0, 1, 2, 3], dilations=[2, 2]),
    "conv of tensorflow": model("Conv", MAPS, constants=(CONV,), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv in groups": model("Conv", MAPS, constants=(numbers(6, 2, 3, 3),), group=2),
    "conv over one axis": model("Conv", (1, 4, 9), constants=(numbers(6, 4, 3),), pads=[1, 1]),
    "transposed": model(
        "ConvTranspose", MAPS, constants=(numbers(4, 3, 3, 3), numbers(3)), strides=[2, 2], pads=[1] * 4, output_padding=[1, 0]
    ),
    "transposed, uneven": model("ConvTranspose", MAPS, constants=(numbers(4, 3, 3, 3),), strides=[2, 2], pads=[0, 1, 1, 1]),
    "max, rounded down": model("MaxPool", MAPS, kernel_shape=[3, 3], strides=[2, 2]),
    "max, padded and rounded down": model("MaxPool", (1, 4, 8, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "max, rounded up": model("MaxPool", MAPS, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max of tensorflow": model("MaxPool", (1, 4, 8, 8), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "max of yolo": model("MaxPool", (1, 4, 6, 6), kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]),
    "mean, rounded down": model("AveragePool", MAPS, kernel_shape=[2, 3], strides=[2, 2]),
    "mean, padding counts": model("AveragePool", MAPS, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1),
    "mean, padding does not count": model("AveragePool", MAPS, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "mean of all": model("AveragePool", MAPS, kernel_shape=[9, 10]),
    "global mean": model("GlobalAveragePool", MAPS),
    "pad": model("Pad", MAPS, constants=(ints(0, 0, 1, 0, 0, 0, 2, 3),)),
    "batch norm": model("BatchNormalization", MAPS, constants=tuple(numbers(4) ** 2 + 0.5 for _ in range(4))),
    "lrn": model("LRN", MAPS, size=3, alpha=0.1),
    "prelu": model("PRelu", MAPS, constants=(numbers(4, 1, 1),)),
    "leaky": model("LeakyRelu", MAPS, alpha=0.2),
    "relu6": model("Clip", MAPS, constants=(np.float32(0), np.float32(6))),
    "clip": model("Clip", MAPS, constants=(np.float32(-0.5), np.float32(0.5))),
    "clip above": model("Clip", MAPS, constants=(None, np.float32(0.5))),
    "hard sigmoid": model("HardSigmoid", MAPS),
    "hard swish": model("HardSwish", MAPS),
    "selu": model("Selu", MAPS),
    "gelu": model("Gelu", MAPS, opset=20, approximate="tanh"),
    "softmax": model("Softmax", MAPS, axis=1),
    "log softmax": model("LogSoftmax", (1, 7), axis=-1),
    "add a vector": model("Add", MAPS, constants=(numbers(4, 1, 1),)),
    "multiply by a map": model("Mul", MAPS, constants=(numbers(9, 10),)),
    "multiply by a row": model("Mul", MAPS, constants=(numbers(1, 4, 9, 1),)),
    "subtract a number": model("Sub", MAPS, constants=(np.float32(3),)),
    "divide by a vector": model("Div", MAPS, constants=(numbers(1, 4, 1, 1) + 9,)),
    "add": model("Add", MAPS, MAPS),
    "subtract": model("Sub", MAPS, MAPS),
    "gate": model("Mul", MAPS, (1, 4, 1, 1)),
    "gate of places": model("Mul", MAPS, (1, 1, 9, 10)),
    "smaller of two": model("Min", MAPS, MAPS),
    "larger than a number": model("Max", MAPS, constants=(np.float32(-0.25),)),
    "square": model("Pow", MAPS, constants=(np.float32(2),)),
    "gemm": model("Gemm", (1, 5), constants=(numbers(5, 3), numbers(3)), alpha=0.5, beta=2.0),
    "matmul": model("MatMul", (1, 6, 5), constants=(numbers(5, 3),)),
    "flatten": model("Flatten", MAPS),
    "reshape": model("Reshape", MAPS, constants=(ints(1, 2, -1, 10),)),
    "squeeze": model("Squeeze", (1, 4, 1, 1), constants=(ints(2, 3),)),
    "transpose of axes of 1": model("Transpose", (1, 4, 1, 1), perm=[0, 2, 3, 1]),
    "concat": model("Concat", MAPS, MAPS, axis=-3),
    "split": model("Split", MAPS, constants=(ints(1, 3),), axis=1, outputs=2),
    "slice": model("Slice", MAPS, constants=(ints(1, -6), ints(3, 100), ints(1, 3))),
    "slice with steps": model("Slice", MAPS, constants=(ints(1, 0), ints(9, 10), ints(2, 3), ints(2, 2))),
    "one channel": model("Gather", MAPS, constants=(np.int64(2),), axis=1),
    "channels in another order": model("Gather", MAPS, constants=(ints(2, 1, 0),), axis=1),
    "mean over maps": model("ReduceMean", MAPS, axes=[2, 3], keepdims=0),
    "sum over maps": model("ReduceSum", MAPS, constants=(ints(2, 3),)),
    "mean over channels": model("ReduceMean", MAPS, axes=[1]),
    "sum of squares": model("ReduceSumSquare", (1, 5, 6), axes=[1, 2], keepdims=0),
    "arg max": model("Softplus", MAPS),
    "nearest": model(
        "Resize", MAPS, constants=(None, np.float32([1, 1, 2, 3])), coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "depth to space": model("DepthToSpace", (1, 8, 3, 4), blocksize=2),
    "depth to space by columns": model("DepthToSpace", (1, 8, 3, 4), blocksize=2, mode="CRD"),
    "space to depth": model("SpaceToDepth", (1, 3, 4, 6), blocksize=2),
    "expand": model("Expand", (1, 4, 1, 1), constants=(ints(1, 4, 3, 5),)),
    "channels last": model("Transpose", MAPS, perm=[0, 2, 3, 1]),
    "axes of anchors": model("Transpose", (1, 3, 7, 4, 5), perm=[0, 1, 3, 4, 2]),
    "axes of six": model("Transpose", (1, 2, 3, 4, 5, 6), perm=[0, 5, 3, 1, 2, 4]),
    "pad by reflection": model("Pad", MAPS, constants=(ints(0, 0, 3, 1, 0, 0, 2, 3),), mode="reflect"),
    "pad by the border": model("Pad", MAPS, constants=(ints(0, 0, 2, 1, 0, 0, 1, 1),), mode="edge"),
    "pad channels by a number": model("Pad", MAPS, constants=(ints(0, 2, 1, 0, 0, 3, 0, 2), np.float32(0.5))),
    "pad by less than nothing": model("Pad", MAPS, constants=(ints(0, 0, -1, 0, 0, 0, -1, -2),)),
    "error function": model("Erf", MAPS),
    "gelu of the error function": model("Gelu", MAPS, opset=20),
    "celu": model("Celu", MAPS, alpha=0.7),
    "softsign": model("Softsign", MAPS),
    "thresholded": model("ThresholdedRelu", MAPS, alpha=0.3),
    "prelu of places": model("PRelu", MAPS, constants=(numbers(4, 9, 10),)),
    "prelu of one slope": model("PRelu", MAPS, constants=(numbers(1),)),
    "prelu of volumes": model("PRelu", (1, 3, 2, 4, 5), constants=(numbers(3, 1, 1, 1),)),
    "prelu of one slope for volumes": model("PRelu", (1, 3, 2, 4, 5), constants=(numbers(1),)),
    "softmax of several axes": model("Softmax", MAPS, opset=11, axis=1),
    "instance norm": model("InstanceNormalization", MAPS, constants=(numbers(4), numbers(4))),
    "group norm": model("GroupNormalization", MAPS, constants=(numbers(4), numbers(4)), num_groups=2, opset=21),
    "layer norm": model("LayerNormalization", (1, 5, 6), constants=(numbers(6), numbers(6))),
    "maximum over channels": model("ReduceMax", MAPS, axes=[1]),
    "minimum over rows": model("ReduceMin", MAPS, axes=[2], keepdims=0),
    "mean over channels and columns": model("ReduceMean", MAPS, axes=[1, 3]),
    "length over channels": model("ReduceL2", MAPS, axes=[1]),
    "unit length": model("LpNormalization", MAPS, axis=1),
    "bilinear": model("Resize", MAPS, constants=(None, np.float32([1, 1, 2, 2])), mode="linear"),
    "bilinear, smaller": model("Resize", MAPS, constants=(None, np.float32([1, 1, 0.5, 0.5])), mode="linear"),
    "bilinear to sizes": model(
        "Resize", MAPS, constants=(None, None, ints(1, 4, 13, 17)), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "cubic": model("Resize", MAPS, constants=(None, np.float32([1, 1, 2, 1])), mode="cubic"),
    "upsample": model("Upsample", MAPS, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0], opset=7),
    "backwards": model("Slice", MAPS, constants=(ints(-1), ints(-99), ints(3), ints(-1))),
    "rows in another order": model("Gather", MAPS, constants=(ints(3, 1, 1),), axis=2),
    "max over one axis": model("MaxPool", (1, 4, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    "global mean over three axes": model("GlobalAveragePool", (1, 2, 3, 4, 5)),
    "transposed to a size": model("ConvTranspose", MAPS, constants=(numbers(4, 3, 3, 3),), strides=[2, 2], output_shape=[18, 20]),
    "sum with a vector": model("Sum", MAPS, constants=(numbers(4, 1, 1),)),
    "multiply to a map": model("Mul", (1, 4, 1, 1), constants=(numbers(1, 1, 9, 10),)),
    "matmul of a vector": model("MatMul", (1, 5), constants=(numbers(5),)),
    "matmul of two": model("MatMul", (1, 2, 6, 3), (1, 2, 3, 5)),
    "transposed matrix": model("Transpose", (1, 4, 3), perm=[0, 2, 1]),
    "pad the batch": model("Pad", MAPS, constants=(ints(1, 0, 1, 0, 2, 0, 0, 0), np.float32(2))),
    "pad a vector": model("Pad", (1, 5), constants=(ints(0, 1, 0, 2),)),
    "pad by a huge number": model("Pad", MAPS, constants=(ints(0, 0, 1, 1, 0, 0, 1, 1), np.float32(-1e38))),
    "pad channels by less than nothing": model("Pad", MAPS, constants=(ints(0, -1, 2, -1, 0, -1, -1, 0),)),
    "concat with a constant": model("Concat", MAPS, constants=(numbers(1, 2, 9, 10),), axis=1),
}


@pytest.mark.parametrize("target", ["bvlc", "any"])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_becomes_layers_with_its_numbers(name: str, target: str) -> None:
    imported = check(OPERATORS[name], target)
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    shapes = {blob: (2, *net.blob_shapes[blob][1:]) for blob in net.inputs}
    net.reshape(shapes)
    assert set(net.outputs) == set(imported.outputs.values())


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "moved axes": (
        model("Transpose", (1, 2100, 2, 2101), perm=[0, 2, 3, 1]),
        "BVLC Caffe has no layer that moves axes, and Slice would need 2100 parts; --target ssd or any has Permute",
    ),
    "an operator without layers": (model("Floor", MAPS), "Caffe has no layer that rounds values"),
    "pooling over three axes": (model("MaxPool", (1, 2, 4, 4, 4), kernel_shape=[2, 2, 2]), "Caffe pools maps of 2 axes only, not 3"),
    "dilated pooling": (model("MaxPool", MAPS, kernel_shape=[2, 2], dilations=[2, 2]), "Caffe's pooling has no dilation"),
    "less padding than the map has": (
        model("Pad", (1, 3, 7, 6), constants=(ints(0, 0, 0, -3, 0, 0, 0, -3), np.float32(0))),
        "takes more than there is of 1 x 3 x 7 x 6",
    ),
    "resized batch": (model("Resize", MAPS, constants=(None, np.float32([2, 1, 1, 1]))), "only maps of 2 axes are resized"),
    "two large matrices": (model("MatMul", (1, 1000, 300), (1, 300, 1000)), "no layer multiplies two matrices"),
}


def graph_of(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, Any]) -> onnx.ModelProto:
    """Nodes from the input x to the output y."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None))]
    tensors = [onnx.numpy_helper.from_array(np.asarray(constant), name) for name, constant in constants.items()]
    graph = helper.make_graph(nodes, "several", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_input_whose_channels_are_last_has_them_first_in_the_net() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["less"]),
        helper.make_node("Transpose", ["less"], ["maps"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["maps", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["last"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["y"], axes=[1, 2], keepdims=0),
    ]
    proto = graph_of(nodes, (1, 8, 9, 3), {"mean": np.float32([1, 2, 3]), "w": numbers(4, 3, 3, 3)})
    imported = check(proto)
    assert imported.moved_inputs == {"x": (0, 3, 1, 2)}
    assert [layer.type for layer in imported.model.net.layer] == ["Input", "Bias", "Convolution", "ReLU", "Pooling", "Flatten"]
    assert imported.model.net.layer[0].input_param.shape[0].dim[:] == [1, 3, 8, 9]
    x = numbers(1, 8, 9, 3)
    net = Net(imported.model.net, TEST, fill=False)
    load_weights(net, imported.model)
    with torch.no_grad():
        got = net({"x": torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))})["y"].numpy()
    np.testing.assert_allclose(got, open_session(proto).run({"x": x})["y"], rtol=1e-5, atol=1e-5)


def test_a_block_of_convnext_needs_no_moved_axes() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.norm, self.wide, self.narrow = torch.nn.LayerNorm(4), torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
            self.scale = torch.nn.Parameter(torch.rand(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x).permute(0, 2, 3, 1))
            y = self.scale * self.narrow(torch.nn.functional.gelu(self.wide(y)))
            return x + y.permute(0, 3, 1, 2)

    torch.manual_seed(0)
    imported = check(onnx.load_from_string(torch_to_onnx(Block().eval(), {"data": (1, 4, 5, 6)})))
    kinds = [layer.type for layer in imported.model.net.layer]
    assert not {"Slice", "Reshape", "InnerProduct"} & set(kinds)


def test_padding_below_all_values_is_the_padding_of_a_max_pool() -> None:
    nodes = [
        helper.make_node("Pad", ["x", "pads", "low"], ["p"]),
        helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    imported = check(graph_of(nodes, MAPS, {"pads": ints(0, 0, 0, 0, 0, 0, 1, 1), "low": np.float32(-np.inf)}))
    assert [layer.type for layer in imported.model.net.layer if layer.type != "Silence"][:2] == ["Input", "Pooling"]


def test_one_blob_may_be_two_outputs_and_names_of_nodes_may_repeat() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="n"), helper.make_node("Identity", ["r"], ["y"], name="n")]
    proto = graph_of(nodes, MAPS, {})
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    imported = check(proto)
    assert imported.outputs.keys() == {"y", "r"}
    assert set(imported.outputs.values()) == set(Net(imported.model.net, TEST, fill=False).outputs)


def test_an_output_that_is_named_twice_is_one_blob() -> None:
    """As exporters write tuples that hold a tensor twice."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Exp", ["r"], ["y"])]
    proto = graph_of(nodes, MAPS, {})
    proto.graph.output.extend([proto.graph.output[0]] + [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)] * 2)
    imported = check(proto)
    assert set(imported.outputs.values()) == set(Net(imported.model.net, TEST, fill=False).outputs)
    assert len(imported.outputs) == 2


def test_probabilities_of_0_and_1_hide_no_faulty_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("Elu", ["x"], ["e"]),
        helper.make_node("Mul", ["e", "large"], ["scores"], name="n"),
        helper.make_node("Softmax", ["scores"], ["p"], axis=1),
        helper.make_node("Identity", ["p"], ["y"]),
    ]
    proto = graph_of(nodes, MAPS, {"large": np.float32(1e6)})
    assert set(np.unique(open_session(proto).run({"x": numbers(*MAPS)})["y"])) == {0, 1}
    check(proto)

    def faulty(writer: import_net.NetWriter, node: Node) -> None:
        writer.layer(node, "Power", [writer.blob(node, node.inputs[0])]).power_param.scale = 1.001e6

    monkeypatch.setitem(import_net._HANDLERS, "Mul", [(1, faulty)])
    with pytest.raises(ImportFailed, match=r"node 'n' \(Mul\): its layers give other numbers \(blob 'scores'\)"):
        import_model(proto)


def test_small_values_of_a_sigmoid_may_round_as_caffes_do() -> None:
    nodes = [helper.make_node("Sub", ["x", "large"], ["s"]), helper.make_node("Sigmoid", ["s"], ["y"])]
    imported = import_model(graph_of(nodes, MAPS, {"large": np.float32(18)}))
    assert imported.largest_difference < 1e-4


def test_a_model_of_an_opset_before_onnxruntimes_first_is_converted() -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", "mask"], is_test=1),
        helper.make_node("BatchNormalization", ["d", "s", "s", "m", "v"], ["y"], is_test=1, epsilon=1e-3),
    ]
    proto = graph_of(nodes, MAPS, {"s": numbers(4), "m": numbers(4), "v": numbers(4) ** 2 + 0.5})
    proto.opset_import[0].version = 6
    assert [layer.type for layer in check(proto).model.net.layer] == ["Input", "BatchNorm", "Scale"]


def test_one_shared_slope_is_a_blob_without_axes() -> None:
    """As real Caffe wants it, which compares shapes."""
    (slope,) = check(OPERATORS["prelu of one slope"]).model.blobs["n"]
    assert slope.shape == ()


@pytest.mark.parametrize("name", ["prelu of volumes", "prelu of one slope for volumes"])
def test_caffes_prelu_is_not_used_for_more_than_four_axes(name: str) -> None:
    """Real Caffe ends with an error there: it asks the blob for its height and width."""
    assert [layer.type for layer in check(OPERATORS[name]).model.net.layer].count("PReLU") == 0
    assert [layer.type for layer in import_model(OPERATORS[name], target="any").model.net.layer] == ["Input", "PReLU"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_layers_is_an_error_that_names_the_node(name: str) -> None:
    expect_refusal(*REFUSED[name])


def test_free_sizes_must_be_given() -> None:
    proto = model("Relu", MAPS)
    for axis in (0, 2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"s{axis}"
    with pytest.raises(ImportFailed, match=r"input 'x0' is 1 x 4 x \? x \?, with sizes that are free; give them: --input-shape x0="):
        import_model(proto)
    for axis in (0, 2, 3):
        # As Paddle's old exporter writes free sizes.
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    with pytest.raises(ImportFailed, match=r"input 'x0' is 1 x 4 x \? x \?, .*; give them: --input-shape x0=1,4,224,224"):
        import_model(proto)
    assert import_model(proto, input_shapes={"x0": (2, 4, 5, 6)}).model.net.layer[0].input_param.shape[0].dim[:] == [2, 4, 5, 6]
    with pytest.raises(ImportFailed, match="the model has no input 'data'; its inputs are x0"):
        import_model(proto, input_shapes={"data": (1, 4, 5, 6)})


def classifier(name: str) -> torch.nn.Module:
    """A torchvision model with random weights, and statistics that its normalization has to use."""
    from torchvision import models

    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    made: torch.nn.Module = getattr(models, name)(weights=None, **extra).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5), (module.weight.data, 0.5, 1.5)):
                if tensor is not None:
                    tensor.uniform_(low, high)
    return made


CLASSIFIERS = [
    "resnet18",
    "mobilenet_v2",
    "squeezenet1_1",
    "googlenet",
    "densenet121",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "mnasnet0_5",
    "regnet_y_400mf",
    "mobilenet_v3_small",
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_of_torchvision_comes_over(name: str, tmp_path: Path) -> None:
    module = classifier(name)
    imported = import_model(torch_to_onnx(module, {"data": (1, 3, 64, 64)}))
    assert {layer.type for layer in imported.model.net.layer} <= BVLC
    deploy, weights = imported.write(tmp_path)
    net = Net.from_file(deploy, TEST, fill=False)
    assert not load_weights(net, weights).fresh
    x = torch.from_numpy(np.random.RandomState(3).randn(2, 3, 64, 64).astype(np.float32))
    with torch.no_grad():
        expected, got = module(x), net({"data": x})[net.outputs[0]]
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.usefixtures("real_caffe")
def test_real_caffe_runs_what_is_imported_for_it(tmp_path: Path) -> None:
    for name in ("resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"):
        deploy, weights = import_model(torch_to_onnx(classifier(name), {"data": (1, 3, 64, 64)})).write(tmp_path / name)
        row = compare_engines(Candidate(deploy, weights), [Candidate(deploy, weights, "caffe")], repeats=0)[1]
        assert not row.reason
        assert row.relative < 1e-4


@pytest.mark.parametrize("name", ["lenet_deploy", "squeezenet_v1.1_deploy", "cifar10_quick_deploy"])
def test_our_own_nets_come_back(name: str) -> None:
    path = FOLDER / f"{name}.golden.json"
    if not path.exists():
        pytest.skip(f"there is no golden net {name}")
    net = golden_net(name, json.loads(path.read_text()))
    exported = to_onnx(net)
    imported = import_model(exported)
    assert set(imported.outputs) == set(net.outputs)
    back = Net(imported.model.net, TEST, fill=False)
    load_weights(back, imported.model)
    assert {blob: back.blob_shapes[blob][1:] for blob in back.outputs} == {blob: net.blob_shapes[blob][1:] for blob in net.outputs}
    again = to_onnx(back)
    feed = {value.name: numbers(2, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])) for value in exported.graph.input}
    first, second = (open_session(proto.SerializeToString()).run(feed) for proto in (exported, again))
    for blob, value in first.items():
        np.testing.assert_allclose(second[blob], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize(("name", "kinds"), [("relu6", ["Relu", "Clip"]), ("clip", ["Clip", "Clip"]), ("clip above", ["Clip"])])
def test_held_values_are_exported_as_a_clip_again(name: str, kinds: list[str]) -> None:
    imported = check(OPERATORS[name])
    net = Net(imported.model.net, TEST, fill=False)
    exported = to_onnx(net)
    assert [node.op_type for node in exported.graph.node] == kinds
    assert {tensor.name for tensor in exported.graph.initializer} == {
        name for node in exported.graph.node for name in node.input if name.endswith(("/min", "/max"))
    }
    x = numbers(*MAPS)
    got, expected = (open_session(proto).run({"x0": x})["y"] for proto in (exported, OPERATORS[name]))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_part_of_held_values_that_is_an_output_remains() -> None:
    net = Net(check(OPERATORS["clip above"]).model.net, TEST, fill=False)
    model, _ = build(net, outputs=["n/over", "y"])
    assert [node.op_type for node in model.proto.graph.node] == ["Add", "Identity", "Relu", "Clip"]
