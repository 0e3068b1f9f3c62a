"""Building a dataset: a folder of pictures in; LMDBs, lists, labels, mean and card out, all at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffetools.data.databases import new_lmdb, open_database, record_key
from caffetools.data.datasets.card import CARD, DatasetCard, Skipped, load_card, save_card
from caffetools.data.datasets.listing import Listing, Picture, Split, list_pictures, split_listing
from caffetools.data.datum import datum_to_array, encoded_to_datum, image_to_datum, parse_datum
from caffetools.data.images import Pixels, decode_image, encode_image, parse_size, read_bytes, resize
from caffetools.data.means import channel_means, compute_mean
from caffetools.errors import DataError
from caffetools.proto.binary import write_binaryproto
from caffetools.util.files import atomic_write
from caffetools.util.folders import new_folder, remove
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]

__all__ = ["DatasetCard", "Skipped", "build_dataset", "load_card"]


@dataclass(frozen=True)
class _Form:
    """How pictures are stored."""

    size: tuple[int, int] | None
    color: bool
    encoded: bool


@dataclass
class _Written:
    """What came of writing a split: the pictures that are in the databases, and those that cannot be used."""

    train: list[Picture] = field(default_factory=list)
    val: list[Picture] = field(default_factory=list)
    unusable: list[Skipped] = field(default_factory=list)
    sizes: set[tuple[int, ...]] = field(default_factory=set)


def build_dataset(
    pictures: PathLike,
    out: PathLike,
    *,
    size: int | str | tuple[int, int] = 256,
    val: float = 0.2,
    seed: int = 1,
    gray: bool = False,
    encoded: bool = False,
    strict: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> DatasetCard:
    """Make a dataset of ``pictures`` in the new folder ``out``.

    ``out`` gets ``train_lmdb`` and ``val_lmdb`` (Datum records in Caffe's key and byte format), ``labels.txt`` (line i names
    label i), ``train.txt`` and ``val.txt`` (``path label``, paths below ``pictures``), ``mean.binaryproto`` (of the training
    pictures) and ``dataset.json``. Everything follows from the pictures and the arguments: a second run gives the same records.

    Args:
        pictures: One folder for each class; or ``train/`` and ``val/`` with such folders inside, whose split is then kept.
        size: What pictures are resized to: ``256``, ``"320x240"``, or 0 to keep their own sizes.
        val: The share of each class that validates, between 0 and 1.
        gray: Store one channel. encoded: store picture files (JPEG or PNG) in the records in place of pixels.
        strict: Stop at the first picture that cannot be used; else it is left out and listed on the card.
        force: Replace a dataset at ``out`` once the new one is complete.
        progress: Called with (steps done, steps in all): each picture is one, each training picture's share in the mean another.

    Raises:
        DataError: the pictures make no dataset (see :func:`list_pictures`), a class has no usable picture, ``out`` exists, or
            another run is building it. Then, as after a kill, nothing lies at ``out``.
        RunFailed: ``out`` cannot be written, or the disk is full.
    """
    form = _Form(parse_size(size), not gray, encoded)
    if not 0 < val < 1:
        raise DataError(f"the share of validation pictures must lie between 0 and 1, such as 0.2; {val:g} does not")
    if seed < 0:
        raise DataError(f"the seed must be 0 or more, not {seed}")
    _check_apart(Path(pictures), Path(out))
    listing = list_pictures(pictures)
    with new_folder(out, force=force, replaceable=lambda old: (old / CARD).is_file()) as work:
        written = _write_databases(listing, work, form, val, seed, strict, progress)
        card = _make_card(listing, written, Path(out), form, val, seed)
        _write_texts(work, card, written)
        _write_mean(work, card, progress)
        save_card(card, work)
    return card


def _check_apart(pictures: Path, out: Path) -> None:
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(pictures))
    if inner == outer or outer in inner.parents:
        raise DataError(f"{out} lies inside of the pictures' folder {pictures} and would be taken for a class; choose a place beside it")
    if inner in outer.parents:
        raise DataError(f"the pictures lie inside of {out}; choose another place for the dataset")


def _write_databases(listing: Listing, work: Path, form: _Form, val: float, seed: int, strict: bool, progress: Progress | None) -> _Written:
    """Split and write. Where pictures turn out unusable and that leaves a class without its share, split and write again without them."""
    unusable: dict[str, Skipped] = {}
    while True:
        split = split_listing(listing, val, seed, set(unusable))
        written = _write_split(split, listing.root, work, form, strict, progress)
        unusable.update({skipped.path: skipped for skipped in written.unusable})
        _check_usable(listing, unusable)
        if not written.unusable or _keeps_its_promise(listing, written, unusable):
            written.unusable = list(unusable.values())
            return written
        remove(work / "train_lmdb")
        remove(work / "val_lmdb")


def _write_split(split: Split, root: Path, work: Path, form: _Form, strict: bool, progress: Progress | None) -> _Written:
    written = _Written()
    # The training pictures are gone through once more, for their mean.
    total, done = 2 * len(split.train) + len(split.val), 0
    for part, planned, taken in (("train_lmdb", split.train, written.train), ("val_lmdb", split.val, written.val)):
        with new_lmdb(work / part) as writer, closing(_records(planned, root, form)) as records:
            for picture, outcome in zip(planned, records, strict=True):
                if isinstance(outcome, DataError):
                    if strict:
                        raise outcome
                    written.unusable.append(Skipped(picture.path, str(outcome).removeprefix(f"{root / picture.path}: ")))
                else:
                    value, shape = outcome
                    writer.put(record_key(writer.count, picture.path), value)
                    taken.append(picture)
                    written.sizes.add(shape)
                done += 1
                if progress:
                    progress(done, total)
    return written


def _records(planned: Iterable[Picture], root: Path, form: _Form) -> Generator[tuple[bytes, tuple[int, ...]] | DataError, None, None]:
    """For each picture its record and its (height, width), or what is wrong with it; in order, computed by several threads."""

    def record(picture: Picture) -> tuple[bytes, tuple[int, ...]] | DataError:
        try:
            return _record(root / picture.path, picture.label, form)
        except DataError as error:
            return error

    return ordered_map(record, planned)


def _record(path: Path, label: int, form: _Form) -> tuple[bytes, tuple[int, ...]]:
    if "\n" in path.name or "\r" in path.name:
        raise DataError(f"{path}: its name has a line break, which no list can hold")
    data = read_bytes(path)
    image = decode_image(data, color=form.color, what=str(path))
    if form.size is not None:
        image = resize(image, form.size)
    kind = path.suffix.lower()
    datum = encoded_to_datum(_encoded(data, image, form, kind), label) if form.encoded else image_to_datum(image, label)
    return datum.SerializeToString(), image.shape[:2]


def _encoded(data: bytes, image: Pixels, form: _Form, suffix: str) -> bytes:
    """The picture's own file where a Data layer would decode it to ``image``; else a new one, JPEG for JPEG and PNG for others."""
    if form.size is None:
        try:
            if np.array_equal(decode_image(data, color=None), image):
                return data
        except DataError:
            pass  # not of 8 bits a channel: it must be encoded anew
        return encode_image(image, ".png")
    return encode_image(image, ".jpg" if suffix in (".jpg", ".jpeg", ".jpe", ".jfif") else ".png")


