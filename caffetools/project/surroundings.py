"""What a folder holds for a user who names nothing: projects, and folders of pictures that could become one; and what follows a dataset.

Nothing here imports torch, so that commands of datasets start at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from caffetools.data.datasets.card import DatasetCard
from caffetools.project.config import FILES, command

_PROJECT = ("run.json", "solver.prototxt", "net/solver.prototxt", "data/dataset.json")
# How many entries of a folder are looked at: the answer must be there at once, also in a home folder.
_MOST = 200
# Networks of the zoo by the least side of the stored pictures that they are made for.
_BY_SIDE = (("squeezenet", 227), ("cifar10_quick", 32))
_GRAY = "lenet"


def projects(folder: Path) -> list[Path]:
    """Return ``folder`` if it is a project, else those that are at most two folders down, the one trained or written last first.

    Args:
        folder: Where to look.
    """
    if _is_project(folder):
        return [folder]
    inner = [(_is_project(path), path) for path in _folders(folder)]
    deeper = chain.from_iterable(_folders(path) for is_project, path in inner if not is_project)
    found = [path for is_project, path in inner if is_project] + list(filter(_is_project, islice(deeper, _MOST)))
    return sorted(found, key=_newest, reverse=True)


def picture_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that have two or more folders of pictures: what ``finetune`` takes.

    Args:
        folder: Where to look.
    """
    return [inner for inner in _folders(folder) if holds_classes(inner)]


def holds_classes(folder: Path) -> bool:
    """Return whether a folder has two or more folders of pictures, each of a class."""
    return sum(map(_has_pictures, _folders(folder))) > 1


def suggest_model(card: DatasetCard) -> str:
    """Return the network of the zoo that suits the size of a dataset's pictures.

    Args:
        card: The dataset.
    """
    if card.channels == 1:
        return _GRAY
    side = min(card.width, card.height) or _BY_SIDE[0][1]
    return next((name for name, least in _BY_SIDE if side >= least), _BY_SIDE[-1][0])


def after_dataset(card: DatasetCard) -> str:
    """Return the command after ``dataset build``: retarget a network that suits the pictures, into a folder that is free."""
    folders = [card.folder.parent / name for name in ("net", *(f"net-{number}" for number in range(2, 100)))]
    folder = next((path for path in folders if not any((path / file).exists() for file in FILES)), folders[0])
    return command("retarget", suggest_model(card), "--dataset", card.folder, "-o", folder)


def _is_project(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _PROJECT)


def _newest(project: Path) -> float:
    return max((path.stat().st_mtime for path in (project / "net", project / "data", project) if path.exists()), default=0.0)


def _has_pictures(folder: Path) -> bool:
    from caffetools.data.images import SUFFIXES

    return any(Path(entry.name).suffix.lower() in SUFFIXES for entry in _entries(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the first entries of a folder; none of one that may not be read."""
    try:
        with os.scandir(folder) as found:
            yield from (entry for entry, _ in zip(found, range(_MOST), strict=False))
    except OSError:
        return
