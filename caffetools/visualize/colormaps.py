"""Numbers as colours that colour-blind readers can distinguish: viridis for magnitudes, purple to orange for signed values."""

from __future__ import annotations

from functools import cache
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_MAGNITUDE, _SIGNED = "viridis", "PuOr_r"


def magnitude_colours(values: NDArray[Any]) -> Pixels:
    """Return (..., 3) uint8 RGB for values from 0 (dark blue) to 1 (yellow); others are clipped."""
    return _look_up(_MAGNITUDE, np.asarray(values, np.float64))


def signed_colours(values: NDArray[Any]) -> Pixels:
    """Return (..., 3) uint8 RGB for values from -1 (purple) over 0 (near white) to 1 (orange); others are clipped."""
    return _look_up(_SIGNED, (np.asarray(values, np.float64) + 1) / 2)


def scaled_colours(values: NDArray[Any], largest: float | None = None) -> Pixels:
    """Colour an array of any shape by its own range: magnitudes where no value is negative, else signed around 0.

    Args:
        values: Finite numbers.
        largest: The absolute value at the end of the colours; None takes the array's own.

    Returns:
        (..., 3) uint8 RGB.
    """
    array = np.asarray(values, np.float64)
    peak = float(np.abs(array).max(initial=0.0)) if largest is None else largest
    unit = array / (peak or 1.0)
    return signed_colours(unit) if array.size and array.min() < 0 else magnitude_colours(unit)


def overlay(picture: Pixels, heat: NDArray[Any], *, strength: float = 0.6) -> Pixels:
    """Lay a heat map over a picture: where the map is low the picture remains, grey.

    Args:
        picture: (H, W, 3) RGB.
        heat: (H, W), scaled by its largest absolute value.
        strength: Opacity of the map, 0 to 1.
    """
    colours = scaled_colours(heat).astype(np.float64)
    grey = (picture.astype(np.float64) @ (0.299, 0.587, 0.114))[..., None]
    return np.asarray(np.rint((1 - strength) * grey + strength * colours), np.uint8)


def heat_of(attribution: NDArray[Any]) -> NDArray[np.float64]:
    """Return an attribution (C, H, W) as one map (H, W), the largest absolute value over the channels; (H, W) is returned as it is."""
    array = np.asarray(attribution, np.float64)
    return array if array.ndim == 2 else np.abs(array).max(axis=0)


@cache
def _table(name: str) -> Pixels:
    return np.asarray(np.rint(matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255), np.uint8)


def _look_up(name: str, unit: NDArray[np.float64]) -> Pixels:
    # Three times as fast as an index of 8 bytes.
    return np.take(_table(name), np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8), axis=0)
