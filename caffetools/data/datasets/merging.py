"""Several datasets as one, and a part of a dataset as a dataset of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.databases import new_lmdb, open_database
from caffetools.data.datasets.card import CARD, DatasetCard, load_card
from caffetools.data.datasets.combine import (
    Copied,
    Step,
    all_prints,
    check_same_form,
    common_root,
    complete_card,
    copy_records,
    read_part,
)
from caffetools.data.datasets.finishing import finish_dataset
from caffetools.data.datasets.listing import Picture
from caffetools.data.datasets.remote import urls_allowed
from caffetools.data.datasets.splits import PARTS
from caffetools.errors import DataError, did_you_mean
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]
_Plan = dict[str, list[Copied]]


@urls_allowed
def merge_datasets(
    sources: Sequence[PathLike],
    out: PathLike,
    *,
    seed: int = 1,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatasetCard:
    """Merge datasets into a new one.

    Classes are matched by name: those of the first dataset keep their labels, others follow in the order in which they occur. Each part
    (training, validation, testing) holds the records of that part of all sources; those for training are shuffled.

    Args:
        sources: Folders of two or more datasets of :func:`~caffetools.data.datasets.build.build_dataset`.
        out: Folder to create.
        seed: Seed of the order of the training pictures.
        force: Replace a dataset at ``out`` once the new one is complete.
        events: Receives ``Started``, ``Progress`` (unit ``records``), ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between records; nothing is at ``out`` after a cancellation.

    Returns:
        The card of the new dataset; duplicates and leaks between the sources are in its notes.

    Raises:
        DataError: There are fewer than two sources, one is given twice or is not a dataset, their pictures differ in size or channels,
            a database is damaged, or ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    if len({os.path.realpath(source) for source in sources}) < max(2, len(sources)):
        raise DataError("two or more different datasets are needed to merge them")
    cards = [load_card(source) for source in sources]
    check_same_form(cards)
    classes = list(dict.fromkeys(name for card in cards for name in card.classes))
    labels = {name: label for label, name in enumerate(classes)}
    root, prefixes = common_root([card.pictures for card in cards])
    plan: _Plan = {part: [] for part in PARTS}
    for source, (card, prefix) in enumerate(zip(cards, prefixes, strict=True)):
        for part in PARTS:
            for number, picture in enumerate(read_part(card, part)):
                moved = Picture(prefix + picture.path, labels[card.classes[picture.label]])
                plan[part].append(Copied(source, number, moved, picture.label))
    plan["train"] = [plan["train"][index] for index in np.random.default_rng(seed).permutation(len(plan["train"]))]
    card = _new_card(cards[0], out, classes, seed, pictures=root, settings={"merged": [os.fspath(source) for source in sources]})
    card.skipped = [
        replace(skipped, path=prefix + skipped.path) for one, prefix in zip(cards, prefixes, strict=True) for skipped in one.skipped
    ]
    return _write(cards, plan, card, f"Merging datasets into {os.fspath(out)}", force, events, cancel)


