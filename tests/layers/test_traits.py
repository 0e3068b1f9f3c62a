"""What each layer class states of itself, and that nothing outside repeats it."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from caffetools.errors import CaffeToolsError
from caffetools.graph.learned import count_learned, declared_blobs
from caffetools.layers import registry
from caffetools.layers.base import Layer
from caffetools.layers.registry import layer_types, traits, types
from caffetools.layers.tensor_storage import shares_memory
from caffetools.layers.traits import Traits, field_at
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from caffetools.proto.text import parse
from tests.layers import test_golden as golden
from tests.layers.helpers import input_layer

TYPES = layer_types()
PACKAGE = Path(registry.__file__).parent.parent

# Rooms that make layers or hold their classes, the file format's own names for types, and the room of ONNX's operators (Split, Concat).
MAY_NAME_TYPES = (
    "layers",
    "data/layers",
    "zoo/networks",
    "proto",
    "pycaffe/python_layer.py",
    "onnx",
    "quant/models.py",
    "bundle/detector.py",
)


def layer_of(kind: str, **fields: Any) -> Any:
    return LayerParameter(name="l", type=kind, **fields)


@pytest.mark.parametrize("kind", TYPES)
def test_every_class_states_traits_that_fit_the_schema(kind: str) -> None:
    facts = TYPES[kind].TRAITS
    layer = layer_of(kind)
    if facts.settings:
        settings = facts.settings_of(layer)
        for field in filter(None, (facts.outputs, facts.weight_filler)):
            assert field in settings.DESCRIPTOR.fields_by_name
    for path in filter(None, (facts.class_axis, facts.statistics_switch, *facts.class_count)):
        message, field = field_at(layer, path)
        assert field in message.DESCRIPTOR.fields_by_name
    if facts.source:
        assert facts.source in layer.DESCRIPTOR.fields_by_name and facts.role == "data"
    assert all(index in TYPES[kind].NO_GRADIENT for index in facts.label_bottoms)
    for name in filter(None, (facts.activation, facts.loss)):
        assert name in TYPES
    if facts.loss:
        assert traits(facts.loss).activation == kind
    assert (facts.role == "loss") == TYPES[kind].IS_LOSS
    assert facts.outputs == "" or facts.settings


@pytest.mark.parametrize("kind", TYPES)
def test_types_are_found_by_their_role(kind: str) -> None:
    assert kind in types(role=TYPES[kind].TRAITS.role)
    assert TYPES[TYPES[kind].TYPE] is TYPES[kind]


@pytest.mark.parametrize("kind", TYPES)
def test_blobs_with_an_axis_of_classes_have_as_many_rows_as_outputs(kind: str) -> None:
    facts = TYPES[kind].TRAITS
    if not (facts.outputs and facts.class_axes):
        return
    layer = layer_of(kind, bottom=["x"] * max(1, TYPES[kind].BOTTOMS[0]), top=["y"])
    settings = facts.settings_of(layer)
    setattr(settings, facts.outputs, 6)
    for name, value in (("kernel_size", 3), ("kernel_depth", 2), ("input_dim", 4)):
        if name in settings.DESCRIPTOR.fields_by_name and name != facts.outputs:
            field = getattr(settings, name)
            field.append(value) if hasattr(field, "append") else setattr(settings, name, value)
    specs = declared_blobs(layer)
    assert specs
    assert not facts.blobs or len(facts.blobs) >= len(specs), "names for all blobs or for none"
    for axis, spec in zip(TYPES[kind].traits(layer).class_axes, specs, strict=False):
        assert axis is None or spec.shape[axis] == 6, spec


@pytest.mark.parametrize("kind", TYPES)
def test_rectifiers_are_the_activations_that_cut_off_negative_values_and_pass_positive_ones(kind: str) -> None:
    stated = TYPES[kind].TRAITS.rectifier
    if TYPES[kind].TRAITS.role != "activation":
        assert not stated
        return
    # Bounds that are not a rectifier's, for the one type that does not work without.
    text = f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" clip_param {{ min: -1 max: 1 }} }}'
    net = Net(parse(input_layer("x", 1, 1, 2, 3) + text, NetParameter), TEST)
    x = torch.tensor([-4.0, -1.5, -0.5, 0.5, 1.5, 4.0])
    y = net({"x": x.reshape(1, 1, 2, 3)})["y"].detach().flatten()
    assert torch.equal(y, x.clamp(min=0)) == stated


def test_learned_blobs_are_those_that_every_golden_net_declares() -> None:
    counted: Counter[str] = Counter()
    for case in golden.CASES:
        net = Net.from_file(golden.FOLDER / case["prototxt"], TRAIN, fill=False, stages=case.get("stages", ()))
        for layer in net.layers:
            if layer.IS_DATA:
                continue
            learned = max((index + 1 for index, spec in enumerate(layer.specs) if spec.learnable), default=0)
            assert count_learned(layer.param) == learned, (case["id"], layer.name)
            counted[layer.type_name] += 1
    assert len(counted) > 50 and counted["LSTM"] and counted["RNN"]


def test_a_type_without_a_class_is_unknown_or_a_loss_and_a_class_outranks_what_was_declared() -> None:
    assert traits("Sorcery").role == "unknown" and traits("SorceryLoss").role == "loss"
    assert traits("MultiBoxLoss").class_count == ("multibox_loss_param.num_classes",)
    registry.declare("Marvel")(type("Declared", (Layer,), {"TRAITS": Traits(role="data")}))
    assert traits("Marvel").role == "data"
    try:
        registry.register("Marvel")(type("Marvel", (Layer,), {"TRAITS": Traits(role="pooling")}))
        assert traits("Marvel").role == "pooling"
    finally:
        registry.unregister(["Marvel"])
    assert traits("Marvel").role == "data"


def test_traits_follow_a_layers_settings() -> None:
    assert traits(layer_of("Deconvolution", convolution_param={"num_output": 4, "group": 4})).role == "sampling"
    assert traits(layer_of("Deconvolution", convolution_param={"num_output": 4})).role == "classifier"
    assert traits(layer_of("Scale", bottom=["x", "y"])).class_axes == ()
    assert traits(layer_of("InnerProduct", inner_product_param={"transpose": True})).class_axes == (1, 0)
    assert traits(layer_of("BN", bn_param={"bn_mode": 0})).statistics_switch == ""
    assert dataclasses.is_dataclass(traits("ReLU"))


def test_no_room_but_those_of_layers_names_a_layer_type() -> None:
    found = []
    quoted = re.compile(rf"""["']({"|".join(map(re.escape, TYPES))})["']""")
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        text = path.read_text(encoding="utf-8")
        if not name.startswith(MAY_NAME_TYPES) and quoted.search(text):
            found += [f"{name}:{node.lineno}: {node.value!r}" for node in named_types(ast.parse(text))]
    assert not found, "ask caffetools.layers.registry.traits, or take the class's TYPE:\n" + "\n".join(found)


def named_types(tree: ast.AST) -> list[ast.Constant]:
    """The literals of layer types that are compared, given as a type, or stand in a table of them; not those in texts and headings."""
    found: dict[int, ast.Constant] = {}
    for node in ast.walk(tree):
        assigned = isinstance(node, ast.Assign) and any(isinstance(t, ast.Attribute) and t.attr == "type" for t in node.targets)
        given = isinstance(node, ast.keyword) and node.arg in ("type", "type_name", "kind")
        table = isinstance(node, ast.Set | ast.Tuple | ast.List | ast.Dict)
        if isinstance(node, ast.Compare) or assigned or given or table:
            literals = type_literals(node)
            if not table or len(literals) > 1:
                found.update((id(literal), literal) for literal in literals)
    return list(found.values())


def type_literals(node: ast.AST) -> list[ast.Constant]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value in TYPES]


