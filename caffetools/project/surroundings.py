"""What a folder holds for a user who names nothing: projects, and folders of pictures that could become one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROJECT = ("run.json", "solver.prototxt", "net/solver.prototxt", "data/dataset.json")
# How many entries of a folder are looked at: the answer must be there at once, also in a home folder.
_MOST = 200


def projects(folder: Path) -> list[Path]:
    """Return ``folder`` if it is a project, else those of its folders that are one, the one trained or written last first.

    Args:
        folder: Where to look.
    """
    if _is_project(folder):
        return [folder]
    return sorted(filter(_is_project, _folders(folder)), key=_newest, reverse=True)


def picture_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that have two or more folders of pictures: what ``finetune`` takes.

    Args:
        folder: Where to look.
    """
    return [inner for inner in _folders(folder) if sum(map(_has_pictures, _folders(inner))) > 1]


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
