"""Split a database into shards with an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path

from caffetools.cancel import CancelToken
from caffetools.data.databases import new_lmdb, open_database
from caffetools.data.lmdb_file import Record
from caffetools.data.shards import INDEX, Shard, ShardIndex, write_index
from caffetools.errors import DataError
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter
from caffetools.util import urls
from caffetools.util.checksums import file_sha256
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
_EVERY = 500


def shard_name(number: int) -> str:
    """Return the name of the shard ``number``, from 0."""
    return f"shard_{number:05d}"


def shard_bounds(count: int, shards: int) -> list[tuple[int, int]]:
    """Return the (first, end) record numbers of ``shards`` shards of ``count`` records, as equal as possible."""
    return [(count * number // shards, count * (number + 1) // shards) for number in range(shards)]


def shard_database(
    source: PathLike,
    out: PathLike,
    shards: int,
    *,
    force: bool = False,
    checksums: bool = True,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> ShardIndex:
    """Copy the records of a database into ``shards`` LMDBs below the new folder ``out``, in their order, and write the index.

    Args:
        source: An LMDB, LevelDB or index of shards; a path or URL.
        out: Folder or URL to make.
        shards: Number of shards, from 1 to the number of records.
        force: Replace an earlier index and its shards, once the new ones are complete.
        checksums: Store the SHA-256 of each shard's data.mdb in the index.
        events: Receives ``Progress`` (unit ``records``) and ``ArtifactWritten``.
        cancel: Checked between records; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: The source cannot be read, it has fewer records than ``shards``, or ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    with reported("dataset", f"Splitting {os.fspath(source)}", events), closing(open_database(source)) as database:
        count = len(database)
        if not 1 <= shards <= count:
            raise DataError(f"{count} records can be split into 1 to {count} shards, not {shards}", path=source)
        report = reporter(events, "dataset", "records", cancel)
        with (
            urls.local_output(out, force=force) as local,
            new_folder(local, force=force, replaceable=lambda old: (old / INDEX).is_file()) as work,
        ):
            index = _write_shards(database.records(), work, shard_bounds(count, shards), checksums, report)
            write_index(work, index)
        events(ArtifactWritten(task="dataset", path=os.fspath(out), what="shards"))
    return index


def finished_shard(folder: Path, name: str, records: int, *, checksums: bool = True) -> Shard:
    """Return the entry of the index for the complete LMDB ``name`` in ``folder``."""
    return Shard(name, records, file_sha256(folder / name / "data.mdb") if checksums else "")


def _write_shards(
    records: Generator[Record, None, None], work: Path, bounds: list[tuple[int, int]], checksums: bool, report: Callable[[int, int], None]
) -> ShardIndex:
    total, done, entries = bounds[-1][1], 0, []
    with closing(records):
        for number, (first, end) in enumerate(bounds):
            name = shard_name(number)
            with new_lmdb(work / name) as writer:
                for key, value in islice(records, end - first):
                    writer.put(key, value)
                    done += 1
                    if done % _EVERY == 0 or done == total:
                        report(done, total)
                written = writer.count
            if written != end - first:
                raise DataError(f"the source gave {written} different keys where it counts {end - first} records", path=name)
            entries.append(finished_shard(work, name, written, checksums=checksums))
    return ShardIndex(tuple(entries))
