"""How well a deployed network does on held-out pictures: by true and predicted class, with samples to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caffetools.cancel import CancelToken
from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore
from caffetools.infer.classifier import ClassificationResult, Classifier
from caffetools.results import Calibration, Confusion, Sample

# Pictures shown in a report: first the ones taken for another class, then right ones, spread over the classes.
MOST_SAMPLES = 24


@dataclass(frozen=True)
class Evaluation:
    """A net's answers for the held-out images.

    Attributes:
        confusion: Images by true and predicted class.
        predicted: The predicted class of each image.
        samples: Some images to look at.
        calibration: How well the probabilities match the accuracy.
    """

    confusion: Confusion
    predicted: list[int]
    samples: list[Sample]
    calibration: Calibration


def held_out(card: DatasetCard) -> list[tuple[Path, int]]:
    """Return the held-out pictures of a data set and their labels, as val.txt lists them. Raises :class:`DataError` where it is damaged."""
    listing = card.folder / "val.txt"
    pictures: list[tuple[Path, int]] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= len(card.classes):
            raise DataError(f"{listing}:{number}: not a picture and the number of one of {len(card.classes)} classes: {line!r}")
        pictures.append((Path(card.pictures) / name, int(label)))
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
    answers = classifier.classify([path for path, _ in pictures], top=1, batch=32, events=events, cancel=cancel)
    for answer in answers:
        if answer.error:
            raise DataError(answer.error)
    true = [label for _, label in pictures]
    predicted = [answer.guesses[0].index for answer in answers]
    confidences = [answer.guesses[0].probability for answer in answers]
    correct = [label == given for label, given in zip(true, predicted, strict=True)]
    return Evaluation(
        Confusion.from_labels(true, predicted, card.classes),
        predicted,
        _samples(answers, true, card.classes),
        Calibration.from_confidences(confidences, correct),
    )


def _samples(answers: Sequence[ClassificationResult], true: Sequence[int], classes: Sequence[str]) -> list[Sample]:
    samples = [
        Sample(Path(a.picture), classes[a.guesses[0].index], a.guesses[0].probability, classes[label], Path(a.picture).name)
        for a, label in zip(answers, true, strict=True)
    ]
    wrong = [sample for sample in samples if sample.wrong][: MOST_SAMPLES // 2]
    right = [sample for sample in samples if not sample.wrong]
    room = MOST_SAMPLES - len(wrong)
    return wrong + right[:: max(1, -(-len(right) // room))][:room]
