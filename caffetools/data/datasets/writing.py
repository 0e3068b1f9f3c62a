"""Writing the databases of a dataset from pictures, in a way that a killed build can continue."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from caffetools.data.databases import LmdbWriter, new_lmdb, open_database, record_key
from caffetools.data.datasets.card import Skipped
from caffetools.data.datasets.duplicates import Fingerprint, Fingerprints, Prints
from caffetools.data.datasets.journal import JOURNALS, Entries, Journal, Outcome, Outcomes, read_journal, shown_reason
from caffetools.data.datasets.picture_records import RecordFormat, picture_records
from caffetools.data.datasets.pictures import Picture, Pictures
from caffetools.data.datasets.splits import PARTS, Split
from caffetools.errors import DataError
from caffetools.util.folders import remove

# Called after each picture.
Step = Callable[[], None]


class StoredPrints(Prints):
    """Fingerprints of the pictures in databases, in the journals of their build."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        # Number of the first fingerprint of each block, and of all.
        self._begins = [0]

    def add(self, part: str, pictures: Pictures, outcomes: Outcomes) -> None:
        """Add those of ``pictures`` of ``part``, which are the usable ones of a journal."""
        self._blocks.append(_Block(part, pictures, outcomes))
        self._begins.append(self._begins[-1] + len(pictures))

    def words(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each digest, (N)."""
        return self._gathered(lambda chunk: chunk["digest"][:, 0])

    def dhashes(self) -> NDArray[np.uint64]:
        """Return the difference hashes, (N)."""
        return self._gathered(lambda chunk: chunk["dhash"])

    def digests(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the digests of some, (K, 4)."""
        found = np.empty((len(indices), 4), np.uint64)
        for (begin, end), block in zip(pairwise(self._begins), self._blocks, strict=True):
            inside = (indices >= begin) & (indices < end)
            found[inside] = block.rows(indices[inside] - begin)["digest"]
        return found

    def __len__(self) -> int:
        return self._begins[-1]

    def __iter__(self) -> Iterator[Fingerprint]:
        for block in self._blocks:
            entries = (entry for chunk in block.outcomes.chunks() for entry in chunk[chunk["usable"] == 1])
            for picture, entry in zip(block.pictures, entries, strict=True):
                yield _print(picture, block.part, entry)

    @overload
    def __getitem__(self, index: int) -> Fingerprint: ...
    @overload
    def __getitem__(self, index: slice) -> Fingerprints: ...
    def __getitem__(self, index: int | slice) -> Fingerprint | Fingerprints:
        if isinstance(index, slice):
            return Fingerprints(self[i] for i in range(*index.indices(len(self))))
        index = range(len(self))[index]
        number = bisect_right(self._begins, index) - 1
        block, inside = self._blocks[number], index - self._begins[number]
        return _print(block.pictures[inside], block.part, block.rows(np.array([inside]))[0])

    def _gathered(self, field_of: Callable[[Entries], NDArray[np.uint64]]) -> NDArray[np.uint64]:
        found = np.empty(len(self), np.uint64)
        end = 0
        for block in self._blocks:
            for chunk in block.outcomes.chunks():
                values = field_of(chunk[chunk["usable"] == 1])
                found[end : end + len(values)] = values
                end += len(values)
        return found


@dataclass(frozen=True)
class _Block:
    """The usable pictures of a journal."""

    part: str
    pictures: Pictures
    outcomes: Outcomes

    def rows(self, numbers: NDArray[np.int64]) -> Entries:
        """Return the entries of pictures by their numbers among those that are usable."""
        return self.outcomes.rows(np.flatnonzero(self.outcomes.usable)[numbers] if self.outcomes.reasons else numbers)


def _print(picture: Picture, part: str, entry: np.void) -> Fingerprint:
    return Fingerprint(picture.path, picture.label, part, entry["digest"].tobytes(), int(entry["dhash"]))


@dataclass
class WriteResult:
    """What is in the databases of a dataset.

    Attributes:
        parts: ``train``, ``val`` and ``test`` → the pictures in the order of their records.
        unusable: Pictures that cannot be used, and why.
        sizes: The (height, width) that occur.
        prints: What the pictures are compared by.
    """

    parts: dict[str, Pictures] = field(default_factory=lambda: {part: Pictures.of(()) for part in PARTS})
    unusable: list[Skipped] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    prints: StoredPrints = field(default_factory=StoredPrints)

    def take(self, part: str, pictures: Pictures, journal: Path) -> None:
        """Add what became of ``pictures`` of ``part``, of each of which the journal has an entry.

        Raises:
            DataError: The journal is damaged.
        """
        outcomes = read_journal(journal, pictures)
        if len(outcomes) != len(pictures):
            raise DataError("the journal of the build is damaged", path=journal, hint="run without --resume")
        self.unusable += [Skipped(pictures[number].path, reason) for number, reason in sorted(outcomes.reasons.items())]
        for chunk in outcomes.chunks():
            used = chunk[chunk["usable"] == 1]
            self.sizes.update(zip(*np.unique(np.stack([used["height"], used["width"]]), axis=1).tolist(), strict=True))
        usable = pictures.select(outcomes.usable) if outcomes.reasons else pictures
        self.parts[part] = Pictures.joined([self.parts[part], usable])
        self.prints.add(part, usable, outcomes)


@dataclass(frozen=True)
class Source:
    """Pictures to be stored.

    Attributes:
        root: Folder that their paths are relative to.
        stored: How they are stored.
        home: Folder or archive that errors name in place of ``root``.
        strict: Raise the error of a picture that cannot be used.
    """

    root: Path
    stored: RecordFormat
    home: Path | None = None
    strict: bool = False


def write_split(split: Split, source: Source, work: Path, step: Step) -> WriteResult:
    """Write ``train_lmdb``, ``val_lmdb`` and, if there are pictures for it, ``test_lmdb`` into the folder ``work``.

    Databases that an interrupted call left in ``work`` are continued, if they are of the same pictures. The journals stay in the folder
    ``JOURNALS``, as long as the result is used.

    Raises:
        DataError: With ``strict``, a picture cannot be used.
    """
    written = WriteResult()
    for part in PARTS:
        pictures: Pictures = getattr(split, part)
        if len(pictures) or part != "test":
            path = work / JOURNALS / part
            _write_part(work / f"{part}_lmdb", path, pictures, source, step)
            written.take(part, pictures, path)
    return written


def write_pictures(writer: LmdbWriter, number: int, pictures: Sequence[Picture], source: Source, journal: Journal, step: Step) -> None:
    """Put pictures into a database, with keys that count from ``number``.

    Args:
        writer: The database.
        number: Number of the first record.
        pictures: The pictures.
        source: Where they are, and how they are stored.
        journal: Gets what became of each, before it is in the database.
        step: Called after each.

    Raises:
        DataError: A picture that cannot be read, where such are not left out.
    """
    with closing(picture_records(pictures, source.root, source.stored)) as records:
        for picture, record in zip(pictures, records, strict=True):
            if isinstance(record, DataError):
                reason = shown_reason(record, source.root / picture.path)
                if source.strict:
                    raise DataError(reason, path=(source.home or source.root) / picture.path)
                journal.add(picture, Outcome(reason))
            else:
                journal.add(picture, Outcome("", record.shape, record.digest, record.dhash))
                writer.put(record_key(number, picture.path), record.value)
                number += 1
            step()


def _write_part(database: Path, path: Path, pictures: Pictures, source: Source, step: Step) -> None:
    outcomes = read_journal(path, pictures)
    if database.is_dir():
        if len(outcomes) == len(pictures) and _count(database) == np.count_nonzero(outcomes.usable):
            _steps(len(outcomes), step)
            return
        remove(database)
    with new_lmdb(database, resumable=True, resume=True) as writer:
        outcomes = outcomes.up_to(writer.count)
        if not outcomes or writer.last_key != record_key(writer.count - 1, pictures[len(outcomes) - 1].path):
            writer.clear()
            outcomes = Outcomes(path)
        _steps(len(outcomes), step)
        with Journal(path, len(outcomes)) as journal:
            write_pictures(writer, writer.count, pictures[len(outcomes) :], source, journal, step)


def _count(database: Path) -> int:
    """Return the number of records of an LMDB; 0 if it cannot be read."""
    with suppress(DataError), closing(open_database(database)) as opened:
        return len(opened)
    return 0


def _steps(count: int, step: Step) -> None:
    for _ in range(count):
        step()
