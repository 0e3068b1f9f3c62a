"""Rules of Caffe's backward passes: gradients that are written instead of added to (iter_size), and scores that are not numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffetools.pycaffe as caffe
from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.solver.solver import Solver

NET = """
layer { name: "data" type: "Input" top: "data" top: "target" input_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } shape { dim: 1 dim: 3 dim: 2 dim: 2 } } }
layer { name: "scale" type: "Scale" bottom: "data" top: "scale" scale_param { bias_term: true } }
layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } } }
layer { name: "sum" type: "Eltwise" bottom: "scale" bottom: "p" top: "sum" }
layer { name: "loss" type: "EuclideanLoss" bottom: "sum" bottom: "target" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 iter_size: 3 max_iter: 3 snapshot_after_train: false'
DATA = np.linspace(-1, 2, 12).reshape(1, 3, 2, 2).astype(np.float32)
TARGET = np.linspace(3, -1, 12).reshape(1, 3, 2, 2).astype(np.float32)
# From pycaffe of Caffe 1.0 after 3 iterations.
EXPECTED = {
    ("scale", 0): [0.013689, 0.965973, -0.184185],
    ("scale", 1): [4.279973, 0.742442, -1.979068],
    ("p", 0): [0.514279, 0.409203, 0.304126, 0.199049, 0.235415, 0.119718, 0.004022, -0.111674, -0.016776, -0.11554, -0.214305, -0.313069],
}


@pytest.fixture
def solver_file(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER.replace("net.prototxt", str(tmp_path / "net.prototxt")))
    return tmp_path / "solver.prototxt"


def test_a_solver_ends_with_caffes_parameters(solver_file: Path) -> None:
    solver = Solver(solver_file)
    solver.train_inputs = {"data": torch.from_numpy(DATA), "target": torch.from_numpy(TARGET)}
    solver.step(3)
    layers = {layer.name: layer for layer in solver.net.layers}
    for (name, index), values in EXPECTED.items():
        np.testing.assert_allclose(layers[name].blobs[index].detach().numpy().ravel(), values, atol=2e-6)


def test_pycaffes_solver_ends_with_caffes_parameters(solver_file: Path) -> None:
    solver = caffe.SGDSolver(str(solver_file))
    solver.net.blobs["data"].data[...] = DATA
    solver.net.blobs["target"].data[...] = TARGET
    solver.step(3)
    for (name, index), values in EXPECTED.items():
        np.testing.assert_allclose(solver.net.params[name][index].data.ravel(), values, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "settings", "times"),
    [
        ((1, 3, 4, 4), "", 1),
        ((2, 3, 4, 4), "", 3),
        ((2, 3, 4, 4), "axis: 0 num_axes: -1", 1),
        ((1, 1, 4, 4), "", 3),
        ((1, 1), "", 1),
        ((1, 1, 4, 4), "num_axes: 0", 3),
        ((1, 1), "num_axes: 0", 1),
    ],
)
def test_three_passes_give_a_scale_the_gradient_that_caffe_gives(tmp_path: Path, shape: tuple[int, ...], settings: str, times: int) -> None:
    path = tmp_path / "net.prototxt"
    dims = " ".join(f"dim: {size}" for size in shape)
    path.write_text(
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}\n'
        f'layer {{ name: "scale" type: "Scale" bottom: "data" top: "scale" scale_param {{ {settings} }} }}'
    )
    net = caffe.Net(str(path), caffe.TRAIN)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=shape)
    diffs = []
    for _ in range(3):
        net.forward()
        net.blobs["scale"].diff[...] = 1
        net.backward()
        diffs.append(net.params["scale"][0].diff.copy())
    np.testing.assert_allclose(diffs[2], times * diffs[0], rtol=1e-5)


def test_a_shared_one_is_refused(solver_file: Path) -> None:
    text = NET.replace("scale_param { bias_term: true }", 'param { name: "s" }')
    text = text.replace('bottom: "sum" bottom: "target"', 'bottom: "twice" bottom: "target"')
    text += 'layer { name: "twice" type: "Scale" bottom: "sum" top: "twice" param { name: "s" } }\n'
    first, loss = text.split('layer { name: "loss"')
    loss, twice = loss.split('layer { name: "twice"')
    (solver_file.parent / "net.prototxt").write_text(f'{first}layer {{ name: "twice"{twice}layer {{ name: "loss"{loss}')
    solver = Solver(solver_file)
    solver.train_inputs = {"data": torch.from_numpy(DATA), "target": torch.from_numpy(TARGET)}
    with pytest.raises(NetError, match="layer 'scale'.*shares its parameter 0.*batch_size of at least 2"):
        solver.step(1)
    assert Net(parse(NET, NetParameter), TRAIN).layers[1].replaced_gradients() == {0}


@pytest.mark.parametrize(
    ("norm", "loss", "gradient"),
    [
        ("L1", 4.35, [[0, 0.5, 0.5], [0.5, 0, -0.5]]),
        ("L2", 11.845, [[0, 2, 1.5], [1.2, 0, -4]]),
    ],
)
def test_a_score_that_is_not_a_number_has_no_margin_in_the_hinge_loss(
    tmp_path: Path, norm: str, loss: float, gradient: list[list[float]]
) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'force_backward: true layer { name: "d" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } } '
        f'layer {{ name: "l" type: "HingeLoss" bottom: "x" bottom: "y" top: "l" hinge_loss_param {{ norm: {norm} }} }}'
    )
    net = caffe.Net(str(path), caffe.TRAIN)
    net.blobs["x"].data[...] = [[np.nan, 1, 0.5], [0.2, np.nan, -3]]
    net.blobs["y"].data[...] = [0, 2]
    assert net.forward()["l"] == pytest.approx(loss)
    net.blobs["l"].diff[...] = 1
    net.backward()
    np.testing.assert_allclose(net.blobs["x"].diff, gradient, rtol=1e-6)
