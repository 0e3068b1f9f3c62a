"""Where many pictures come from: files, folders, patterns, lists and databases; in parts that can be read one by one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.cluster import Task
from caffetools.data.databases import open_database
from caffetools.data.datum import record_to_array
from caffetools.data.images import SUFFIXES
from caffetools.data.picture_lists import read_lines
from caffetools.data.shards import is_index
from caffetools.errors import DataError
from caffetools.infer.classifier import find_pictures
from caffetools.proto.sniff import Kind, wrong_kind

PathLike = str | os.PathLike[str]
# Pictures of a task, and of the file that it writes.
PICTURES_PER_FILE = 2000
_TABLES = (".csv", ".tsv", ".json", ".jsonl")
_LISTS = (".txt", ".lst", ".list", *_TABLES)


@dataclass(frozen=True)
class Files:
    """Picture files.

    Attributes:
        names: Their paths.
    """

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def part(self, first: int, end: int) -> Task:
        """Return what a task reads of it: the pictures from ``first`` up to ``end``, which is left out."""
        return {"pictures": list(self.names[first:end])}


@dataclass(frozen=True)
class Records:
    """The records of a database.

    Attributes:
        path: The database, or the index of shards.
        count: Number of records.
    """

    path: str
    count: int

    def __len__(self) -> int:
        return self.count

    def part(self, first: int, end: int) -> Task:
        """Return what a task reads of it: the records from ``first`` up to ``end``, which is left out."""
        return {"database": self.path, "first": first, "end": end}


Source = Files | Records


@dataclass(frozen=True)
class Item:
    """A picture of a task.

    Attributes:
        name: Its path, or the key of its record.
        picture: Its path; (H, W, 3) or (H, W) uint8 of a record, in BGR order; or why the record cannot be used.
    """

    name: str
    picture: str | NDArray[Any] | DataError


def find_sources(names: Iterable[PathLike], lists: Iterable[PathLike] = ()) -> list[Source]:
    """Return the pictures that ``names`` and ``lists`` name, in this order.

    Args:
        names: Files, folders, patterns (see :func:`~caffetools.infer.classifier.find_pictures`) and databases.
        lists: Text files with a picture on each line, which a label may follow; relative paths are relative to the list's folder.

    Raises:
        DataError: A folder holds no pictures, a pattern matches nothing, or a list or database cannot be read.
    """
    sources: list[Source] = []
    files: list[str] = []
    for name in [os.fspath(given) for given in names]:
        if not is_database(name):
            files += find_pictures([name])
            continue
        if files:
            sources, files = [*sources, Files(files)], []
        with closing(open_database(name)) as database:
            sources.append(Records(name if "://" in name else os.path.abspath(name), len(database)))  # noqa: PTH100
    files += listed_pictures(lists)
    return [*sources, Files(files)] if files else sources


def find_images(names: Iterable[PathLike]) -> list[Source]:
    """Return the pictures that ``names`` name, in this order: what :func:`find_sources` takes, and lists of pictures.

    Raises:
        DataError: See :func:`find_sources`; also, one does not exist.
    """
    sources: list[Source] = []
    for listed, group in groupby(names, is_list):
        chosen = list(group)
        for name in chosen:
            if not (listed or glob.has_magic(os.fspath(name)) or "://" in os.fspath(name) or Path(name).exists()):
                raise DataError("it does not exist", path=name, hint="a folder, a list, a picture, a pattern or a database is expected")
        sources += find_sources([], chosen) if listed else find_sources(chosen)
    return sources


def listed_pictures(lists: Iterable[PathLike]) -> list[str]:
    """Return the pictures on the lines of lists; see :func:`find_sources`.

    Raises:
        DataError: An empty list, or one with columns.
    """
    found = []
    for path in lists:
        if Path(path).suffix.lower() in _TABLES:
            raise DataError("a list here is a text file with a picture on each line, without columns", path=path)
        folder, lines = Path(path).parent, read_lines(path)
        if other := wrong_kind(DataError, path, "a list of pictures (a path on each line)", allowed=(Kind.TEXT,)):
            raise other
        if not lines:
            raise DataError("the list is empty", path=path)
        for _, line in lines:
            name, _, label = line.rpartition(" ")
            is_label = bool(name) and label.lstrip("-").isdigit() and not (folder / line).exists()
            found.append(os.path.join(folder, name if is_label else line))  # noqa: PTH118 (absolute ones are kept)
    return found


def is_list(path: PathLike) -> bool:
    """Return whether ``path`` is a list of pictures by its name, or a file whose name is not that of a picture."""
    suffix = Path(path).suffix.lower()
    return suffix in _LISTS or (Path(path).is_file() and suffix not in SUFFIXES and not is_index(path))


def is_database(path: PathLike) -> bool:
    """Return whether ``path`` is a folder of an LMDB or LevelDB, or an index of shards."""
    folder = Path(path)
    return is_index(path) or (folder.is_dir() and ((folder / "data.mdb").is_file() or (folder / "CURRENT").is_file()))


def picture_tasks(pictures: Sequence[PathLike | Source], common: Task, per_file: int) -> tuple[list[Task], list[int]]:
    """Return the tasks, of up to ``per_file`` pictures, and how many pictures there are up to the end of each.

    Args:
        pictures: Paths, or what :func:`find_sources` returned.
        common: What every task has.
        per_file: Number of pictures of a task.

    Raises:
        DataError: There are no pictures.
    """
    sources: list[Source] = [item for item in pictures if isinstance(item, Files | Records)]
    if names := [os.fspath(item) for item in pictures if not isinstance(item, Files | Records)]:
        sources.append(Files(names))
    tasks: list[Task] = []
    ends: list[int] = []
    for source in sources:
        for first in range(0, len(source), per_file):
            end = min(first + per_file, len(source))
            tasks.append({**common, **source.part(first, end)})
            ends.append((ends[-1] if ends else 0) + end - first)
    if not tasks:
        raise DataError("there are no pictures")
    return tasks, ends


def items(task: Task) -> Iterator[Item]:
    """Yield the pictures of a task that :meth:`Files.part` or :meth:`Records.part` described, reading records one after the other."""
    if "pictures" in task:
        yield from (Item(name, name) for name in task["pictures"])
        return
    first, end = task["first"], task["end"]
    errors: list[DataError] = []
    with closing(open_database(task["database"])) as database, closing(database.records(first, on_error=errors.append)) as records:
        count = first
        for key, value in records:
            for error in errors:
                yield Item(error.record or "", error)
            count, errors[:] = count + len(errors) + 1, []
            if count > end:
                return
            name = key.decode("utf-8", "replace")
            yield Item(name, _pixels(value, name))
        yield from (Item(error.record or "", error) for error in islice(errors, max(0, end - count)))


def batches(found: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of ``size``, the last one shorter."""
    while batch := list(islice(found, size)):
        yield batch


def _pixels(value: bytes, key: str) -> NDArray[Any] | DataError:
    try:
        array, _ = record_to_array(value, what=f"record '{key}'")
    except DataError as error:
        return error
    if array.dtype != np.uint8 or array.shape[0] not in (1, 3):
        shape = " x ".join(map(str, array.shape))
        return DataError(f"the record has {shape} values ({array.dtype}); a picture has 1 or 3 channels of bytes", record=key)
    return np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
