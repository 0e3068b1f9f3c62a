"""Sample pictures for a bundle, drawn from a seed: gradients, discs and stripes that no codec or resizing changes much."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def draw_samples(count: int = 4, size: tuple[int, int] = (320, 240), seed: int = 0) -> dict[str, Pixels]:
    """Return ``count`` pictures by file name, uint8 (H, W, 3) BGR.

    Args:
        count: Number of pictures.
        size: (width, height) in pixels.
        seed: Seed of colors and shapes; the same seed gives the same pictures.
    """
    random = np.random.default_rng(seed)
    return {f"sample_{number}.png": _draw(random, size) for number in range(count)}


def _draw(random: np.random.Generator, size: tuple[int, int]) -> Pixels:
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / width, y / height
    start, stop, disc, stripe = random.uniform(0, 255, (4, 3))
    slope = 0.5 + 0.5 * np.sin(2 * math.pi * (x * random.uniform(0.3, 1) + y * random.uniform(0.3, 1)))
    image = start + (stop - start) * slope[..., None]
    center_x, center_y, radius = random.uniform(0.3, 0.7), random.uniform(0.3, 0.7), random.uniform(0.15, 0.3)
    image = _blend(image, disc, np.clip((radius - np.hypot(x - center_x, (y - center_y) * height / width)) * 40, 0, 1))
    image = _blend(image, stripe, np.clip(np.sin(2 * math.pi * random.uniform(3, 6) * (x - y)) * 2 - 1, 0, 1) * 0.6)
    return np.rint(image).clip(0, 255).astype(np.uint8)


def _blend(image: NDArray[np.float64], color: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return image + (color - image) * share[..., None]
