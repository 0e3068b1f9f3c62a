"""LevelDB, the database of Caffe's first years, through plyvel (extra ``leveldb``); all of its checksums are verified."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from caffetools.data.db_handles import RefCountedHandle
from caffetools.data.lmdb_file import ErrorHandler, Record
from caffetools.errors import DataError, WriteFailed
from caffetools.proto.wire import read_varint
from caffetools.util.checksums import masked_crc32c
from caffetools.util.folders import PathLike, new_folder

if TYPE_CHECKING:
    import plyvel

_REBUILD = "copy or build it again"
# The format of LevelDB's logs and of its MANIFEST (doc/log_format.md): blocks, and records with checksum, length and type.
_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MANIFEST_NAME = re.compile(r"MANIFEST-\d+\n")
# What follows the tags of a MANIFEST's changes: numbers (n), and strings (s), which begin with their length.
_EDIT_FIELDS = {1: "s", 2: "n", 3: "n", 4: "n", 5: "ns", 6: "nn", 7: "nnnss", 9: "n"}
_LOG_NUMBER, _LAST_SEQUENCE, _NEW_TABLE = 2, 4, 7
# LevelDB's own remarks in its file LOG: a log that it replays when it opens, and records of a full log that it begins to move to a table.
_REPLAYED = re.compile(r"Recovering log #(\d+)")
_MOVED = re.compile(r"Level-0 table #(\d+): started")
_NONE_MOVED = re.compile(r"Level-0 table #(\d+): 0 bytes")
# A log's record begins with the number of its first change, and how many changes it has.
_BATCH_HEADER = 12
# A Caffe whose LevelDB was built without Snappy takes compressed blocks for damaged ones, and pixels become hardly smaller. Also where a
# LevelDB is read: the library then moves the last records from the log to a table.
_NOT_COMPRESSED: dict[str, Any] = {"compression": None}


class LevelDb:
    """A LevelDB opened for reading. The LevelDB library itself writes bookkeeping files into the folder.

    Blocks whose checksums fail, and logs or a MANIFEST that were cut, are errors; LevelDB's defaults would pass them over.

    Args:
        path: The database's folder.

    Raises:
        DataError: plyvel is not installed, the path holds no LevelDB, it is damaged, another process has it open, or it has no
            records.
    """

    def __init__(self, path: PathLike):
        self.path = os.fspath(path)
        self._shared: RefCountedHandle[Any] = RefCountedHandle(self.path, _open_leveldb)
        self._keys: list[bytes] | None = None
        try:
            if next(self.records(), None) is None:
                raise DataError("the LevelDB holds no records", path=self.path)
        except DataError:
            self.close()
            raise

    def __len__(self) -> int:
        """Return the number of records; the first call reads all keys."""
        return len(self._all_keys())

    def __reduce__(self) -> tuple[type[LevelDb], tuple[str]]:
        return type(self), (self.path,)

    def records(self, start: int = 0, *, on_error: ErrorHandler | None = None) -> Generator[Record, None, None]:
        """Yield (key, value) from record ``start`` on; damage is always raised, as LevelDB cannot read past it."""
        with self._errors() as last:
            for key, value in islice(_items(self._shared.handle), start, None):
                last[0] = key
                yield key, value

    def item(self, number: int) -> Record:
        """Return (key, value) of the record ``number``, from 0. Raises :class:`IndexError` if there is no such record."""
        keys = self._all_keys()
        if not 0 <= number < len(keys):
            raise IndexError(f"record {number} of {len(keys)}")
        with self._errors() as last:
            last[0] = keys[number - 1] if number else None
            return keys[number], self._shared.handle.get(keys[number], verify_checksums=True)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._shared.close()

    def _all_keys(self) -> list[bytes]:
        if self._keys is None:
            with self._errors():
                self._keys = [key for key, _ in _items(self._shared.handle, values=False)]
        return self._keys

    @contextlib.contextmanager
    def _errors(self) -> Iterator[list[bytes | None]]:
        """Raise LevelDB's errors as :class:`DataError`; the key of the last record read can be put into the list."""
        import plyvel

        last: list[bytes | None] = [None]
        try:
            yield last
        except (plyvel.Error, OSError) as error:
            place = f" (after the record '{last[0].decode('utf-8', 'replace')}')" if last[0] is not None else ""
            raise DataError(f"the LevelDB is damaged{place}: {_text(error)}", path=self.path, hint=_REBUILD) from None


