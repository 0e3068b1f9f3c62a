"""Pictures as data URIs."""

from __future__ import annotations

import base64
import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import decode_image, read_bytes
from caffetools.errors import DataError
from caffetools.results import Picture
from caffetools.visualize import style
from caffetools.visualize.style import PathLike

_SIDE = 168  # pixels of the longer side: twice what the page shows, for sharp displays
_LARGEST_WEBP = 16_383  # pixels of a side
# Of a thumbnail within a budget: what a photograph takes at the best of the qualities, which are tried in turn.
_BYTES_PER_PIXEL = 0.25
_SMALLEST_SIDE = 48
_QUALITIES = (85, 70, 55, 40, 25, 10)


def thumbnail(picture: Picture) -> tuple[str, bool]:
    """Return a data URI of the picture, at most 168 pixels wide and high, and whether it is so small that it needs hard pixel edges.

    Args:
        picture: A picture file, or (H, W) grey or (H, W, 3) RGB, uint8.

    Raises:
        DataError: the file is not a readable picture, or the array has another shape or type.
    """
    image = _within(_read(picture) if isinstance(picture, str | os.PathLike) else _as_bgr(picture), _SIDE)
    small = max(image.shape[:2]) <= 64
    kind, options = (".png", []) if small else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 86])
    _, data = cv2.imencode(kind, image, options)
    return data_uri(data.tobytes(), "image/png" if small else "image/jpeg"), small


def thumbnail_within(picture: NDArray[np.uint8], budget: int) -> str:
    """Return a data URI of the picture in about ``budget`` bytes: as many pixels, and as good, as that allows.

    Args:
        picture: (H, W) grey or (H, W, 3) RGB.
        budget: In bytes. What cannot be made so small is 48 pixels wide or high at the lowest quality.
    """
    webp = cv2.haveImageWriter(".webp")
    ending, option = (".webp", cv2.IMWRITE_WEBP_QUALITY) if webp else (".jpg", cv2.IMWRITE_JPEG_QUALITY)
    side = int(np.clip(np.sqrt(budget / _BYTES_PER_PIXEL), _SMALLEST_SIDE, _SIDE))
    image = _within(_as_bgr(picture), side)
    for quality in _QUALITIES:
        _, data = cv2.imencode(ending, image, [option, quality])
        if len(data) <= budget:
            break
    return data_uri(data.tobytes(), "image/webp" if webp else "image/jpeg")


def lossless(image: NDArray[np.uint8]) -> str:
    """Return a data URI of (H, W, 3 or 4) RGB or RGBA uint8, as WebP or PNG without loss, the smaller one."""
    pixels = np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, 0])
    if max(pixels.shape[:2]) > _LARGEST_WEBP or not cv2.haveImageWriter(".webp"):
        return data_uri(data.tobytes(), "image/png")
    _, other = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])  # above 100 is without loss
    return data_uri(other.tobytes(), "image/webp") if len(other) < len(data) else data_uri(data.tobytes(), "image/png")


def one_for_both_themes(light: NDArray[np.uint8], dark: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return a bitmap that shows ``light`` on our light ground and ``dark`` on our dark one; None where no single bitmap does.

    Where the two differ, they have to show the ground, which becomes transparent.

    Args:
        light: (H, W, 3 or 4) RGB or RGBA.
        dark: The same shape.
    """
    if light.shape != dark.shape:
        return None
    differ = (light != dark).any(axis=2)
    if not differ.any():
        return light[..., :3] if (light[..., 3:] == 255).all() else light
    grounds = zip((light, dark), (style.LIGHT, style.DARK), strict=True)
    if not all((image[differ, :3] == style.rgb(theme.background)).all() and (image[..., 3:] == 255).all() for image, theme in grounds):
        return None
    alpha = np.where(differ, 0, 255).astype(np.uint8)
    return np.dstack([np.where(differ[..., None], 0, light[..., :3]).astype(np.uint8), alpha])


def data_uri(data: bytes, mime: str) -> str:
    """Return ``data`` as an address that holds it."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _within(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return image
    size = max(1, round(width * side / longer)), max(1, round(height * side / longer))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _read(path: PathLike) -> NDArray[np.uint8]:
    return decode_image(read_bytes(path), what=os.fspath(path))


def _as_bgr(picture: NDArray[Any]) -> NDArray[np.uint8]:
    image = np.asarray(picture)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise DataError(f"a sample's picture must be (H, W) or (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
