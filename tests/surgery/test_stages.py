"""Nets in one file for training, testing and use: which stages are taken, what comes from outside, and DummyData in deploy nets."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffetools.errors import NetError
from caffetools.graph.stages import Stages, choose_stages, find_stages, resolve_stages
from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.project.retargeting import prepare_retarget, write_retarget
from caffetools.project.trainable import make_trainable
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import read_net, read_solver, write_prototxt
from caffetools.surgery.deploy import deploy_from
from tests.surgery.nets import net_of

ALL_IN_ONE = """
name: "all"
layer { name: "td" type: "DummyData" top: "scaled" top: "label" include { stage: "train" }
  dummy_data_param { shape { dim: 4 dim: 1 dim: 6 dim: 6 } shape { dim: 4 } } }
layer { name: "vd" type: "DummyData" top: "scaled" top: "label" include { stage: "val" }
  dummy_data_param { shape { dim: 2 dim: 1 dim: 6 dim: 6 } shape { dim: 2 } } }
layer { name: "scale" type: "Power" bottom: "data" top: "scaled" power_param { scale: 0.5 } include { stage: "deploy" } }
layer { name: "ip" type: "InnerProduct" bottom: "scaled" top: "ip" inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { stage: "val" } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" exclude { stage: "deploy" } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" include { stage: "deploy" } }
"""


def test_the_stages_that_a_file_needs_are_found() -> None:
    assert find_stages(net_of(ALL_IN_ONE)) == Stages(("train",), ("val",), ("deploy",))
    # Where a phase is complete without a stage it needs none.
    phases = ALL_IN_ONE.replace('include { stage: "train" }', "include { phase: TRAIN }")
    assert find_stages(net_of(phases)).train == ()
    assert find_stages(net_of(DUMMY.replace("SHAPES", ""))) == Stages()


def test_a_stage_that_no_rule_names_is_refused() -> None:
    with pytest.raises(NetError, match="has no stage 'tain'; did you mean 'train'"):
        resolve_stages(net_of(ALL_IN_ONE), ["tain"])


def test_the_deploy_stage_gets_its_data_from_outside_in_the_size_of_the_data_in_testing() -> None:
    chosen = choose_stages(net_of(ALL_IN_ONE), deploy=True)
    assert chosen.stages == ("deploy",)
    rows = summarize(chosen.net).layers
    assert [(row.name, row.shapes[0]) for row in rows] == [
        ("data", (1, 1, 6, 6)),
        ("scale", (1, 1, 6, 6)),
        ("ip", (1, 3)),
        ("prob", (1, 3)),
    ]
    given = choose_stages(net_of(ALL_IN_ONE), ["deploy"], {"data": (5, 1, 6, 6)})
    assert summarize(given.net).layers[0].shapes == [(5, 1, 6, 6)]
    with pytest.raises(NetError, match="gets its blob 'data' from outside in the stage deploy; give its shape: --input-shape data="):
        choose_stages(net_of(ALL_IN_ONE), ["deploy"])


def test_such_a_file_is_retargeted_in_all_of_its_stages(tmp_path: Path) -> None:
    # DIGITS fills in a number of outputs that is left out.
    for text, before in ((ALL_IN_ONE, "3"), (ALL_IN_ONE.replace("num_output: 3 ", ""), "0")):
        write_prototxt(tmp_path / "net.prototxt", net_of(text))
        made = prepare_retarget(tmp_path / "net.prototxt", 5, tmp_path / "out")
        assert f"ip_5: num_output {before} → 5" in map(str, made.retargeted.changes)
        write_retarget(made, tmp_path / "out")
        solver = read_solver(tmp_path / "out" / "solver.prototxt")
        assert list(solver.train_state.stage) == ["train"] and list(solver.test_state[0].stage) == ["val"]
        for phase, batch in ((TRAIN, 4), (TEST, 2)):
            net = Net.from_file(tmp_path / "out" / "train_val.prototxt", phase)
            assert net.blob_shapes["ip_5"] == (batch, 5)
        deploy = read_net(tmp_path / "out" / "deploy.prototxt")
        assert [layer.name for layer in deploy.layer] == ["data", "scale", "ip_5", "prob"]
        assert Net(deploy).blob_shapes["prob"] == (1, 5)


def test_the_deploy_stage_is_made_trainable(tmp_path: Path) -> None:
    write_prototxt(tmp_path / "net.prototxt", net_of(ALL_IN_ONE))
    made = make_trainable(tmp_path / "net.prototxt", tmp_path)
    assert [layer.name for layer in made.train_val.layer][:4] == ["data", "data", "scale", "ip"]


DUMMY = """
layer { name: "d" type: "DummyData" top: "data" top: "label" dummy_data_param { SHAPES data_filler { type: "gaussian" std: 1 } data_filler { } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize(
    "shapes",
    [
        "shape { dim: 8 dim: 3 dim: 4 dim: 4 } shape { dim: 8 }",
        "num: 8 num: 8 channels: 3 channels: 1 height: 4 height: 1 width: 4 width: 1",
    ],
)
def test_dummy_data_is_the_input_of_the_deploy_net(shapes: str) -> None:
    deployed = deploy_from(net_of(DUMMY.replace("SHAPES", shapes)))
    assert [(layer.type, list(layer.top)) for layer in deployed.layer] == [
        ("Input", ["data"]),
        ("InnerProduct", ["ip"]),
        ("Softmax", ["prob"]),
    ]
    assert [list(shape.dim) for shape in deployed.layer[0].input_param.shape] == [[8, 3, 4, 4]]


def test_dummy_data_next_to_other_data_gives_constants_and_keeps_its_values_for_the_tops_that_are_read() -> None:
    text = """
    layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 8 dim: 4 } } }
    layer { name: "d" type: "DummyData" top: "label" top: "shift"
      dummy_data_param { shape { dim: 8 } shape { dim: 8 dim: 4 } data_filler { } data_filler { value: 2 } } }
    layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "shift" top: "sum" }
    layer { name: "ip" type: "InnerProduct" bottom: "sum" top: "ip" inner_product_param { num_output: 3 } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    """
    dummy = next(layer for layer in deploy_from(net_of(text)).layer if layer.type == "DummyData")
    assert list(dummy.top) == ["shift"]
    assert [list(s.dim) for s in dummy.dummy_data_param.shape] == [[8, 4]]
    assert [f.value for f in dummy.dummy_data_param.data_filler] == [2]


def test_data_of_the_training_phase_alone_is_not_from_outside() -> None:
    data = 'layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "x" batch_size: 2 } include { phase: TRAIN } }'
    score = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }'
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" include { phase: TRAIN } }'
    shapes = {"data": (1, 3, 8, 8)}
    chosen = choose_stages(net_of(data + score + loss), shapes=shapes, deploy=True)
    made = deploy_from(chosen.net, input_shape=shapes)
    assert [layer.type for layer in made.layer] == ["Input", "InnerProduct", "Softmax"]
    assert list(made.layer[0].input_param.shape[0].dim) == [1, 3, 8, 8]
