"""Names and single assignment in exported graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from caffetools.errors import ExportError
from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.net.net import Net
from caffetools.onnx.export import to_onnx
from caffetools.onnx.graph import GraphBuilder
from caffetools.onnx.verify import verify
from tests.net.test_net import conv, data, net_of, relu


def wires(model: onnx.ModelProto) -> list[tuple[str, list[str], list[str]]]:
    return [(node.name, list(node.input), list(node.output)) for node in model.graph.node]


def test_nodes_values_and_parameters_have_the_names_of_caffe() -> None:
    model = to_onnx(net_of(data() + conv("conv/7x7_s2", "data") + relu("relu", "conv/7x7_s2", "out")))
    assert wires(model) == [
        ("conv/7x7_s2", ["data", "conv/7x7_s2/0", "conv/7x7_s2/1"], ["conv/7x7_s2"]),
        ("relu", ["conv/7x7_s2"], ["out"]),
    ]
    assert [i.name for i in model.graph.initializer] == ["conv/7x7_s2/0", "conv/7x7_s2/1"]
    assert [v.name for v in model.graph.input] == ["data"]
    assert [v.name for v in model.graph.output] == ["out"]


def test_of_a_blob_changed_in_place_the_last_version_keeps_the_name() -> None:
    net = net_of(data() + conv("c", "data") + relu("r1", "c") + relu("r2", "c") + conv("d", "c"))
    assert [(inputs[0], output) for _, inputs, (output,) in wires(to_onnx(net))] == [
        ("data", "c@c"),
        ("c@c", "c@r1"),
        ("c@r1", "c"),
        ("c", "d"),
    ]


def test_the_layer_in_place_alone_reads_the_old_version() -> None:
    net = net_of(data() + conv("c", "data") + relu("r", "c") + conv("first", "c") + conv("second", "c"))
    read = {name: inputs[0] for name, inputs, _ in wires(to_onnx(net))}
    assert (read["r"], read["first"], read["second"]) == ("c@c", "c", "c")
    verify(to_onnx(net).SerializeToString(), net)


def test_an_input_changed_in_place_is_still_fed_by_its_own_name() -> None:
    net = net_of(data() + relu("r", "data") + conv("c", "data"))
    model = to_onnx(net)
    assert wires(model) == [("r", ["data"], ["data@r"]), ("c", ["data@r", "c/0", "c/1"], ["c"])]
    only = net_of(data() + relu("r", "data"))
    assert [v.name for v in to_onnx(only).graph.output] == ["data@r"]
    verify(to_onnx(only).SerializeToString(), only)


def test_names_that_collide_get_numbers() -> None:
    # The blob's name is what the layer's weights would be called.
    net = net_of(data() + conv("c", "data", top="c/0"))
    assert wires(to_onnx(net)) == [("c", ["data", "c/0_2", "c/1"], ["c/0"])]


def test_shared_parameters_appear_once_under_their_owner() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    net = net_of(data() + conv("a", "data", outer=shared) + conv("b", "data", outer=shared))
    model = to_onnx(net)
    assert [i.name for i in model.graph.initializer] == ["a/0", "a/1"]
    assert [inputs[1:] for _, inputs, _ in wires(model)] == [["a/0", "a/1"]] * 2


def test_inputs_that_no_layer_reads_are_left_out() -> None:
    net = net_of(data() + data("dim: 2", name="label") + conv("c", "data"))
    model = to_onnx(net)
    assert [v.name for v in model.graph.input] == ["data"]
    assert [v.name for v in model.graph.output] == ["c"]


def test_a_layer_that_needs_several_nodes_names_each_after_its_operator() -> None:
    net = net_of(data() + 'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }')
    model = to_onnx(net)
    assert [node.name for node in model.graph.node] == ["fc/Flatten", "fc/Gemm"]
    assert all(value.startswith("fc/") for value in model.graph.node[0].output)


@pytest.mark.parametrize(("opset", "inputs"), [(11, 1), (12, 1), (13, 2), (17, 2)])
def test_what_became_an_input_is_given_as_the_opset_wants_it(opset: int, inputs: int) -> None:
    builder = GraphBuilder(net_of(data() + relu("r", "data")), opset)
    builder.node("ReduceSum", ["data"], ["y"], axes=[1], keepdims=1)
    builder.node("ReduceMean", ["data"], ["z"], axes=np.array([1]))
    total, mean = builder.graph.node
    assert len(total.input) == inputs
    assert ("axes" in {a.name for a in total.attribute}) == (inputs == 1)
    assert len(mean.input) == 1


class Silent(Layer):
    """A layer that forgets to write its top."""

    def setup(self, bottoms: Shapes) -> Shapes:
        return [bottoms[0]]

    def to_onnx(self, graph: OnnxGraph) -> None:
        pass


class Twice(Silent):
    """A layer that writes its top twice."""

    def to_onnx(self, graph: OnnxGraph) -> None:
        for _ in range(2):
            graph.node("Relu", self.bottoms, self.tops)


class Wrong(Silent):
    """A layer whose node gives another shape than its rule."""

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("GlobalMaxPool", self.bottoms, self.tops)


class Unknown(Silent):
    """A layer whose operator does not exist."""

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("NoSuchOperator", self.bottoms, self.tops)


def replaced(net: Net, kind: type[Layer]) -> Net:
    layer = net.layers[-1]
    net.layers[-1] = kind(layer.param)
    net.layers[-1].configure(layer.bottom_shapes)
    return net


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Silent, "layer 'r': \\(ReLU\\) wrote no ONNX node for its top 'y'"),
        (Twice, "writes its top 'y' twice"),
        (Wrong, "blob 'y' would be 2 x 4 x 1 x 1 in ONNX, but is 2 x 4 x 8 x 8 in the net"),
        (Unknown, "not valid ONNX: No Op registered for NoSuchOperator"),
    ],
)
def test_a_wrong_form_of_a_layer_is_found(kind: type[Layer], message: str) -> None:
    net = replaced(net_of(data() + conv("c", "data") + relu("r", "c", "y")), kind)
    with pytest.raises(ExportError, match=message):
        to_onnx(net)
