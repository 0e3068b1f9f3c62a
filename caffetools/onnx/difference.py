"""Differences of arrays: the largest error of one against another, compared in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.layers.base import Shape

Array = NDArray[Any]

# The error of the ONNX model may be FACTOR times that of the float32 engine, plus FLOOR times the blob's largest value.
FACTOR, FLOOR = 4.0, 1e-6
# Below this a blob is as good as zero.
SMALLEST_SCALE = 1e-30
# Values that are compared at a time.
_PIECE = 2**16
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Difference:
    """The largest error of one blob of the ONNX model.

    Attributes:
        blob: Its name.
        error: Largest absolute difference of the ONNX model from float64, at index ``where``.
        float32_error: Largest absolute difference of the float32 engine from float64.
        scale: Largest absolute value of the blob in float64.
        where: Index of ``error``.
        expected: The float64 value there.
        got: The ONNX model's value there.
        is_output: Whether the blob is an output of the model.
    """

    blob: str
    error: float
    float32_error: float
    scale: float
    where: tuple[int, ...] = ()
    expected: float = 0.0
    got: float = 0.0
    is_output: bool = True

    @property
    def allowed(self) -> float:
        """The largest absolute error allowed."""
        return FACTOR * self.float32_error + FLOOR * self.scale

    @property
    def relative(self) -> float:
        """``error`` divided by ``scale``."""
        return self.error / max(self.scale, SMALLEST_SCALE) if self.error else 0.0

    @property
    def relative_float32(self) -> float:
        """``float32_error`` divided by ``scale``."""
        return self.float32_error / max(self.scale, SMALLEST_SCALE) if self.float32_error else 0.0

    @property
    def passed(self) -> bool:
        """Whether the error is within what is allowed."""
        return self.error <= self.allowed

    def joined(self, other: Difference) -> Difference:
        """Return the larger errors of two measurements of one blob."""
        worse = max(self, other, key=lambda d: d.error)
        return Difference(
            self.blob,
            worse.error,
            max(self.float32_error, other.float32_error),
            max(self.scale, other.scale),
            worse.where,
            worse.expected,
            worse.got,
            self.is_output,
        )


def measure(blob: str, expected: Array, single: Array | None, got: Array, *, is_output: bool = True) -> Difference:
    """Return the largest error of ``got`` against ``expected`` (float64), and of ``single`` (float32); shapes are equal.

    Values that are too large for float32 count as infinite. Equal infinities, and two NaN, are equal.
    """
    if not expected.size:
        return Difference(blob, 0.0, 0.0, 0.0, is_output=is_output)
    largest = _largest(expected)
    error = _largest_gap(expected, got)
    own = 0.0 if single is None or single.shape != expected.shape else _largest_gap(expected, single)
    if largest < _LARGEST_FLOAT32 and math.isfinite(error) and math.isfinite(own):
        quick = Difference(blob, error, own, largest, is_output=is_output)
        if quick.passed and not is_output:
            return quick
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = expected.astype(np.float32)
    finite = np.isfinite(rounded)
    scale = float(np.abs(expected[finite]).max()) if finite.any() else 0.0
    own = 0.0 if single is None or single.shape != expected.shape else float(_gaps(expected, rounded, single).max())
    gaps = _gaps(expected, rounded, got)
    where = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
    place = tuple(int(i) for i in where)
    return Difference(blob, float(gaps[where]), own, scale, place, float(expected[where]), float(got[where]), is_output)


def _largest(values: Array) -> float:
    """Return the largest absolute value; NaN where there is one."""
    values = np.atleast_1d(values)
    return float(np.max([float(torch.from_numpy(values[place]).abs().max()) for place in _pieces(values.shape)]))


def _largest_gap(expected: Array, got: Array) -> float:
    """Return the largest absolute difference; not finite where a value is not."""
    expected, got = np.atleast_1d(expected, got)
    places = _pieces(expected.shape)
    return float(np.max([float((torch.from_numpy(expected[p]) - torch.from_numpy(got[p])).abs_().max()) for p in places]))


def _pieces(shape: Shape) -> Iterator[tuple[slice, ...]]:
    """Yield the places of pieces of an array, along its longest axis, so that large ones are compared in little memory."""
    axis = int(np.argmax(shape))
    step = max(1, _PIECE * shape[axis] // math.prod(shape))
    for start in range(0, shape[axis], step):
        yield (*[slice(None)] * axis, slice(start, start + step))


def is_finite(values: Array) -> bool:
    """Return whether all values are finite in float32."""
    return _largest(values) <= _LARGEST_FLOAT32 if values.size else True


def _gaps(expected: Array, rounded: Array, got: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        gaps: Array = np.abs(expected - got.astype(np.float64))
        same = (rounded == got) | (np.isnan(rounded) & np.isnan(got))
    gaps = np.where(same & ~np.isfinite(rounded), 0.0, gaps)
    return np.where(np.isnan(gaps), np.inf, gaps)
