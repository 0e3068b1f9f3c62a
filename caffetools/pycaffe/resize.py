"""Resizing pictures as ``caffe.io`` does, with the results of the scikit-image and SciPy releases of Caffe's time: no anti-aliasing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError

Array = NDArray[np.float32]


def resize_image(im: NDArray[Any], new_dims: Sequence[int] | NDArray[Any], interp_order: int = 1) -> Array:
    """Resize a picture.

    Args:
        im: The picture (H, W, C). One or three channels are sampled at pixel centres, with the picture's minimum outside of it;
            another number of channels with the corners of both pictures aligned (SciPy's zoom).
        new_dims: (height, width); the number of channels may follow.
        interp_order: 1 is linear, 0 takes the nearest pixel.

    Returns:
        float32 (height, width, C).

    Raises:
        DataError: Another order, or a picture that does not have three axes.
    """
    if interp_order not in (0, 1):
        raise DataError(f"resize_image: interp_order {interp_order} is not supported; 0 (nearest) and 1 (linear) are")
    if im.ndim != 3:
        raise DataError(f"resize_image needs a picture of height x width x channels, not of {im.ndim} axes")
    height, width, *channels = (int(n) for n in new_dims)
    if channels not in ([], [im.shape[-1]]):
        raise DataError(f"resize_image keeps the number of channels, {im.shape[-1]}; new_dims is (height, width), not {tuple(new_dims)}")
    picture = im.astype(np.float64)
    low, high = float(picture.min()), float(picture.max())
    if im.shape[-1] not in (1, 3):
        rows, columns = _aligned(height, im.shape[0]), _aligned(width, im.shape[1])
        return _sample(picture, rows, columns, interp_order).astype(np.float32)
    if low == high:
        return np.full((height, width, im.shape[-1]), low, np.float32)
    # Outside of the picture there is a border of its minimum.
    picture = np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=low)
    rows, columns = _centred(height, im.shape[0]) + 1, _centred(width, im.shape[1]) + 1
    return _sample(picture, rows, columns, interp_order).astype(np.float32)


def resize(image: NDArray[Any], output_shape: Sequence[int], order: int | None = 1, *more: object, **options: object) -> NDArray[Any]:
    """Resize a picture as ``skimage.transform.resize``, which ``caffe.io`` has: by scikit-image where it is installed.

    Args:
        image: (H, W) or (H, W, C); integers are scaled to [0, 1], unless ``preserve_range`` is set.
        output_shape: (height, width), or with the channels.
        order: 1 is linear, 0 takes the nearest pixel; others need scikit-image.
        more: Further arguments of scikit-image, by position: ``mode``, ``cval``, ``clip``, ``preserve_range`` …
        options: The same by name.

    Returns:
        float64, (height, width) or (height, width, C).

    Raises:
        DataError: Another order without scikit-image.
    """
    try:
        of_skimage = importlib.import_module("skimage.transform").resize
    except ImportError:
        keep = bool(more[3] if len(more) > 3 else options.get("preserve_range"))
        scale = 1.0 if keep or not np.issubdtype(image.dtype, np.integer) else float(np.iinfo(image.dtype).max)
        grey = image.ndim == 2
        result = resize_image((image[:, :, None] if grey else image) / scale, output_shape[:2], 1 if order is None else order).astype(
            np.float64
        )
        return result[:, :, 0] if grey else result
    return np.asarray(of_skimage(image, output_shape, order, *more, **options))


def zoom(input: NDArray[Any], zoom: float | Sequence[float], *more: object, **options: object) -> NDArray[Any]:
    """Zoom an array of any shape by SciPy (``scipy.ndimage.zoom``), which ``caffe.io`` has. Raises :class:`DataError` without SciPy."""
    try:
        of_scipy = importlib.import_module("scipy.ndimage").zoom
    except ImportError:
        raise DataError("caffe.io.zoom needs the package scipy (pip install scipy); resize_image works without it") from None
    return np.asarray(of_scipy(input, zoom, *more, **options))


def _centred(new: int, old: int) -> NDArray[Any]:
    """Return the coordinates, in ``old`` pixels, of the centres of ``new`` pixels."""
    places: NDArray[Any] = (np.arange(new) + 0.5) * (old / new) - 0.5
    return places


def _aligned(new: int, old: int) -> NDArray[Any]:
    """Return the coordinates, in ``old`` pixels, of ``new`` pixels whose first and last are the old ones."""
    places: NDArray[Any] = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    return places


def _sample(picture: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], order: int) -> NDArray[Any]:
    """Return ``picture`` at every row and column given; both lie inside of it."""
    if order == 0:
        nearest: NDArray[Any] = picture[_rounded(rows)[:, None], _rounded(columns)[None, :]]
        return nearest
    down = _between(picture, rows, 0)
    return _between(down, columns, 1)


def _rounded(places: NDArray[Any]) -> NDArray[np.intp]:
    return np.floor(places + 0.5).astype(np.intp)


def _between(picture: NDArray[Any], places: NDArray[Any], axis: int) -> NDArray[Any]:
    size = picture.shape[axis]
    first = np.clip(np.floor(places).astype(np.intp), 0, max(size - 2, 0))
    part = (places - first).reshape([-1 if a == axis else 1 for a in range(picture.ndim)])
    low, high = (np.take(picture, np.minimum(first + step, size - 1), axis) for step in (0, 1))
    between: NDArray[Any] = low * (1 - part) + high * part
    return between
