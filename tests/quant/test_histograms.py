"""Thresholds against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.errors import NetError
from caffetools.quant.histograms import BINS, ValueRange


def test_minmax_takes_the_largest_magnitude() -> None:
    value = ValueRange()
    value.add(np.array([[-3.0, 0.5], [2.0, 0.0]], np.float32))
    value.add(np.array([1.0], np.float32))
    assert value.threshold("minmax") == 3.0
    assert value.clipped("minmax") == (-3.0, 2.0)


def test_a_percentile_leaves_out_the_share_above_it() -> None:
    value = ValueRange()
    # 1000 magnitudes 1 … 1000; 1000 / 2048 is the width of a bin.
    value.add(np.arange(1, 1001, dtype=np.float32))
    assert value.threshold("percentile", 90) == pytest.approx(900, abs=1000 / BINS)
    assert value.threshold("percentile", 100) == 1000


def test_zeros_do_not_count_for_the_percentile() -> None:
    value = ValueRange()
    value.add(np.concatenate([np.zeros(100_000), np.arange(1, 1001)]).astype(np.float32))
    assert value.threshold("percentile", 50) == pytest.approx(500, abs=1000 / BINS)


def test_entropy_clips_a_rare_outlier_and_keeps_a_flat_distribution() -> None:
    random = np.random.default_rng(0)
    normal = random.standard_normal(200_000).astype(np.float32)
    value = ValueRange()
    value.add(np.append(normal, np.float32(40)))
    assert 2.4 < value.threshold("entropy") < 8
    flat = ValueRange()
    flat.add(random.uniform(-1, 1, 200_000).astype(np.float32))
    assert flat.threshold("entropy") > 0.9


def test_a_value_that_is_always_0_has_no_threshold() -> None:
    value = ValueRange()
    value.add(np.zeros(5, np.float32))
    assert [value.threshold("minmax"), value.threshold("entropy"), value.threshold("percentile")] == [0, 0, 0]


def test_a_value_that_is_not_finite_is_named() -> None:
    with pytest.raises(NetError, match="'fc7'"):
        ValueRange().add(np.array([np.nan], np.float32), name="fc7")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), min_size=1, max_size=5))
def test_no_magnitude_is_lost_when_the_bins_grow(batches: list[list[float]]) -> None:
    value = ValueRange()
    for batch in batches:
        value.add(np.array(batch, np.float32))
    everything = np.abs(np.array([x for batch in batches for x in batch], np.float32))
    assert value.counts.sum() == np.count_nonzero(everything)
    assert value.largest == everything.max()
    if value.width:
        # Bins that were merged hold what a histogram of their present width would hold, but for rounding at the edges.
        assert abs(
            int(value.counts[: BINS // 2].sum()) - int(np.count_nonzero((everything > 0) & (everything < value.width * BINS / 2)))
        ) <= len(everything[np.isclose(everything, value.width * BINS / 2, rtol=1e-5)])
