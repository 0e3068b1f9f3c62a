"""The journal of a build: what became of each picture so far, so that a killed build continues where its database ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from caffetools.data.datasets.listing import Picture
from caffetools.util.files import atomic_write


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a picture.

    Attributes:
        path: The picture.
        reason: Why it cannot be used; empty if it is in the database.
        shape: (height, width) of the stored picture.
        digest: SHA-256 of its file.
        dhash: :func:`~caffetools.data.datasets.duplicates.difference_hash` of it.
    """

    path: str
    reason: str = ""
    shape: tuple[int, ...] = ()
    digest: bytes = b""
    dhash: int = 0

    def to_line(self) -> str:
        """Return the outcome as a line of the journal."""
        values = [self.path, self.reason] if self.reason else [self.path, "", list(self.shape), self.digest.hex(), self.dhash]
        return json.dumps(values) + "\n"


class Journal:
    """A journal that is written to.

    Args:
        stream: The file, opened for appending.
    """

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def add(self, outcome: Outcome) -> None:
        """Add a line, and hand it to the system: it is there after a kill, but maybe not after a power cut."""
        self._stream.write(outcome.to_line())
        self._stream.flush()


@contextmanager
def opened_journal(path: Path, outcomes: Sequence[Outcome]) -> Iterator[Journal]:
    """Open the journal at ``path`` for writing, with ``outcomes`` as its first lines."""
    with atomic_write(path) as stream:
        stream.write("".join(outcome.to_line() for outcome in outcomes).encode())
    with path.open("a", encoding="utf-8") as appended:
        yield Journal(appended)


def read_journal(path: Path, planned: Sequence[Picture]) -> list[Outcome]:
    """Return the outcomes in the journal at ``path``; none if it is missing or lists other pictures.

    Args:
        path: The journal; a last line that is incomplete is ignored.
        planned: The pictures in the order in which they are written.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            found = [parsed_outcome(line) for line in lines if line.endswith("\n")]
    except OSError:
        return []
    same = len(found) <= len(planned) and all(one.path == other.path for one, other in zip(found, planned, strict=False))
    return found if same else []


def up_to(outcomes: list[Outcome], records: int) -> list[Outcome]:
    """Return the outcomes up to that of the last picture in a database of ``records`` records; none if there are too few."""
    usable = [index for index, outcome in enumerate(outcomes) if not outcome.reason]
    return outcomes[: usable[records - 1] + 1] if 0 < records <= len(usable) else []


def parsed_outcome(line: str) -> Outcome:
    """Return the outcome in a line that :meth:`Outcome.to_line` gave."""
    path, reason, *rest = json.loads(line)
    if reason:
        return Outcome(path, reason)
    shape, digest, dhash = rest
    return Outcome(path, "", tuple(shape), bytes.fromhex(digest), dhash)


def shown_reason(error: Exception, path: str | os.PathLike[str]) -> str:
    """Return the text of the error about the picture at ``path``, without the path."""
    return str(error).removeprefix(f"{os.fspath(path)}: ")
