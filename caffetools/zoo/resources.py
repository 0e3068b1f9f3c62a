"""Where the files that come with caffetools lie: the zoo's cards and labels, and the networks' prototxts."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

from caffetools.errors import ZooError

_ROOT = Path(__file__).parent.parent.parent


def zoo_file(name: str) -> Path:
    """Return the path of a file in zoo/, such as ``imagenet_labels.txt``. Raises :class:`ZooError` where there is none."""
    return _file("zoo", name)


def prototxt_file(name: str) -> Path:
    """Return the path of a file in prototxt/, such as ``lenet/deploy.prototxt``. Raises :class:`ZooError` where there is none."""
    return _file("prototxt", name)


def zoo_files(suffix: str) -> list[Path]:
    """Return every file of zoo/ whose name ends in ``suffix``, sorted."""
    found = {path.name: path for folder in reversed(list(_folders("zoo"))) for path in folder.glob(f"*{suffix}")}
    return [found[name] for name in sorted(found)]


def _file(folder: str, name: str) -> Path:
    for place in _folders(folder):
        if (place / name).is_file():
            return place / name
    raise ZooError(f"{folder}/{name} is missing from this installation of caffetools; install it again")


def _folders(name: str) -> Iterator[Path]:
    """The folder as installed (``caffetools._zoo``), then as it is in a checkout."""
    try:
        installed = importlib.resources.files(f"caffetools._{name}")
    except ModuleNotFoundError:
        pass
    else:
        # A folder without modules is a namespace package, whose path is that of its entries.
        yield from dict.fromkeys(Path(str(entry)).parent for entry in installed.iterdir())
    if (_ROOT / name).is_dir():
        yield _ROOT / name
