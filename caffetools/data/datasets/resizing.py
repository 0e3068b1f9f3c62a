"""Resizing pictures to one size in the four ways that DIGITS offers."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from caffetools.data.images import Pixels, resize
from caffetools.errors import DataError

ResizeMode = Literal["squash", "crop", "fill", "half-crop"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)


def check_resize_mode(mode: str) -> ResizeMode:
    """Return ``mode``. Raises :class:`DataError` if it is unknown."""
    for known in RESIZE_MODES:
        if mode == known:
            return known
    raise DataError(f"the resize mode '{mode}' is unknown; it can be {', '.join(RESIZE_MODES)}")


def resize_to(image: Pixels, size: tuple[int, int], mode: ResizeMode = "squash") -> Pixels:
    """Return ``image`` (H, W[, C]), uint8, at ``size``.

    Args:
        image: The picture.
        size: (width, height) in pixels.
        mode: ``squash``: change its aspect ratio, as convert_imageset does. ``crop``: cover the size and cut off what is too much at
            both ends. ``fill``: fit into the size and fill the rest with black (DIGITS fills with noise). ``half-crop``: halfway
            between the last two.

    Source: ``digits.utils.image.resize_image`` of DIGITS; interpolation is Caffe's, bilinear.
    """
    height, width = image.shape[:2]
    ratios = width / size[0], height / size[1]
    if mode == "squash" or ratios[0] == ratios[1]:
        return resize(image, size)
    ratio = {"crop": min(ratios), "fill": max(ratios), "half-crop": sum(ratios) / 2}[mode]
    scaled = resize(image, (max(1, round(width / ratio)), max(1, round(height / ratio))))
    return _centered(scaled, size)


def _centered(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Return the middle of ``image`` at ``size`` (width, height), with black where it is smaller."""
    result = np.zeros((size[1], size[0], *image.shape[2:]), np.uint8)
    source, target = [], []
    for have, want in zip(image.shape[:2], (size[1], size[0]), strict=True):
        length = min(have, want)
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
        target.append(slice((want - length) // 2, (want - length) // 2 + length))
    result[tuple(target)] = image[tuple(source)]
    return result
