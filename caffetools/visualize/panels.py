"""Pictures with a title each, in rows on one sheet, laid out so that no text overlaps."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray

from caffetools.util.process_settings import warnings_ignored
from caffetools.visualize import style
from caffetools.visualize.style import LIGHT, Theme

_MARGIN, _GAP, _LINE, _HEAD = 24, 20, 22, 46  # pixels
TEXT_ROOM = 284  # pixels that a narrow picture's title and note may take
NUMBER, NUMBER_HEIGHT = 6.5, 18  # points and pixels of the numbers of a picture's rows and columns
PANEL_SIDE = 284  # pixels of the longer side of a panel's picture: four of them to a sheet


@dataclass(frozen=True)
class Panel:
    """A picture on a sheet.

    Attributes:
        image: (H, W, 3) RGB uint8, drawn dot for dot.
        title: Above it, shortened to its width (or 284 pixels, where it is narrower).
        note: Below it, each of its lines shortened likewise.
        good: Colours the note: True as right, False as wrong, None neither.
        rows, columns: Numbers at its left and upper edge: (middle in pixels, number); those that have room are drawn.
    """

    image: NDArray[np.uint8]
    title: str = ""
    note: str = ""
    good: bool | None = None
    rows: Sequence[tuple[float, int]] = ()
    columns: Sequence[tuple[float, int]] = ()

    @property
    def left(self) -> float:
        """The width in pixels of the numbers to the left of the picture."""
        return number_room(self.rows)

    @property
    def room(self) -> int:
        """The width in pixels that picture and text may take: a title needs some even over a small picture."""
        texts = [text for text in (self.title, *self.note.split("\n")) if text]
        wanted = max((round(text_width(text, style.SMALL)) + 1 for text in texts), default=1)
        return max(int(self.image.shape[1] + self.left), min(TEXT_ROOM, wanted))


@dataclass
class _Row:
    panels: list[Panel] = field(default_factory=list)
    lefts: list[int] = field(default_factory=list)
    width: int = 0

    @property
    def image_height(self) -> int:
        return max(int(panel.image.shape[0]) for panel in self.panels)

    @property
    def above(self) -> int:
        """The height of the numbers above the pictures."""
        return NUMBER_HEIGHT if any(panel.columns for panel in self.panels) else 0

    @property
    def height(self) -> int:
        titles = any(p.title for p in self.panels)
        return self.image_height + self.above + _LINE * titles + _LINE * max(len(p.note.split("\n")) if p.note else 0 for p in self.panels)


def panels_figure(
    panels: Sequence[Panel], title: str, caption: str = "", *, columns: int | None = None, width: int = 1232, theme: Theme = LIGHT
) -> Figure:
    """Lay out ``panels`` from left to right and then down.

    Args:
        panels: Pictures with their titles and notes; none leaves title and caption.
        title: Above all.
        caption: Below all, wrapped.
        columns: Panels in a row; None takes what fits into ``width`` pixels.
        width: The figure's width in pixels.
        theme: Colours.
    """
    rows = _rows(panels, columns, width) if panels else []
    full = max([680, *(row.width for row in rows)]) + 2 * _MARGIN
    lines = wrap(caption, full - 2 * _MARGIN, style.SMALL)
    total = _MARGIN + _HEAD + sum(row.height + _GAP for row in rows) + 24 * len(lines) + _MARGIN - _GAP // 2
    figure = style.new_figure(full / style.DPI, total / style.DPI, theme, fitted=False)
    write = _Writer(figure, full, total)
    write(_MARGIN, _MARGIN, shorten_to(title, full - 2 * _MARGIN, style.TITLE), style.TITLE, theme.text, bold=True)
    top = _MARGIN + _HEAD
    for row in rows:
        _draw_row(write, row, top, theme)
        top += row.height + _GAP
    for index, line in enumerate(lines):
        write(_MARGIN, top + 24 * index, line, style.SMALL, theme.muted)
    return figure


def enlarge(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) with the whole factor that brings its longer side up to at most ``side`` pixels, or reduced to ``side``."""
    longer = max(image.shape[:2])
    if longer <= side:
        factor = max(1, side // longer)
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    import cv2

    size = max(1, round(image.shape[1] * side / longer)), max(1, round(image.shape[0] * side / longer))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


_MEASURING = threading.Lock()


@lru_cache(maxsize=1 << 14)
def text_width(text: str, points: float, *, bold: bool = False) -> float:
    """Return the width of ``text`` in pixels at 144 pixels an inch, in the font of our figures."""
    # The font holds the text that it measures, so that one thread at a time may use it.
    with _MEASURING, warnings_ignored():
        font = _font(bold)
        font.set_size(points, style.DPI)
        # A letter that the font lacks is drawn as a box; there is nothing the reader could do about a warning.
        font.set_text(text)
        return float(font.get_width_height()[0]) / 64


def shorten_to(text: str, width: float, points: float, *, bold: bool = False) -> str:
    """Return ``text``, cut in the middle until it is at most ``width`` pixels wide."""
    length = len(text)
    while length > 1 and text_width(style.shorten(text, length), points, bold=bold) > width:
        length = min(length - 1, max(1, int(length * width / max(1.0, text_width(style.shorten(text, length), points, bold=bold)))))
    return style.shorten(text, length)


def wrap(text: str, width: float, points: float) -> list[str]:
    """Return the lines of ``text`` at most ``width`` pixels wide."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        letters = max(8, int(width / max(1.0, text_width("n", points))))
        lines += textwrap.wrap(paragraph, letters) or [""]
    return lines if text else []


def thinned(numbers: Sequence[tuple[float, int]], room: float) -> list[tuple[float, int]]:
    """Return numbers at least ``room`` pixels apart: every first, second, fourth, … of those that begin with the same number."""
    if len(numbers) < 2:
        return list(numbers)
    step = 1
    while step < len(numbers) and numbers[step][0] - numbers[0][0] < room:
        step *= 2
    unit = numbers[1][1] - numbers[0][1] or 1
    kept: list[tuple[float, int]] = []
    for middle, number in numbers:
        if number // unit % step == 0 and (not kept or middle - kept[-1][0] >= room):
            kept.append((middle, number))
    return kept


def number_room(numbers: Sequence[tuple[float, int]]) -> float:
    """Return the pixels that the widest of the numbers takes, with a gap; 0 without any."""
    return max((text_width(str(number), NUMBER) for _, number in numbers), default=-10.0) + 10


class _Writer:
    """Places text and pictures on a figure by pixels from its top left corner."""

    def __init__(self, figure: Figure, width: int, height: int):
        self.figure, self.width, self.height = figure, width, height

    def __call__(self, left: float, top: float, text: str, points: float, colour: str, *, bold: bool = False, **place: str) -> None:
        look: dict[str, Any] = {"va": "top", **place, **({"weight": "bold"} if bold else {})}
        self.figure.text(left / self.width, 1 - top / self.height, style.plain(text), fontsize=points, color=colour, **look)

    def image(self, left: float, top: float, pixels: NDArray[np.uint8]) -> None:
        height, width = pixels.shape[:2]
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(pixels, interpolation="none", aspect="auto")
        axes.set_axis_off()


def _rows(panels: Sequence[Panel], columns: int | None, width: int) -> list[_Row]:
    rows = [_Row()]
    for panel in panels:
        row = rows[-1]
        left = row.width + _GAP if row.panels else 0
        wide = panel.room
        if row.panels and (len(row.panels) == columns or (columns is None and left + wide > width)):
            row = _Row()
            rows.append(row)
            left = 0
        row.panels.append(panel)
        row.lefts.append(left)
        row.width = left + wide
    if len(rows) > 1 and len({panel.image.shape[1] for panel in panels}) == 1:
        return _aligned(panels, max(len(row.panels) for row in rows), max(width, *(row.width for row in rows)))
    return rows


def _aligned(panels: Sequence[Panel], columns: int, width: int) -> list[_Row]:
    """Return rows of at most ``columns`` panels below each other: words of different lengths make panels differently wide."""
    for count in range(columns, 0, -1):
        parts = [list(panels[first : first + count]) for first in range(0, len(panels), count)]
        rooms = [max(panel.room for panel in panels[place::count]) for place in range(count)]
        lefts = list(accumulate((room + _GAP for room in rooms), initial=0))
        if lefts[-1] - _GAP <= width:
            break
    return [_Row(part, lefts[: len(part)], lefts[len(part)] - _GAP) for part in parts]


def _draw_row(write: _Writer, row: _Row, top: int, theme: Theme) -> None:
    shift = _LINE if any(panel.title for panel in row.panels) else 0
    for panel, left in zip(row.panels, row.lefts, strict=True):
        room = panel.room
        if panel.title:
            write(_MARGIN + left, top, shorten_to(panel.title, room, style.SMALL), style.SMALL, theme.text)
        corner = _MARGIN + left + panel.left, top + shift + row.above
        write.image(*corner, panel.image)
        for middle, number in thinned(panel.rows, NUMBER_HEIGHT):
            write(corner[0] - 6, corner[1] + middle, str(number), NUMBER, theme.muted, ha="right", va="center")
        for middle, number in thinned(panel.columns, number_room(panel.columns)):
            write(corner[0] + middle, corner[1] - 4, str(number), NUMBER, theme.muted, ha="center", va="bottom")
        if panel.note:
            colour = theme.muted if panel.good is None else theme.good if panel.good else theme.bad
            for number, line in enumerate(panel.note.split("\n")):
                below = corner[1] + panel.image.shape[0] + 4 + _LINE * number
                write(_MARGIN + left, below, shorten_to(line, room, style.SMALL), style.SMALL, colour)


@cache
def _font(bold: bool) -> Any:
    weight = "bold" if bold else "normal"
    return get_font([findfont(FontProperties(family=family, weight=weight)) for family in style.families()])
