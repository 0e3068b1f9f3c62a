"""Mean, deviation and range of the values of each channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class ChannelStatistics:
    """Statistics of all pixels of the records with one number of channels and one type of values.

    Attributes:
        records: Number of records.
        mean: Mean of each channel.
        deviation: Standard deviation of each channel.
        minimum: Smallest value of each channel.
        maximum: Largest value of each channel.
    """

    records: int
    mean: list[float]
    deviation: list[float]
    minimum: list[float]
    maximum: list[float]


class Moments:
    """Mean and deviation of each channel over any number of arrays, merged pairwise (Chan et al., 1979): no squares of large sums.

    Args:
        channels: Number of channels.

    Attributes:
        channels: The same.
    """

    def __init__(self, channels: int):
        self.channels = channels
        self._records, self._pixels = 0, 0
        self._mean, self._squares = np.zeros(channels), np.zeros(channels)
        self._low, self._high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, array: NDArray[Any]) -> None:
        """Add a record of shape (C, …)."""
        planes = array.reshape(len(array), -1)
        count = planes.shape[1]
        total = self._pixels + count
        # Squares of values near the largest of float64 are infinite, as the deviation then is.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = planes.mean(axis=1, dtype=np.float64)
            squares = planes.var(axis=1, dtype=np.float64) * count
            difference = mean - self._mean
            self._squares += squares
            if self._pixels:
                self._squares += difference**2 * (self._pixels * count / total)
            self._mean += difference * (count / total)
        self._records, self._pixels = self._records + 1, total
        self._low, self._high = np.minimum(self._low, planes.min(axis=1)), np.maximum(self._high, planes.max(axis=1))

    def statistics(self) -> ChannelStatistics:
        """Return the statistics of what was added."""
        deviation = np.sqrt(self._squares / max(1, self._pixels))
        return ChannelStatistics(self._records, self._mean.tolist(), deviation.tolist(), self._low.tolist(), self._high.tolist())
