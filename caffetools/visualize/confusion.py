"""Which class was taken for which: the counts, the scores of each class, the pairs most often confused, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from caffetools.errors import DataError
from caffetools.visualize import style
from caffetools.visualize.style import LIGHT, PathLike, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 25  # classes up to which each cell says its count
_MOST_LABELS = 60  # classes up to which each one is named along the axes


@dataclass(frozen=True)
class ClassScore:
    """How one class did: ``right`` of its ``pictures`` were recognised; ``claimed`` pictures were given its name, rightly or not."""

    name: str
    pictures: int
    right: int
    claimed: int

    @property
    def accuracy(self) -> float | None:
        """The share of the class's pictures that were recognised (recall), 0 to 1; None where there are no pictures."""
        return self.right / self.pictures if self.pictures else None

    @property
    def precision(self) -> float | None:
        """The share of the pictures given this name that are of the class, 0 to 1; None where the name was never given."""
        return self.right / self.claimed if self.claimed else None


@dataclass(frozen=True)
class ConfusedPair:
    """``count`` pictures of ``true`` were taken for ``predicted``: the ``share`` (0 to 1) of all pictures of ``true``."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: (K, K) int64: pictures by true class (rows) and predicted class (columns).
        names: The K classes' names.
    """

    counts: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def from_labels(cls, true: ArrayLike, predicted: ArrayLike, names: Sequence[str]) -> Confusion:
        """Count the labels of M pictures: ``true`` and ``predicted`` (M,) whole numbers from 0 to ``len(names) - 1``.

        Raises:
            DataError: there are no pictures, the two differ in length, or a label is not that of a class.
        """
        rows, columns = _labels("true", true, len(names)), _labels("predicted", predicted, len(names))
        if len(rows) != len(columns):
            raise DataError(f"{len(rows)} true labels, but {len(columns)} predicted ones: each picture needs one of both")
        if not len(rows):
            raise DataError("there are no labels to compare")
        counts = np.bincount(rows * len(names) + columns, minlength=len(names) ** 2).reshape(len(names), len(names))
        return cls(counts.astype(np.int64), tuple(names))

    @property
    def total(self) -> int:
        """The number of pictures."""
        return int(self.counts.sum())

    @property
    def right(self) -> int:
        """The number of pictures whose class was recognised."""
        return int(np.trace(self.counts))

    @property
    def accuracy(self) -> float:
        """The share of all pictures that were recognised, 0 to 1."""
        return self.right / self.total

    def scores(self) -> list[ClassScore]:
        """The classes' scores, in the order of the labels."""
        pictures, claimed, right = self.counts.sum(1), self.counts.sum(0), np.diag(self.counts)
        return [ClassScore(n, int(p), int(r), int(c)) for n, p, r, c in zip(self.names, pictures, right, claimed, strict=True)]

    def most_confused(self, limit: int = 10) -> list[ConfusedPair]:
        """Up to ``limit`` pairs, the most frequent first; of equally frequent ones that with the larger share."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        rows, columns = np.nonzero(wrong)
        share = wrong[rows, columns] / self.counts.sum(1)[rows]
        order = np.lexsort((columns, rows, -share, -wrong[rows, columns]))[:limit]
        return [ConfusedPair(self.names[rows[i]], self.names[columns[i]], int(wrong[rows[i], columns[i]]), float(share[i])) for i in order]


def confusion_figure(confusion: Confusion, *, theme: Theme = LIGHT) -> Figure:
    """The matrix as a picture: rows are true classes, the colour is a cell's share of its row, right answers blue, wrong ones orange.

    Up to 25 classes each cell says its count, up to 60 each class is named, beyond that some are.
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
    note = "blue: right, orange: wrong\nthe stronger, the larger the share of the true class"
    axes.set_xlabel(f"predicted class\n{note}", fontsize=style.LABEL, linespacing=1.6)
    title = f"{confusion.right:,} of {confusion.total:,} right ({confusion.accuracy:.1%})"
    axes.set_title(title, fontsize=style.TITLE, weight="bold", color=theme.text, loc="left", pad=10)
    return figure


def draw_confusion(confusion: Confusion, path: PathLike, *, theme: Theme = LIGHT) -> None:
    """Write :func:`confusion_figure` to ``path``. Raises :class:`DataError` unless it ends in .png or .svg, and :class:`RunFailed`."""
    style.picture_format(path)
    style.save_figure(confusion_figure(confusion, theme=theme), path)


def _labels(what: str, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"the {what} labels must be one row of numbers, not an array of {array.ndim} axes")
    if array.size == 0:
        return np.empty(0, np.int64)
    whole = array.astype(np.int64)
    bad = np.flatnonzero((whole != array) | (whole < 0) | (whole >= classes))
    if bad.size:
        raise DataError(f"{what} label {bad[0]} is {array[bad[0]]}, but there are {classes} classes, labelled 0 to {classes - 1}")
    return whole


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def _levels(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """How strong each cell's colour is, 0 to 1: the root of its share, as otherwise the few mistakes of a good model would not be seen."""
    least = 0.1 if len(counts) <= _MOST_LABELS else 0.4  # small cells need more to be seen
    return np.where(counts > 0, least + (1 - least) * np.sqrt(_shares(counts)), 0.0)


def _colours(counts: NDArray[np.int64], theme: Theme) -> NDArray[np.float64]:
    """(K, K, 3) RGB, 0 to 1."""
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
    labels = [style.plain(style.shorten(names[i], 24)) for i in where]
    size = style.LABEL if classes <= 15 else style.SMALL if classes <= 30 or step > 1 else 6.5
    upright = max(map(len, labels)) * len(labels) > 60
    flat: dict[str, Any] = {"rotation": 90} if upright else {}
    axes.set_xticks(where, labels, fontsize=size, **flat)
    axes.set_yticks(where, labels, fontsize=size)
