"""Which positions of a layer's bottoms one position of its tops is computed from, along one spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class AxisWindow:
    """Position j of a top depends on the bottom's positions ceil((step · j + first) / up) to floor((step · j + last) / up).

    Attributes:
        step: Stride of a convolution or pooling; 1 for a transposed convolution.
        first, last: Ends of the window of position 0, before the division by ``up``; negative ones are padding.
        up: Stride of a transposed convolution; else 1.
    """

    step: int = 1
    first: int = 0
    last: int = 0
    up: int = 1

    @property
    def scale(self) -> Fraction:
        """Positions of the bottom for each position of the top."""
        return Fraction(self.step, self.up)

    def span(self, position: int) -> tuple[int, int]:
        """Return the first and last position of the bottom that ``position`` depends on; one that depends on none gets its neighbours."""
        low, high = -((-self.step * position - self.first) // self.up), (self.step * position + self.last) // self.up
        return min(low, high), max(low, high)


Windows = tuple[AxisWindow, AxisWindow]

# Each position by itself.
POINTWISE: Windows = (AxisWindow(), AxisWindow())


def convolved(kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int] = (1, 1)) -> Windows:
    """Return the windows of a convolution or pooling over height and width."""
    rows, columns = (AxisWindow(s, -p, (k - 1) * d - p) for k, s, p, d in zip(kernel, stride, pad, dilation, strict=True))
    return rows, columns


def deconvolved(kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int] = (1, 1)) -> Windows:
    """Return the windows of a transposed convolution over height and width."""
    rows, columns = (AxisWindow(1, p - (k - 1) * d, p, s) for k, s, p, d in zip(kernel, stride, pad, dilation, strict=True))
    return rows, columns


def repeated(scale: int) -> Windows:
    """Return the windows of a layer whose tops are ``scale`` times as large both ways: position j depends on j / scale, rounded down."""
    axis = AxisWindow(1, 1 - scale, 0, scale)
    return axis, axis


def interpolated(zoom: int) -> Windows:
    """Return the windows of an interpolation at multiples of 1 / ``zoom``: position j depends on the two neighbours of j / zoom."""
    axis = AxisWindow(1, 1 - zoom, zoom - 1, zoom)
    return axis, axis


def is_power_of_2(number: int) -> bool:
    """Return whether ``number`` is 1, 2, 4, …"""
    return number > 0 and number & (number - 1) == 0
