"""LevelDB, which Caffe's first years stored pictures in; read through plyvel, an extra."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from caffetools.data.folders import PathLike
from caffetools.data.sharing import Shared
from caffetools.errors import DataError


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


def _open_leveldb(path: str) -> Any:
    try:
        import plyvel
    except ImportError:
        raise DataError(f"{path}: reading a LevelDB needs plyvel: pip install 'caffetools[leveldb]', or convert it to LMDB") from None
    try:
        return plyvel.DB(path, create_if_missing=False)
    except (plyvel.Error, OSError) as error:
        raise DataError(f"{path}: cannot be opened as a LevelDB: {error}") from None
