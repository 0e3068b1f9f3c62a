"""Plain result records that several rooms pass around."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caffetools.errors import DataError, ModelFileError

Picture = NDArray[np.uint8] | str | os.PathLike[str]


def share_text(share: float, form: str = ".1%") -> str:
    """Return a share, 0 to 1, as text that is not rounded up to 1: a result with errors must not read as one without.

    Args:
        share: The share.
        form: Of the number: ``.1%``, ``.4f``.
    """
    digits = int(form[1:-1]) + (2 if form.endswith("%") else 0)
    return format(min(share, 1 - 10.0**-digits) if share < 1 else share, form)


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        title: A few words.
        command: The command line that does the same by hand.
        detail: Its result, in a sentence.
        seconds: Its duration.
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
        predicted: The class with the highest probability.
        probability: Of that class, 0 to 1.
        true: Its label's class, where known.
        name: For the reader, such as the file's name.
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
        name: The class.
        pictures: Pictures of it.
        right: Those of them that were predicted as it (true positives).
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


@dataclass(frozen=True)
class CalibrationBin:
    """Pictures whose confidence is within a range.

    Attributes:
        count: Pictures.
        confidence: Mean probability of the predicted class.
        accuracy: Share predicted correctly; both 0 to 1,
            and 0 for an empty bin.
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How well a classifier's probabilities match its accuracy (Guo et al. 2017).

    Attributes:
        bins: Of equal width from 0 to 1.
        error: Expected calibration error (ECE): the mean distance between confidence and accuracy
            of the bins, weighted by their pictures; 0 to 1.
    """

    bins: tuple[CalibrationBin, ...]
    error: float

    @classmethod
    def from_confidences(cls, confidences: ArrayLike, correct: ArrayLike, *, bins: int = 10) -> Calibration:
        """Sort M answers into bins.

        Args:
            confidences: (M,) probability of the predicted class, 0 to 1.
            correct: (M,) whether each was right.
            bins: Number of bins.

        Raises:
            DataError: there are no answers, the lengths differ, or a confidence is not within 0 and 1.
        """
        values, hits = np.asarray(confidences, np.float64), np.asarray(correct, bool)
        if values.shape != hits.shape or values.ndim != 1 or not values.size:
            raise DataError(f"calibration needs as many confidences as answers, at least one: {values.shape} and {hits.shape}")
        # Softmax rounds its sum to float32.
        if not ((values >= 0) & (values <= 1 + 1e-4)).all():
            raise DataError("calibration needs probabilities from 0 to 1")
        place = np.minimum((values * bins).astype(np.int64), bins - 1)
        made = []
        for index in range(bins):
            mine = place == index
            count = int(mine.sum())
            made.append(CalibrationBin(count, float(values[mine].mean()) if count else 0.0, float(hits[mine].mean()) if count else 0.0))
        error = sum(b.count * abs(b.confidence - b.accuracy) for b in made) / len(values)
        return cls(tuple(made), float(error))


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


_PREFIX = "caffetools."
# The key of an ONNX model's metadata that says that the preprocessing is in the graph, and what the model takes.
PREPROCESSED = "caffetools.preprocessed"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the net's input: resize, crop the center, ``(pixel - mean) * scale``; pixels are 0 to 255.

    Attributes:
        channel_order: ``"BGR"`` (as Caffe's tools read images), ``"RGB"`` or ``"GRAY"``.
        mean_values: One value per channel of the net's input, or one for all; () for no mean; None if the mean is not known.
        mean_image: A mean of every pixel, (C, H, W) float32, in place of ``mean_values``.
        scale: Factor after the mean is subtracted.
        resize: (width, height) that the whole image is resized to before the crop; None for the net's input size.
        labels: Class names in the order of the net's output; () if not known.
    """

    channel_order: str = "BGR"
    mean_values: tuple[float, ...] | None = None
    mean_image: NDArray[np.float32] | None = None
    scale: float = 1.0
    resize: tuple[int, int] | None = None
    labels: tuple[str, ...] = ()

    @property
    def mean_known(self) -> bool:
        """Whether a mean, or that there is none, is known."""
        return self.mean_values is not None or self.mean_image is not None

    def to_properties(self) -> dict[str, str]:
        """Return ONNX ``metadata_props``: text, with JSON for lists; a mean image is base64 of its little-endian float32 values."""
        properties = {"channel_order": self.channel_order, "scale": repr(self.scale)}
        if self.mean_image is not None:
            properties["mean_image_shape"] = json.dumps(list(self.mean_image.shape))
            properties["mean_image"] = base64.b64encode(np.ascontiguousarray(self.mean_image, "<f4").tobytes()).decode()
        elif self.mean_values is not None:
            properties["mean"] = json.dumps(list(self.mean_values))
        if self.resize is not None:
            properties["resize"] = json.dumps(list(self.resize))
        if self.labels:
            properties["labels"] = json.dumps(list(self.labels), ensure_ascii=False)
        return {_PREFIX + key: value for key, value in properties.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Preprocessing | None:
        """Return the inverse of :meth:`to_properties`, or None if the file has no such properties.

        Raises:
            ModelFileError: A property cannot be parsed.
        """
        given = {key.removeprefix(_PREFIX): value for key, value in properties.items() if key.startswith(_PREFIX)}
        if "channel_order" not in given:
            return None
        try:
            return cls(
                channel_order=given["channel_order"],
                mean_values=tuple(float(value) for value in json.loads(given.get("mean", "[]")))
                if {"mean", "mean_image"} & {*given}
                else None,
                mean_image=_mean_image(given),
                scale=float(given.get("scale", "1")),
                resize=_pair(json.loads(given["resize"])) if "resize" in given else None,
                labels=tuple(str(label) for label in json.loads(given.get("labels", "[]"))),
            )
        except (ValueError, TypeError, KeyError, binascii.Error) as error:
            raise ModelFileError(f"the preprocessing in the ONNX file's metadata cannot be read: {error}") from None


def _mean_image(given: Mapping[str, str]) -> NDArray[np.float32] | None:
    if "mean_image" not in given:
        return None
    data = np.frombuffer(base64.b64decode(given["mean_image"], validate=True), "<f4")
    channels, height, width = json.loads(given["mean_image_shape"])
    return data.reshape(int(channels), int(height), int(width)).astype(np.float32)


def _pair(value: Iterable[int]) -> tuple[int, int]:
    width, height = value
    return int(width), int(height)
