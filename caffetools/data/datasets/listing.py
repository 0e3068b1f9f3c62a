"""From a folder of pictures to classes and a split: what belongs to which class, and which pictures validate."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffetools.data.datasets.card import Skipped
from caffetools.data.images import SUFFIXES
from caffetools.errors import DataError

PathLike = str | os.PathLike[str]

# What systems and tools leave lying about in folders.
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})


@dataclass(frozen=True)
class Picture:
    """A picture's path below the pictures' folder (with ``/``), and its label."""

    path: str
    label: int


@dataclass
class Listing:
    """The pictures of a folder, by class.

    Attributes:
        classes: Names in natural order; the place of a name is its label.
        pictures: For each class its pictures in natural order; for a folder that came split, those of ``train/``.
        val: For each class its pictures of ``val/``; None where the split is still to be made.
        skipped: Pictures that belong to no class. others: how many files are no pictures by their names.
    """

    root: Path
    classes: list[str]
    pictures: list[list[Picture]]
    val: list[list[Picture]] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    others: int = 0


@dataclass
class Split:
    """Which pictures train, shuffled, and which validate, in the order of the classes."""

    train: list[Picture]
    val: list[Picture]


def list_pictures(root: PathLike) -> Listing:
    """Look through ``root``: one folder for each class, or ``train/`` and ``val/`` with such folders inside.

    Folders inside of a class's folder count to the class. Hidden files and what systems leave behind are passed over.

    Raises:
        DataError: no such folder, no class folders, only one class, a class without pictures, or classes that differ between
            ``train/`` and ``val/``.
    """
    top = Path(root)
    folders, loose = _look(top)
    given = {name.lower(): name for name in folders}
    if set(given) == {"train", "val"} and all(_look(top / name)[0] for name in folders):
        return _list_split(top, given["train"], given["val"])
    listing = Listing(top, *_list_classes(top, "", folders))
    listing.skipped = [Skipped(name, "lies in no class's folder") for name in loose if _is_picture(name)]
    listing.others = sum(not _is_picture(name) for name in loose)
    _check_classes(listing, top)
    return listing


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts as people do: ``img2`` before ``img10``, capitals beside small letters; ties by the plain text."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part.casefold()) for part in parts if part] + [(2, 0, text)]


def split_listing(listing: Listing, val: float, seed: int, unusable: set[str]) -> Split:
    """Draw the validation pictures: a share ``val`` of each class, at least one of a class of two, never all of a class.

    The same pictures, share and seed give the same split, whatever other classes there are. Pictures in ``unusable`` are left out.
    """
    train: list[Picture] = []
    chosen: list[Picture] = []
    for label, (name, pictures) in enumerate(zip(listing.classes, listing.pictures, strict=True)):
        good = [picture for picture in pictures if picture.path not in unusable]
        if listing.val is not None:
            train += good
            chosen += [picture for picture in listing.val[label] if picture.path not in unusable]
            continue
        count = min(max(1, round(val * len(good))), len(good) - 1) if len(good) > 1 else 0
        rng = np.random.default_rng([seed, zlib.crc32(os.fsencode(name))])
        drawn = set(rng.permutation(len(good))[:count].tolist())
        train += [picture for index, picture in enumerate(good) if index not in drawn]
        chosen += [picture for index, picture in enumerate(good) if index in drawn]
    order = np.random.default_rng(seed).permutation(len(train))
    return Split([train[index] for index in order], chosen)


def _list_split(top: Path, train: str, val: str) -> Listing:
    (names, pictures), (val_names, val_pictures) = (_list_classes(top, name + "/", _look(top / name)[0]) for name in (train, val))
    unknown = sorted(set(val_names) - set(names))
    if unknown:
        raise DataError(f"{top / val} has the class '{unknown[0]}', which {top / train} has not; both must have the same classes")
    by_name = dict(zip(val_names, val_pictures, strict=True))
    labelled = [[Picture(p.path, label) for p in by_name.get(name, [])] for label, name in enumerate(names)]
    listing = Listing(top, names, pictures, labelled)
    _check_classes(listing, top / train)
    if not any(labelled):
        raise DataError(f"{top / val}: there are no pictures in it")
    return listing


def _list_classes(top: Path, prefix: str, folders: list[str]) -> tuple[list[str], list[list[Picture]]]:
    names = sorted(folders, key=natural)
    return names, [[Picture(path, label) for path in _walk(top, prefix + name)] for label, name in enumerate(names)]


def _check_classes(listing: Listing, where: Path) -> None:
    names = listing.classes
    if not names:
        loose = f"; {len(listing.skipped)} picture(s) lie in it directly" if listing.skipped else ""
        raise DataError(f"{where}: there are no class folders in it{loose}. Make one folder for each class and put its pictures there")
    for name, pictures in zip(names, listing.pictures, strict=True):
        if "\n" in name or "\r" in name or not _is_unicode(name):
            raise DataError(f"the class folder {name!r} cannot be written to labels.txt: its name must be UTF-8 and on one line. Rename it")
        if not pictures:
            raise DataError(f"{where / name}: the class '{name}' has no pictures; add some or remove the folder")
    if len(names) == 1:
        raise DataError(f"{where}: there is only one class, '{names[0]}'; a classifier needs at least two")


def _walk(top: Path, below: str) -> list[str]:
    """The pictures in ``top/below`` and its folders, in natural order; a link that leads back to a folder above is not followed."""
    found: list[str] = []
    stack: list[tuple[str, frozenset[str]]] = [(below, frozenset())]
    while stack:
        folder, above = stack.pop()
        real = os.path.realpath(top / folder)
        if real in above:
            continue
        folders, files = _look(top / folder)
        found += [f"{folder}/{name}" for name in files if _is_picture(name)]
        stack += [(f"{folder}/{name}", above | {real}) for name in folders]
    return sorted(found, key=natural)


def _look(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in ``folder`` that are not hidden and not junk."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.name.lower() not in _JUNK]
    except OSError as error:
        raise DataError(f"{folder}: cannot read the folder of pictures: {error.strerror}") from None
    folders = [entry.name for entry in entries if entry.is_dir()]
    return sorted(folders), sorted(entry.name for entry in entries if not entry.is_dir())


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _is_unicode(name: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in name)
