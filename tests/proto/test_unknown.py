"""Fields of a prototxt that no schema has: kept where that is right, and else an error that suggests what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.errors import PrototxtError
from caffetools.proto.options import override_dialect
from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.proto.text import format_text, parse, read_net, write_prototxt
from caffetools.proto.unknown import unknown_fields, unknown_names
from caffetools.proto.upgrades.v1 import upgrade_net

NET = """layer {
  name: "c"
  type: "CropCenter"
  bottom: "x"
  top: "y"
  crop_center_param {
    # how much goes, from each side
    crop_size: [2, 2]
    mode: HALF
    inner { text: "a \\"b\\" } {" flag: true ratio: 0.5 }
  }
  speed: fast
}
layer {
  name: "r"
  type: "ReLU"
}
"""


def net(text: str) -> Any:
    return parse(text, NetParameter)


def test_fields_of_an_unknown_layer_type_survive_reading_editing_and_writing(tmp_path: Path) -> None:
    param = net(NET)
    param.layer[0].name = "renamed"
    param.layer[1].top.append("z")
    copy = NetParameter()
    copy.layer.extend(param.layer)
    write_prototxt(tmp_path / "n.prototxt", upgrade_net(copy))
    text = (tmp_path / "n.prototxt").read_text()
    wanted = NET.replace('name: "c"', 'name: "renamed"').replace('type: "ReLU"\n', 'type: "ReLU"\n  top: "z"\n')
    assert text == wanted
    assert read_net(tmp_path / "n.prototxt") == param


def test_their_values_can_be_asked_for() -> None:
    fields = unknown_fields(net(NET).layer[0])
    inner = {"text": ['a "b" } {'], "flag": [True], "ratio": [0.5]}
    assert fields == {"crop_center_param": [{"crop_size": [2, 2], "mode": ["HALF"], "inner": [inner]}], "speed": ["fast"]}
    assert unknown_names(net(NET)) == ["crop_center_param", "speed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('layer {\n  type: "ReLU"\n  relu_parm { }\n}', "3:3: LayerParameter has no field 'relu_parm'; did you mean 'relu_param'?"),
        ('layer {\n  type: "ReLU"\n  shiny: 1\n}', "3:3: LayerParameter has no field 'shiny'"),
        ('layer {\n  type: "Convolution"\n  convolution_param { num_outputs: 1 }\n}', "'num_outputs'; did you mean 'num_output'?"),
        ('layer {\n  type: "CropCenter"\n  botom: "x"\n}', "3:3: LayerParameter has no field 'botom'; did you mean 'bottom'?"),
        ('layer {\n  type: "CropCenter"\n  convoluton_param { }\n}', "did you mean 'convolution_param'?"),
        ('layer {\n  type: "CropCenter"\n  pooling_param { pool: MAXX }\n}', "PoolMethod has no value 'MAXX'"),
        ('nmae: "x"', "1:1: NetParameter has no field 'nmae'; did you mean 'name'?"),
        ("layer {\n  shiny { }\n}", "2:3: LayerParameter has no field 'shiny'"),
        ('layer {\n  type: "Crop Center" crop_center_param { a: \n}', ""),
    ],
)
def test_a_slip_is_an_error_with_its_place_and_what_was_meant(text: str, message: str) -> None:
    with pytest.raises(PrototxtError) as error:
        net(text)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["caffetools_unknown", "caffetools_unknown_bytes"])
def test_the_fields_that_keep_them_cannot_be_written_by_hand(name: str) -> None:
    with pytest.raises(PrototxtError, match=f":2: the field '{name}' is kept for caffetools itself"):
        net(f'name: "n"\nlayer {{ {name}: "x" }}')


def test_places_are_right_after_kept_text() -> None:
    with pytest.raises(PrototxtError, match=r":15:3: LayerParameter has no field 'tpye'; did you mean 'type'\?"):
        net(NET.replace("}\nlayer {\n  name", "}\nlayer {\n  tpye: 1 name"))


def test_a_file_read_leniently_keeps_every_unknown_field_and_value() -> None:
    text = """strange: 1
layer {
  name: "p"
  type: "Pooling"
  pooling_param {
    kernel_size: 2
    pool: MEDIAN
    exotic { a: 1 }
  }
}
"""
    with override_dialect("any"):
        param = net(text)
        printed = format_text(param)
        assert net(printed) == param
        assert format_text(net(printed)) == printed
    assert unknown_names(param) == ["strange", "pool", "exotic"]
    assert "    exotic { a: 1 }\n" in printed and "    pool: MEDIAN\n" in printed and printed.endswith("strange: 1\n")


def test_a_solver_read_leniently_keeps_its_unknown_fields() -> None:
    with override_dialect("any"):
        solver = parse("base_lr: 1\nstepearly: 5\n", SolverParameter)
    assert format_text(solver) == "base_lr: 1\nstepearly: 5\n"


LEAVES = st.sampled_from(['"text with } and { and # in it"', "'single'", "12", "-0.5", "NAME", "true", "[1, 2, 3]", '"one" "two"'])


def _named(values: list[str]) -> list[str]:
    return [f"field_{index}{'' if value.startswith('{') else ':'} {value} # {index} }}\n" for index, value in enumerate(values)]


def _block(fields: list[str]) -> str:
    return "{ " + "\n".join(_named(fields)) + "}"


BLOCKS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3).map(_block), max_leaves=12)


@given(BLOCKS)
def test_any_value_of_an_unknown_field_is_kept(value: str) -> None:
    text = f'layer {{ type: "Odd" odd_thing{"" if value.startswith("{") else ":"} {value}\n name: "n" }}'
    param = net(text)
    assert param.layer[0].name == "n" and list(unknown_fields(param.layer[0])) == ["odd_thing"]
    printed = format_text(param)
    assert net(printed) == param and format_text(net(printed)) == printed


def test_blocks_nested_deep_are_read_and_those_nested_too_deep_are_refused() -> None:
    deep = "a { " * 95 + "}" * 95
    param = net(f'layer {{ type: "Odd" odd_param {{ {deep} }} }}')
    assert net(format_text(param)) == param
    with pytest.raises(PrototxtError):
        net(f'layer {{ type: "Odd" odd_param {{ {deep} }}')
    with pytest.raises(PrototxtError, match="nested more than 100 deep"):
        net("a { " * 100_000 + "}" * 100_000)


def test_a_field_that_a_fork_repeats_is_kept_where_the_schema_has_it_once() -> None:
    sizes = "".join(f"  transform_param {{ resize_param {{ height: {n} width: {n} }} }}\n" for n in (32,))
    more = "resize_param { height: 64 width: 64 }"
    text = f'layer {{\n  name: "d"\n  type: "AnnotatedData"\n  top: "data"\n{sizes}}}\n'.replace("} }\n}", f"}} {more} }}\n}}")
    net = parse(text, NetParameter)
    assert net.layer[0].transform_param.resize_param.height == 32
    assert unknown_names(net.layer[0]) == ["resize_param"]
    printed = format_text(net)
    assert printed.count("resize_param") == 2 and "height: 64" in printed
    assert parse(printed, NetParameter) == net
    with pytest.raises(PrototxtError, match="but this is a second one"):
        parse('layer { name: "d" transform_param { crop_size: 1 crop_size: 2 } }', NetParameter)
