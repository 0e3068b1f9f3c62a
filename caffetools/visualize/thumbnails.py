"""Pictures as data URIs."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.results import Picture
from caffetools.visualize.style import PathLike

_SIDE = 168  # pixels of the longer side: twice what the page shows, for sharp displays


def thumbnail(picture: Picture) -> tuple[str, bool]:
    """Return a data URI of the picture, at most 168 pixels wide and high, and whether it is so small that it needs hard pixel edges.

    Args:
        picture: A picture file, or (H, W) grey or (H, W, 3) RGB, uint8.

    Raises:
        DataError: the file is not a readable picture, or the array has another shape or type.
    """
    image = _read(picture) if isinstance(picture, str | os.PathLike) else _as_bgr(picture)
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > _SIDE:
        size = max(1, round(width * _SIDE / longer)), max(1, round(height * _SIDE / longer))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    small = longer <= 64
    kind, options = (".png", []) if small else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 86])
    _, data = cv2.imencode(kind, image, options)
    return data_uri(data.tobytes(), "image/png" if small else "image/jpeg"), small


def png(image: NDArray[np.uint8]) -> str:
    """Return a data URI of (H, W, 3) RGB uint8, unchanged."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, 0])
    return data_uri(data.tobytes(), "image/png")


def data_uri(data: bytes, mime: str) -> str:
    """Return ``data`` as an address that holds it."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _read(path: PathLike) -> NDArray[np.uint8]:
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot read: {error.strerror}") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise DataError(f"{os.fspath(path)}: not a picture that can be read")
    return np.asarray(image, np.uint8)


def _as_bgr(picture: NDArray[Any]) -> NDArray[np.uint8]:
    image = np.asarray(picture)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise DataError(f"a sample's picture must be (H, W) or (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
