"""Writing the databases of a dataset in shards, a task for each shard: on a cluster or in this process."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from caffetools.data.cluster import Task, connected, run_tasks
from caffetools.data.databases import new_lmdb
from caffetools.data.datasets.journal import Journal, Outcome, parsed_outcome
from caffetools.data.datasets.listing import Picture
from caffetools.data.datasets.picture_records import RecordFormat
from caffetools.data.datasets.splits import PARTS, Split
from caffetools.data.datasets.writing import Source, Step, WriteResult, write_pictures
from caffetools.data.sharding import finished_shard, shard_bounds, shard_name
from caffetools.data.shards import ShardIndex, write_index
from caffetools.util.files import write_text
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
        pictures: list[Picture] = getattr(split, part)
        folder = work / f"{part}_lmdb"
        if pictures:
            own = [shard for shard in plan if shard.part == part]
            for shard in own:
                for picture, outcome in zip(shard.pictures, shard.outcomes, strict=True):
                    written.add(part, picture, outcome)
            write_index(folder, ShardIndex(tuple(finished_shard(folder, shard.name, shard.usable) for shard in own)))
            for shard in own:
                remove(_sidecar(folder, shard.name))
        elif part != "test":
            with new_lmdb(folder):
                pass
    return written


class _Shard:
    """A shard to write: its pictures, the number of its first record, and, when it is written, what became of each picture."""

    def __init__(self, part: str, name: str, pictures: Sequence[Picture], first: int, source: Source, folder: Path):
        self.part, self.name, self.pictures, self.first = part, name, pictures, first
        self._source, self._folder = source, folder
        self.outcomes: list[Outcome] = []
        self.counted = self.written = False

    @property
    def usable(self) -> int:
        """Number of pictures that are in the database."""
        return sum(not outcome.reason for outcome in self.outcomes)

    @property
    def task(self) -> Task:
        """The task for :func:`write_shard`."""
        source = self._source
        return {
            "folder": str(self._folder.absolute()),
            "name": self.name,
            "part": self.part,
            "first": self.first,
            "pictures": [[picture.path, picture.label] for picture in self.pictures],
            "root": str(Path(source.root).absolute()),
            "home": None if source.home is None else str(source.home),
            "strict": source.strict,
            "stored": asdict(source.stored),
        }


def write_shard(task: Task) -> Task:
    """Task: write one shard, and next to it a file of what became of its pictures; done already if that is there.

    Raises:
        DataError: With ``strict``, a picture cannot be used.
    """
    folder, identity = Path(task["folder"]), _identity(task)
    sidecar = _sidecar(folder, task["name"])
    with suppress(OSError, ValueError, KeyError):
        known: Task = json.loads(sidecar.read_text("utf-8"))
        if known["identity"] == identity and (folder / task["name"] / "data.mdb").is_file():
            return known
    remove(sidecar)
    size = task["stored"]["size"]
    stored = RecordFormat(**{**task["stored"], "size": None if size is None else tuple(size)})
    source = Source(Path(task["root"]), stored, None if task["home"] is None else Path(task["home"]), task["strict"])
    pictures = [Picture(path, label) for path, label in task["pictures"]]
    lines = io.StringIO()
    with new_lmdb(folder / task["name"], force=True) as writer:
        write_pictures(writer, task["first"], task["part"], pictures, source, WriteResult(), lambda: None, Journal(lines))
    result = {"identity": identity, "outcomes": lines.getvalue().splitlines()}
    write_text(sidecar, json.dumps(result))
    return result


def _planned(part: str, pictures: list[Picture], source: Source, work: Path, shards: int) -> list[_Shard]:
    """Return the shards of a part, numbered as if every picture could be used; there is a folder for them."""
    if not pictures:
        return []
    folder = work / f"{part}_lmdb"
    if (folder / "data.mdb").exists():
        remove(folder)  # of a build without shards
    folder.mkdir(exist_ok=True)
    bounds = shard_bounds(len(pictures), min(shards, len(pictures)))
    return [_Shard(part, shard_name(n), pictures[first:end], first, source, folder) for n, (first, end) in enumerate(bounds)]


def _run(plan: list[_Shard], step: Step, cluster: str) -> None:
    """Write the shards that are not written with their present numbers."""
    missing = [shard for shard in plan if not shard.written]

    def finished(number: int, result: Task) -> None:
        shard = missing[number]
        shard.outcomes, shard.written = [parsed_outcome(line) for line in result["outcomes"]], True
        if not shard.counted:
            shard.counted = True
            for _ in shard.outcomes:
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


def _sidecar(folder: Path, name: str) -> Path:
    return folder / f"{name}.outcomes.json"


def _identity(task: Task) -> str:
    values = {name: value for name, value in task.items() if name not in ("folder", "name")}
    return hashlib.sha256(os.fsencode(json.dumps(values, sort_keys=True))).hexdigest()
