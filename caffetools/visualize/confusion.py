"""The picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.results import Confusion, share_text
from caffetools.visualize import style
from caffetools.visualize.style import LIGHT, PathLike, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 25  # classes up to which each cell shows its count
_MOST_LABELS = 60  # classes up to which each one is named along the axes


def confusion_figure(confusion: Confusion, *, theme: Theme = LIGHT) -> Figure:
    """Return the matrix as a figure: rows are true classes, the colour is a cell's share of its row, correct cells blue, wrong ones orange.

    Up to 25 classes each cell shows its count, up to 60 each class is named, beyond that some are.
    """
    classes = len(confusion.names)
    side = 5.6 if classes <= 6 else 6.6 if classes <= 12 else 8.0 if classes <= 40 else 9.6
    figure = style.new_figure(side, side + 0.3, theme)
    axes = figure.add_subplot()
    style.style_axes(axes, theme, grid=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.imshow(_colours(confusion.counts, theme), interpolation="nearest")
    _name_classes(axes, confusion.names)
    if classes <= 40:
        # Lines in the ground's colour set the cells apart.
        for edge in np.arange(0.5, classes - 1):
            axes.axhline(edge, color=theme.background, linewidth=1.5)
            axes.axvline(edge, color=theme.background, linewidth=1.5)
    if classes <= _MOST_NUMBERS:
        _write_counts(axes, confusion.counts, theme, cell=0.72 * 72 * side / classes)
    axes.set_ylabel("true class", fontsize=style.LABEL)
    note = "blue: correct, orange: wrong\nthe stronger, the larger the share of the true class"
    axes.set_xlabel(f"predicted class\n{note}", fontsize=style.LABEL, linespacing=1.6)
    title = f"{confusion.right:,} of {confusion.total:,} right ({share_text(confusion.accuracy)})"
    axes.set_title(title, fontsize=style.TITLE, weight="bold", color=theme.text, loc="left", pad=10)
    return figure


def draw_confusion(confusion: Confusion, path: PathLike, *, theme: Theme = LIGHT) -> None:
    """Write :func:`confusion_figure` to ``path``. Raises :class:`DataError` unless it ends in .png or .svg, and :class:`RunFailed`."""
    style.picture_format(path)
    style.save_figure(confusion_figure(confusion, theme=theme), path)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def _levels(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how strong each cell's colour is, 0 to 1: the root of its share, as otherwise the few mistakes of a good model would not be seen."""
    least = 0.1 if len(counts) <= _MOST_LABELS else 0.4  # small cells need more to be seen
    return np.where(counts > 0, least + (1 - least) * np.sqrt(_shares(counts)), 0.0)


def _colours(counts: NDArray[np.int64], theme: Theme) -> NDArray[np.float64]:
    """Return (K, K, 3) RGB, 0 to 1."""
    level = _levels(counts)[..., None]
    ends = np.where(np.eye(len(counts), dtype=bool)[..., None], to_rgb(theme.good), to_rgb(theme.bad))
    empty = 0.45 * np.asarray(to_rgb(theme.grid)) + 0.55 * np.asarray(to_rgb(theme.background))
    return np.asarray(empty + level * (ends - empty))


def _write_counts(axes: Axes, counts: NDArray[np.int64], theme: Theme, *, cell: float) -> None:
    """Write each count into its cell, which is ``cell`` points wide."""
    colours = _colours(counts, theme)
    size = max(4.5, min(11.0, 0.55 * cell, 0.85 * cell / (0.62 * len(str(counts.max())))))
    for row, column in zip(*np.nonzero(counts), strict=True):
        bright = colours[row, column] @ (0.299, 0.587, 0.114) > 0.55
        ink = "#10151c" if bright else "#ffffff"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=ink)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    classes = len(names)
    step = 1 if classes <= _MOST_LABELS else -(-classes // 25)
    where = list(range(0, classes, step))
    labels = [style.plain(label) for label in style.shorten_all([names[i] for i in where], 24)]
    size = style.LABEL if classes <= 15 else style.SMALL if classes <= 30 or step > 1 else 6.5
    upright = max(map(len, labels)) * len(labels) > 60
    flat: dict[str, Any] = {"rotation": 90} if upright else {}
    axes.set_xticks(where, labels, fontsize=size, **flat)
    axes.set_yticks(where, labels, fontsize=size)
