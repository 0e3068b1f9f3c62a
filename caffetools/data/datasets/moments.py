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


# Pixels of a plane, and channels, up to which sums of bytes are taken by OpenCV.
_MOST_PIXELS, _MOST_CHANNELS = 1 << 28, 64


class Moments:
    """Mean and deviation of each channel over any number of arrays.

    Sums of bytes and of their squares are exact integers. Other values are merged pairwise (Chan et al., 1979): no squares of large sums.

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
        # Of bytes: pixels, sums and sums of squares of each channel.
        self._byte_pixels = 0
        self._byte_sums, self._byte_squares = [0] * channels, [0] * channels

    def add(self, array: NDArray[Any]) -> None:
        """Add a record of shape (C, …)."""
        if array.dtype == np.uint8 and array.ndim == 3 and array[0].size <= _MOST_PIXELS and len(array) <= _MOST_CHANNELS:
            self._add_bytes(array)
            self._records += 1
            return
        planes = array.reshape(len(array), -1)
        # Squares of values near the largest of float64 are infinite, as the deviation then is.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = planes.mean(axis=1, dtype=np.float64)
            squares = planes.var(axis=1, dtype=np.float64) * planes.shape[1]
            self._merge(planes.shape[1], mean, squares)
        self._records += 1
        self._low, self._high = np.minimum(self._low, planes.min(axis=1)), np.maximum(self._high, planes.max(axis=1))

    def statistics(self) -> ChannelStatistics:
        """Return the statistics of what was added."""
        if pixels := self._byte_pixels:
            sums = list(zip(self._byte_sums, self._byte_squares, strict=True))
            # Integers without limits: nothing is rounded before the division.
            variance = np.array([(squares * pixels - total * total) / (pixels * pixels) for total, squares in sums])
            with np.errstate(over="ignore", invalid="ignore"):
                self._merge(pixels, np.array([total / pixels for total, _ in sums]), variance * pixels)
            self._byte_pixels, self._byte_sums, self._byte_squares = 0, [0] * self.channels, [0] * self.channels
        deviation = np.sqrt(self._squares / max(1, self._pixels))
        return ChannelStatistics(self._records, self._mean.tolist(), deviation.tolist(), self._low.tolist(), self._high.tolist())

    def _merge(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        """Add ``count`` pixels with the mean and the sum of squared differences from it of each channel."""
        total = self._pixels + count
        difference = mean - self._mean
        self._squares += squares
        if self._pixels:
            self._squares += difference**2 * (self._pixels * count / total)
        self._mean += difference * (count / total)
        self._pixels = total

    def _add_bytes(self, array: NDArray[np.uint8]) -> None:
        import cv2

        planes: Any = array
        if not array.flags.c_contiguous:
            # What OpenCV has decoded is a view of pixels that are interleaved.
            planes = cv2.split(np.ascontiguousarray(array.transpose(1, 2, 0)))
        count = array[0].size
        self._byte_pixels += count
        for channel, plane in enumerate(planes):
            mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(plane))
            # OpenCV adds integers up; what it divided is found again by rounding.
            self._byte_sums[channel] += round(mean * count)
            self._byte_squares[channel] += round((deviation * deviation + mean * mean) * count)
            if self._low[channel] > 0 or self._high[channel] < 255:
                low, high, _, _ = cv2.minMaxLoc(plane)
                self._low[channel], self._high[channel] = min(self._low[channel], low), max(self._high[channel], high)
