"""Which folders a solver reads from and writes to: what a container must be given to train it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from caffetools.data.shards import is_index
from caffetools.errors import CaffeToolsError, DataError
from caffetools.proto.schema import Message, NetParameter, SolverParameter
from caffetools.proto.text import read_net

PathLike = str | os.PathLike[str]


def needed_folders(solver: SolverParameter, files: Iterable[PathLike]) -> list[Path]:
    """Return the folders of all files that a ``SolverParameter`` and its nets name, and of ``files``; none lies in another, absolute.

    Relative names count from the working directory, which is always among them. The lists of ImageData, HDF5Data and WindowData
    layers are looked into for absolute names.
    """
    here = Path.cwd()
    wanted = {here, *(_folder(here / path) for path in files)}
    if solver.snapshot_prefix:
        wanted.add((here / solver.snapshot_prefix).parent)
    for message in (solver, *_nets(solver)):
        for text in _texts(message):
            place = here / text
            if text and _exists(place):
                wanted.add(_folder(place))
                wanted.update(_listed(place))
    return _outermost(Path(os.path.normpath(folder)) for folder in wanted)


def check_sources(solver: SolverParameter) -> None:
    """Refuse a database that real Caffe cannot read: one in shards.

    Raises:
        DataError: A data layer's source is an index of shards; names the layer.
    """
    for net in _nets(solver):
        for layer in net.layer:
            source = layer.data_param.source
            if source and is_index(source):
                raise DataError(
                    "real Caffe cannot read a database in shards",
                    path=source,
                    layer=layer.name,
                    hint=f"write them as one with `caffetools dataset convert lmdb {source} OUT`, or train without --engine caffe",
                )


def _nets(solver: SolverParameter) -> Iterator[NetParameter]:
    yield from (solver.net_param, solver.train_net_param, *solver.test_net_param)
    for name in (solver.net, solver.train_net, *solver.test_net):
        if name:
            try:
                yield read_net(name)
            except CaffeToolsError:
                # Caffe itself reports what is wrong with it.
                continue


def _texts(message: Message) -> Iterator[str]:
    """Every text in a message, at any depth."""
    for field, value in message.ListFields():
        for item in value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]:
            if field.message_type is not None:
                yield from _texts(item)
            elif isinstance(item, str):
                yield item


def _listed(path: Path) -> Iterator[Path]:
    """The folders of absolute names at the beginning of a list's lines."""
    if path.suffix != ".txt" or not path.is_file():
        return
    with path.open("rb") as stream:
        for line in stream:
            if line.startswith(b"/") and line.split():
                name = Path(os.fsdecode(line.split()[0]))
                if name.parent.is_dir():
                    yield name.parent


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A text that is not a file name, such as a very long one.
        return False


def _outermost(folders: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(outer) for outer in found):
            found.append(folder)
    return found
