"""Fillers against draws of BVLC Caffe's: bounds exactly, means and deviations within a few standard errors."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.layers.fillers import fill
from caffetools.proto.schema import FillerParameter
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "fillers"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())


def drawn(text: str, *shape: int) -> NDArray[np.float64]:
    torch.manual_seed(5)
    data = torch.empty(shape)
    fill(data, text_format.Parse(text, FillerParameter()))
    return data.numpy().astype(np.float64)


@pytest.mark.parametrize("name", CASES)
def test_a_draw_has_the_statistics_of_caffes(name: str) -> None:
    case = CASES[name]
    values = drawn(case["filler"], *case["shape"])
    error = case["std"] / math.sqrt(values.size)
    assert abs(values.mean() - case["mean"]) <= 6 * error + 1e-9
    # The deviation of a sample varies like that of its mean (for these distributions somewhat less, or 2.5 times where most are 0).
    assert abs(values.std() - case["std"]) <= 10 * error + 1e-9
    zeros = case["zero_fraction"]
    assert abs((values == 0).mean() - zeros) <= 6 * math.sqrt(zeros * (1 - zeros) / values.size) + 1e-12


def test_a_uniform_draw_is_inside_its_bounds_and_reaches_them() -> None:
    values = drawn(CASES["uniform"]["filler"], *CASES["uniform"]["shape"])
    assert -2 <= values.min() < -1.999
    assert 0.499 < values.max() <= 0.5


@pytest.mark.parametrize(("norm", "fan"), [("FAN_IN", 1000), ("FAN_OUT", 2400), ("AVERAGE", 1700)])
def test_an_xavier_draw_is_inside_the_bounds_of_its_fan(norm: str, fan: int) -> None:
    bound = math.sqrt(3 / fan)
    values = drawn(f'type: "xavier" variance_norm: {norm}', 96, 40, 5, 5)
    assert 0.999 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    assert abs(CASES[f"xavier_{norm.lower()}"]["max"] - bound) < 1e-3 * bound


def test_the_rows_of_a_positive_unitball_sum_to_one() -> None:
    values = drawn('type: "positive_unitball"', *CASES["positive_unitball"]["shape"])
    assert values.min() >= 0
    np.testing.assert_allclose(values.reshape(values.shape[0], -1).sum(1), 1.0, atol=2e-6)


def test_a_constant_is_exact() -> None:
    np.testing.assert_array_equal(drawn('type: "constant" value: 0.7', 2, 3), np.full((2, 3), np.float32(0.7)))


def test_without_a_filler_a_blob_is_zero() -> None:
    data = torch.full((3, 2), 7.0)
    fill(data, None)
    assert not data.any()


@pytest.mark.parametrize("key", ["k3", "k4", "k7", "k8_2ch"])
def test_the_bilinear_filler_is_exactly_caffes(key: str) -> None:
    with np.load(FOLDER / "bilinear.npz") as file:
        expected = file[key]
    got = drawn('type: "bilinear"', *expected.shape)
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=6e-8)


def test_a_channels_last_blob_is_filled_alike() -> None:
    data = torch.empty(8, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    fill(data, FillerParameter(type="positive_unitball"))
    np.testing.assert_allclose(data.sum((1, 2, 3)).numpy(), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ('type: "glorot"', (2, 3), "unknown filler type 'glorot'"),
        ('type: "uniform" sparse: 3', (2, 3), "does not support 'sparse'"),
        ('type: "bilinear"', (2, 3), "needs a blob of 4 axes with square kernels"),
        ('type: "bilinear"', (2, 3, 4, 5), "needs a blob of 4 axes with square kernels"),
    ],
)
def test_what_caffe_refuses_is_an_error(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(NetError, match=message):
        drawn(text, *shape)
