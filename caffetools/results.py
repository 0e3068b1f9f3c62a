"""Plain result records that several rooms pass around."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caffetools.errors import DataError

Picture = NDArray[np.uint8] | str | os.PathLike[str]


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        title: A few words. command: The command line that does the same by hand.
        detail: Its result, in a sentence. seconds: Its duration.
    """

    title: str
    command: str = ""
    detail: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Sample:
    """A classified picture.

    Attributes:
        picture: Its file, or its pixels: (H, W) grey or (H, W, 3) RGB, uint8.
        predicted: The class with the highest probability. probability: Of that class, 0 to 1.
        true: Its label's class, where known. name: For the reader, such as the file's name.
    """

    picture: Picture
    predicted: str
    probability: float
    true: str | None = None
    name: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the true class is known and differs from the predicted one."""
        return self.true is not None and self.true != self.predicted


@dataclass(frozen=True)
class ClassScore:
    """Counts of one class.

    Attributes:
        name: The class. pictures: Pictures of it. right: Those of them that were predicted as it (true positives).
        claimed: Pictures predicted as it, correctly or not.
    """

    name: str
    pictures: int
    right: int
    claimed: int

    @property
    def accuracy(self) -> float | None:
        """Recall, 0 to 1; None for a class without pictures."""
        return self.right / self.pictures if self.pictures else None

    @property
    def precision(self) -> float | None:
        """Precision, 0 to 1; None for a class that was never predicted."""
        return self.right / self.claimed if self.claimed else None


@dataclass(frozen=True)
class ConfusedPair:
    """``count`` pictures of class ``true`` were predicted as ``predicted``: the ``share`` (0 to 1) of all pictures of ``true``."""

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
        """Count the labels of M pictures.

        Args:
            true: (M,) labels, integers from 0 to K - 1.
            predicted: (M,) predicted labels, likewise.
            names: The K classes' names.

        Raises:
            DataError: there are no pictures, the lengths differ, or a label is out of range.
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
        """The number of pictures that were predicted correctly."""
        return int(np.trace(self.counts))

    @property
    def accuracy(self) -> float:
        """The share of all pictures that were predicted correctly, 0 to 1."""
        return self.right / self.total

    def scores(self) -> list[ClassScore]:
        """Return the classes' counts, in the order of the labels."""
        pictures, claimed, right = self.counts.sum(1), self.counts.sum(0), np.diag(self.counts)
        return [ClassScore(n, int(p), int(r), int(c)) for n, p, r, c in zip(self.names, pictures, right, claimed, strict=True)]

    def most_confused(self, limit: int = 10) -> list[ConfusedPair]:
        """Return up to ``limit`` pairs of classes, the most frequent first; of equally frequent ones that with the larger share."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        rows, columns = np.nonzero(wrong)
        share = wrong[rows, columns] / self.counts.sum(1)[rows]
        order = np.lexsort((columns, rows, -share, -wrong[rows, columns]))[:limit]
        return [ConfusedPair(self.names[rows[i]], self.names[columns[i]], int(wrong[rows[i], columns[i]]), float(share[i])) for i in order]


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
