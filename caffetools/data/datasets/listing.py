"""The pictures of a dataset by class: from a folder for each class, or from folders for each split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from caffetools.data.datasets.card import Skipped
from caffetools.data.datasets.pictures import Picture as Picture
from caffetools.data.datasets.pictures import Pictures, PictureTable
from caffetools.data.images import SUFFIXES
from caffetools.errors import DataError

PathLike = str | os.PathLike[str]

# Files and folders that systems and tools leave in folders.
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
_NUMBERS = re.compile(r"([0-9]+)")
_SPLITS = ({"train", "val"}, {"train", "val", "test"})


@dataclass
class Listing:
    """The pictures of a dataset, by class.

    Attributes:
        root: Folder that the paths are relative to.
        classes: Class names; label i at place i.
        pictures: Pictures of each class in natural order; those for training if the split is given.
        val: Pictures of each class for validation; None if they are to be drawn.
        test: Pictures of each class for testing; None if there are none, or they are to be drawn.
        skipped: Pictures that belong to no class.
        others: Number of files that are not pictures by their names.
        source: What the user named: the folder, list or archive; None for ``root``.
        home: Where the pictures remain after the build, if not at ``root``: the archive that they were unpacked from.
        groups: Path → group of pictures that must be in one part; None if the listing has no groups.
    """

    root: Path
    classes: list[str]
    pictures: Sequence[Sequence[Picture]]
    val: Sequence[Sequence[Picture]] | None = None
    test: Sequence[Sequence[Picture]] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    others: int = 0
    source: Path | None = None
    home: Path | None = None
    groups: dict[str, str] | None = None

    @property
    def all_pictures(self) -> Iterator[Picture]:
        """All pictures: those of given parts first (``test``, ``val``), then those to train or to be divided."""
        return (picture for part in (self.test or [], self.val or [], self.pictures) for pictures in part for picture in pictures)

    @property
    def count(self) -> int:
        """Number of pictures."""
        return sum(len(pictures) for part in (self.test or [], self.val or [], self.pictures) for pictures in part)

    def without(self, labels: set[int]) -> Listing:
        """Return the listing without the classes ``labels``; the other classes get new labels in the same order."""
        if not labels:
            return self
        kept = [label for label in range(len(self.classes)) if label not in labels]
        new = [kept.index(label) if label in kept else -1 for label in range(len(self.classes))]
        tables: dict[int, PictureTable] = {}

        def relabelled(given: Sequence[Sequence[Picture]]) -> list[Pictures]:
            chosen = [Pictures.of(given[label]) for label in kept]
            for pictures in chosen:
                if id(pictures.table) not in tables:
                    tables[id(pictures.table)] = pictures.table.relabelled(new)
            return [Pictures(tables[id(pictures.table)], pictures.indices) for pictures in chosen]

        return replace(
            self,
            classes=[self.classes[label] for label in kept],
            pictures=relabelled(self.pictures),
            val=None if self.val is None else relabelled(self.val),
            test=None if self.test is None else relabelled(self.test),
        )


def list_pictures(root: PathLike, *, fewest: int = 2) -> Listing:
    """List the pictures of ``root``: one folder for each class, or ``train/``, ``val/`` and maybe ``test/`` with such folders inside.

    Folders inside of a class's folder count to the class. Hidden files and those that systems leave are ignored.

    Args:
        root: The folder.
        fewest: Number of classes that are needed.

    Raises:
        DataError: The folder does not exist, has fewer than ``fewest`` class folders, a class has no pictures, or ``val/`` has a
            class that ``train/`` does not have.
    """
    top = Path(root)
    folders, loose = _entries(top)
    given = {name.lower(): name for name in folders}
    if set(given) in _SPLITS and all(_entries(top / name)[0] for name in folders):
        return _list_split(top, given, fewest)
    skipped = [Skipped(name, "it is not in a class's folder") for name in loose if is_picture(name)]
    names = sorted(folders, key=natural)
    listing = Listing(top, names, _list_classes(top, names, names, skipped, PictureTable()), skipped=skipped)
    listing.others = sum(not is_picture(name) for name in loose)
    _check_classes(listing, top, fewest)
    return listing


def natural(text: str) -> str:
    """Return a sort key that orders ``img2`` before ``img10`` and ignores case; equal names are ordered by their text."""
    # One text, since the keys of a class's pictures are all in memory: numbers by their length first, and before words, and these before
    # the end of the name.
    key = []
    for part in _NUMBERS.split(text):
        if part.isascii() and part.isdigit():
            digits = part.lstrip("0") or "0"
            key.append(f"\0{chr(len(digits))}{digits}")
        elif part:
            key.append(f"\1{part.casefold()}")
    return f"{''.join(key)}\2{text}"


def check_class_name(name: str, what: str) -> None:
    """Raise :class:`DataError` if ``name`` does not fit on a line of labels.txt; ``what`` names the class in the error."""
    if "\n" in name or "\r" in name or any("\udc80" <= letter <= "\udcff" for letter in name):
        raise DataError(f"{what} {name!r} cannot be written to labels.txt: its name must be UTF-8 and on one line. Rename it")


def is_picture(name: str) -> bool:
    """Return whether ``name`` has the ending of a format that OpenCV reads."""
    return Path(name).suffix.lower() in SUFFIXES


def _list_split(top: Path, given: dict[str, str], fewest: int) -> Listing:
    skipped: list[Skipped] = []
    names = sorted(_entries(top / given["train"])[0], key=natural)
    table = PictureTable()
    found: dict[str, list[Pictures]] = {}
    for part in ("train", "val", "test"):
        if part not in given:
            continue
        own = names if part == "train" else _entries(top / given[part])[0]
        if unknown := sorted(set(own) - set(names)):
            raise DataError(
                f"{top / given[part]} has the class '{unknown[0]}', which {top / given['train']} has not; both must have the same classes"
            )
        folders = [f"{given[part]}/{name}" if name in own else "" for name in names]
        found[part] = _list_classes(top, names, folders, skipped, table)
        if part != "train" and not any(found[part]):
            raise DataError(f"{top / given[part]}: there are no pictures in it")
    listing = Listing(top, names, found["train"], found["val"], found.get("test"), skipped)
    _check_classes(listing, top / given["train"], fewest)
    return listing


def _list_classes(top: Path, names: list[str], folders: list[str], skipped: list[Skipped], table: PictureTable) -> list[Pictures]:
    """Return the pictures of each class, in the folder below ``top`` or in none; they are added to the table."""
    ends = []
    for label, folder in zip(range(len(names)), folders, strict=True):
        begin = len(table)
        for path in _walk(top, folder, skipped) if folder else ():
            table.add(path, label)
        ends.append((begin, len(table)))
    return [Pictures(table, np.arange(begin, end, dtype=np.int32)) for begin, end in ends]


def _check_classes(listing: Listing, where: Path, fewest: int) -> None:
    names = listing.classes
    if not names:
        loose = f"; {len(listing.skipped)} picture(s) are directly in it" if listing.skipped else ""
        raise DataError(f"{where}: there are no class folders in it{loose}. Make one folder for each class and put its pictures there")
    for name, pictures in zip(names, listing.pictures, strict=True):
        check_class_name(name, "the class folder")
        if not pictures:
            raise DataError(f"{where / name}: the class '{name}' has no pictures; add some or remove the folder")
    if len(names) < fewest:
        raise DataError(f"{where}: there is only one class, '{names[0]}'; a classifier needs at least two")


def _walk(top: Path, below: str, skipped: list[Skipped]) -> list[str]:
    """Return the pictures in ``top/below`` and its folders, in natural order; a link to a folder above is not followed but in ``skipped``."""
    found: list[str] = []
    root = Path(os.path.realpath(top))
    stack: list[tuple[str, frozenset[str]]] = [(below, frozenset(map(str, (root, *root.parents))))]
    while stack:
        folder, above = stack.pop()
        real = os.path.realpath(top / folder)
        if real in above:
            skipped.append(Skipped(folder, "it is a link to a folder that contains it; it is not followed"))
            continue
        folders, files = _entries(top / folder)
        found += [f"{folder}/{name}" for name in files if is_picture(name)]
        stack += [(f"{folder}/{name}", above | {real}) for name in folders]
    return sorted(found, key=natural)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in ``folder`` that are not hidden and not junk."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.name.lower() not in _JUNK]
    except OSError as error:
        raise DataError(f"cannot read the folder of pictures: {error.strerror}", path=folder) from None
    folders = [entry.name for entry in entries if entry.is_dir()]
    return sorted(folders), sorted(entry.name for entry in entries if not entry.is_dir())