@urls_allowed
def subset_dataset(
    source: PathLike,
    out: PathLike,
    *,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    val_per_class: int | None = None,
    seed: int = 1,
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatasetCard:
    """Write a part of a dataset as a new one. The records keep their order, and each picture its part.

    Args:
        source: Folder of a dataset of :func:`~caffetools.data.datasets.build.build_dataset`.
        out: Folder to create.
        classes: Names of the classes to take; all by default. Labels count from 0 again, in the order of the old ones.
        per_class: Most training pictures of a class; drawn at random.
        val_per_class: The same for validation and testing.
        seed: Seed of the drawing.
        force: Replace a dataset at ``out`` once the new one is complete.
        events: Receives ``Started``, ``Progress`` (unit ``records``), ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between records; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: ``source`` is not a dataset or is damaged, a class is unknown, fewer than two are left, a number is below 1, or
            ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    card = load_card(source)
    for name, value in (("per_class", per_class), ("val_per_class", val_per_class)):
        if value is not None and value < 1:
            raise DataError(f"the number of pictures of a class ({name}) must be 1 or more, not {value}")
    kept = _kept_classes(card, classes)
    labels = {old: new for new, old in enumerate(kept)}
    plan: _Plan = {}
    for part in PARTS:
        pictures = list(enumerate(read_part(card, part)))
        most = per_class if part == "train" else val_per_class
        numbers = _drawn([(number, picture.label) for number, picture in pictures], kept, most, seed)
        plan[part] = [
            Copied(0, number, Picture(picture.path, labels[picture.label]), picture.label)
            for number, picture in pictures
            if number in numbers
        ]
    settings = {"subset_of": os.fspath(source), "per_class": per_class, "val_per_class": val_per_class}
    new = _new_card(card, out, [card.classes[label] for label in kept], seed, pictures=card.pictures, settings=settings)
    return _write([card], plan, new, f"Selecting from {os.fspath(source)}", force, events, cancel)


def _kept_classes(card: DatasetCard, classes: Sequence[str] | None) -> list[int]:
    """Return the labels of the classes to keep, in ascending order."""
    if classes is None:
        return list(range(len(card.classes)))
    for name in classes:
        if name not in card.classes:
            raise DataError(f"it has no class '{name}'{did_you_mean(name, card.classes)}", path=card.folder)
    if len(set(classes)) < 2:
        raise DataError("two or more classes are needed; a classifier needs at least two", path=card.folder)
    return sorted(card.classes.index(name) for name in set(classes))


def _drawn(labelled: list[tuple[int, int]], kept: list[int], most: int | None, seed: int) -> set[int]:
    """Return the numbers of the records to take: ``most`` of each class in ``kept``."""
    of_class: dict[int, list[int]] = {label: [] for label in kept}
    for number, label in labelled:
        if label in of_class:
            of_class[label].append(number)
    taken: set[int] = set()
    for label, numbers in of_class.items():
        if most is not None and len(numbers) > most:
            order = np.random.default_rng([seed, label]).permutation(len(numbers))
            numbers = [numbers[index] for index in order[:most]]
        taken.update(numbers)
    return taken


def _new_card(old: DatasetCard, out: PathLike, classes: list[str], seed: int, *, pictures: str, settings: dict[str, Any]) -> DatasetCard:
    return replace(
        old,
        folder=Path(out),
        classes=classes,
        seed=seed,
        val=None,
        pictures=pictures,
        settings={**old.settings, **settings},
        skipped=[],
        notes=[],
        duplicates=[],
        files={},
    )


def _write(
    cards: Sequence[DatasetCard], plan: _Plan, card: DatasetCard, title: str, force: bool, events: EventSink, cancel: CancelToken | None
) -> DatasetCard:
    """Write the records of ``plan`` from the datasets ``cards`` as the dataset of ``card``, and complete the card."""
    parts = {part: [copied.picture for copied in chosen] for part, chosen in plan.items()}
    if not parts["train"]:
        raise DataError("no training picture is left", path=cards[0].folder)
    report = reporter(events, "dataset", "records", cancel)
    copied = sum(map(len, parts.values()))
    # Each record is copied and compared, each training picture added to the mean.
    done, total = 0, 2 * copied + len(parts["train"])

    def step() -> None:
        nonlocal done
        done += 1
        report(done, total)

    out = card.folder
    with reported("dataset", title, events):
        with new_folder(out, force=force, replaceable=lambda old: (old / CARD).is_file()) as work:
            for part in PARTS:
                if parts[part] or part == "val":
                    _copy_part(work, part, cards, plan[part], step)
            complete_card(card, parts, all_prints(work, parts, step))
            finish_dataset(work, card, parts, lambda *_: step())
        events(ArtifactWritten(task="dataset", path=os.fspath(out), what="dataset"))
    return card


def _copy_part(work: Path, part: str, cards: Sequence[DatasetCard], chosen: Sequence[Copied], step: Step) -> None:
    with ExitStack() as stack:
        used = {copied.source for copied in chosen}
        sources = {number: stack.enter_context(closing(open_database(cards[number].source(part)))) for number in used}
        writer = stack.enter_context(new_lmdb(work / f"{part}_lmdb"))
        copy_records(writer, sources, chosen, step)
