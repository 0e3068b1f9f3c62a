"""Writing the databases of a dataset from pictures, in a way that a killed build can continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from caffetools.data.databases import LmdbWriter, new_lmdb, open_database, record_key
from caffetools.data.datasets.card import Skipped
from caffetools.data.datasets.duplicates import Fingerprint, Fingerprints
from caffetools.data.datasets.journal import Journal, Outcome, opened_journal, read_journal, shown_reason, up_to
from caffetools.data.datasets.listing import Picture
from caffetools.data.datasets.picture_records import RecordFormat, picture_records
from caffetools.data.datasets.splits import PARTS, Split
from caffetools.errors import DataError
from caffetools.util.folders import remove

# Called after each picture.
Step = Callable[[], None]


@dataclass
class WriteResult:
    """What is in the databases of a dataset.

    Attributes:
        parts: ``train``, ``val`` and ``test`` → the pictures in the order of their records.
        unusable: Pictures that cannot be used, and why.
        sizes: The (height, width) that occur.
        prints: What the pictures are compared by.
    """

    parts: dict[str, list[Picture]] = field(default_factory=lambda: {part: [] for part in PARTS})
    unusable: list[Skipped] = field(default_factory=list)
    sizes: set[tuple[int, ...]] = field(default_factory=set)
    prints: Fingerprints = field(default_factory=Fingerprints)

    def add(self, part: str, picture: Picture, outcome: Outcome) -> None:
        """Take down what became of a picture of ``part``."""
        if outcome.reason:
            self.unusable.append(Skipped(picture.path, outcome.reason))
            return
        self.parts[part].append(picture)
        self.sizes.add(outcome.shape)
        self.prints.append(Fingerprint(picture.path, picture.label, part, outcome.digest, outcome.dhash))


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

    Databases that an interrupted call left in ``work`` are continued, if they are of the same pictures.

    Raises:
        DataError: With ``strict``, a picture cannot be used.
    """
    written = WriteResult()
    for part in PARTS:
        pictures: list[Picture] = getattr(split, part)
        if pictures or part != "test":
            _write_part(part, pictures, source, work, written, step)
    return written


def write_pictures(
    writer: LmdbWriter,
    number: int,
    part: str,
    pictures: Sequence[Picture],
    source: Source,
    written: WriteResult,
    step: Step,
    journal: Journal | None = None,
) -> None:
    """Put pictures into a database, with keys that count from ``number``.

    Args:
        writer: The database.
        number: Number of the first record.
        part: ``train``, ``val`` or ``test``.
        pictures: The pictures.
        source: Where they are, and how they are stored.
        written: Gets what became of each.
        step: Called after each.
        journal: Gets the same, before it is in the database.
    """
    with closing(picture_records(pictures, source.root, source.stored)) as records:
        for picture, record in zip(pictures, records, strict=True):
            if isinstance(record, DataError):
                reason = shown_reason(record, source.root / picture.path)
                if source.strict:
                    raise DataError(reason, path=(source.home or source.root) / picture.path)
                outcome = Outcome(picture.path, reason)
            else:
                outcome = Outcome(picture.path, "", record.shape, record.digest, record.dhash)
            if journal is not None:
                journal.add(outcome)
            if not isinstance(record, DataError):
                writer.put(record_key(number, picture.path), record.value)
                number += 1
            written.add(part, picture, outcome)
            step()


def _write_part(part: str, pictures: list[Picture], source: Source, work: Path, written: WriteResult, step: Step) -> None:
    database, path = work / f"{part}_lmdb", work / f"{part}.journal"
    outcomes = read_journal(path, pictures)
    if database.is_dir():
        if len(outcomes) == len(pictures) and _count(database) == sum(not outcome.reason for outcome in outcomes):
            _take(part, pictures, outcomes, written, step)
            return
        remove(database)
    with new_lmdb(database, resumable=True, resume=True) as writer:
        outcomes = up_to(outcomes, writer.count)
        if not outcomes or writer.last_key != record_key(writer.count - 1, outcomes[-1].path):
            writer.clear()
            outcomes = []
        _take(part, pictures, outcomes, written, step)
        with opened_journal(path, outcomes) as journal:
            write_pictures(writer, writer.count, part, pictures[len(outcomes) :], source, written, step, journal)


def _count(database: Path) -> int:
    """Return the number of records of an LMDB; 0 if it cannot be read."""
    with suppress(DataError), closing(open_database(database)) as opened:
        return len(opened)
    return 0


def _take(part: str, pictures: list[Picture], outcomes: list[Outcome], written: WriteResult, step: Step) -> None:
    for picture, outcome in zip(pictures, outcomes, strict=False):
        written.add(part, picture, outcome)
        step()
