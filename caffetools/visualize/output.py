"""Write a figure as PNG, as SVG, or as a page of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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


SUFFIXES = (".png", ".svg", ".html")


def check_suffix(path: PathLike, suffixes: Sequence[str] = SUFFIXES) -> str:
    """Return the suffix of a file to be drawn, in small letters. Raises :class:`DataError` where it is none of ``suffixes``."""
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        names = " or ".join(filter(None, [", ".join(suffixes[:-1]), suffixes[-1]]))
        what, which = ("pictures are", "one of these suffixes") if len(suffixes) > 1 else ("this is", "that suffix")
        raise DataError(f"{os.fspath(path)}: {what} written as {names}; give the file {which}")
    return suffix


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
    if check_suffix(path) != ".html":
        figure, caption = draw(LIGHT)
        style.save_figure(figure, path)
        return caption
    from caffetools.visualize.page import Drawing, write_page

    light, caption = draw(LIGHT)
    write_page(path, title, [Drawing(title, lambda theme: light if theme is LIGHT else draw(theme)[0], caption)])
    return caption


def read_rgb(path: PathLike) -> NDArray[np.uint8]:
    """Read a picture file at its own size: (H, W, 3) uint8 RGB. Raises :class:`DataError` naming the file."""
    return np.ascontiguousarray(read_image(path)[..., ::-1])


def save_pixels(path: PathLike, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 RGB as a PNG file, atomically. Raises :class:`DataError` for another suffix, and :class:`RunFailed`."""
    import cv2

    check_suffix(path, [".png"])
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    with atomic_write(path) as stream:
        stream.write(data.tobytes())
