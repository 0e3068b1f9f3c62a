"""Native kernels for pictures of bytes (``native/pixels.cpp``): crops into a batch of float32, and sums of pictures.

Everything here has a twin in NumPy and OpenCV that gives the same bits. They are not used where the library was not built, and where
``CAFFETOOLS_NATIVE`` is 0.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.util.native_library import library_file, load_library, switched_off

_VERSION = 2
# Integers up to this one are exact in float32.
_WHOLE = 1 << 24
# A picture, the top and left of its crop, those in the mean, and whether it is flipped.
Crop = tuple[NDArray[Any], int, int, int, int, int]


class _Transform(ctypes.Structure):
    """``Transform`` of native/pixels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels", "height", "width", "interleaved")),
        *((name, ctypes.c_void_p) for name in ("mean", "flipped")),
        *((name, ctypes.c_int64) for name in ("mean_height", "mean_width")),
        ("values", ctypes.c_void_p),
        ("scale", ctypes.c_float),
    ]


class NativeTransform:
    """Crop, flip, subtract and scale pictures of bytes. Safe to use from several threads.

    Args:
        mean: (C, H, W) float32, or None.
        values: One for each channel, one for all, or none; float32.
        scale: The factor.
    """

    def __init__(self, mean: NDArray[np.float32] | None, values: NDArray[np.float32], scale: float):
        self._mean, self._values, self._scale = mean, values, scale
        # By whether the batch has its channels last: the mean in that order, and flipped.
        self._means: dict[bool, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def fill(self, out: NDArray[np.float32], crops: Sequence[Crop], *, interleaved: bool) -> bool:
        """Compute a batch.

        Args:
            out: (N, h, w, C) if ``interleaved``, else (N, C, h, w); float32, contiguous.
            crops: N pictures (C, H, W), uint8, with windows of h x w that lie within them and within the mean.
            interleaved: Whether ``out`` has the channels last, for pictures of three channels.

        Returns:
            False if the library cannot do it.
        """
        library = pixels_library()
        if library is None:
            return False
        channels, height, width = (out.shape[3], *out.shape[1:3]) if interleaved else out.shape[1:]
        mean, flipped = self._ordered(interleaved)
        values = np.broadcast_to(self._values, channels).copy() if self._values.size else None
        transform = _Transform(channels, height, width, interleaved, scale=self._scale)
        if mean is not None and flipped is not None and self._mean is not None:
            transform.mean, transform.flipped = mean.ctypes.data, flipped.ctypes.data
            transform.mean_height, transform.mean_width = self._mean.shape[1:]
        if values is not None:
            transform.values = values.ctypes.data
        table = np.array([_crop(*crop) for crop in crops], np.int64)
        return not library.caffetools_pixels_transform(ctypes.byref(transform), table.ctypes.data, len(table), out.ctypes.data)

    def _ordered(self, interleaved: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
        if self._mean is None:
            return None, None
        found = self._means.get(interleaved)
        if found is None:
            mean = self._mean.transpose(1, 2, 0) if interleaved else self._mean
            flipped = self._mean[:, :, ::-1].transpose(1, 2, 0) if interleaved else self._mean[:, :, ::-1]
            found = self._means[interleaved] = np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(flipped, np.float32)
        return found


def add_pictures(addresses: NDArray[np.uint64], sums: NDArray[np.float32], added: int | None = None) -> bool:
    """Add pictures to ``sums``, one after the other, in float32.

    One thread adds as fast as it can read; a second one gains less than it costs to wake it.

    Args:
        addresses: Where the pictures' bytes lie in memory, ``sums.size`` of each.
        sums: Contiguous.
        added: Number of pictures of bytes that ``sums`` holds, if nothing else was added to it: as long as no sum needs rounding, they are
            added as integers, in half the time.

    Returns:
        False if the library cannot do it.
    """
    library = pixels_library()
    if library is None:
        return False
    whole = added is not None and 255 * (added + len(addresses)) <= _WHOLE
    library.caffetools_pixels_sum(addresses.ctypes.data, len(addresses), sums.size, sums.ctypes.data, whole)
    return True


def addresses_of(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Return where the values of ``arrays`` begin in memory."""
    return np.array([array.__array_interface__["data"][0] for array in arrays], np.uint64)


def _crop(picture: NDArray[Any], top: int, left: int, mean_top: int, mean_left: int, flip: int) -> tuple[int, ...]:
    channel, row, column = picture.strides
    address = picture.__array_interface__["data"][0] + top * row + left * column
    return address, channel, row, column, mean_top, mean_left, flip


def pixels_library() -> ctypes.CDLL | None:
    """Return the library; None if it was not built, is of another version, or is switched off."""
    return None if switched_off() else _library()


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(library_file("_pixels"), "caffetools_pixels_version", _VERSION)
    if library is None:
        return None
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    library.caffetools_pixels_transform.argtypes = [pointer, pointer, whole, pointer]
    library.caffetools_pixels_sum.argtypes = [pointer, whole, whole, pointer, whole]
    library.caffetools_pixels_sum.restype = None
    return library
