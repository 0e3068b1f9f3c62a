"""What calibration keeps of each value of a net: its range and a histogram of its magnitudes, and the thresholds made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import NetError

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

BINS = 2048
# Magnitudes that an int8 has, with 0: what a histogram is reduced to when its threshold is searched.
_LEVELS = 128
# Of the 1921 possible thresholds each 8th is tried: their distance is 1/256 of the range.
_STEP = 8
# In place of an empty bin, so that the divergence is finite; as the tools for ncnn do.
_EMPTY = 1e-4


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(BINS, np.int64)


@dataclass
class ValueRange:
    """Statistics of one value of a net over all calibration images so far.

    The histogram begins with the first batch's largest magnitude; a larger one doubles the width of all bins. So the result depends
    on the order of the batches only through the width, and a resumed calibration gives the same numbers as one that ran through.

    Attributes:
        lowest: The smallest value.
        highest: The largest value.
        width: Width of a bin; 0 before the first magnitude above 0.
        counts: (2048,) int64: magnitudes above 0 in each bin.
    """

    lowest: float = 0.0
    highest: float = 0.0
    width: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=_no_counts)

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(-self.lowest, self.highest)

    def add(self, values: NDArray[Any], *, name: str = "") -> None:
        """Count ``values``.

        Args:
            values: float32, any shape.
            name: The value's name, for the error.

        Raises:
            NetError: One of them is not finite.
        """
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if not np.isfinite([low, high]).all():
            raise NetError("has values that are not finite, so it cannot be calibrated", blob=name)
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        largest = max(-low, high)
        if not largest:
            return
        if not self.width:
            self.width = largest / BINS
        while largest > self.width * BINS:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.width *= 2
        magnitudes = np.abs(values[values != 0].ravel()).astype(np.float64)
        bins = np.minimum((magnitudes / self.width).astype(np.int64), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def threshold(self, method: Method, percentile: float = 99.99) -> float:
        """Return the magnitude that becomes 127; larger ones are clipped. 0 for a value that is always 0.

        Args:
            method: ``minmax`` takes the largest magnitude; ``percentile`` the one that ``percentile`` % of the magnitudes above 0 do
                not exceed; ``entropy`` the one whose 128 levels lose least information (Kullback-Leibler divergence; Migacz, 8-bit
                inference with TensorRT, GTC 2017).
            percentile: Above 0, at most 100.
        """
        if method == "minmax" or not self.width:
            return self.largest
        if method == "percentile":
            within = np.cumsum(self.counts) >= self.counts.sum() * (percentile / 100)
            bins = int(np.argmax(within)) + 1.0
        else:
            bins = _least_divergence(self.counts) + 0.5
        return min(bins * self.width, self.largest)

    def clipped(self, method: Method, percentile: float = 99.99) -> tuple[float, float]:
        """Return the range (lowest, highest) that is represented; it holds 0."""
        threshold = self.threshold(method, percentile)
        return max(self.lowest, -threshold), min(self.highest, threshold)


def _least_divergence(counts: NDArray[np.int64]) -> int:
    """Return the number of bins below the best threshold."""
    used = int(np.nonzero(counts)[0][-1]) + 1
    ends = range(_LEVELS, max(used, _LEVELS) + _STEP, _STEP)
    divergences = [_divergence(counts, min(end, BINS)) for end in ends]
    return min(ends[int(np.argmin(divergences))], BINS)


def _divergence(counts: NDArray[np.int64], end: int) -> float:
    """Return the Kullback-Leibler divergence of the first ``end`` bins, clipped, from what 128 levels keep of them."""
    inside = counts[:end].astype(np.float64)
    clipped = inside.copy()
    clipped[-1] += counts[end:].sum()
    edges = np.linspace(0, end, _LEVELS + 1).astype(np.int64)
    filled = inside > 0
    sums = np.add.reduceat(inside, edges[:-1])
    numbers = np.add.reduceat(filled.astype(np.float64), edges[:-1])
    means = np.divide(sums, numbers, out=np.zeros_like(sums), where=numbers > 0)
    levels = np.where(filled, np.repeat(means, np.diff(edges)), 0.0)
    clipped[clipped == 0] = _EMPTY
    levels[levels == 0] = _EMPTY
    clipped /= clipped.sum()
    levels /= levels.sum()
    return float((clipped * np.log(clipped / levels)).sum())
