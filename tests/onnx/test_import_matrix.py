"""Import of products, sums and picked values: Einsum, MatMul, GatherND, reductions; on a second input and in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from caffetools.layers.base import Shape
from caffetools.onnx import import_net
from caffetools.onnx.import_graph import ImportFailed
from caffetools.onnx.import_net import NetWriter
from caffetools.onnx.importer import import_model
from tests.onnx.test_import import MAPS, check, graph_of, ints, model, numbers


def einsum(equation: str, *shapes: Shape, constants: tuple[Any, ...] = ()) -> onnx.ModelProto:
    return model("Einsum", *shapes, constants=constants, equation=equation)


def of_constant(constant: Any, shape: Shape) -> onnx.ModelProto:
    """A constant matrix in front of a value."""
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in (("x0", shape), ("y", None))]
    node = helper.make_node("MatMul", ["c", "x0"], ["y"], name="n")
    graph = helper.make_graph([node], "one", values[:1], values[1:], [onnx.numpy_helper.from_array(constant, "c")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# The model, and whether its net takes any batch size.
OPERATORS: dict[str, tuple[onnx.ModelProto, bool]] = {
    "einsum along channels": (einsum("nchw,cd->ndhw", MAPS, constants=(numbers(4, 3),)), True),
    "einsum of rows": (einsum("bic,oc->bio", (1, 5, 4), constants=(numbers(3, 4),)), True),
    "einsum of heads to channels": (einsum("bnhd,hde->bne", (1, 5, 2, 4), constants=(numbers(2, 4, 8),)), True),
    "einsum of channels to heads": (einsum("bne,ehd->bhnd", (1, 5, 6), constants=(numbers(6, 2, 3),)), True),
    "einsum of dots": (einsum("...ij,jk->...ik", (1, 2, 5, 6), constants=(numbers(6, 3),)), True),
    "einsum without an output": (einsum("bi,io", (1, 5), constants=(numbers(5, 3),)), True),
    "einsum of scores": (einsum("bhid,bhjd->bhij", (1, 2, 5, 4), (1, 2, 5, 4)), True),
    "einsum of moved heads": (einsum("bihd,bjhd->bhij", (1, 5, 2, 4), (1, 7, 2, 4)), True),
    "einsum of two vectors": (einsum("bi,bi->b", (1, 4), (1, 4)), True),
    "einsum of maps and a vector": (einsum("bchw,bc->bhw", MAPS, (1, 4)), True),
    "einsum of one operand": (einsum("nchw->nhwc", MAPS), True),
    "einsum of sums": (einsum("nchw->nc", MAPS), True),
    "matrix in front": (of_constant(numbers(3, 4), (1, 4, 7)), True),
    "matrix in front of heads": (of_constant(numbers(3, 4), (1, 2, 4, 7)), True),
    "matrices in front of heads": (of_constant(numbers(1, 2, 3, 4), (1, 2, 4, 7)), True),
    "rows by number": (model("GatherND", (2, 4, 5), constants=(np.array([[[0], [3]], [[0], [3]]]),), batch_dims=1), True),
    "places by number": (model("GatherND", (1, 4, 5, 6), constants=(np.array([[[1, 2], [3, -1]]]),), batch_dims=1), True),
    "values by number": (model("GatherND", (1, 4, 5), constants=(np.array([[0, 1, 2], [0, 3, -1]]),)), False),
    "maximum over all": (model("ReduceMax", MAPS, keepdims=0), False),
    "minimum over the batch": (model("ReduceMin", (3, 4, 5), axes=[0]), False),
    "mean over the batch and rows": (model("ReduceMean", (2, 4, 9, 10), axes=[0, 2], keepdims=0), False),
    "length over all": (model("ReduceL2", MAPS, keepdims=0), False),
    "maximum over no axes": (model("ReduceMax", MAPS, constants=(ints(),), opset=18, noop_with_empty_axes=1), True),
    "lengths over no axes": (model("ReduceL1", MAPS, constants=(ints(),), opset=18, noop_with_empty_axes=1), True),
    "slopes of columns, as many as channels": (model("PRelu", (1, 4, 5, 4), constants=(numbers(4),)), True),
}


@pytest.mark.parametrize("target", ["bvlc", "any"])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_becomes_layers_with_its_numbers(name: str, target: str) -> None:
    proto, any_batch = OPERATORS[name]
    assert (check(proto, target).batch_limit == "") == any_batch


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "diagonal": (einsum("ii->i", (4, 4)), "it takes the diagonal of an operand"),
    "outer product": (einsum("bi,bj->bij", (1, 4), (1, 5)), "it is an outer product"),
    "three operands": (einsum("bi,ij,jk->bk", (1, 4), constants=(numbers(4, 5), numbers(5, 6))), "it has 3 operands"),
    "matrices of items": (of_constant(numbers(2, 3, 4), (2, 4, 7)), "its constant differs from item to item"),
    "places of items": (
        model("GatherND", (2, 4, 5), constants=(np.array([[[0]], [[1]]]),), batch_dims=1),
        "its indices differ from item to item",
    ),
    "slopes of items": (model("PRelu", (2, 4, 5, 4), constants=(numbers(2, 4, 1, 1),)), "its slopes differ from item to item"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_layers_is_an_error_that_names_the_node(name: str) -> None:
    proto, message = REFUSED[name]
    with pytest.raises(ImportFailed, match=rf"node 'n' \({proto.graph.node[0].op_type}\): {message}"):
        import_model(proto)


def test_an_input_without_axes_is_refused_by_name() -> None:
    with pytest.raises(ImportFailed, match=r"input 'x1' is a single number without axes, .*; export the model again"):
        import_model(model("Mul", MAPS, ()))


def test_layers_that_are_right_for_small_values_only_are_found_by_the_second_input(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model("Clip", MAPS, constants=(np.float32(-5), np.float32(5)))
    assert float(np.abs(import_model(proto).largest_difference)) < 1e-6
    monkeypatch.setitem(import_net._HANDLERS, "Clip", [(1, NetWriter.alias)])
    with pytest.raises(ImportFailed, match="output 'y': on a second input the net differs from the model by"):
        import_model(proto)


def test_a_batch_whose_items_depend_on_one_another_is_reported() -> None:
    imported = import_model(model("Softmax", (1, 5), axis=0))
    assert imported.batch_limit == "in its output 'y' the items of a batch depend on one another"
    imported = import_model(model("Transpose", (1, 5), perm=[1, 0]))
    assert "y" in imported.batch_limit or "Reshape" in imported.batch_limit


def test_an_output_of_zeros_hides_no_faulty_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a classifier whose weights are zeros until it is trained."""
    nodes = [helper.make_node("Sigmoid", ["x"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    proto = graph_of(nodes, (1, 4), {"w": np.zeros((4, 3), np.float32)})
    check(proto)
    monkeypatch.setitem(import_net._HANDLERS, "Sigmoid", [(1, NetWriter.alias)])
    with pytest.raises(ImportFailed, match="the imported net differs from the model by"):
        import_model(proto)


def test_a_comparison_with_a_number_that_becomes_floats_is_a_threshold() -> None:
    """As a Threshold layer is exported."""
    nodes = [
        helper.make_node("Greater", ["x", "limit"], ["above"]),
        helper.make_node("Cast", ["above"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    imported = check(graph_of(nodes, MAPS, {"limit": np.float32(0.25)}))
    assert [layer.type for layer in imported.model.net.layer] == ["Input", "Threshold"]
    assert imported.model.net.layer[1].threshold_param.threshold == 0.25
