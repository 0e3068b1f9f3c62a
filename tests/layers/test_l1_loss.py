"""L1Loss against its definition."""

from __future__ import annotations

import numpy as np

from tests.layers.test_forks import agree, numbers


def test_the_absolute_differences_are_summed_and_divided_by_the_items() -> None:
    a, b = numbers(3, 4, 2), numbers(3, 8, seed=1)
    agree('type: "L1Loss"', lambda x, y: np.array(np.abs(x.reshape(3, 8) - y.reshape(3, 8)).sum() / 3), a, b, gradients=(0, 1))
