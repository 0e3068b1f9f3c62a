"""LMDB and LevelDB as Caffe uses them: records in the order of their keys, read endlessly; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from caffetools.data.sharing import Shared
from caffetools.errors import DataError, RunFailed
from caffetools.util.folders import PathLike, new_folder

# Keys may be 511 bytes long at most; the number at their start makes them differ.
_LONGEST_KEY = 511
_COMMIT_EVERY = 1000


class Database(Protocol):
    """A database opened for reading. ``path`` is where it lies, as it was given."""

    path: str

    def __len__(self) -> int:
        """How many records there are."""

    def records(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every record from number ``start`` on, in the order of the keys, once."""

    def close(self) -> None:
        """Let go of the files."""


def open_database(path: PathLike) -> Database:
    """Open the LMDB or LevelDB at ``path`` for reading; which of them it is, its files say.

    Raises:
        DataError: there is none, it is empty or truncated, or it is a LevelDB and plyvel is not installed.
    """
    folder = Path(path)
    if not os.path.lexists(folder):
        raise DataError(f"{os.fspath(path)}: no such database (looked for from {Path.cwd()})")
    if folder.is_dir() and (folder / "CURRENT").is_file() and not (folder / "data.mdb").exists():
        from caffetools.data.leveldb import LevelDb

        return LevelDb(path)
    return Lmdb(path)


def record_key(number: int, name: str) -> bytes:
    """The key that convert_imageset gives line ``number`` of its list: eight digits, ``_``, the name; cut where LMDB's limit is."""
    key = b"%08d_" % number + os.fsencode(name)
    return key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY].decode("utf-8", "ignore").encode()


def shown_key(path: str, key: bytes) -> str:
    """How errors name a record: ``PATH: record 'KEY'``."""
    return f"{path}: record '{key.decode('utf-8', 'replace')}'"


class Lmdb:
    """An LMDB opened read-only and without its lock file, so that it may lie on read-only media.

    Raises:
        DataError: the path holds no LMDB, or one that is truncated, damaged or without records.
    """

    def __init__(self, path: PathLike):
        self.path = os.fspath(path)
        self._shared = Shared(self.path, _open_lmdb)
        try:
            self._file = _lmdb_file(self.path)
            self._entries, self._wanted = _check_lmdb(self.path, self._shared.handle)
        except DataError:
            self.close()
            raise

    def __len__(self) -> int:
        return self._entries

    def records(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        import lmdb

        if start >= self._entries:
            return
        try:
            with self._shared.handle.begin() as transaction, transaction.cursor() as cursor:
                if start:
                    for index, _ in enumerate(cursor.iternext(keys=True, values=False)):
                        if index == start:
                            break
                rest = cursor.iternext()
                while True:
                    # A file that someone cuts short meanwhile would end the process where it is read.
                    _check_size(self.path, self._file, self._wanted)
                    record = next(rest, None)
                    if record is None:
                        return
                    yield record
        except lmdb.Error as error:
            raise DataError(f"{self.path}: the LMDB is damaged: {error}") from None

    def close(self) -> None:
        self._shared.close()


class LmdbWriter:
    """Writes records into a new LMDB in the existing, empty ``folder``; commits every 1000 records, the file grows as needed."""

    def __init__(self, folder: PathLike, *, map_size: int = 1 << 26):
        import lmdb

        self._lmdb = lmdb
        self._environment = lmdb.open(os.fspath(folder), map_size=map_size, lock=False, sync=False, metasync=False)
        self._map_size = map_size
        self._pending: list[tuple[bytes, bytes]] = []
        self.count = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record; a second one with the same key replaces the first."""
        self._pending.append((key, value))
        self.count += 1
        if len(self._pending) >= _COMMIT_EVERY:
            self._commit()

    def close(self) -> None:
        """Write what is pending and wait until all is on the disk."""
        try:
            self._commit()
            self._environment.sync(True)
        finally:
            self._environment.close()

    def abandon(self) -> None:
        """Let go of the files without writing what is pending."""
        self._environment.close()

    def _commit(self) -> None:
        while self._pending:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._pending:
                        transaction.put(key, value)
                self._pending.clear()
            except self._lmdb.MapFullError:
                self._map_size *= 2
                self._environment.set_mapsize(self._map_size)


@contextlib.contextmanager
def new_lmdb(path: PathLike, *, force: bool = False) -> Iterator[LmdbWriter]:
    """Write a new LMDB; it appears at ``path`` when the block ends well, and not at all when it does not.

    Raises:
        DataError: ``path`` exists (``force`` replaces an LMDB that is there), or another run is writing it.
        RunFailed: it cannot be written, or the disk is full.
    """
    with new_folder(path, force=force, replaceable=lambda old: (old / "data.mdb").is_file()) as work:
        import lmdb

        try:
            writer = LmdbWriter(work)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise
            writer.close()
        except lmdb.Error as error:
            raise RunFailed(f"cannot write {os.fspath(path)}: {_reason(error)}; nothing was changed there") from error


def _open_lmdb(path: str) -> Any:
    import lmdb

    is_folder = Path(path).is_dir()
    if is_folder and not (Path(path) / "data.mdb").is_file():
        raise DataError(f"{path}: this folder is no database (an LMDB has a data.mdb, a LevelDB a file CURRENT)")
    try:
        return lmdb.open(path, readonly=True, lock=False, subdir=is_folder, create=False)
    except lmdb.Error as error:
        raise DataError(f"{path}: cannot be opened as an LMDB: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    # py-lmdb says "what it did: why"; only the why is of use.
    why = str(error).rpartition(": ")[2] or str(error)
    # What LMDB calls it when the system took only a part of a write.
    return "the disk is full, or a quota is used up" if why == os.strerror(errno.EIO) else why


def _lmdb_file(path: str) -> str:
    return str(Path(path) / "data.mdb") if Path(path).is_dir() else path


def _check_lmdb(path: str, environment: Any) -> tuple[int, int]:
    """The number of records, and the size in bytes that the file must have at least."""
    stat = environment.stat()
    wanted = (environment.info()["last_pgno"] + 1) * stat["psize"]
    _check_size(path, _lmdb_file(path), wanted)
    if not stat["entries"]:
        raise DataError(f"{path}: the LMDB holds no records")
    return int(stat["entries"]), wanted


def _check_size(path: str, file: str, wanted: int) -> None:
    """A file that is shorter than its pages say would end the process where it is read."""
    try:
        # Asked of every record, so without a Path, which takes longer than reading one.
        size = os.stat(file).st_size  # noqa: PTH116
    except OSError:
        # Removed while it is open: what is open can be read to its end.
        return
    if size < wanted:
        name = Path(file).name
        raise DataError(f"{path}: the LMDB is truncated: {name} has {size} bytes of {wanted}; copy or build it again")
