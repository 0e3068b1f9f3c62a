"""Two networks, or two weights files, held against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caffetools.graph.diff import Difference, diff_nets, diff_weights
from caffetools.proto.binary import write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.text import write_prototxt
from caffetools.surgery.retarget import retarget
from caffetools.zoo.networks import build
from tests.cli.test_retarget import run
from tests.surgery.nets import TINY, net_of
from tests.surgery.test_weights import model_of


def test_a_net_does_not_differ_from_itself_in_any_form() -> None:
    assert diff_nets(net_of(TINY), net_of(TINY)) == []
    old = 'layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" blobs_lr: 1 convolution_param { num_output: 3 } }'
    new = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" param { lr_mult: 1 } convolution_param { num_output: 3 } }'
    assert diff_nets(net_of(old), net_of(new)) == []


def test_fields_are_named_by_their_path_with_both_values() -> None:
    changed = TINY.replace("num_output: 6", "num_output: 8").replace('"tiny"', '"other"').replace("phase: TRAIN", "phase: TEST")
    changed = changed.replace("lr_mult: 1 }", "lr_mult: 3 }").replace("mirror: true", "mirror: false")
    assert diff_nets(net_of(TINY), net_of(changed)) == [
        Difference("", "changed", "name", "tiny", "other"),
        Difference("data", "changed", "include", "{ phase: TRAIN }", "{ phase: TEST }"),
        Difference("data", "changed", "transform_param.mirror", "true", "false"),
        Difference(
            "conv", "changed", "param", "{ lr_mult: 1 }, { lr_mult: 2 decay_mult: 0 }", "{ lr_mult: 3 }, { lr_mult: 2 decay_mult: 0 }"
        ),
        Difference("conv", "changed", "convolution_param.num_output", "6", "8"),
    ]


def test_layers_that_one_lacks_and_layers_that_moved_are_reported() -> None:
    relu = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }\n'
    without = net_of(TINY.replace(relu, ""))
    assert diff_nets(net_of(TINY), without) == [Difference("relu", "only in the first", "type", "ReLU", "")]
    assert diff_nets(without, net_of(TINY)) == [Difference("relu", "only in the second", "type", "", "ReLU")]
    moved = net_of(TINY.replace(relu, "") + relu)
    assert diff_nets(net_of(TINY), moved) == [Difference("relu", "moved", "place", "4", "8")]


def test_retargeting_shows_as_what_it_is() -> None:
    found = diff_nets(build("squeezenet_v1.1"), retarget(build("squeezenet_v1.1"), 7).train_val)
    assert {difference.layer for difference in found} == {"conv10", "conv10_7", "relu_conv10", "pool10"}


def test_weights_differ_by_layer_with_the_largest_difference() -> None:
    first, second = model_of(a=[2, 3], b=[4], c=[2], d=[1]), model_of(a=[2, 3], b=[5], c=[2], e=[1])
    second.blobs["c"][0] = second.blobs["c"][0] + np.float32(0.25)
    found = {one.layer: one for one in diff_weights(first, second)}
    assert {name: one.kind for name, one in found.items()} == {
        "b": "changed",
        "c": "changed",
        "d": "only in the first",
        "e": "only in the second",
    }
    assert (found["c"].largest, found["c"].relative) == (0.25, 0.25)
    assert (found["b"].first, found["b"].second, found["b"].largest) == ([(4,)], [(5,)], None)
    nan = Caffemodel(first.net, {**first.blobs, "c": [np.array([np.nan, 1], np.float32)]})
    assert np.isnan(diff_weights(first, nan)[0].largest or 0)
    assert diff_weights(nan, nan) == []


def test_the_command_shows_differences_and_can_exit_with_1(tmp_path: Path) -> None:
    paths = [tmp_path / "a.prototxt", tmp_path / "b.prototxt"]
    write_prototxt(paths[0], net_of(TINY))
    write_prototxt(paths[1], net_of(TINY.replace("num_output: 6", "num_output: 8")))
    code, out, err = run("diff", *paths)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["Layer", "Difference", "What", "First", "Second"],
        ["conv", "changed", "convolution_param.num_output", "6", "8"],
        ["1", "difference", "in", "1", "layer"],
    ]
    assert run("diff", *paths, "--exit-code")[0] == 1
    assert run("diff", paths[0], paths[0], "--exit-code")[:2] == (0, "They are the same.\n")
    assert json.loads(run("diff", *paths, "--json")[1])["differences"][0]["after"] == "8"


def test_the_command_compares_weights(tmp_path: Path) -> None:
    for name, size in (("a", 2), ("b", 3)):
        write_caffemodel(tmp_path / f"{name}.caffemodel", model_of(x=[size], y=[1]))
    code, out, _ = run("diff", tmp_path / "a.caffemodel", tmp_path / "b.caffemodel")
    assert code == 0 and out.splitlines()[1].split() == ["x", "changed", "2", "3"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.prototxt", "a.caffemodel"), "one is a net, the other holds weights"),
        (("none.prototxt", "a.prototxt"), "none.prototxt: cannot read"),
    ],
)
def test_what_cannot_be_compared_is_reported(tmp_path: Path, names: tuple[str, str], message: str) -> None:
    write_prototxt(tmp_path / "a.prototxt", net_of(TINY))
    write_caffemodel(tmp_path / "a.caffemodel", model_of(x=[2]))
    code, out, err = run("diff", *(tmp_path / name for name in names))
    assert (code, out) == (2, "") and message in err
