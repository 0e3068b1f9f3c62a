"""What a dataset has besides its databases: lists, labels, mean, a sheet of samples, and the card."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from caffetools.data.databases import open_database
from caffetools.data.datasets.card import DatasetCard, save_card
from caffetools.data.datasets.findings import file_checksums, write_sample_sheet
from caffetools.data.datasets.pictures import Picture, Pictures
from caffetools.data.datum import record_to_array
from caffetools.data.means import channel_means, compute_mean
from caffetools.events import on_progress
from caffetools.proto.binary import write_binaryproto
from caffetools.util.files import atomic_write

Progress = Callable[[int, int], None]
Parts = Mapping[str, Sequence[Picture]]


def class_counts(pictures: Iterable[Picture], classes: Sequence[str]) -> list[int]:
    """Return the number of pictures of each class."""
    if isinstance(pictures, Pictures):
        return [int(count) for count in np.bincount(pictures.labels, minlength=len(classes))]
    counts = [0] * len(classes)
    for picture in pictures:
        counts[picture.label] += 1
    return counts


def finish_dataset(
    work: Path, card: DatasetCard, parts: Parts, progress: Progress, *, keep_mean: bool = False, hidden: Collection[str] = ()
) -> None:
    """Write all files but the databases into ``work``, and complete ``card``.

    Args:
        work: The folder, with its databases.
        card: The card; gets its mean values and checksums.
        parts: ``train``, ``val`` and ``test`` → the pictures in the order of their records.
        progress: Called with (training pictures in the mean, training pictures).
        keep_mean: Leave mean.binaryproto and the card's mean values as they are.
        hidden: Names in ``work`` that are not of the dataset.
    """
    _write_texts(work, card, parts)
    if not keep_mean:
        _write_mean(work, card, progress)
    write_sample_sheet(work / "samples.png", work / "train_lmdb", Pictures.of(parts["train"]).labels, card.classes)
    card.files = file_checksums(work, hidden)
    save_card(card, work)


def _write_texts(work: Path, card: DatasetCard, parts: Parts) -> None:
    texts: dict[str, Iterable[str]] = {"labels.txt": card.classes}
    for part, pictures in parts.items():
        if part != "test" or pictures:
            texts[f"{part}.txt"] = (f"{picture.path} {picture.label}" for picture in pictures)
    for name, lines in texts.items():
        with atomic_write(work / name) as stream:
            stream.writelines(os.fsencode(f"{line}\n") for line in lines)


def _write_mean(work: Path, card: DatasetCard, progress: Progress) -> None:
    with closing(open_database(work / "train_lmdb")) as database:
        if card.width:
            mean = compute_mean(database, events=on_progress(progress))
            write_binaryproto(work / "mean.binaryproto", mean)
            card.mean_values = channel_means(mean)
            return
        sums, pixels = np.zeros(card.channels), 0
        for done, (key, value) in enumerate(database.records(), 1):
            array, _ = record_to_array(value, what=repr(key))
            sums += array.sum(axis=(1, 2), dtype=np.float64)
            pixels += array[0].size
            progress(done, card.train_count)
        card.mean_values = [float(mean) for mean in sums / pixels]
