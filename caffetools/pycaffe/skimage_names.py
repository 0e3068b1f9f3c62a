"""The names of scikit-image that scripts for Caffe use through ``caffe.io.skimage``, for where scikit-image is not installed."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.pycaffe.pictures import load_image
from caffetools.pycaffe.resize import resize

PathLike = str | os.PathLike[str]


def img_as_float(image: NDArray[Any]) -> NDArray[np.float64]:
    """Return a picture as float64; integers are scaled to [0, 1]."""
    scale = float(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else 1.0
    return image.astype(np.float64) / scale


def img_as_float32(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return a picture as float32; integers are scaled to [0, 1]."""
    return img_as_float(image).astype(np.float32)


def _imread(fname: PathLike, as_gray: bool = False, **options: object) -> NDArray[Any]:
    """Read a picture: uint8 (H, W, 3) RGB, or float64 (H, W) in [0, 1] with ``as_gray``."""
    if as_gray:
        return np.asarray(load_image(fname, color=False)[:, :, 0], np.float64)
    return np.asarray(np.rint(load_image(fname) * 255), np.uint8)


def _imsave(fname: PathLike, arr: NDArray[Any], **options: object) -> None:
    """Write a picture (H, W) or (H, W, 3) RGB: uint8, or floats in [0, 1]. Raises :class:`DataError`."""
    import cv2

    pixels = arr if arr.dtype == np.uint8 else np.rint(np.clip(arr, 0, 1) * 255).astype(np.uint8)
    if not cv2.imwrite(os.fspath(fname), pixels[:, :, ::-1] if pixels.ndim == 3 else pixels):
        raise DataError("cannot write this picture", path=fname)


io = SimpleNamespace(imread=_imread, imsave=_imsave)
transform = SimpleNamespace(resize=resize)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"skimage.{name} needs scikit-image, which is not installed (pip install scikit-image)")
