"""Mean, deviation and range of the values of many records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caffetools.data.datasets.moments import Moments


def check(arrays: list[NDArray[Any]]) -> None:
    moments = Moments(len(arrays[0]))
    for array in arrays:
        moments.add(array)
    values = np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1).astype(np.longdouble)
    for _ in range(2):
        found = moments.statistics()
        assert found.records == len(arrays)
        np.testing.assert_allclose(found.mean, values.mean(axis=1).astype(float), rtol=1e-14)
        np.testing.assert_allclose(found.deviation, values.std(axis=1).astype(float), rtol=1e-13)
        assert (found.minimum, found.maximum) == (values.min(axis=1).tolist(), values.max(axis=1).tolist())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["planes", "pixels"])
def test_pictures_of_bytes_of_any_size_and_layout(channels: int, order: str) -> None:
    rng = np.random.default_rng(channels)
    arrays: list[NDArray[Any]] = []
    for number in range(30):
        shape = (int(rng.integers(1, 40)), int(rng.integers(1, 40)), channels)
        picture = rng.integers(3, 200 + number, shape, dtype=np.uint8).transpose(2, 0, 1)
        arrays.append(picture if order == "pixels" else np.ascontiguousarray(picture))
    check(arrays)


def test_nearly_constant_pictures_keep_their_small_deviation() -> None:
    arrays = [np.full((2, 300, 400), 254, np.uint8) for _ in range(20)]
    arrays[7][1, 5, 5] = 255
    check(arrays)
    assert Moments(2).statistics().deviation == [0, 0]


def test_bytes_and_other_values_may_be_mixed() -> None:
    rng = np.random.default_rng(0)
    check([rng.integers(0, 256, (2, 9, 8)).astype(np.uint8 if number % 2 else np.uint16) for number in range(9)])
    check([rng.normal(10, 1, (3, 4, 5)) for _ in range(40)])
