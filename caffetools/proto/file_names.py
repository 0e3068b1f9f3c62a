"""The files that a net names (databases, lists, means): from the working directory, as in Caffe, else from near the net's own file.

Nets name files from the folder in which Caffe is meant to run. Whoever stands in another one, the net's own for instance, would not find
them. So where a name is not found from the working directory, the base of all relative names is the nearest of the folder of the net's
file and the folders above it from which it is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from caffetools.proto.schema import Message, NetParameter
from caffetools.proto.text import PathLike, read_net

# Fields that name files or folders; meanfile is that of the oldest nets, the last two are SSD's.
_FILE_FIELDS = frozenset({"source", "mean_file", "meanfile", "root_folder", "label_map_file", "name_size_file"})


def read_net_near_files(path: PathLike, log: Callable[[str, str], None] | None = None) -> NetParameter:
    """Read a net as :func:`~caffetools.proto.text.read_net` does, with the names of files as they are found from the working directory.

    For nets that are looked at or run; what is written as a prototxt keeps the names of :func:`~caffetools.proto.text.read_net`.

    Args:
        path: The prototxt.
        log: As for :func:`rebase_sources`.

    Raises:
        PrototxtError: As there.
    """
    net = read_net(path)
    rebase_sources(net, find_data_base(net, Path(path)), log)
    return net


def rebase_sources(net: NetParameter, base: Path | None, log: Callable[[str, str], None] | None = None) -> dict[str, str]:
    """Change, in a net, the names of databases, lists and means that are found from ``base`` alone.

    Args:
        net: A ``NetParameter``.
        base: From :func:`find_data_base`; None changes nothing.
        log: Receives a line for each name.

    Returns:
        The names as they were, by those that replaced them; for :func:`restore_sources`.
    """
    changed: dict[str, str] = {}
    if base is None:
        return changed
    for message, field, value in _file_names(net):
        if value and not Path(value).exists() and (base / value).exists():
            found = os.path.relpath(base / value) + ("/" if value.endswith("/") else "")
            if log is not None:
                log("solver.cpp:100", f"{value} is not in the working directory; reading {found}")
            setattr(message, field, found)
            changed[found] = value
    return changed


def restore_sources(net: NetParameter, changed: dict[str, str], path: Path) -> None:
    """Give the files of a net the names back that :func:`rebase_sources` replaced, where they are found from near a file.

    Args:
        net: A ``NetParameter``, also one that was made from that net.
        changed: What :func:`rebase_sources` returned.
        path: The file that the net will be written to.
    """
    for message, field, value in _file_names(net) if changed else ():
        if value in changed and any((base / changed[value]).exists() for base in folders_above(path)):
            setattr(message, field, changed[value])


def find_data_base(net: NetParameter, path: Path) -> Path | None:
    """Return the folder that the relative names of files in a net count from; None for the working directory.

    It is the nearest of the net's folder and those above it from which the first name is found that the working directory lacks.

    Args:
        net: A ``NetParameter``.
        path: Its file.
    """
    names = (value for _, field, value in _file_names(net) if value and field != "root_folder")
    missing = next((name for name in names if not Path(name).exists()), None)
    return next((base for base in folders_above(path) if (base / missing).exists()), None) if missing is not None else None


def folders_above(path: Path) -> Iterable[Path]:
    """Return the folder of a file and those above it, relative to the working directory.

    Args:
        path: The file.
    """
    folder = path.parent.absolute()
    return (Path(os.path.relpath(place)) for place in (folder, *folder.parents))


def _file_names(message: Message) -> Iterator[tuple[Any, str, str]]:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _file_names(part)
        elif field.name in _FILE_FIELDS and not field.is_repeated:
            yield message, field.name, str(value)
