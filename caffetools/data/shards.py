"""Databases in several shards that are read as one: LMDBs, and an index file (JSON) next to them.

The index lists the shards with their numbers of records, so that a reader finds record i, and a process its own shards, without opening
the others. It is written last: a folder without it is not a database.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from caffetools.data.database import Database
from caffetools.data.lmdb_file import ErrorHandler, LmdbFile, Record
from caffetools.data.lmdb_native import Views
from caffetools.errors import DataError
from caffetools.util import urls
from caffetools.util.checksums import stream_sha256
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
Opener = Callable[[str], Database]
INDEX = "index.json"
_FORMAT, _VERSION = "caffetools-shards", 1
# Shards whose files stay open for access by number.
_OPEN = 16
_REBUILD = "build it again"


@dataclass(frozen=True)
class Shard:
    """A shard of a database.

    Attributes:
        path: Its LMDB, relative to the index.
        records: Number of its records.
        sha256: Checksum of its data.mdb; empty if none is stored.
    """

    path: str
    records: int
    sha256: str = ""


@dataclass(frozen=True)
class ShardIndex:
    """The content of an index file.

    Attributes:
        shards: The shards; the records of the database are theirs, one shard after the other.
    """

    shards: tuple[Shard, ...]

    @property
    def records(self) -> int:
        """Number of records in all shards."""
        return sum(shard.records for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        shards = [
            {"path": shard.path, "records": shard.records, **({"sha256": shard.sha256} if shard.sha256 else {})} for shard in self.shards
        ]
        return {"format": _FORMAT, "version": _VERSION, "records": self.records, "shards": shards}


def is_index(path: PathLike) -> bool:
    """Return whether ``path``, a path or URL, is an index file of shards or a folder with one."""
    text = os.fspath(path)
    if text.endswith(".json"):
        return urls.exists(path) and not urls.is_folder(path)
    if urls.is_url(path):
        return urls.exists(urls.join(path, INDEX))
    return (Path(path) / INDEX).is_file() and not (Path(path) / "data.mdb").exists()


def write_index(folder: PathLike, index: ShardIndex) -> None:
    """Write ``index.json`` into ``folder``. Raises :class:`WriteFailed` if it cannot be written."""
    with atomic_write(Path(folder) / INDEX, "w") as stream:
        stream.write(json.dumps(index.to_json(), indent=1) + "\n")


def read_index(path: PathLike) -> ShardIndex:
    """Read an index file, or that of a folder.

    Raises:
        DataError: It cannot be read, is of another format or a later version, or lists a shard outside of its folder.
    """
    file = path if os.fspath(path).endswith(".json") else urls.join(path, INDEX)
    try:
        values = json.loads(urls.read_bytes(file))
        if values["format"] != _FORMAT:
            raise DataError(f"this is not an index of shards but has the format '{values['format']}'", path=file)
        if values["version"] != _VERSION:
            raise DataError(f"an index of version {values['version']}; this caffetools reads version {_VERSION}", path=file)
        shards = tuple(Shard(str(item["path"]), int(item["records"]), str(item.get("sha256", ""))) for item in values["shards"])
        total = int(values["records"])
    except (ValueError, TypeError, KeyError) as error:
        reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"this is not an index of shards: {reason}", path=file, hint=_REBUILD) from None
    for shard in shards:
        if shard.path.startswith(("/", "\\")) or ".." in Path(shard.path).parts or urls.is_url(shard.path) or not shard.path:
            raise DataError(f"the shard '{shard.path}' is outside of the index' folder", path=file)
        if shard.records < 0:
            raise DataError(f"the shard '{shard.path}' has {shard.records} records", path=file, hint=_REBUILD)
    if not shards or total != sum(shard.records for shard in shards) or not total:
        raise DataError(f"it counts {total} records, its {len(shards)} shard(s) {sum(s.records for s in shards)}", path=file, hint=_REBUILD)
    return ShardIndex(shards)


class ShardedDatabase:
    """The shards of an index, read as one database; a shard is opened when its records are asked for.

    Safe to use from several threads.

    Args:
        path: The index file or its folder, a path or URL.
        opener: Opens the database at a path or URL.
        index: The index, if it was read already; maybe with some of the shards only.

    Raises:
        DataError: The index cannot be read.
    """

    def __init__(self, path: PathLike, opener: Opener, index: ShardIndex | None = None):
        self.path = os.fspath(path)
        self.index = index or read_index(path)
        self._folder = self.path.rpartition("/")[0] or "." if self.path.endswith(".json") else self.path
        self._opener = opener
        self._ends = list(accumulate(shard.records for shard in self.index.shards))
        self._opened: OrderedDict[int, Database] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of records in all shards."""
        return self._ends[-1]

    def records(self, start: int = 0, *, on_error: ErrorHandler | None = None) -> Generator[Record, None, None]:
        """Yield (key, value) of every record from number ``start`` on, one shard after the other; see :class:`Database`."""
        first = bisect_right(self._ends, start)
        for number in range(first, len(self.index.shards)):
            if not self.index.shards[number].records:
                continue
            begin = self._ends[number] - self.index.shards[number].records
            with closing(self._open(number)) as database:
                yield from database.records(max(0, start - begin), on_error=on_error)

    def views(self, limit: int) -> Generator[tuple[Views, Callable[[], bool]], None, None]:
        """Yield where the values of the records lie in memory, as :meth:`LmdbFile.views`; ends at a shard that is not a local LMDB."""
        for number, shard in enumerate(self.index.shards):
            if shard.records:
                with closing(self._open(number)) as database:
                    if not isinstance(database, LmdbFile):
                        return
                    yield from database.views(limit)

    def item(self, number: int) -> Record:
        """Return (key, value) of the record ``number``; see :class:`Database`. Raises :class:`IndexError` beyond the last."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        place = bisect_right(self._ends, number)
        with self._lock:
            database = self._opened.pop(place, None) or self._open(place)
            self._opened[place] = database
            while len(self._opened) > _OPEN:
                self._opened.popitem(last=False)[1].close()
            return database.item(number - (self._ends[place] - self.index.shards[place].records))

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()

    def for_rank(self, rank: int, world_size: int) -> ShardedDatabase | None:
        """Return the database of the shards of one process: every ``world_size``-th, from number ``rank`` on.

        Returns:
            The database; None if there are fewer shards with records than processes.
        """
        filled = [shard for shard in self.index.shards if shard.records]
        if len(filled) < world_size:
            return None
        return ShardedDatabase(self.path, self._opener, ShardIndex(tuple(filled[rank::world_size])))

    def shard_path(self, shard: Shard) -> str:
        """Return the path or URL of a shard."""
        return urls.join(self._folder, shard.path)

    def _open(self, number: int) -> Database:
        shard = self.index.shards[number]
        path = self.shard_path(shard)
        database = self._opener(path)
        if len(database) != shard.records:
            found = len(database)
            database.close()
            raise DataError(f"it holds {found} records, but the index counts {shard.records}", path=path, hint=_REBUILD)
        return database


def checksum_errors(database: ShardedDatabase) -> Iterator[DataError]:
    """Yield an error for each shard whose data.mdb is missing or differs from the checksum in the index."""
    for shard in database.index.shards:
        if shard.sha256:
            path = database.shard_path(shard)
            try:
                with urls.open_binary(urls.join(path, "data.mdb")) as stream:
                    found = stream_sha256(stream)
            except DataError as error:
                yield error
                continue
            if found != shard.sha256:
                yield DataError("its data.mdb differs from the checksum in the index", path=path, hint=_REBUILD)