class LevelDbWriter:
    """Write records into an open LevelDB.

    Args:
        database: The database.

    Attributes:
        count: Number of records put.
    """

    def __init__(self, database: plyvel.DB):
        self._database = database
        self.count = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record; a second one with the same key replaces the first."""
        self._database.put(key, value)
        self.count += 1


@contextlib.contextmanager
def new_leveldb(path: PathLike, *, force: bool = False) -> Iterator[LevelDbWriter]:
    """Write a new LevelDB; it appears at ``path`` when the block ends without an error, else not at all.

    Args:
        path: The folder to make.
        force: Replace a LevelDB at ``path``, once the new one is complete.

    Yields:
        The writer.

    Raises:
        DataError: plyvel is not installed; ``path`` exists (and is not a LevelDB to be replaced), or another run is writing it.
        WriteFailed: It cannot be written, or the disk is full.
    """
    plyvel = _import_plyvel(path, "writing", "write an LMDB")
    with new_folder(path, force=force, replaceable=lambda old: (old / "CURRENT").is_file()) as work:
        try:
            # The sizes that Caffe's db_leveldb.cpp gives.
            options = {"block_size": 65536, "write_buffer_size": 268435456, "max_open_files": 100, **_NOT_COMPRESSED}
            with contextlib.closing(plyvel.DB(os.fspath(work), create_if_missing=True, error_if_exists=True, **options)) as database:
                yield LevelDbWriter(database)
            # Opened again, LevelDB moves what its logs hold to tables, and its MANIFEST names the new log: a reader misses any file then.
            plyvel.DB(os.fspath(work), **options).close()
        except (plyvel.Error, OSError) as error:
            # LevelDB gives "what: file: why"; the file's folder has another name than the user's.
            raise WriteFailed(path, _text(error).rpartition(": ")[2]) from error


def _import_plyvel(path: PathLike, action: str, instead: str) -> Any:
    try:
        import plyvel
    except ImportError:
        raise DataError(f"{action} a LevelDB needs plyvel: pip install 'caffetools[leveldb]'", path=path, hint=f"or {instead}") from None
    return plyvel


def _items(database: plyvel.DB, *, values: bool = True) -> Iterator[Record]:
    """Yield all (key, value); without ``values`` these are empty.

    plyvel's plain iterator takes a table that cannot be opened for the end of the records; the raw one raises LevelDB's error.
    """
    place = database.raw_iterator(verify_checksums=True)
    try:
        place.seek_to_first()
        while place.valid():
            yield place.item() if values else (place.key(), b"")
            place.next()
    finally:
        # plyvel wants its iterators gone before the database is closed; the traceback of an error would keep this one.
        place.close()
        del place


def _open_leveldb(path: str) -> Any:
    plyvel = _import_plyvel(path, "reading", "convert it to LMDB")
    folder = Path(path)
    try:
        current = (folder / "CURRENT").read_text("ascii")
        if not _MANIFEST_NAME.fullmatch(current):
            raise DataError("the LevelDB is damaged: its file CURRENT does not name a MANIFEST", path=path, hint=_REBUILD)
        _check_logs(folder, _read_manifest(folder / current.strip(), path))
        return plyvel.DB(path, create_if_missing=False, paranoid_checks=True, **_NOT_COMPRESSED)
    except FileNotFoundError as error:
        raise DataError(f"the LevelDB is damaged: {Path(error.filename).name} is missing", path=path, hint=_REBUILD) from None
    except (plyvel.Error, OSError, ValueError) as error:
        held = isinstance(error, plyvel.Error) and "lock " in _text(error)
        hint = "another program, or this one, has it open, and LevelDB allows one: end that, or copy the folder" if held else None
        raise DataError(f"cannot be opened as a LevelDB: {_text(error)}", path=path, hint=hint) from None


class _Manifest(NamedTuple):
    """What a MANIFEST says at last: its oldest log that is in use (0: none), the last change's number, and all tables it has named."""

    log: int
    last_sequence: int
    tables: frozenset[int]


def _read_manifest(file: Path, path: str) -> _Manifest:
    """Read a MANIFEST: each of its records lists changes, each with its tag (db/version_edit.cc)."""
    numbers, tables = {_LOG_NUMBER: 0, _LAST_SEQUENCE: 0}, set()
    for record in _log_records(file, path):
        for tag, values in _changes(record):
            if tag in numbers:
                numbers[tag] = values[0]
            elif tag == _NEW_TABLE:
                tables.add(values[1])
            elif not values:  # a change that later versions of LevelDB write
                return _Manifest(0, 0, frozenset())
    return _Manifest(numbers[_LOG_NUMBER], numbers[_LAST_SEQUENCE], frozenset(tables))


def _changes(record: bytes) -> Iterator[tuple[int, list[int]]]:
    """Yield each change's tag and numbers, the lengths of strings among them; no numbers for an unknown tag, which is the last."""
    view, position = memoryview(record), 0
    while position < len(view):
        tag, position = read_varint(view, position, len(view))
        values = []
        for kind in _EDIT_FIELDS.get(tag, ""):
            value, position = read_varint(view, position, len(view))
            values.append(value)
            position += value if kind == "s" else 0
        yield tag, values
        if not values:
            return


