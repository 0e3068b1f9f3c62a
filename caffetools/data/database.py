"""What every database offers to its readers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from caffetools.data.lmdb_file import ErrorHandler, Record


class Database(Protocol):
    """A database opened for reading.

    Attributes:
        path: The path that it was opened with.
    """

    path: str

    def __len__(self) -> int:
        """Return the number of records."""

    def records(self, start: int = 0, *, on_error: ErrorHandler | None = None) -> Generator[Record, None, None]:
        """Yield (key, value) of every record from number ``start`` on, in the order of the keys.

        Args:
            start: Number of the first record, from 0.
            on_error: Called with the error of a record that cannot be read, which is then left out. If None, it is raised.

        Raises:
            DataError: The database is damaged; names the record.
        """

    def item(self, number: int) -> Record:
        """Return (key, value) of the record ``number``, from 0, in the order of the keys.

        Raises:
            IndexError: There is no such record.
            DataError: The database is damaged; names the record.
        """

    def close(self) -> None:
        """Close the files."""
