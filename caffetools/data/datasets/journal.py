"""The journal of a build: what became of each picture so far, on the disk, so that a killed build continues where its database ends."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.datasets.pictures import Picture
from caffetools.errors import WriteFailed
from caffetools.util.files import make_folder

# Folder of a build's journals, which a finished dataset does not have.
JOURNALS = "journals"
# An outcome in the file of entries: SHA-256 and difference hash of the picture, a digest of its path and label, height, width, and
# whether it can be used.
_PACKED = struct.Struct("<32sQQIIB7x")
_ENTRY = np.dtype(
    [("digest", "<u8", (4,)), ("dhash", "<u8"), ("picture", "<u8"), ("height", "<u4"), ("width", "<u4"), ("usable", "u1"), ("", "V7")]
)
# Entries that are in memory at a time.
_CHUNK = 8192
Entries = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a picture.

    Attributes:
        reason: Why it cannot be used; empty if it is in the database.
        shape: (height, width) of the stored picture.
        digest: SHA-256 of its file.
        dhash: :func:`~caffetools.data.datasets.duplicates.difference_hash` of it.
    """

    reason: str = ""
    shape: tuple[int, ...] = (0, 0)
    digest: bytes = b""
    dhash: int = 0


class Journal:
    """A journal that is written to: a file of entries of one size, and a file of the reasons of pictures that cannot be used.

    Args:
        path: Path of the two files, without their endings.
        kept: Number of entries to keep; the others are dropped.

    Raises:
        WriteFailed: It cannot be written.
    """

    def __init__(self, path: Path, kept: int = 0):
        self._path, self._count = path, kept
        try:
            make_folder(path.parent)
            self._entries = os.open(_entries(path), os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            os.ftruncate(self._entries, kept * _PACKED.size)
            os.lseek(self._entries, 0, os.SEEK_END)
            self._reasons = _reasons(path).open("a" if kept else "w", encoding="utf-8")
        except OSError as error:
            raise WriteFailed(path, error.strerror or error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._entries)
        self._reasons.close()

    def add(self, picture: Picture, outcome: Outcome) -> None:
        """Add an entry, and hand it to the system: it is there after a kill, but maybe not after a power cut.

        Raises:
            WriteFailed: It cannot be written.
        """
        try:
            if outcome.reason:
                # A line about an entry that is not there is ignored, as one is that another about the same entry follows.
                self._reasons.write(json.dumps([self._count, outcome.reason]) + "\n")
                self._reasons.flush()
            height, width = outcome.shape
            entry = _PACKED.pack(outcome.digest, outcome.dhash, _digest(picture), height, width, not outcome.reason)
            os.write(self._entries, entry)
        except OSError as error:
            raise WriteFailed(self._path, error.strerror or error) from error
        self._count += 1


@dataclass(frozen=True)
class Outcomes:
    """What is in a journal.

    Attributes:
        path: See :class:`Journal`.
        count: Number of entries.
        reasons: Number of an entry → why the picture cannot be used.
    """

    path: Path
    count: int = 0
    reasons: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Whether each picture is in the database, (N)."""
        found = np.ones(self.count, bool)
        found[[number for number in self.reasons if number < self.count]] = False
        return found

    def chunks(self) -> Iterator[Entries]:
        """Yield the entries in their order, some thousands at a time."""
        if not self.count:
            return
        with _entries(self.path).open("rb") as file:
            for begin in range(0, self.count, _CHUNK):
                yield np.fromfile(file, _ENTRY, min(_CHUNK, self.count - begin))

    def rows(self, numbers: NDArray[np.int64]) -> Entries:
        """Return entries by their numbers."""
        found = np.empty(len(numbers), _ENTRY)
        with _entries(self.path).open("rb") as file:
            for place, number in enumerate(numbers.tolist()):
                file.seek(number * _PACKED.size)
                found[place] = np.frombuffer(file.read(_PACKED.size), _ENTRY)[0]
        return found

    def up_to(self, records: int) -> Outcomes:
        """Return the entries up to that of the last picture in a database of ``records`` records; none if there are too few."""
        usable = np.flatnonzero(self.usable)
        return replace(self, count=int(usable[records - 1]) + 1 if 0 < records <= len(usable) else 0)


def read_journal(path: Path, planned: Sequence[Picture]) -> Outcomes:
    """Return the outcomes in the journal at ``path``; none if it is missing, damaged or of other pictures.

    Args:
        path: See :class:`Journal`; a last entry that is incomplete is ignored.
        planned: The pictures in the order in which they are written.
    """
    with suppress(OSError, ValueError):
        outcomes = Outcomes(path, _entries(path).stat().st_size // _PACKED.size)
        if outcomes.count > len(planned):
            return Outcomes(path)
        pictures = iter(planned)
        for chunk in outcomes.chunks():
            known = np.fromiter((_digest(picture) for picture, _ in zip(pictures, chunk, strict=False)), np.uint64, len(chunk))
            if not np.array_equal(chunk["picture"], known):
                return Outcomes(path)
        return replace(outcomes, reasons=_known_reasons(outcomes, _read_reasons(path)))
    return Outcomes(path)


def shown_reason(error: Exception, path: str | os.PathLike[str]) -> str:
    """Return the text of the error about the picture at ``path``, without the path."""
    return str(error).removeprefix(f"{os.fspath(path)}: ")


def _entries(path: Path) -> Path:
    return path.with_name(f"{path.name}.entries")


def _reasons(path: Path) -> Path:
    return path.with_name(f"{path.name}.reasons")


def _read_reasons(path: Path) -> dict[int, str]:
    with _reasons(path).open(encoding="utf-8", newline="\n") as lines:
        return dict(json.loads(line) for line in lines if line.endswith("\n"))


def _known_reasons(outcomes: Outcomes, reasons: dict[int, str]) -> dict[int, str]:
    """Return the reasons of the entries that cannot be used, and of no others."""
    found: dict[int, str] = {}
    begin = 0
    for chunk in outcomes.chunks():
        for number in (np.flatnonzero(chunk["usable"] == 0) + begin).tolist():
            found[number] = reasons.get(number, "it cannot be used")
        begin += len(chunk)
    return found


def _digest(picture: Picture) -> int:
    text = f"{picture.path}\0{picture.label}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
