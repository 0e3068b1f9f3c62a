"""NVCaffe's random resize of pictures before the crop: the fields of its transform_param."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.proto.schema import TransformationParameter

Range = tuple[float, float]
_RANGES = ("img_rand_resize", "rand_resize_ratio", "vertical_stretch", "horizontal_stretch")
FORK_FIELDS = frozenset(
    {
        *(f"{name}_{end}" for name in _RANGES for end in ("lower", "upper")),
        *("interpolation_algo_down", "interpolation_algo_up", "allow_upscale", "random_seed"),
    }
)
# TransformationParameter.InterpolationAlgo has OpenCV's own numbers.
_INTERPOLATION = {0: cv2.INTER_NEAREST, 1: cv2.INTER_LINEAR, 2: cv2.INTER_CUBIC, 3: cv2.INTER_AREA}
# Channels that cv2.resize takes together.
_TOGETHER = 4


class RandomResize:
    """Resize pictures to a random size, as data_transformer.cpp of NVIDIA's Caffe does (in both phases).

    The shorter side gets a length from ``img_rand_resize_lower`` to ``img_rand_resize_upper``; the longer one the shorter times a ratio
    from ``rand_resize_ratio_lower`` to ``rand_resize_ratio_upper`` (only if the upper is above 1); then both are stretched. No side becomes
    shorter than the crop, and none longer than it is unless ``allow_upscale`` is set. Pictures are taken with
    ``interpolation_algo_down`` if no side grows, else with ``interpolation_algo_up``.

    Args:
        param: A ``TransformationParameter`` with one of these fields.

    Raises:
        DataError: A range is impossible, or there is no ``crop_size`` to make pictures of one size.
    """

    def __init__(self, param: TransformationParameter):
        self.crop = int(param.crop_size)
        self.side = (int(param.img_rand_resize_lower), int(param.img_rand_resize_upper))
        self.ratio: Range = (param.rand_resize_ratio_lower, param.rand_resize_ratio_upper)
        self.vertical: Range = (param.vertical_stretch_lower, param.vertical_stretch_upper)
        self.horizontal: Range = (param.horizontal_stretch_lower, param.horizontal_stretch_upper)
        self.upscale = bool(param.allow_upscale)
        self.down, self.up = (_INTERPOLATION[int(n)] for n in (param.interpolation_algo_down, param.interpolation_algo_up))
        if not self.crop:
            raise DataError("transform_param: a random resize makes pictures of different sizes; set crop_size")
        if min(self.side) > 0 and self.side[0] > self.side[1]:
            raise DataError(f"transform_param: img_rand_resize_upper ({self.side[1]}) is below img_rand_resize_lower ({self.side[0]})")

    @classmethod
    def of(cls, param: TransformationParameter) -> RandomResize | None:
        """Return the resize that ``param`` asks for; None if it asks for none."""
        given = bool(param.img_rand_resize_lower or param.img_rand_resize_upper)
        given = given or any(param.HasField(f"{name}_{end}") for name in _RANGES[1:] for end in ("lower", "upper"))
        return cls(param) if given else None

    def draw_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the (height, width) for a picture of ``height`` x ``width``; the arithmetic is that of NVCaffe, in float32."""
        short = min(height, width)
        if min(self.side) > 0:
            short = int(rng.integers(self.side[0], self.side[1] + 1))
        scale = np.float32(short) / np.float32(min(height, width))
        rows, columns = scale * np.float32(height), scale * np.float32(width)
        if self.ratio[0] >= 1 and self.ratio[1] > 1:
            ratio = _between(self.ratio, rng)
            if columns > rows or (columns == rows and rng.integers(2)):
                columns = rows * ratio
            else:
                rows = columns * ratio
        if min(self.vertical) > 0:
            rows = rows * _between(self.vertical, rng)
        if min(self.horizontal) > 0:
            columns = columns * _between(self.horizontal, rng)
        sides = (max(self.crop, _rounded(rows)), max(self.crop, _rounded(columns)))
        return sides if self.upscale else (min(sides[0], height), min(sides[1], width))

    def __call__(self, picture: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Return a picture (C, H, W), uint8 or float32, resized to a size that is drawn."""
        height, width = picture.shape[1:]
        rows, columns = self.draw_size(height, width, rng)
        if (rows, columns) == (height, width):
            return picture
        interpolation = self.down if rows <= height and columns <= width else self.up
        if len(picture) > _TOGETHER:
            return np.stack([cv2.resize(plane, (columns, rows), interpolation=interpolation) for plane in picture])
        resized = cv2.resize(np.ascontiguousarray(picture.transpose(1, 2, 0)), (columns, rows), interpolation=interpolation)
        return resized[np.newaxis] if resized.ndim == 2 else resized.transpose(2, 0, 1)


def transform_seed(param: TransformationParameter, seed: int) -> int:
    """Return ``random_seed`` of NVCaffe's transform_param if it is 0 or more, else ``seed``."""
    return int(param.random_seed) if param.HasField("random_seed") and param.random_seed >= 0 else seed


def _between(limits: Range, rng: np.random.Generator) -> np.float32:
    value: np.float32 = np.float32(limits[0] if limits[0] == limits[1] else rng.uniform(min(limits), max(limits)))
    return value


def _rounded(value: np.float32) -> int:
    """Return ``value`` rounded as std::lround does: halves away from zero."""
    return math.floor(float(value) + 0.5)
