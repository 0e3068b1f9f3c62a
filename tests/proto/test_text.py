from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.errors import PrototxtError
from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.proto.text import format_text, layer_line, parse, read_net, read_solver, write_prototxt

NET = """name: "n"
layer {
  name: "ip"
  type: "InnerProduct"
  inner_product_param {
    num_output: 3
  }
}
"""


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "net.prototxt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path: Path) -> str:
    with pytest.raises(PrototxtError) as error:
        read_net(path)
    return str(error.value)


def test_text_that_caffe_printed_is_printed_the_same(golden: Path) -> None:
    assert format_text(parse(NET, NetParameter)) == NET
    # Caffe prints each net and its solver into its log.
    printed = []
    for log in sorted((golden / "logs").glob("*.log")):
        for kind, text in re.findall(
            r"Initializing (net|solver) from parameters: *\n(.*?)(?=^[IWEF]\d{4})", log.read_text(), re.DOTALL | re.MULTILINE
        ):
            printed.append(kind)
            ours = format_text(parse(text, NetParameter if kind == "net" else SolverParameter))
            for line, own in zip(text.strip().splitlines(), ours.splitlines(), strict=True):
                # Caffe's protobuf prints some floats with more digits than are needed to read them back.
                assert line == own or same_float(line, own), log
    assert {"net", "solver"} <= set(printed)


@pytest.mark.wild
def test_files_that_caffe_printed_are_printed_the_same(wild_golden: Path) -> None:
    for path in (wild_golden / "upgrade").glob("*.out.prototxt"):
        ours = format_text((read_solver if path.name.startswith("solver") else read_net)(path))
        for line, own in zip(path.read_text().splitlines(), ours.splitlines(), strict=True):
            assert line == own or same_float(line, own), path


def same_float(line: str, other: str) -> bool:
    (key, value), (other_key, other_value) = line.split(": "), other.split(": ")
    return key == other_key and np.float32(value) == np.float32(other_value)


# Why stock Caffe's schema, all forks' fields, and what may be kept as text are not enough for these.
REFUSED = {
    **{
        f"NVIDIA+caffe/data/{name}.prototxt": "this is a map of labels"
        for name in (
            "ILSVRC2016/labelmap_ilsvrc_clsloc",
            "ILSVRC2016/labelmap_ilsvrc_det",
            "VOC0712/labelmap_voc",
            "WIDER_FACE/labelmap_wider",
            "coco/labelmap_coco",
        )
    },
    "alexgkendall+caffe-segnet/examples/mnist/lenet_stepearly_solver.prototxt": "SolverParameter has no field 'stepearly'",
}


@pytest.mark.wild
def test_every_prototxt_from_the_wild_is_read_and_prints_back_to_the_same_message(wild: Path) -> None:
    refused = set()
    for line in (wild / "bvlc_parse.tsv").read_text().splitlines()[1:]:
        file = line.split("\t")[0]
        path = wild / "prototxt" / file
        read = read_solver if re.search(r"solver", path.name) else read_net
        try:
            message = read(path)
        except PrototxtError as error:
            assert re.match(re.escape(str(path)) + r":\d+:\d+: ", str(error)) and REFUSED.get(file, "?") in str(error), error
            refused.add(file)
            continue
        assert parse(format_text(message), type(message)) == message, file
    assert refused == set(REFUSED)


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3),
)
def test_what_is_written_reads_back_the_same(name: str, weights: list[float], tops: list[str]) -> None:
    param = NetParameter(name=name)
    param.layer.add(loss_weight=weights, top=tops).transform_param.mean_value.extend(weights)
    assert parse(format_text(param) + "#", NetParameter) == param


def test_whole_floats_are_printed_without_a_point() -> None:
    solver = SolverParameter(base_lr=1, gamma=0.5, power=-2, momentum=1e10, snapshot_prefix="v1.0\n1.0")
    assert format_text(solver) == ('base_lr: 1\ngamma: 0.5\npower: -2\nmomentum: 10000000000\nsnapshot_prefix: "v1.0\\n1.0"\n')


def test_a_file_is_written_below_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "new" / "net.prototxt"
    write_prototxt(path, parse(NET, NetParameter), comment="One\n\nTwo")
    assert path.read_text() == "# One\n#\n# Two\n" + NET
    assert read_net(path) == parse(NET, NetParameter)
    assert [entry.name for entry in path.parent.iterdir()] == ["net.prototxt"]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf" + NET.replace("\n", "\r\n").encode())
    assert read_net(path) == parse(NET, NetParameter)


def test_a_typo_in_a_field_is_named_with_its_place_and_what_was_meant(tmp_path: Path) -> None:
    path = written(tmp_path, NET.replace("num_output", "num_ouput"))
    assert error_of(path) == f"{path}:6:5: InnerProductParameter has no field 'num_ouput'; did you mean 'num_output'?"


def test_an_unknown_enum_value_is_named_with_its_place(tmp_path: Path) -> None:
    path = written(tmp_path, "layer {\n  pooling_param { pool: MAXX }\n}\n")
    text = error_of(path)
    assert text.startswith(f"{path}:2:") and "MAXX" in text


