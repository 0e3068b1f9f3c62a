"""What adding to, merging and selecting from datasets share: the lists of a dataset, and copies of its records under other labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffetools.data.database import Database
from caffetools.data.databases import LmdbWriter, open_database, record_key, shown_key
from caffetools.data.datasets.card import CARD, DatasetCard
from caffetools.data.datasets.duplicates import Fingerprint, Fingerprints, difference_hash
from caffetools.data.datasets.findings import findings
from caffetools.data.datasets.finishing import class_counts
from caffetools.data.datasets.listing import Listing, Picture
from caffetools.data.datasets.splits import PARTS
from caffetools.data.datum import datum_to_array, parse_datum
from caffetools.data.picture_lists import read_list
from caffetools.errors import DataError
from caffetools.util import urls
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]
Step = Callable[[], None]
# The settings that a picture is stored with, by which two datasets are compared, and their names in errors.
_FORM = {"channels": "channels", "width": "pixels in width", "height": "pixels in height"}


@dataclass(frozen=True, slots=True)
class Copied:
    """A record to copy.

    Attributes:
        source: Number of its database among those of the copy.
        number: Its number there.
        picture: The path and the label that it gets.
        label: The label that it has.
    """

    source: int
    number: int
    picture: Picture
    label: int


def is_dataset(path: PathLike) -> bool:
    """Return whether ``path`` is the folder of a dataset of caffetools, or its URL, and not a bare database."""
    return urls.exists(urls.join(path, CARD))


def read_part(card: DatasetCard, part: str) -> list[Picture]:
    """Return the pictures of ``train``, ``val`` or ``test`` in the order of their records; none if there is no such part.

    Raises:
        DataError: The list is missing or damaged, or does not fit the card.
    """
    counts = card.counts(part)
    if not any(counts):
        return []
    path = card.folder / f"{part}.txt"
    pictures = [Picture(name, label) for name, label in read_list(path)]
    if any(not 0 <= picture.label < len(card.classes) for picture in pictures) or class_counts(pictures, card.classes) != counts:
        raise DataError(f"its pictures are not those that {CARD} counts", path=path, hint="restore it, or build the dataset again")
    return pictures


def check_same_form(cards: Sequence[DatasetCard]) -> None:
    """Check that the pictures of datasets have one size and number of channels. Raises :class:`DataError` if not."""
    first, *others = cards
    for card in others:
        for name, what in _FORM.items():
            one, other = getattr(first, name), getattr(card, name)
            if one != other:
                size = "different" if what.startswith("pixels") and 0 in (one, other) else str(other)
                raise DataError(f"its pictures have {size} {what}, those of {first.folder} {one or 'different'}", path=card.folder)


def common_root(roots: Sequence[str]) -> tuple[str, list[str]]:
    """Return a folder that holds all of ``roots``, and the prefix of each root's paths below it."""
    if len(set(roots)) == 1:
        return roots[0], [""] * len(roots)
    full = [Path(root).resolve() for root in roots]
    common = os.path.commonpath(full)
    relative = [path.relative_to(common).as_posix() for path in full]
    return common, ["" if prefix == "." else f"{prefix}/" for prefix in relative]


def copy_records(writer: LmdbWriter, sources: Mapping[int, Database], chosen: Iterable[Copied], step: Step) -> None:
    """Copy records into a database, with new keys and labels; a record that keeps its label is copied byte for byte.

    Raises:
        DataError: A record is not a Datum, or has another label than its list states.
    """
    for copied in chosen:
        key, value = sources[copied.source].item(copied.number)
        what = shown_key(sources[copied.source].path, key)
        datum = parse_datum(value, what)
        if datum.label != copied.label:
            raise DataError(f"{what}: its label is {datum.label}, but its list states {copied.label}")
        if copied.picture.label != copied.label:
            datum.label = copied.picture.label
            value = datum.SerializeToString()
        writer.put(record_key(writer.count, copied.picture.path), value)
        step()


def database_prints(path: Path, pictures: Sequence[Picture], part: str, step: Step) -> Iterator[Fingerprint]:
    """Yield what the records of a database are compared by: their stored pixels.

    Args:
        path: The database.
        pictures: The pictures in the order of the records.
        part: ``train``, ``val`` or ``test``.
        step: Called after each record.

    Raises:
        DataError: A record cannot be decoded, or there are more or fewer records than pictures.
    """

    def made(item: tuple[Picture, tuple[bytes, bytes]]) -> Fingerprint:
        picture, (key, value) = item
        return record_print(picture, value, part, shown_key(os.fspath(path), key))

    with closing(open_database(path)) as database:
        if len(database) != len(pictures):
            raise DataError(f"it has {len(database)} records, but its list has {len(pictures)} pictures", path=path)
        with closing(ordered_map(made, zip(pictures, database.records(), strict=True))) as prints:
            for item in prints:
                yield item
                step()


def record_print(picture: Picture, value: bytes, part: str, what: str) -> Fingerprint:
    """Return what a record is compared by: a digest of its pixels, and their difference hash if they are bytes in 1 or 3 channels."""
    array = datum_to_array(parse_datum(value, what), what=what)
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).data)
    dhash = 0
    if array.dtype == np.uint8 and len(array) in (1, 3):
        dhash = difference_hash(np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)))
    return Fingerprint(picture.path, picture.label, part, digest.digest(), dhash)


def all_prints(work: Path, parts: Mapping[str, Sequence[Picture]], step: Step) -> Fingerprints:
    """Return what the records of all parts in the folder ``work`` are compared by."""
    return Fingerprints(item for part in PARTS if parts[part] for item in database_prints(work / f"{part}_lmdb", parts[part], part, step))


def complete_card(card: DatasetCard, parts: Mapping[str, Sequence[Picture]], prints: Sequence[Fingerprint]) -> None:
    """Set the counts, notes and duplicates of a card."""
    counts = {part: class_counts(pictures, card.classes) for part, pictures in parts.items()}
    # The findings depend on the classes, and on the split being given.
    listing = Listing(Path(card.pictures), card.classes, [[] for _ in card.classes], val=[[] for _ in card.classes])
    notes, card.duplicates = findings(listing, counts, prints, card.width)
    card.notes = card.notes + notes
    card.train_counts, card.val_counts = counts["train"], counts["val"]
    card.test_counts = counts["test"] if parts["test"] else []
