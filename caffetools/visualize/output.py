"""Write a figure as PNG, as SVG, or as a page of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import read_image
from caffetools.errors import DataError
from caffetools.util.files import atomic_write
from caffetools.visualize import style
from caffetools.visualize.style import LIGHT, PathLike, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(path: PathLike, draw: Callable[[Theme], tuple[Figure, str]], *, title: str) -> str:
    """Write a figure atomically and return its caption.

    Args:
        path: .png or .svg for the picture alone, .html for a self-contained page with a light and a dark version.
        draw: Makes the figure and its caption for a theme.
        title: Of the page.

    Raises:
        DataError: another suffix.
        RunFailed: the file cannot be written. What ``draw`` raises is passed on, with nothing written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg", ".html"):
        raise DataError(f"{os.fspath(path)}: pictures are written as .png, .svg or .html; give the file one of these suffixes")
    if suffix != ".html":
        figure, caption = draw(LIGHT)
        style.save_figure(figure, path)
        return caption
    from caffetools.visualize.page import Drawing, write_page

    _, caption = draw(LIGHT)
    write_page(path, title, [Drawing(title, lambda theme: draw(theme)[0], caption)])
    return caption


def read_rgb(path: PathLike) -> NDArray[np.uint8]:
    """Read a picture file at its own size: (H, W, 3) uint8 RGB. Raises :class:`DataError` naming the file."""
    return np.ascontiguousarray(read_image(path)[..., ::-1])


def save_pixels(path: PathLike, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 RGB as a PNG file, atomically. Raises :class:`DataError` for another suffix, and :class:`RunFailed`."""
    import cv2

    if Path(path).suffix.lower() != ".png":
        raise DataError(f"{os.fspath(path)}: this picture is written as .png; give the file that suffix")
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    with atomic_write(path) as stream:
        stream.write(data.tobytes())
