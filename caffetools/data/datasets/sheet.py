"""A contact sheet: a row of small pictures for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import encode_image
from caffetools.errors import DataError
from caffetools.util.files import atomic_write

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont


PathLike = str | os.PathLike[str]
# Pictures of a class on a sheet, and classes on it.
PER_CLASS, MOST_CLASSES = 8, 60
_SIDE, _GAP, _TITLE_WIDTH = 96, 6, 190
# Fonts of Linux, macOS and Windows with wide coverage; Pillow's own has Latin letters only.
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


class Tiles:
    """The first pictures of each label, for a sheet; None as label of those without one."""

    def __init__(self) -> None:
        self._tiles: dict[int | None, list[NDArray[Any]]] = {}

    def wants(self, label: int | None) -> bool:
        """Return whether there is room for a picture of ``label``."""
        row = self._tiles.get(label)
        return len(self._tiles) < MOST_CLASSES if row is None else len(row) < PER_CLASS

    def add(self, label: int | None, picture: NDArray[Any]) -> None:
        """Keep a picture (C, H, W), if there is room."""
        if self.wants(label):
            self._tiles.setdefault(label, []).append(picture)

    def write(self, path: PathLike, counts: Mapping[int, int], names: Sequence[str] | None, *, unlabelled: int = 0) -> None:
        """Write the sheet; see :func:`write_sheet`.

        Args:
            path: The image file to write.
            counts: Label → number of its pictures in all.
            names: Class names; label i at place i.
            unlabelled: Number of pictures without a label in all.
        """

        def title(label: int | None) -> str:
            if label is None:
                return f"no label ({unlabelled})"
            name = f" {names[label]}" if names is not None and 0 <= label < len(names) else ""
            return f"{label}{name} ({counts.get(label, 0)})"

        write_sheet(
            path, [(title(label), self._tiles[label]) for label in sorted(self._tiles, key=lambda label: (label is None, label or 0))]
        )


def write_sheet(path: PathLike, rows: Sequence[tuple[str, Sequence[NDArray[Any]]]]) -> tuple[int, int]:
    """Write an image with a row for each class: its title, then its pictures.

    Args:
        path: The image file to write, ``.png`` or ``.jpg``.
        rows: (title, pictures) of each class; pictures (C, H, W) in BGR order, gray or of any number of channels. Values that are not
            bytes are spread over 0 to 255.

    Returns:
        The sheet's (width, height) in pixels.

    Raises:
        DataError: There are no pictures.
        RunFailed: ``path`` cannot be written.
    """
    from PIL import Image, ImageDraw

    columns = max((len(pictures) for _, pictures in rows), default=0)
    if not columns:
        raise DataError("there are no pictures for the sheet", path=path)
    step = _SIDE + _GAP
    canvas = np.full((len(rows) * step + _GAP, _TITLE_WIDTH + columns * step + _GAP, 3), 255, np.uint8)
    for row, (_, pictures) in enumerate(rows):
        for column, picture in enumerate(pictures):
            tile = _tile(picture)
            top = _GAP + row * step + (_SIDE - tile.shape[0]) // 2
            left = _TITLE_WIDTH + column * step + (_SIDE - tile.shape[1]) // 2
            canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), _font()
    for row, (title, _) in enumerate(rows):
        draw.text((_GAP, _GAP + row * step + _SIDE // 2), _fitted(title, draw, font), fill=(0, 0, 0), font=font, anchor="lm")
    pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
    with atomic_write(path) as stream:
        stream.write(encode_image(pixels, Path(path).suffix or ".png"))
    return pixels.shape[1], pixels.shape[0]


def displayable(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array (C, H, W) of any type as RGB pixels (H, W, 3) to look at: values that are not bytes are spread over 0 to 255."""
    if array.dtype != np.uint8:
        finite = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(finite.min()), float(finite.max())
        array = ((finite - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    planes = array[2::-1] if len(array) >= 3 else np.repeat(array[:1], 3, axis=0)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _tile(picture: NDArray[Any]) -> NDArray[np.uint8]:
    import cv2

    pixels = displayable(picture)
    scale = _SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST), np.uint8)


def _font() -> Any:
    from PIL import ImageFont

    for name in _FONTS:
        try:
            return ImageFont.truetype(name, 13)
        except OSError:
            continue
    return ImageFont.load_default(13)


def _fitted(title: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return ``title``, shortened to the width of the first column."""
    text = "".join(letter if letter.isprintable() else "�" for letter in title)
    if draw.textlength(text, font=font) <= _TITLE_WIDTH - 2 * _GAP:
        return text
    while text and draw.textlength(text + "…", font=font) > _TITLE_WIDTH - 2 * _GAP:
        text = text[:-1]
    return text + "…"
