"""Evaluation of a deployed network on held-out images: confusion matrix, top-5 accuracy, loss by class, calibration, samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore
from caffetools.infer.classifier import ClassificationResult, Classifier
from caffetools.proto.blobs import Array
from caffetools.results import Calibration, Confusion, Sample
from caffetools.util.files import text_lines

# Images shown in a report: first those predicted as another class, then correct ones, spread over the classes.
MOST_SAMPLES = 24
TOP_K = 5


@dataclass(frozen=True)
class Evaluation:
    """A net's answers for the held-out images.

    Attributes:
        confusion: Images by true and predicted class.
        predicted: The predicted class of each image.
        samples: Some images to look at.
        calibration: How well the probabilities match the accuracy.
        loss: Mean cross-entropy of the images, -log of the probability of the true class (that of SoftmaxWithLoss).
        class_losses: The same for the images of each class; None for a class without images.
        top_5: Share of the images whose true class is among the five most probable; None for five classes or fewer.
    """

    confusion: Confusion
    predicted: list[int]
    samples: list[Sample]
    calibration: Calibration
    loss: float
    class_losses: list[float | None]
    top_5: float | None


def held_out(card: DatasetCard) -> list[tuple[Path, int]]:
    """Return the held-out pictures of a data set and their labels, as val.txt lists them. Raises :class:`DataError` where it is damaged."""
    listing = card.folder / "val.txt"
    source, pictures = card.pictures_source, []
    for number, line in enumerate(text_lines(listing.read_text(encoding="utf-8")), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= len(card.classes):
            raise DataError(f"{listing}:{number}: not a picture and the number of one of {len(card.classes)} classes: {line!r}")
        pictures.append((source / name, int(label)))
    return pictures


def evaluate(classifier: Classifier, card: DatasetCard, *, events: EventSink = ignore, cancel: CancelToken | None = None) -> Evaluation:
    """Classify every held-out image of a dataset from its file, as a user of the deployed network would.

    Args:
        classifier: The deployed net.
        card: The dataset.
        events: Receives ``Progress`` events.
        cancel: Checked before every batch.

    Raises:
        DataError: An image was removed or damaged since the dataset was built.
        Cancelled: ``cancel`` was set.
    """
    pictures = held_out(card)
    true = [label for _, label in pictures]
    losses, ranks = np.zeros(len(true)), np.zeros(len(true), np.int64)

    def observe(index: int, row: Array) -> None:
        if true[index] < len(row):
            losses[index], ranks[index] = _loss_and_rank(row, true[index])

    paths = [path for path, _ in pictures]
    answers = classifier.classify(paths, top=1, batch=32, observe=observe, events=events, cancel=cancel)
    for answer in answers:
        if answer.error:
            raise DataError(answer.error)
    predicted = [answer.guesses[0].index for answer in answers]
    confidences = [answer.guesses[0].probability for answer in answers]
    correct = [label == given for label, given in zip(true, predicted, strict=True)]
    return Evaluation(
        Confusion.from_labels(true, predicted, card.classes),
        predicted,
        _samples(answers, true, card.classes),
        Calibration.from_confidences(confidences, correct),
        loss=float(losses.mean()),
        class_losses=_class_means(losses, true, len(card.classes)),
        top_5=float((ranks < TOP_K).mean()) if len(card.classes) > TOP_K else None,
    )


def _loss_and_rank(row: Array, label: int) -> tuple[float, int]:
    """Return the cross-entropy of (classes,) probabilities, and how many classes precede the label; of equal ones the lower does."""
    # SoftmaxWithLoss bounds the probability likewise.
    value = max(float(row[label]), float(np.finfo(np.float32).tiny))
    return -math.log(value), int((row > row[label]).sum() + (row[:label] == row[label]).sum())


def _class_means(losses: NDArray[np.float64], labels: Sequence[int], classes: int) -> list[float | None]:
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, losses, minlength=classes)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def _samples(answers: Sequence[ClassificationResult], true: Sequence[int], classes: Sequence[str]) -> list[Sample]:
    samples = [
        Sample(Path(a.picture), classes[a.guesses[0].index], a.guesses[0].probability, classes[label], Path(a.picture).name)
        for a, label in zip(answers, true, strict=True)
    ]
    wrong = [sample for sample in samples if sample.wrong][: MOST_SAMPLES // 2]
    right = [sample for sample in samples if not sample.wrong]
    room = MOST_SAMPLES - len(wrong)
    return wrong + right[:: max(1, -(-len(right) // room))][:room]
