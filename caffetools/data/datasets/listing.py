"""The pictures of a dataset by class: from a folder for each class, or from folders for each split."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from caffetools.data.datasets.card import Skipped
from caffetools.data.images import SUFFIXES
from caffetools.errors import DataError

PathLike = str | os.PathLike[str]

# Files and folders that systems and tools leave in folders.
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
_SPLITS = ({"train", "val"}, {"train", "val", "test"})


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture.

    Attributes:
        path: Its path below the root of its listing, with ``/``.
        label: Its label.
    """

    path: str
    label: int


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
    pictures: list[list[Picture]]
    val: list[list[Picture]] | None = None
    test: list[list[Picture]] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    others: int = 0
    source: Path | None = None
    home: Path | None = None
    groups: dict[str, str] | None = None

    @property
    def all_pictures(self) -> list[Picture]:
        """All pictures: those of given parts first (``test``, ``val``), then those to train or to be divided."""
        parts = (self.test or [], self.val or [], self.pictures)
        return [picture for part in parts for pictures in part for picture in pictures]

    def without(self, labels: set[int]) -> Listing:
        """Return the listing without the classes ``labels``; the other classes get new labels in the same order."""
        if not labels:
            return self
        kept = [label for label in range(len(self.classes)) if label not in labels]

        def relabelled(pictures: list[list[Picture]]) -> list[list[Picture]]:
            return [[Picture(picture.path, new) for picture in pictures[old]] for new, old in enumerate(kept)]

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
    listing = Listing(top, *_list_classes(top, "", folders, skipped), skipped=skipped)
    listing.others = sum(not is_picture(name) for name in loose)
    _check_classes(listing, top, fewest)
    return listing


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders ``img2`` before ``img10`` and ignores case; equal names are ordered by their text."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part.casefold()) for part in parts if part] + [(2, 0, text)]


def check_class_name(name: str, what: str) -> None:
    """Raise :class:`DataError` if ``name`` does not fit on a line of labels.txt; ``what`` names the class in the error."""
    if "\n" in name or "\r" in name or any("\udc80" <= letter <= "\udcff" for letter in name):
        raise DataError(f"{what} {name!r} cannot be written to labels.txt: its name must be UTF-8 and on one line. Rename it")


def is_picture(name: str) -> bool:
    """Return whether ``name`` has the ending of a format that OpenCV reads."""
    return Path(name).suffix.lower() in SUFFIXES


def _list_split(top: Path, given: dict[str, str], fewest: int) -> Listing:
    skipped: list[Skipped] = []
    found = {part: _list_classes(top, name + "/", _entries(top / name)[0], skipped) for part, name in given.items()}
    names, pictures = found["train"]
    labelled: dict[str, list[list[Picture]]] = {}
    for part in ("val", "test"):
        if part not in found:
            continue
        unknown = sorted(set(found[part][0]) - set(names))
        if unknown:
            raise DataError(
                f"{top / given[part]} has the class '{unknown[0]}', which {top / given['train']} has not; both must have the same classes"
            )
        by_name = dict(zip(*found[part], strict=True))
        labelled[part] = [[Picture(p.path, label) for p in by_name.get(name, [])] for label, name in enumerate(names)]
        if not any(labelled[part]):
            raise DataError(f"{top / given[part]}: there are no pictures in it")
    listing = Listing(top, names, pictures, labelled["val"], labelled.get("test"), skipped)
    _check_classes(listing, top / given["train"], fewest)
    return listing


def _list_classes(top: Path, prefix: str, folders: list[str], skipped: list[Skipped]) -> tuple[list[str], list[list[Picture]]]:
    names = sorted(folders, key=natural)
    return names, [[Picture(path, label) for path in _walk(top, prefix + name, skipped)] for label, name in enumerate(names)]


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
        raise DataError(f"{folder}: cannot read the folder of pictures: {error.strerror}") from None
    folders = [entry.name for entry in entries if entry.is_dir()]
    return sorted(folders), sorted(entry.name for entry in entries if not entry.is_dir())
