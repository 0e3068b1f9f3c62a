"""``caffetools upgrade``: what it is given decides what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffetools.errors import CaffeToolsError, PrototxtError
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse, read_net, read_solver
from caffetools.proto.upgrades.files import upgrade_file

OLD_NET = """
name: "old" input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layers {
  name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2
  convolution_param { num_output: 4 kernel_size: 3 }
}
layers { name: "prob" type: SOFTMAX bottom: "conv" top: "prob" }
"""


def test_an_old_net_becomes_todays(tmp_path: Path) -> None:
    (tmp_path / "old.prototxt").write_text(OLD_NET)
    done = upgrade_file(tmp_path / "old.prototxt", tmp_path / "new.prototxt")
    assert (done.kind, done.changed) == ("a net", True)
    net = read_net(tmp_path / "new.prototxt")
    assert [(layer.name, layer.type) for layer in net.layer] == [("input", "Input"), ("conv", "Convolution"), ("prob", "Softmax")]
    assert [spec.lr_mult for spec in net.layer[1].param] == [1, 2]
    again = upgrade_file(tmp_path / "new.prototxt", tmp_path / "newer.prototxt")
    assert not again.changed
    assert read_net(tmp_path / "newer.prototxt") == net


def test_an_old_solver_becomes_todays(tmp_path: Path) -> None:
    (tmp_path / "old.prototxt").write_text('net: "n.prototxt" base_lr: 0.1 solver_type: ADAM momentum2: 0.9')
    assert upgrade_file(tmp_path / "old.prototxt", tmp_path / "new.prototxt").kind == "a solver"
    solver = read_solver(tmp_path / "new.prototxt")
    assert solver.type == "Adam"
    assert not solver.HasField("solver_type")


def test_old_weights_become_todays_and_keep_their_arrays(tmp_path: Path) -> None:
    modern = parse('layer { name: "conv" type: "Convolution" }', NetParameter)
    weights = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)
    write_caffemodel(tmp_path / "m.caffemodel", Caffemodel(modern, {"conv": [weights]}))
    old = NetParameter()
    blob = NetParameter.FromString((tmp_path / "m.caffemodel").read_bytes()).layer[0].blobs[0]
    old.layers.add(name="conv", type=4).blobs.add().CopyFrom(blob)
    (tmp_path / "old.caffemodel").write_bytes(old.SerializeToString())
    done = upgrade_file(tmp_path / "old.caffemodel", tmp_path / "new.caffemodel")
    assert (done.kind, done.changed) == ("weights", True)
    new = read_caffemodel(tmp_path / "new.caffemodel")
    assert new.net.layer[0].type == "Convolution"
    np.testing.assert_array_equal(new.blobs["conv"][0], weights)


def test_other_files_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("neither { of: both")
    with pytest.raises(PrototxtError, match="x.txt:1"):
        upgrade_file(tmp_path / "x.txt", tmp_path / "out")
    (tmp_path / "y.bin").write_bytes(bytes(range(40)))
    with pytest.raises(CaffeToolsError, match=r"y\.bin"):
        upgrade_file(tmp_path / "y.bin", tmp_path / "out")
    with pytest.raises(CaffeToolsError, match="missing"):
        upgrade_file(tmp_path / "missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
