"""LMDB and LevelDB as Caffe uses them: records in the order of their keys; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

from caffetools.data.database import Database as Database
from caffetools.data.lmdb_file import ErrorHandler, LmdbFile, Record
from caffetools.data.shards import ShardedDatabase, is_index
from caffetools.errors import DataError, WriteFailed
from caffetools.proto.sniff import HEAD, Kind, sniff_bytes
from caffetools.util import urls
from caffetools.util.files import EarlyFlush
from caffetools.util.folders import PathLike, new_folder

# Keys may be 511 bytes long at most; the number at their start makes them differ.
_LONGEST_KEY = 511
# What one transaction holds at most. LMDB keeps it in memory; and while a larger one is committed, those who make records wait.
_COMMIT_RECORDS, _COMMIT_BYTES = 1000, 1 << 23
# Commits after which the file is mapped again.
_REMAP_COMMITS = 16


def open_database(path: PathLike) -> Database:
    """Open the LMDB, LevelDB or index of shards at ``path`` for reading; its files decide which of them it is.

    Args:
        path: The database, the folder or file of an index (see :mod:`caffetools.data.shards`), or the URL of one of them; an LMDB or
            LevelDB at a URL is copied to a temporary folder until it is closed.

    Raises:
        DataError: ``path`` does not exist, is not a database, holds no records, is truncated or damaged, or is a LevelDB and plyvel
            is not installed.
    """
    if is_index(path):
        return ShardedDatabase(path, open_database)
    if urls.is_url(path):
        return _DownloadedDatabase(os.fspath(path))
    folder = Path(path)
    if not os.path.lexists(folder):
        raise DataError(f"no such database (looked for from {Path.cwd()})", path=path)
    if folder.is_dir() and not (folder / "data.mdb").exists():
        if not (folder / "CURRENT").is_file():
            text = "this folder is not a database (an LMDB has a data.mdb, a LevelDB a file CURRENT)"
            raise DataError(text, path=path, hint=_inner_databases(folder))
        from caffetools.data.leveldb import LevelDb

        return LevelDb(path)
    if folder.is_file():
        _refuse_hdf5(folder)
    database = LmdbFile(path)
    if not len(database):
        database.close()
        raise DataError("the LMDB holds no records", path=path)
    return database


def may_be_database(path: PathLike) -> bool:
    """Return whether there is something at ``path`` that is not merely a folder of other files; it may be damaged."""
    folder = Path(path)
    return is_index(path) or folder.is_file() or (folder / "data.mdb").exists() or (folder / "CURRENT").is_file()


def _inner_databases(folder: Path) -> str | None:
    """Return which databases are in a folder that is none, as a dataset of ours (train_lmdb) and a job of DIGITS (train_db) have them."""
    try:
        inner = sorted(path for path in folder.iterdir() if (path / "data.mdb").is_file() or (path / "CURRENT").is_file())
    except OSError:
        return None
    inner.sort(key=lambda path: not path.name.startswith("train"))
    return f"it holds {'databases' if len(inner) > 1 else 'a database'}: {', '.join(map(str, inner[:4]))}" if inner else None


def _refuse_hdf5(file: Path) -> None:
    """Name the command for an HDF5 file or a list of them; what other files are is named by :class:`LmdbFile`."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        head = stream.read(HEAD)
        found = sniff_bytes(head)
        if found is not None and found.kind is Kind.HDF5:
            what = found.noun
        elif found is not None and found.kind is Kind.TEXT and _names_hdf5(os.fsdecode(head.split(b"\n", 1)[0].strip())):
            what = "a list of HDF5 files"
        else:
            return
        hint = f"`caffetools dataset convert hdf5 {file} OUT` makes a database of it"
        raise DataError(f"this is {what}, not a database", path=file, hint=hint)


def _names_hdf5(name: str) -> bool:
    """Return whether a file is HDF5 by its content, or by its name if there is none."""
    try:
        with Path(name).open("rb") as stream:
            found = sniff_bytes(stream.read(HEAD))
    except OSError:
        return name.lower().endswith((".h5", ".hdf5"))
    return found is not None and found.kind is Kind.HDF5