def _check_logs(folder: Path, manifest: _Manifest) -> None:
    """Check that the logs that LevelDB will replay are all there and complete; it takes a missing one for an empty one.

    Raises:
        DataError: A log is missing, cut or damaged, or its changes do not follow those of the log before.
    """
    path = os.fspath(folder)
    logs = {int(file.stem): file for file in folder.glob("*.log") if file.stem.isdecimal()}
    if manifest.log and manifest.log not in logs:
        raise DataError(
            f"the LevelDB is damaged: {manifest.log:06d}.log, which holds the last records, is missing",
            path=path,
            hint=f"{_REBUILD}, or make an empty file of that name to read the others",
        )
    following: int | None = None
    for number in sorted(number for number in logs if number >= manifest.log):
        for first, count in _batches(logs[number], path):
            if following not in (None, first):
                raise DataError(
                    f"the LevelDB is damaged: {logs[number].name} goes on with change {first} after {following - 1}, so records are missing",
                    path=path,
                    hint=_REBUILD,
                )
            following = first + count
    if following is not None and following <= manifest.last_sequence:
        missing = manifest.last_sequence - following + 1
        raise DataError(f"the LevelDB is damaged: the last {missing} changes of its records are missing", path=path, hint=_REBUILD)
    _check_newest_log(folder, manifest, max(logs, default=0))


def _check_newest_log(folder: Path, manifest: _Manifest, newest: int) -> None:
    """Raise :class:`DataError` where LevelDB's LOG shows that a log newer than the MANIFEST's was begun, and there is none.

    LevelDB begins a new log when one is full, and moves the full one's records to a table; the MANIFEST names the new log only after that.
    """
    if not manifest.log or newest > manifest.log or not (folder / "LOG").is_file():
        return
    remarks = (folder / "LOG").read_text("utf-8", errors="replace")
    moved, none_moved, replayed = ({int(number) for number in what.findall(remarks)} for what in (_MOVED, _NONE_MOVED, _REPLAYED))
    # A process that ends while it replays the log at opening has moved records as well, and has begun no other log.
    if manifest.log not in replayed and any(number > manifest.log for number in moved - none_moved - manifest.tables):
        raise DataError(
            f"the LevelDB is damaged: the log after {manifest.log:06d}.log, which holds the last records, is missing",
            path=os.fspath(folder),
            hint=f"{_REBUILD}, or remove its file LOG to read the others",
        )


def _batches(file: Path, path: str) -> Iterator[tuple[int, int]]:
    """Yield the number of the first change and how many there are, of each record of a log. Raises as :func:`_log_pieces`."""
    beginning: bytes | None = b""
    for kind, content in _log_pieces(file, path, checksums=False):
        if kind in (_FULL, _FIRST):
            beginning = b""
        if beginning is not None and len(beginning := beginning + content[:_BATCH_HEADER]) >= _BATCH_HEADER:
            yield int.from_bytes(beginning[:8], "little"), int.from_bytes(beginning[8:_BATCH_HEADER], "little")
            beginning = None


def _log_records(file: Path, path: str) -> list[bytes]:
    """Return the records of a log, each from its pieces. Raises as :func:`_log_pieces`."""
    records, pieces = [], b""
    for kind, content in _log_pieces(file, path, checksums=True):
        pieces += content
        if kind in (_FULL, _LAST):
            records.append(pieces)
            pieces = b""
    return records


def _log_pieces(file: Path, path: str, *, checksums: bool) -> Iterator[tuple[int, memoryview]]:
    """Yield the kind and the content of each piece of a log's records; LevelDB takes a cut log for the end of its records.

    Args:
        file: The log, or a MANIFEST.
        path: The database, for errors.
        checksums: Compute the checksums as well; slow for large files. LevelDB does it itself for its logs of records.

    Raises:
        DataError: A record is cut, out of sequence or fails its checksum; names database and file.
    """
    data = file.read_bytes()
    view = memoryview(data)
    position, open_record = 0, False
    while position < len(data):
        room = _BLOCK - position % _BLOCK
        if room < _HEADER:
            position += room
            continue
        header = data[position : position + _HEADER]
        if not any(header):  # space that was allocated ahead of writing
            position += room
            continue
        length, kind = int.from_bytes(header[4:6], "little"), header[6] if len(header) == _HEADER else 0
        end = position + _HEADER + length
        if len(header) < _HEADER or end > len(data) or length > room - _HEADER:
            raise DataError(f"the LevelDB is damaged: {file.name} is cut or damaged at byte {position}", path=path, hint=_REBUILD)
        stored = int.from_bytes(header[:4], "little")
        if open_record != (kind in (_MIDDLE, _LAST)) or not _FULL <= kind <= _LAST:
            raise DataError(f"the LevelDB is damaged: {file.name} has a wrong record at byte {position}", path=path, hint=_REBUILD)
        if checksums and stored != masked_crc32c(data[position + 6 : end]):
            raise DataError(f"the LevelDB is damaged: {file.name} fails its checksum at byte {position}", path=path, hint=_REBUILD)
        yield kind, view[position + _HEADER : end]
        open_record = kind in (_FIRST, _MIDDLE)
        position = end
    if open_record:
        raise DataError(f"the LevelDB is damaged: {file.name} ends within a record", path=path, hint=_REBUILD)


def _text(error: Exception) -> str:
    # plyvel's errors hold LevelDB's text as bytes.
    text = error.args[0] if error.args else type(error).__name__
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