def test_the_layers_of_an_imported_onnx_model_are_named_by_their_classes() -> None:
    found = []
    for path in sorted((PACKAGE / "onnx").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                written = [node.args[1]] if ast.unparse(node.func).endswith(".layer") and len(node.args) > 1 else []
                written += [keyword.value for keyword in node.keywords if keyword.arg == "type"]
                found += [f"{path.name}:{literal.lineno}: {literal.value!r}" for place in written for literal in type_literals(place)]
    assert not found, "take the class's TYPE:\n" + "\n".join(found)


def test_a_table_of_types_or_a_comparison_with_one_is_seen() -> None:
    for text in ('x = {"ReLU", "Pooling"}', 'layer.type == "ReLU"', 'f(type="Input")', 'layer.type = "Data"', 'a in ("ReLU",)'):
        assert named_types(ast.parse(text)), text
    assert not named_types(ast.parse('row = ("Accuracy", "91 %"); heading("Data")'))


NOTHING_MOVES = {
    "Pooling": "pooling_param { kernel_size: 1 }",
    "Im2col": "convolution_param { kernel_size: 1 }",
    "SPP": "spp_param { pyramid_height: 1 }",
    "LRN": "lrn_param { local_size: 1 }",
    "Upsample": "upsample_param { scale: 1 }",
    "Padding": "padding_param { pad_beg: 0 pad_end: 0 }",
    "Interp": "interp_param { zoom_factor: 1 }",
}


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_layers_whose_tops_may_be_overwritten_give_them_memory_of_their_own(phase: int) -> None:
    tried = []
    x = torch.rand(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    for name, cls in sorted(TYPES.items()):
        if cls.NEEDS_TOP or cls.BOTTOMS[0] > 2 or cls.TOPS[0] > 1:
            continue
        bottoms = " ".join('bottom: "x"' for _ in range(cls.BOTTOMS[0]))
        text = f'input: "x" input_shape {{ dim: 2 dim: 4 dim: 3 dim: 3 }} layer {{ name: "l" type: "{name}" {bottoms} top: "y" {NOTHING_MOVES.get(name, "")} }}'
        try:
            layer = Net(parse(text, NetParameter), phase).layers[-1]
        except CaffeToolsError:
            continue  # it needs settings or other bottoms
        with torch.no_grad():
            (top, *_) = layer.run(*[x] * cls.BOTTOMS[0])
        assert not shares_memory(top, x), name
        tried.append(name)
    assert len(tried) > 20
