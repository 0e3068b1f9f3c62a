"""LevelDB, which Caffe's first years stored pictures in; read through plyvel, an extra."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from caffetools.data.sharing import Shared
from caffetools.errors import DataError, RunFailed
from caffetools.util.folders import PathLike, new_folder


class LevelDb:
    """A LevelDB opened for reading. The LevelDB library itself wants to write its bookkeeping into the folder.

    Raises:
        DataError: plyvel is not installed, the path holds no LevelDB, another process has it open, or it has no records.
    """

    def __init__(self, path: PathLike):
        self.path = os.fspath(path)
        self._shared = Shared(self.path, _open_leveldb)
        if next(self.records(), None) is None:
            self.close()
            raise DataError(f"{self.path}: the LevelDB holds no records")

    def __len__(self) -> int:
        return sum(1 for _ in self._shared.handle.iterator(include_value=False))

    def records(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        yield from islice(self._shared.handle.iterator(), start, None)

    def close(self) -> None:
        self._shared.close()


class LevelDbWriter:
    """Writes records into a LevelDB that is open; ``count`` says how many."""

    def __init__(self, database: Any):
        self._database = database
        self.count = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record; a second one with the same key replaces the first."""
        self._database.put(key, value)
        self.count += 1


@contextlib.contextmanager
def new_leveldb(path: PathLike, *, force: bool = False) -> Iterator[LevelDbWriter]:
    """Write a new LevelDB; it appears at ``path`` when the block ends well, and not at all when it does not.

    Raises:
        DataError: plyvel is not installed; ``path`` exists (``force`` replaces a LevelDB that is there), or another run is writing it.
        RunFailed: it cannot be written, or the disk is full.
    """
    plyvel = _plyvel(f"{os.fspath(path)}: writing a LevelDB needs plyvel: pip install 'caffetools[leveldb]', or write an LMDB")
    with new_folder(path, force=force, replaceable=lambda old: (old / "CURRENT").is_file()) as work:
        try:
            with contextlib.closing(plyvel.DB(os.fspath(work), create_if_missing=True)) as database:
                yield LevelDbWriter(database)
        except (plyvel.Error, OSError) as error:
            raise RunFailed(f"cannot write {os.fspath(path)}: {error}; nothing was changed there") from error


def _plyvel(message: str) -> Any:
    try:
        import plyvel
    except ImportError:
        raise DataError(message) from None
    return plyvel


def _open_leveldb(path: str) -> Any:
    plyvel = _plyvel(f"{path}: reading a LevelDB needs plyvel: pip install 'caffetools[leveldb]', or convert it to LMDB")
    try:
        return plyvel.DB(path, create_if_missing=False)
    except (plyvel.Error, OSError) as error:
        raise DataError(f"{path}: cannot be opened as a LevelDB: {error}") from None
