"""One look for every figure: colours that colour-blind readers can distinguish, one font, one resolution, a light and a dark theme.

Figures are made through matplotlib's objects alone; there is no pyplot state, no window, and nothing to close.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.transforms import offset_copy

from caffetools.errors import DataError
from caffetools.util.files import atomic_write
from caffetools.util.process_settings import warnings_ignored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PathLike = str | os.PathLike[str]

DPI = 144
TITLE, LABEL, SMALL = 11.0, 9.0, 8.0  # points
LEGEND_LINE = 0.17  # inches

# Families with many scripts, taken where DejaVu Sans (which matplotlib brings) lacks a letter of a class name.
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS")
_FORMATS = {".png": "png", ".svg": "svg"}
_DIRECTION_MARKS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
# Saving needs a few of matplotlib's process-wide settings for a moment.
_SETTINGS = threading.Lock()


@dataclass(frozen=True)
class Theme:
    """Colours as ``#rrggbb``. ``series`` are for lines, in order; ``good`` and ``bad`` are ramp ends for right and wrong answers."""

    background: str
    text: str
    muted: str
    grid: str
    series: tuple[str, ...]
    good: str
    bad: str


# The series are Okabe and Ito's palette, lightened on dark ground.
LIGHT = Theme(
    background="#ffffff",
    text="#1c2733",
    muted="#5b6776",
    grid="#e4e9ef",
    series=("#0072b2", "#d55e00", "#009e73", "#b4579a", "#c48400", "#4aa3dd", "#5b6776"),
    good="#0b5fa5",
    bad="#c2410c",
)
DARK = Theme(
    background="#171c24",
    text="#e6ebf1",
    muted="#9aa6b4",
    grid="#2b333f",
    series=("#56b4e9", "#f28e4b", "#3ac79c", "#dd95c2", "#edb742", "#9bd0f2", "#9aa6b4"),
    good="#63b3f2",
    bad="#fb923c",
)


def new_figure(width: float, height: float, theme: Theme = LIGHT, *, fitted: bool = True) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches at 144 pixels an inch; ``fitted`` lets matplotlib arrange its axes."""
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04) if fitted else None
    return Figure(figsize=(width, height), dpi=DPI, facecolor=theme.background, layout=engine)


def style_axes(axes: Axes, theme: Theme, *, grid: bool = True) -> None:
    """Style ``axes``: no box, a quiet grid, muted ticks."""
    axes.set_facecolor(theme.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=SMALL, length=0, pad=4, which="both")
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)
    if grid:
        axes.grid(True, color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Add a legend below the axes' label, where it hides no curve; the figure should be :data:`LEGEND_LINE` inches higher an entry."""
    axes.legend(
        fontsize=SMALL,
        frameon=False,
        labelcolor=theme.muted,
        handlelength=1.6,
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=offset_copy(axes.transAxes, figure, y=-34, units="points"),
        borderaxespad=0.0,
    )


def plain(text: str) -> str:
    """Return ``text`` so that matplotlib draws it as it is: a dollar sign would start a formula, and controls have no picture."""
    return "".join(" " if ord(letter) < 32 else letter for letter in without_direction_marks(text)).replace("$", r"\$")


def without_direction_marks(text: str) -> str:
    """Return ``text`` without the characters that embed, override or isolate a direction: in a name they would turn the text after it."""
    return text.translate(_DIRECTION_MARKS)


def shorten(text: str, length: int) -> str:
    """Return ``text`` of at most ``length`` letters, cut in the middle where it is longer (class names often differ at both ends)."""
    if len(text) <= length:
        return text
    head = (length - 1 + 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}" if length > 1 else "…"


def shorten_all(texts: Sequence[str], length: int) -> list[str]:
    """Return texts of at most ``length`` letters; where cut ones would look alike, around the words in which they differ."""
    short = [shorten(text, length) for text in texts]
    if len(set(short)) == len(set(texts)):
        return short
    head, tail = _common_words(texts), _common_words([text[::-1] for text in texts])
    other = [_around(text, head, len(text) - tail, length) for text in texts]
    return other if len(set(other)) > len(set(short)) else short


def _around(text: str, start: int, end: int, length: int) -> str:
    """Return the letters from ``start`` to ``end`` with as many before and then after them as ``length`` leaves room for."""
    if len(text) <= length or end <= start:
        return shorten(text, length)
    spare = length - (end - start) - 2
    if spare <= 0:
        return shorten(text[start:end], length)
    left = start if start <= spare + 1 else spare  # the whole beginning needs no dots
    spare -= min(left, spare)
    first, last = start - left, min(len(text), end + spare)
    return ("…" if first else "") + text[first:last] + ("…" if last < len(text) else "")


def _common_words(texts: Sequence[str]) -> int:
    """Return how many letters all texts begin with, up to the end of a word: a number is not cut within itself."""
    size = 0
    for index, letters in enumerate(zip(*texts, strict=False)):
        if len(set(letters)) > 1:
            break
        size = size if letters[0].isalnum() else index + 1
    return size


def rgb(colour: str) -> tuple[int, int, int]:
    """Return ``#rrggbb`` as three numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@cache
def families() -> tuple[str, ...]:
    """Return the fonts of figures that are installed: letters that one lacks are taken from the next."""
    known = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(family for family in _WIDE_FONTS if family in known))


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as the bytes of a ``"png"`` or ``"svg"`` file; the same figure gives the same bytes.

    The text of an SVG remains text, so that it can be searched and takes the reader's fonts where it has letters that we lack.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "caffetools",
        # Of a generic family only one font is taken, so that letters that it lacks would be boxes.
        "font.family": list(families()),
    }
    metadata: dict[str, Any] = {"Date": None, "Creator": "caffetools"} if kind == "svg" else {"Software": "caffetools"}
    stream = io.BytesIO()
    # A letter that no font here has is drawn as a box; there is nothing the reader could do about a warning.
    with _SETTINGS, warnings_ignored(), matplotlib.rc_context(settings):
        for text in figure.findobj(Text):
            text.set_fontfamily([*families(), *(["sans-serif"] if kind == "svg" else [])])
        figure.savefig(stream, format=kind, dpi=DPI, facecolor=figure.get_facecolor(), metadata=metadata)
    return stream.getvalue()


def save_figure(figure: Figure, path: PathLike) -> None:
    """Write the figure atomically as PNG (144 pixels an inch) or SVG, by the suffix of ``path``.

    Raises:
        DataError: another suffix.
        RunFailed: the file cannot be written.
    """
    kind = picture_format(path)
    data = render(figure, kind)
    with atomic_write(path) as stream:
        stream.write(data)


def picture_format(path: PathLike) -> str:
    """Return ``"png"`` or ``"svg"`` from the suffix of ``path``. Raises :class:`DataError` for any other."""
    kind = _FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise DataError(f"{os.fspath(path)}: pictures are written as .png or .svg; give the file one of these suffixes")
    return kind
