"""Predictions for labelled pictures: what ROC curves, sheets of errors and embeddings are drawn from."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.datasets.card import CARD, load_card
from caffetools.data.datasets.listing import list_pictures
from caffetools.errors import DataError, NetError
from caffetools.events import EventSink, ignore, reporter, reporting
from caffetools.layers.base import format_shape
from caffetools.net.net import Net
from caffetools.net.probe import join_items, run_items
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.results import Confusion
from caffetools.util.files import text_lines
from caffetools.visualize.picture_net import PathLike, PictureNet
from caffetools.visualize.units import target_blob


@dataclass(frozen=True)
class LabelledPictures:
    """Picture files with their labels, and the names of the classes.

    Attributes:
        paths: The files.
        labels: The class of each.
        classes: Names.
        listed: The classes are numbers up to the highest label of a list; a net may have more of them.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True)
class Predictions:
    """A net's answers for labelled pictures.

    Attributes:
        pictures: What was classified.
        probabilities: (M, K) float32, one row a picture; (M, 0) where the net's output is not one value a class, and only features
            were asked for.
        features: (M, D) float32 values of the blob that was asked for; None without one.
    """

    pictures: LabelledPictures
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32] | None = None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(M,) the class of the largest probability; the lower index of equal ones."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    @property
    def classified(self) -> bool:
        """Whether there are probabilities of the classes."""
        return bool(self.probabilities.shape[1])

    def confusion(self) -> Confusion:
        """Return the confusion matrix."""
        return Confusion.from_labels(np.array(self.pictures.labels), self.predicted, self.pictures.classes)


def labelled_pictures(source: PathLike) -> LabelledPictures:
    """Read labelled pictures from one of three places.

    Args:
        source: A dataset of ``caffetools dataset build`` (its held-out pictures), a folder with a folder for each class, or a text
            file with a picture and the number of its class on each line, as Caffe's list files.

    Raises:
        DataError: it is none of these, or is damaged; names file and line.
    """
    path = Path(source)
    if (path / CARD).exists():
        card = load_card(path)
        if card.pictures_source.is_file():
            folder = path / "val_pictures"
            export = shlex.join(["caffetools", "dataset", "export", str(card.val_lmdb), str(folder), "--labels", str(path / "labels.txt")])
            raise DataError(
                f"its pictures are in an archive, {card.pictures}", path=path, hint=f"`{export}` writes them as files: give {folder}"
            )
        paths, labels = _read_list(path / "val.txt", card.pictures_source)
        return _checked(LabelledPictures(paths, labels, tuple(card.classes)), path)
    if path.is_dir():
        listing = list_pictures(path)
        rows = [picture for group in (listing.val or listing.pictures) for picture in group]
        return LabelledPictures(
            tuple(path / picture.path for picture in rows), tuple(picture.label for picture in rows), tuple(listing.classes)
        )
    paths, labels = _read_list(path, path.parent)
    return _checked(LabelledPictures(paths, labels, tuple(str(i) for i in range(max(labels) + 1)), listed=True), path)


@reporting("classify", "Classify labelled pictures")
def predict(
    model: PictureNet,
    pictures: LabelledPictures,
    *,
    features: str | None = None,
    output: str | None = None,
    batch: int = 16,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Predictions:
    """Classify pictures, and keep what one blob holds for each.

    Args:
        model: The net.
        pictures: Their labels must fit the net's classes, unless only features are wanted. Those of a list get the names of the
            net's classes.
        features: A blob to keep; None keeps none.
        output: The blob of probabilities; None takes the net's output.
        batch: Pictures at once.
        events: Receives the progress in pictures.
        cancel: Stops between batches.

    Raises:
        DataError: a picture cannot be read.
        NetError: the output is not a vector of one value a class and no features are asked for, or a blob is unknown.
        Cancelled: ``cancel`` was called.
    """
    answers = _answers(model.net, output, pictures, required=features is None or output is not None)
    if answers is not None and pictures.listed:
        count = math.prod(model.net.blob_shapes[answers][1:])
        names = model.labels if len(model.labels) == count else [str(index) for index in range(count)]
        pictures = replace(pictures, classes=tuple(names))
    wanted = [blob for blob in (answers, features) if blob is not None]
    found: dict[str, list[NDArray[np.float32]]] = {blob: [] for blob in wanted}
    report = reporter(events, "classify", "images", cancel)
    for start in range(0, len(pictures.paths), batch):
        images = np.stack([model.prepare(path).input for path in pictures.paths[start : start + batch]])
        parts = run_items(model.net, torch.from_numpy(images), others=model.others, blobs=wanted)
        for blob, rows in found.items():
            rows.append(join_items(parts, blob).flatten(1).float().cpu().numpy())
        report(min(start + batch, len(pictures.paths)), len(pictures.paths))
    arrays = {blob: np.concatenate(rows) for blob, rows in found.items()}
    none = np.empty((len(pictures.paths), 0), np.float32)
    return Predictions(pictures, none if answers is None else arrays[answers], arrays[features] if features else None)


def _answers(net: Net, output: str | None, pictures: LabelledPictures, *, required: bool) -> str | None:
    """Return the blob of the probabilities of the pictures' classes; None where there is none and it is not required.

    Raises:
        NetError: there is none, and it is required.
    """
    try:
        blob = target_blob(net, output)
        count, classes = math.prod(net.blob_shapes.get(blob, ())[1:]), len(pictures.classes)
        if blob in net.blob_shapes and (count < classes or (count > classes and not pictures.listed)):
            shape = format_shape(net.blob_shapes[blob][1:])
            raise NetError(f"output '{blob}' has {shape} values a picture, but there are {classes} classes")
    except NetError:
        if required:
            raise
        return None
    return blob


def feature_blob(net: Net) -> str:
    """Return the blob that the net's last layer with weights reads: the features in front of the classifier.

    Raises:
        NetError: A net without weights.
    """
    for layer in reversed(net.layers):
        if len(layer.blobs) and layer.bottoms:
            return layer.bottoms[0]
    raise NetError(f"the net '{net.name}' has no layer with weights; name the blob of the features")


def _read_list(path: Path, folder: Path) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    try:
        lines = text_lines(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not label.isdecimal():
            wrong = wrong_kind(DataError, path, "a list of pictures with the number of each one's class", allowed=(Kind.TEXT,))
            raise wrong or DataError(f"{path}:{number}: a picture and the number of its class are expected, not {line!r}")
        paths.append(folder / name)
        labels.append(int(label))
    if not paths:
        raise DataError(f"{path}: lists no pictures")
    return tuple(paths), tuple(labels)


def _checked(pictures: LabelledPictures, source: Path) -> LabelledPictures:
    worst = max(pictures.labels, default=0)
    if worst >= len(pictures.classes):
        raise DataError(f"{source}: a picture has label {worst}, but there are {len(pictures.classes)} classes")
    return pictures
