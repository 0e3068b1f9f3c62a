"""Backward passes before any forward pass, and after blobs were edited: the gradients of BVLC Caffe 1.0, which works on its blobs as they are.

``backward_on_blobs.json`` holds for each net the values put into its blobs and the diffs that Caffe gave, in the order of the passes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from caffetools.pycaffe import TEST, Net

CASES = json.loads((Path(__file__).parent / "backward_on_blobs.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_caffe_on_its_blobs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    (tmp_path / "net.prototxt").write_text(case["net"])
    net = Net(str(tmp_path / "net.prototxt"), TEST)
    expected = iter(cast("list[dict[str, object]]", case["gradients"]))

    def put(values: dict[str, object]) -> None:
        for blob, value in values.items():
            net.blobs[blob].data[...] = value

    def check(moment: str) -> None:
        net.blobs["x"].diff[...] = case["diff"]
        net.backward()
        for blob, value in next(expected).items():
            wanted = np.array(value, dtype=float)
            np.testing.assert_allclose(net.blobs[blob].diff, wanted, rtol=1e-4, atol=2e-5, err_msg=f"{blob}, {moment}")

    put(case["first"])
    check("before any forward pass")
    net.forward()
    check("after a forward pass")
    put(case["second"])
    check("with other bottoms")
    net.forward()
    if "Loss" not in name:
        net.blobs["x"].data[...] = case["top"]
        check("with another top")


def test_a_backward_pass_after_the_solvers_step_is_not_one_before_any_forward_pass(tmp_path: Path) -> None:
    from caffetools.pycaffe import SGDSolver

    (tmp_path / "net.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 4 dim: 6 } shape { dim: 4 } '
        'data_filler { type: "gaussian" } data_filler { type: "constant" } } } '
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 3 weight_filler { type: "xavier" } } } '
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "a" bottom: "y" top: "loss" }'
    )
    (tmp_path / "solver.prototxt").write_text(f'net: "{tmp_path}/net.prototxt" base_lr: 0 lr_policy: "fixed" max_iter: 4 random_seed: 1')
    solver = SGDSolver(str(tmp_path / "solver.prototxt"))
    solver.step(1)
    before = np.array(solver.net.blobs["a"].diff)
    assert np.abs(before).max() > 0
    solver.net.backward()
    np.testing.assert_allclose(solver.net.blobs["a"].diff, before, rtol=1e-6)


HINGE = (
    'layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } } '
    'layer { name: "p" type: "Scale" bottom: "x" top: "s" scale_param { filler { value: 1.5 } } } %s'
    'layer { name: "l" type: "HingeLoss" bottom: "s" bottom: "y" top: "loss" hinge_loss_param { norm: %s } loss_weight: 0.5 }'
)
ACCURACY = 'layer { name: "acc" type: "Accuracy" bottom: "s" bottom: "y" top: "acc" } '
# Caffe 1.0's diffs of the scores: after a forward pass, after one and after two backward passes, with edited diffs, with edited labels.
HINGE_DIFFS = {
    ("L1", ""): [
        [1.75, 1.45, 1.3, 0.85, 0, 1.6],
        [0.25, -0.25, 0.25, -0.25, 0, 0.25],
        [0.25, 0.25, 0.25, 0.25, 0, 0.25],
        [0.25, 0, -0.25, -0.25, 0.25, 0.25],
        [0.25, 0.25, -0.25, 0.25, 0, 0.25],
    ],
    ("L2", ""): [
        [1.75, 1.45, 1.3, 0.85, 0, 1.6],
        [0.875, -0.725, 0.65, -0.425, 0, 0.8],
        [0.4375, 0.3625, 0.325, 0.2125, 0, 0.4],
        [0.5, 0, -1, -0.25, 0.125, 1.5],
        [0.875, 0.725, -0.65, 0.425, 0, 0.8],
    ],
    ("L2", ACCURACY): [
        [0, 0, 0, 0, 0, 0],
        [0.875, -0.725, 0.65, -0.425, 0, 0.8],
        [0.4375, 0.3625, 0.325, 0.2125, 0, 0.4],
        [0.875, -0.725, 0.65, -0.425, 0, 0.8],
        [0.875, 0.725, -0.65, 0.425, 0, 0.8],
    ],
}


@pytest.mark.parametrize(("norm", "reader"), HINGE_DIFFS)
def test_a_hinge_loss_keeps_its_margins_in_the_diff_of_the_scores(norm: str, reader: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(HINGE % (reader, norm))
    net = Net(str(tmp_path / "net.prototxt"), TEST)
    net.blobs["x"].data[...] = [[0.5, -0.3, 0.2], [0.1, -1.2, 0.4]]
    net.blobs["y"].data[...] = [1, 0]
    diffs = []
    net.forward()
    diffs.append(net.blobs["s"].diff.copy())
    for _ in range(2):
        net.backward()
        diffs.append(net.blobs["s"].diff.copy())
    net.forward()
    net.blobs["s"].diff[...] = [[1, 0, -2], [0.5, 0.25, 3]]
    net.backward()
    diffs.append(net.blobs["s"].diff.copy())
    net.forward()
    net.blobs["y"].data[...] = [2, 1]
    net.backward()
    diffs.append(net.blobs["s"].diff.copy())
    np.testing.assert_allclose(np.reshape(diffs, (5, 6)), np.array(HINGE_DIFFS[norm, reader], float), atol=1e-6)
