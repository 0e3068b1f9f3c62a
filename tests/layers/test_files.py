"""Layers of the golden data that need files or draw at random: InfogainLoss by file, HDF5Output, Dropout in training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN
from tests.conftest import GOLDEN
from tests.layers.helpers import one_layer

FOLDER = GOLDEN / "layers_files"
CASES: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())["cases"]
DROPOUT: dict[str, Any] = CASES["dropout_train"]["statistics"]


@pytest.mark.parametrize("name", ["plain", "ignore"])
def test_the_infogain_matrix_comes_from_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with np.load("infogain.npz") as file:
        arrays = dict(file)
    net = Net.from_file(f"infogain_{name}.prototxt", TEST)
    x = torch.from_numpy(arrays[f"{name}:in:x"]).requires_grad_()
    blobs = net({"x": x, "t": torch.from_numpy(arrays[f"{name}:in:t"])})
    np.testing.assert_allclose(blobs["loss"].item(), arrays[f"{name}:out:loss"], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(net.total_loss(blobs), x)
    np.testing.assert_allclose(gradient.numpy(), arrays[f"{name}:indiff:x"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_keeps_its_share_and_scales_it_in_training(name: str) -> None:
    case = DROPOUT[name]
    ratio, count = case["ratio"], case["count"]
    net = Net.from_file(FOLDER / case["prototxt"], TRAIN)
    torch.manual_seed(11)
    x = (torch.rand(100, 200) + 0.5).requires_grad_()
    y = net({"x": x})["y"]
    kept = (y != 0).detach()
    share = kept.float().mean().item()
    assert abs(share - case["expected_kept_fraction"]) <= 4 * math.sqrt(ratio * (1 - ratio) / count)
    np.testing.assert_allclose(y[kept].detach().numpy(), (x[kept] / (1 - ratio)).detach().numpy(), rtol=1e-6)
    topdiff = torch.randn(100, 200)
    (gradient,) = torch.autograd.grad(y, x, topdiff)
    np.testing.assert_allclose(gradient.numpy(), torch.where(kept, topdiff / (1 - ratio), 0.0).numpy(), rtol=1e-6)


def test_hdf5_output_writes_the_file_that_caffe_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with np.load(FOLDER / "hdf5output.npz") as file:
        arrays = dict(file)
    net = Net.from_file(FOLDER / "hdf5output.prototxt", TEST)
    net({name: torch.from_numpy(arrays[f"in:{name}"]) for name in ("data", "label")})
    assert [p.name for p in tmp_path.iterdir()] == ["hdf5output.h5"]
    with h5py.File("hdf5output.h5") as got, h5py.File(FOLDER / "hdf5output_expected.h5") as expected:
        assert set(got) == set(expected) == {"data", "label"}
        for name in expected:
            assert got[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(got[name][()], expected[name][()])
            np.testing.assert_array_equal(got[name][()], arrays[f"file:{name}"])


def test_hdf5_output_appends_later_passes(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_bytes(b"an older file")
    layer = one_layer(f'type: "HDF5Output" hdf5_output_param {{ file_name: "{path}" }}', (2, 3), (2,), tops=0)
    first, second = torch.rand(2, 3), torch.rand(2, 3)
    layer(first, torch.tensor([0.0, 1.0]))
    layer(second, torch.tensor([2.0, 3.0]))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data"][()].reshape(4, 3), torch.cat([first, second]).numpy())
        assert file["label"][()].reshape(-1).tolist() == [0, 1, 2, 3]