@pytest.mark.parametrize(("wrong", "line"), [("  type: InnerProduct", 4), ('  type: "InnerProduct', 4), ("  type: 3", 4), ("  type: }", 4)])
def test_a_wrong_value_is_named_with_its_line(tmp_path: Path, wrong: str, line: int) -> None:
    path = written(tmp_path, NET.replace('  type: "InnerProduct"', wrong))
    assert error_of(path).startswith(f"{path}:{line}:")


def test_a_missing_brace_is_an_error_that_names_where_it_was_opened(tmp_path: Path) -> None:
    path = written(tmp_path, NET.removesuffix("}\n"))
    text = error_of(path)
    assert text.startswith(f"{path}:") and "the brace opened on line 2 is never closed" in text


def test_a_brace_too_many_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, NET + "}\n")
    assert error_of(path).startswith(f"{path}:9:1:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\t\n", "the file is empty"),
        (b"\x0a\x03abc\xa2\x06\x90\x4e", "not a text file"),
    ],
)
def test_a_file_that_is_not_a_prototxt_is_an_error_that_names_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content)
    assert error_of(path).startswith(f"{path}: ") and message in error_of(path)


def test_a_solver_read_as_a_net_is_an_error_that_names_the_field(tmp_path: Path) -> None:
    path = written(tmp_path, "base_lr: 0.1\n")
    assert error_of(path) == f"{path}:1:1: NetParameter has no field 'base_lr'; this is a solver's prototxt, and a net's is expected"
    assert read_solver(path).base_lr == pytest.approx(0.1)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none").endswith("none: cannot read: No such file or directory")
    assert error_of(tmp_path).endswith(": cannot read: Is a directory; give a file")


def test_the_line_of_a_layer_is_found_by_name(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """# layer { name: "b" }
name: "b"
layer { name: "a" bottom: "b" type: "x}{" }

layer {
  name: 'b'  # }
}
layers {
  layer { name: "v0" }
}
""",
    )
    assert [layer_line(path, name) for name in ("a", "b", "v0", "none")] == [3, 5, 8, 0]
    assert layer_line(tmp_path / "none", "a") == 0


def test_a_field_that_must_be_given_is_named_with_its_layer_and_line() -> None:
    text = 'name: "n"\nlayer { name: "a" type: "ReLU" }\nlayer {\n  name: "c" type: "Clip"\n  clip_param { min: 1 }\n}\n'
    with pytest.raises(PrototxtError) as caught:
        parse(text, NetParameter, path="net.prototxt")
    assert str(caught.value) == "net.prototxt:3: layer 'c': clip_param.max must be given"
    assert parse(text.replace("min: 1", "min: 1 max: 2"), NetParameter).layer[1].clip_param.max == 2


def test_a_sign_may_stand_apart_from_its_number_as_in_cpp() -> None:
    text = 'name: "a - 1" # - 2\nlayer { name: "p" type: "Power" power_param { power: - 1.5 shift: -\n inf scale: -2 } }'
    net = parse(text, NetParameter)
    power = net.layer[0].power_param
    assert (net.name, power.power, power.shift, power.scale) == ("a - 1", -1.5, float("-inf"), -2)
    with pytest.raises(PrototxtError, match=":1:"):
        parse('layer { name: "p" power_param { power: - x } }', NetParameter)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((f"force_backward: {number}", number[-1] == "1") for number in ("00", "01", "0x1", "0X0", "0x01", "001")),
        *((f"force_backward: {word}", word in ("true", "True", "t")) for word in ("true", "True", "t", "false", "False", "f")),
    ],
)
def test_a_bool_in_any_notation_that_cpp_reads(text: str, value: bool) -> None:
    assert parse(f'name: "a 01 0x1" # 01\n{text} layer {{ top: "x" }}', NetParameter).force_backward is value
    assert parse(f'name: "a 01 0x1" # 01\n{text}', NetParameter).name == "a 01 0x1"


def test_numbers_and_strings_are_those_that_cpp_reads() -> None:
    # The values are protoc's.
    net = parse(
        'name: "\\X41\\?\\\\X41" \'\\401\' "\\x4g" input_dim: [0x10, 010, - # a comment\n 1]; layer <loss_weight: [1f, .5, 1.f, -INF, - 3] '
        'top: "a" "b", top: \'c\'; pooling_param { pool: 0x1 } include: [{phase: 1}, <stage: "x">] reshape_param { shape { dim: -0x10 } }>',
        NetParameter,
    )
    assert net.name == "A?\\X41\x01\x04g"
    assert list(net.input_dim) == [16, 8, -1]
    layer = net.layer[0]
    assert list(layer.loss_weight) == [1, 0.5, 1, float("-inf"), -3]
    assert (list(layer.top), layer.pooling_param.pool, len(layer.include)) == (["ab", "c"], 1, 2)
    assert (layer.include[0].phase, list(layer.reshape_param.shape.dim)) == (1, [-16])


@pytest.mark.parametrize(
    "text", ["force_backward: 2", "force_backward: 0x2", "force_backward: yes", "layer { loss_weight: 1e }", "input_dim: 08"]
)
def test_what_cpp_does_not_read_either_is_refused(text: str) -> None:
    with pytest.raises(PrototxtError, match=r":1:"):
        parse(text, NetParameter)


def test_an_escape_that_is_not_a_character_is_named_as_that() -> None:
    with pytest.raises(PrototxtError, match="an escape in a quoted text is not a character"):
        parse('name: "\\ud800"', NetParameter)
