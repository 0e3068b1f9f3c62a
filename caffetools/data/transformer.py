"""Caffe's DataTransformer: crops, flips, mean and scale; one implementation for layers and commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.data.pixels_native import NativeTransform
from caffetools.data.random_resize import RandomResize
from caffetools.errors import DataError, ModelFileError
from caffetools.layers.base import format_shape
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.schema import TRAIN, TransformationParameter
from caffetools.util.buffers import ArrayPool
from caffetools.util.threads import cpu_count, parallel_for

Batch = NDArray[np.float32]
# The top and left of each picture's crop, and whether it is flipped.
Places = tuple[list[int], list[int], list[int]]
Window = tuple[slice, slice, slice]
# A picture, its crop's window, and whether it is flipped.
Item = tuple[NDArray[Any], Window, int]

# Below this many bytes of a batch, starting threads costs more than it gains.
_MIN_BYTES_FOR_THREADS = 1 << 24


@dataclass(frozen=True)
class DeferredBatch:
    """A batch before its arithmetic.

    Attributes:
        pixels: The crops (N, C, h, w), uint8.
        tops: First row of each crop in its picture (N).
        lefts: First column of each crop in its picture (N).
        flips: Whether to flip each crop left to right (N).
    """

    pixels: NDArray[np.uint8]
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    flips: NDArray[np.int64]


class Transformer:
    """Turn stored pictures (C, H, W) into a batch (N, C, h, w), float32, as Caffe's DataTransformer does.

    A crop is taken (at random in the TRAIN phase, from the center in the TEST phase), with ``mirror`` it is flipped left to right
    with probability 1/2 (in both phases), the mean is subtracted (of a mean file: at the crop's place), and the result is scaled.

    Args:
        param: A ``TransformationParameter``.
        phase: ``TRAIN`` or ``TEST``.

    Attributes:
        resize: NVCaffe's random resize before the crop; None for none.
        color: How encoded pictures are decoded: True (force_color), False (force_gray), None for what is stored. As in Caffe, it
            has no effect on pictures that are stored as pixels.

    Raises:
        DataError: Settings exclude each other, or the mean file cannot be read.
    """

    def __init__(self, param: TransformationParameter, phase: int):
        if param.force_color and param.force_gray:
            raise DataError("transform_param: force_color and force_gray exclude each other")
        if param.HasField("mean_file") and param.mean_value:
            raise DataError("transform_param: mean_file and mean_value exclude each other")
        self.color = True if param.force_color else False if param.force_gray else None
        self.crop, self.mirror = int(param.crop_size), bool(param.mirror)
        self.random_crop = phase == TRAIN
        self.scale = np.float32(param.scale)
        self.resize = RandomResize.of(param)
        self.values = np.array(param.mean_value, np.float32)
        self.mean: Batch | None = None
        if param.HasField("mean_file"):
            try:
                self.mean = _one_mean(read_binaryproto(param.mean_file), param.mean_file)
            except ModelFileError as error:
                raise DataError(f"transform_param: mean_file: {error}") from None
        self._native = NativeTransform(self.mean, self.values, float(self.scale))
        self._buffers = ArrayPool()

    def top_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the (C, h, w) that a picture of ``shape`` (C, H, W) becomes. Raises :class:`DataError` if it does not fit."""
        channels, height, width = shape
        if self.crop > min(height, width) and (self.resize is None or not self.resize.upscale):
            raise DataError(f"crop_size {self.crop} is larger than the picture ({width} x {height})")
        if self.values.size not in (0, 1, channels):
            raise DataError(f"{self.values.size} mean_value(s) for {channels} channel(s); give one, or one for each")
        if self.mean is not None and self.resize is not None:
            if self.mean.shape[0] != channels or min(self.mean.shape[1:]) < self.crop:
                raise DataError(
                    f"the mean file is of {format_shape(self.mean.shape)}, which does not cover {channels}x{self.crop}x{self.crop}"
                )
        elif self.mean is not None and self.mean.shape != shape:
            raise DataError(
                f"the mean file is for pictures of {format_shape(self.mean.shape)}, not {format_shape(shape)} (channels x height x width)"
            )
        return (channels, self.crop, self.crop) if self.crop else shape

    def __call__(self, pictures: Sequence[NDArray[Any]], rng: np.random.Generator) -> Batch:
        """Transform a batch.

        Args:
            pictures: (C, H, W) each, uint8 or float32; or one array (N, C, H, W).
            rng: Crops and flips are drawn from it, before any thread starts.

        Returns:
            (N, C, h, w), float32; with the channels last in memory for pictures of three channels of bytes.

        Raises:
            DataError: A picture does not fit the settings, or the results are not all of one shape.
        """
        pictures = self._resized(pictures, rng)
        items = list(self._windows(pictures, self._draw(pictures, rng)))
        shape = self.top_shape(pictures[0].shape)
        interleaved = shape[0] == 3 and all(picture.dtype == np.uint8 for picture in pictures)
        if interleaved:
            # Channels last in memory, as the net wants it.
            stored: Batch = self._buffers.take((len(items), *shape[1:], 3))
        else:
            stored = self._buffers.take((len(items), *shape))
        fill = partial(self._fill, stored, items, interleaved)
        parallel_for(fill, len(items), threads=cpu_count() if stored.nbytes > _MIN_BYTES_FOR_THREADS else 1)
        return stored.transpose(0, 3, 1, 2) if interleaved else stored

    def _fill(self, stored: Batch, items: list[Item], interleaved: bool, chosen: range) -> None:
        """Compute the pictures of the numbers ``chosen``."""
        part = items[chosen.start : chosen.stop]
        if all(picture.dtype == np.uint8 for picture, _, _ in part):
            crops = []
            for picture, window, flip in part:
                mean = self._mean_window(window)
                crops.append((picture, window[1].start, window[2].start, mean[1].start, mean[2].start, flip))
            if self._native.fill(stored[chosen.start : chosen.stop], crops, interleaved=interleaved):
                return
        (self._fill_rows if interleaved else self._fill_planes)(stored, items, chosen)

    def _fill_planes(self, planes: Batch, items: list[Item], chosen: range) -> None:
        for index in chosen:
            picture, window, flip = items[index]
            step = -1 if flip else 1
            plane = planes[index]
            plane[...] = picture[window][:, :, ::step]
            if self.mean is not None:
                plane -= self.mean[self._mean_window(window)][:, :, ::step]
            if self.values.size:
                plane -= self.values.reshape(-1, 1, 1)
            if self.scale != 1:
                plane *= self.scale

    def _fill_rows(self, rows: Batch, items: list[Item], chosen: range) -> None:
        """Do the same for pictures of three channels of bytes, whose batch has the channels last in memory."""
        mean = None if self.mean is None else self.mean.transpose(1, 2, 0).copy()
        constant = np.ascontiguousarray(np.broadcast_to(self.values, rows.shape[1:])) if self.values.size else None
        for index in chosen:
            picture, window, flip = items[index]
            row = rows[index]
            row[...] = _interleaved(picture[window], flip)
            if mean is not None:
                below = mean[self._mean_window(window)[1:]]
                row -= cv2.flip(below, 1) if flip else below
            if constant is not None:
                row -= constant
            if self.scale != 1:
                row *= self.scale

    def sample_crops(self, pictures: Sequence[NDArray[Any]], rng: np.random.Generator) -> DeferredBatch:
        """Return the crops of pictures of bytes, for a device to do the arithmetic; the draws are those of a call.

        Args:
            pictures: (C, H, W) each, uint8.
            rng: Crops and flips are drawn from it.

        Raises:
            DataError: A picture does not fit the settings, or the results are not all of one shape.
        """
        pictures = self._resized(pictures, rng)
        places = self._draw(pictures, rng)
        pixels = np.empty((len(pictures), *self.top_shape(pictures[0].shape)), np.uint8)
        for index, (picture, window, _) in enumerate(self._windows(pictures, places)):
            pixels[index] = picture[window]
        if self.mean is not None and self.resize is not None:
            middle = self._mean_window((slice(None), slice(0, 0), slice(0, 0)))
            places = ([middle[1].start] * len(pictures), [middle[2].start] * len(pictures), places[2])
        return DeferredBatch(pixels, *(np.array(values, np.int64) for values in places))

    def _resized(self, pictures: Sequence[NDArray[Any]], rng: np.random.Generator) -> Sequence[NDArray[Any]]:
        return pictures if self.resize is None else [self.resize(picture, rng) for picture in pictures]

    def _mean_window(self, window: Window) -> Window:
        """Return the part of the mean file for a crop: that of the crop's place, or, after a random resize, the middle, as in NVCaffe."""
        if self.resize is None or self.mean is None:
            return window
        top, left = ((side - self.crop) // 2 for side in self.mean.shape[1:])
        return slice(None), slice(top, top + self.crop), slice(left, left + self.crop)

    def _windows(self, pictures: Sequence[NDArray[Any]], places: Places) -> Iterator[Item]:
        """Yield each picture, its crop's window, and whether it is flipped."""
        shape = self.top_shape(pictures[0].shape)
        for index, (picture, top, left, flip) in enumerate(zip(pictures, *places, strict=True)):
            if self.top_shape(picture.shape) != shape:
                raise DataError(
                    f"picture {index} of the batch is {format_shape(picture.shape)}, the first is {format_shape(pictures[0].shape)} (channels x height "
                    "x width); resize them when building the database, set crop_size, or use batch_size 1"
                )
            yield picture, (slice(None), slice(top, top + shape[1]), slice(left, left + shape[2])), flip

    def _draw(self, pictures: Sequence[NDArray[Any]], rng: np.random.Generator) -> Places:
        """Draw the top and left of each picture's crop, and whether it is flipped."""
        count = len(pictures)
        flips = rng.integers(0, 2, count) if self.mirror else np.zeros(count, np.int64)
        room = np.array([picture.shape[1:] for picture in pictures]) - self.crop if self.crop else np.zeros((count, 2), np.int64)
        if room.min() < 0:
            room = np.maximum(room, 0)  # the caller raises the error, which names the picture
        offsets = rng.integers(0, room + 1) if self.crop and self.random_crop else room // 2
        return offsets[:, 0].tolist(), offsets[:, 1].tolist(), flips.tolist()


def _interleaved(planes: NDArray[np.uint8], flip: int) -> NDArray[np.uint8]:
    """Return pixels (3, h, w) as (h, w, 3), flipped left to right if ``flip``. OpenCV does both many values at a time."""
    # What OpenCV has decoded is a view of pixels that are interleaved already.
    pixels: Any = planes.transpose(1, 2, 0) if planes.strides[0] == 1 else cv2.merge(list(planes))
    return np.asarray(cv2.flip(np.ascontiguousarray(pixels), 1) if flip else pixels)


def _one_mean(mean: Batch, path: str) -> Batch:
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3:
        raise ModelFileError(f"{path}: a mean has the shape 1 x channels x height x width, not {format_shape(mean.shape)}")
    return mean