def _check_usable(listing: Listing, unusable: dict[str, Skipped]) -> None:
    for name, pictures in zip(listing.classes, listing.pictures, strict=True):
        if all(picture.path in unusable for picture in pictures):
            first = unusable[pictures[0].path]
            raise DataError(
                f"{listing.root / Path(first.path)}: none of the {len(pictures)} picture(s) of the class '{name}' can be used; "
                f"this one: {first.reason}"
            )


def _keeps_its_promise(listing: Listing, written: _Written, unusable: dict[str, Skipped]) -> bool:
    """Whether each class still has a training picture, and a validation picture where it has two that can be used."""
    if listing.val is not None:
        return True
    train, val = {picture.label for picture in written.train}, {picture.label for picture in written.val}
    for label, pictures in enumerate(listing.pictures):
        usable = sum(picture.path not in unusable for picture in pictures)
        if label not in train or (usable > 1 and label not in val):
            return False
    return True


def _make_card(listing: Listing, written: _Written, out: Path, form: _Form, val: float, seed: int) -> DatasetCard:
    counts = [[0] * len(listing.classes), [0] * len(listing.classes)]
    for part, count in zip((written.train, written.val), counts, strict=True):
        for picture in part:
            count[picture.label] += 1
    height, width = next(iter(written.sizes)) if len(written.sizes) == 1 else (0, 0)
    return DatasetCard(
        folder=out,
        classes=listing.classes,
        train_counts=counts[0],
        val_counts=counts[1],
        width=width,
        height=height,
        channels=3 if form.color else 1,
        mean_values=[],
        seed=seed,
        val=None if listing.val is not None else val,
        gray=not form.color,
        encoded=form.encoded,
        skipped=[*listing.skipped, *written.unusable],
        notes=_notes(listing, counts, width),
        pictures=str(listing.root),
    )


def _notes(listing: Listing, counts: list[list[int]], width: int) -> list[str]:
    notes = []
    for name, train, val in zip(listing.classes, *counts, strict=True):
        if listing.val is None and train + val == 1:
            notes.append(f"The class '{name}' has one usable picture only; it trains, and nothing validates this class.")
        elif not val:
            notes.append(f"The class '{name}' has no validation picture.")
    if not width:
        notes.append("The pictures keep different sizes: there is no mean file, and a net must crop them or take one at a time.")
    if listing.others:
        notes.append(f"{listing.others} file(s) are no pictures by their names and were passed over.")
    return notes


def _write_texts(work: Path, card: DatasetCard, written: _Written) -> None:
    texts = {
        "labels.txt": card.classes,
        "train.txt": [f"{picture.path} {picture.label}" for picture in written.train],
        "val.txt": [f"{picture.path} {picture.label}" for picture in written.val],
    }
    for name, lines in texts.items():
        with atomic_write(work / name) as stream:
            stream.write(os.fsencode("".join(f"{line}\n" for line in lines)))


def _write_mean(work: Path, card: DatasetCard, progress: Progress | None) -> None:
    before, total = card.train_count + card.val_count, 2 * card.train_count + card.val_count

    def advance(done: int, _: int) -> None:
        if progress:
            progress(before + done, total)

    with closing(open_database(work / "train_lmdb")) as database:
        if card.width:
            mean = compute_mean(database, progress=advance)
            write_binaryproto(work / "mean.binaryproto", mean)
            card.mean_values = channel_means(mean)
            return
        sums, pixels = np.zeros(card.channels), 0
        for done, (key, value) in enumerate(database.records(), 1):
            array = datum_to_array(parse_datum(value, repr(key)), what=repr(key))
            sums += array.sum(axis=(1, 2), dtype=np.float64)
            pixels += array[0].size
            advance(done, 0)
        card.mean_values = [float(value) for value in sums / pixels]
