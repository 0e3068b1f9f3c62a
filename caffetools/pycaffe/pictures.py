"""Reading pictures as ``caffe.io`` does: floats in [0, 1], RGB."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import decode_stored, read_bytes
from caffetools.pycaffe.errors import raised_also_as

PathLike = str | os.PathLike[str]
Array = NDArray[np.float32]

# The weights of red, green and blue in grey, in scikit-image and so in Caffe's module.
_GREY = (0.2125, 0.7154, 0.0721)


def load_image(filename: PathLike, color: bool = True) -> Array:
    """Read a picture.

    Args:
        filename: The file.
        color: Three channels (grey pictures are repeated, transparency is dropped); False gives one channel of grey.

    Returns:
        float32 (H, W, C) in [0, 1], RGB.

    Raises:
        DataError: The file is missing, not a picture, or of too many pixels; also an OSError.
    """
    with raised_also_as(OSError):
        image = decode_stored(read_bytes(filename), os.fspath(filename))
    values = image.astype(np.float64)
    if np.issubdtype(image.dtype, np.integer):
        values /= np.iinfo(image.dtype).max
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
        grey: Array = np.repeat(values, 3 if color else 1, axis=2).astype(np.float32)
        return grey
    rgb = values[:, :, 2::-1]
    if color:
        return np.ascontiguousarray(rgb, np.float32)
    weighed: Array = (rgb @ np.array(_GREY))[:, :, np.newaxis].astype(np.float32)
    return weighed
