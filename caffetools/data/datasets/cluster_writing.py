"""Writing the databases of a dataset in shards, a task for each shard: on a cluster or in this process."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from caffetools.data.cluster import Task, connected, run_tasks
from caffetools.data.databases import new_lmdb
from caffetools.data.datasets.journal import JOURNALS, Journal
from caffetools.data.datasets.picture_records import RecordFormat
from caffetools.data.datasets.pictures import Pictures, PictureTable
from caffetools.data.datasets.splits import PARTS, Split
from caffetools.data.datasets.writing import Source, Step, WriteResult, write_pictures
from caffetools.data.sharding import finished_shard, shard_bounds, shard_name
from caffetools.data.shards import ShardIndex, write_index
from caffetools.util.files import atomic_write, write_text
from caffetools.util.folders import remove


def write_split_in_shards(split: Split, source: Source, work: Path, step: Step, *, shards: int, cluster: str = "") -> WriteResult:
    """Write ``train_lmdb``, ``val_lmdb`` and maybe ``test_lmdb`` into the folder ``work``, each in shards with an index.

    The records of the shards, one after the other, are those of :func:`~caffetools.data.datasets.writing.write_split`, keys included.
    Shards that an interrupted call left in ``work`` are kept, if they are of the same pictures.

    Args:
        split: The pictures of each part.
        source: Where they are, and how they are stored; with a cluster, a folder that every machine reads.
        work: Folder to write to; with a cluster, one that every machine writes to.
        step: Called once for each picture.
        shards: Number of shards of each database; fewer if it has fewer pictures.
        cluster: Address of a cluster, see :func:`~caffetools.data.cluster.run_tasks`; empty for this process.

    Raises:
        DataError: With ``strict``, a picture cannot be used; or the cluster cannot be reached.
    """
    written = WriteResult()
    plan = [shard for part in PARTS for shard in _planned(part, getattr(split, part), source, work, shards)]
    with connected(cluster):
        _run(plan, step, cluster)
        if _renumbered(plan):
            _run(plan, step, cluster)
    for part in PARTS:
        pictures: Pictures = getattr(split, part)
        folder = work / f"{part}_lmdb"
        if len(pictures):
            own = [shard for shard in plan if shard.part == part]
            for shard in own:
                written.take(part, shard.pictures, shard.journal)
            write_index(folder, ShardIndex(tuple(finished_shard(folder, shard.name, shard.usable) for shard in own)))
        elif part != "test":
            with new_lmdb(folder):
                pass
    return written


class _Shard:
    """A shard to write: its pictures, the number of its first record, and, when it is written, how many pictures are in it."""

    def __init__(self, part: str, name: str, pictures: Pictures, first: int, source: Source, work: Path):
        self.part, self.name, self.pictures, self.first = part, name, pictures, first
        self._source, self._folder = source, work / f"{part}_lmdb"
        self.journal = work / JOURNALS / f"{part}-{name}"
        self.usable = 0
        self.counted = self.written = False
        self._digest = _write_list(_list_file(self.journal), pictures)

    @property
    def task(self) -> Task:
        """The task for :func:`write_shard`."""
        source = self._source
        return {
            "folder": str(self._folder.absolute()),
            "name": self.name,
            "first": self.first,
            "journal": str(self.journal.absolute()),
            "digest": self._digest,
            "root": str(Path(source.root).absolute()),
            "home": None if source.home is None else str(source.home),
            "strict": source.strict,
            "stored": asdict(source.stored),
        }


def write_shard(task: Task) -> Task:
    """Task: write one shard, with a journal of what became of its pictures; done already if a note of its result is there.

    Raises:
        DataError: With ``strict``, a picture cannot be used.
    """
    folder, journal, identity = Path(task["folder"]), Path(task["journal"]), _identity(task)
    note = journal.with_name(f"{journal.name}.json")
    with suppress(OSError, ValueError, KeyError):
        known: Task = json.loads(note.read_text("utf-8"))
        if known["identity"] == identity and (folder / task["name"] / "data.mdb").is_file():
            return known
    remove(note)
    size = task["stored"]["size"]
    stored = RecordFormat(**{**task["stored"], "size": None if size is None else tuple(size)})
    source = Source(Path(task["root"]), stored, None if task["home"] is None else Path(task["home"]), task["strict"])
    pictures = _read_list(_list_file(journal))
    with new_lmdb(folder / task["name"], force=True) as writer, Journal(journal) as lines:
        write_pictures(writer, task["first"], pictures, source, lines, lambda: None)
    result = {"identity": identity, "usable": writer.count}
    write_text(note, json.dumps(result))
    return result


def _planned(part: str, pictures: Pictures, source: Source, work: Path, shards: int) -> list[_Shard]:
    """Return the shards of a part, numbered as if every picture could be used; there is a folder for them."""
    if not len(pictures):
        return []
    folder = work / f"{part}_lmdb"
    if (folder / "data.mdb").exists():
        remove(folder)  # of a build without shards
    folder.mkdir(exist_ok=True)
    bounds = shard_bounds(len(pictures), min(shards, len(pictures)))
    return [_Shard(part, shard_name(n), pictures[first:end], first, source, work) for n, (first, end) in enumerate(bounds)]


def _run(plan: list[_Shard], step: Step, cluster: str) -> None:
    """Write the shards that are not written with their present numbers."""
    missing = [shard for shard in plan if not shard.written]

    def finished(number: int, result: Task) -> None:
        shard = missing[number]
        shard.usable, shard.written = result["usable"], True
        if not shard.counted:
            shard.counted = True
            for _ in range(len(shard.pictures)):
                step()

    run_tasks(cluster, write_shard, [shard.task for shard in missing], on_result=finished)


def _renumbered(plan: list[_Shard]) -> bool:
    """Number the records without the pictures that cannot be used; return whether shards must be written again."""
    numbers = dict.fromkeys(PARTS, 0)
    for shard in plan:
        if shard.first != numbers[shard.part]:
            shard.first, shard.written = numbers[shard.part], False
        numbers[shard.part] += shard.usable
    return not all(shard.written for shard in plan)


def _list_file(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.list")


def _write_list(path: Path, pictures: Pictures) -> str:
    """Write the pictures of a shard for its task, and return a digest of them."""
    digest = hashlib.sha256()
    with atomic_write(path) as stream:
        for picture in pictures:
            line = f"{picture.path}\0{picture.label}\0".encode("utf-8", "surrogatepass")
            digest.update(line)
            stream.write(line)
    return digest.hexdigest()


def _read_list(path: Path) -> Pictures:
    table = PictureTable()
    texts = path.read_bytes().split(b"\0")
    for name, label in zip(texts[::2], texts[1::2], strict=False):
        table.add(name.decode("utf-8", "surrogatepass"), int(label))
    return Pictures(table)


def _identity(task: Task) -> str:
    values = {name: value for name, value in task.items() if name not in ("folder", "name", "journal")}
    return hashlib.sha256(os.fsencode(json.dumps(values, sort_keys=True))).hexdigest()