class _DownloadedDatabase:
    """A database at a URL, copied to a temporary folder."""

    def __init__(self, url: str):
        self.path = url
        self._folder = tempfile.TemporaryDirectory(prefix="caffetools-")
        local = Path(self._folder.name) / "database"
        try:
            urls.download(url, local)
            self._database = open_database(local)
        except DataError as error:
            self.close()
            raise error.located(url) from None

    def __len__(self) -> int:
        return len(self._database)

    def records(self, start: int = 0, *, on_error: ErrorHandler | None = None) -> Generator[Record, None, None]:
        return self._database.records(start, on_error=on_error)

    def item(self, number: int) -> Record:
        return self._database.item(number)

    def close(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
        self._folder.cleanup()


class CorruptRecords:
    """Tolerate a number of damaged records: pass it as ``on_error``, or call it with the error of a record.

    A record that is read again, in another epoch, counts once.

    Args:
        limit: How many to tolerate; the next one is raised.
        report: Called with each error that is tolerated, once.

    Attributes:
        count: Number of different damaged records so far.
    """

    def __init__(self, limit: int = 0, report: ErrorHandler | None = None):
        self.limit, self.report, self.count = limit, report, 0
        self._known: set[str] = set()

    def __call__(self, error: DataError) -> None:
        """Count ``error``. Raises it if it is one too many."""
        # Equal errors are those of one record: they have its key.
        text = str(error)
        if text in self._known:
            return
        self._known.add(text)
        self.count += 1
        if self.count > self.limit:
            raise error
        if self.report is not None:
            self.report(error)


def record_key(number: int, name: str) -> bytes:
    """Return the key that convert_imageset gives line ``number`` of its list: eight digits, ``_``, the name; cut at LMDB's limit."""
    key = b"%08d_" % number + os.fsencode(name)
    return key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY].decode("utf-8", "ignore").encode()


def shown_key(path: str, key: bytes) -> str:
    """Return the name of a record in errors: ``PATH: record 'KEY'``."""
    return f"{path}: record '{key.decode('utf-8', 'replace')}'"


class LmdbWriter:
    """Write records into an LMDB; commits every 1000 records or 8 MiB, and the map size grows as needed.

    Args:
        folder: An existing folder: empty, or with an LMDB to add to.
        map_size: The first map size in bytes.

    Attributes:
        count: Number of records: those that were there, and those put.
        last_key: The highest key that is committed; empty if there is none.
    """

    def __init__(self, folder: PathLike, *, map_size: int = 1 << 26):
        import lmdb

        self._lmdb = lmdb
        self._environment = lmdb.open(os.fspath(folder), map_size=map_size, lock=False, sync=False, metasync=False)
        self._map_size = map_size
        self._pending: list[Record] = []
        self._pending_bytes = self._commits = 0
        self._flush = EarlyFlush(Path(folder) / "data.mdb")
        self.last_key = b""
        self.count = int(self._environment.stat()["entries"])
        if self.count:
            self._map_size = int(self._environment.info()["map_size"])
            with self._environment.begin() as transaction, transaction.cursor() as cursor:
                cursor.last()
                self.last_key = bytes(cursor.key())

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record; a second one with the same key replaces the first."""
        self._pending.append((key, value))
        self._pending_bytes += len(value)
        self.count += 1
        if len(self._pending) >= _COMMIT_RECORDS or self._pending_bytes >= _COMMIT_BYTES:
            self._commit()

    def clear(self) -> None:
        """Remove all records, those that were there included."""
        with self._environment.begin(write=True) as transaction:
            transaction.drop(self._environment.open_db(None, transaction), delete=False)
        self._pending.clear()
        self.count, self._pending_bytes, self.last_key = 0, 0, b""

    def close(self) -> None:
        """Commit what is pending and wait until all is on the disk."""
        try:
            self._commit()
            self._environment.sync(True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the files without committing what is pending."""
        self._flush.close()
        self._environment.close()

    def _commit(self) -> None:
        while self._pending:
            try:
                with self._environment.begin(write=True) as transaction:
                    last = self.last_key
                    for key, value in self._pending:
                        # Rising keys fill the pages up, and need no search.
                        transaction.put(key, value, append=key > last)
                        last = max(last, key)
                self.last_key, self._pending_bytes = last, 0
                self._pending.clear()
                self._flush.start()
                self._commits += 1
                if self._commits % _REMAP_COMMITS == 0:
                    # Pages of the map that were looked at count to the process's memory; mapped again, they do not.
                    self._environment.set_mapsize(self._map_size)
            except self._lmdb.MapFullError:
                self._map_size *= 2
                self._environment.set_mapsize(self._map_size)


@contextlib.contextmanager
def new_lmdb(path: PathLike, *, force: bool = False, resumable: bool = False, resume: bool = False) -> Iterator[LmdbWriter]:
    """Write a new LMDB; it appears at ``path`` when the block ends without an error, else not at all.

    Args:
        path: The folder to make.
        force: Replace an LMDB at ``path``, once the new one is complete.
        resumable: Keep what was written if the block is interrupted or cancelled, for a later call with ``resume``.
        resume: Add to what an interrupted run wrote, if there is something.

    Yields:
        The writer; its ``count`` and ``last_key`` are those of the records that were there.

    Raises:
        DataError: ``path`` exists (and is not an LMDB to be replaced), or another run is writing it.
        WriteFailed: it cannot be written, or the disk is full.
    """
    is_lmdb = lambda old: (old / "data.mdb").is_file()  # noqa: E731
    with new_folder(path, force=force, replaceable=is_lmdb, resumable=resumable, resume=resume) as work:
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
            raise WriteFailed(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    # py-lmdb gives "what it did: why"; only the reason is of use.
    why = str(error).rpartition(": ")[2] or str(error)
    # LMDB's error when the system took only a part of a write.
    return "the disk is full, or a quota is used up" if why == os.strerror(errno.EIO) else why
