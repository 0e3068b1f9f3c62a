"""Lists of pictures, as Caffe's layers and tools read them: ``path label`` on each line."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.util.standard_input import open_input

PathLike = str | os.PathLike[str]
_LABEL = re.compile(r"[+-]?[0-9]+")
# A label after another separator than a space.
_OTHER_SEPARATOR = re.compile(r"[,;\t][+-]?[0-9]+$")


def read_lists(source: str) -> tuple[list[str], NDArray[np.float32]]:
    """Return the pictures of one list and their labels (N), or of several with the same pictures, separated by ``;``, and labels (N, lists).

    Raises:
        DataError: A list cannot be read, or names other pictures than the first one; names the list and the picture.
    """
    if ";" not in source or Path(source).exists():
        entries = read_list(source)
        return [name for name, _ in entries], np.array([label for _, label in entries], np.float32)
    paths = [path.strip() for path in source.split(";") if path.strip()]
    lists = [read_list(path) for path in paths]
    names = [name for name, _ in lists[0]]
    for path, entries in zip(paths[1:], lists[1:], strict=True):
        if len(entries) != len(names):
            raise DataError(f"it lists {len(entries)} pictures, but {paths[0]} {len(names)}", path=path)
        for number, ((name, _), wanted) in enumerate(zip(entries, names, strict=True), 1):
            if name != wanted:
                raise DataError(
                    f"picture {number} is '{name}', but '{wanted}' in {paths[0]}; the lists must name the same pictures", path=path
                )
    return names, np.array([[label for _, label in entries] for entries in lists], np.float32).T.copy()


def read_pairs(source: PathLike) -> tuple[list[str], list[str]]:
    """Return the pictures and the maps of labels of a list of ``picture map`` lines, separated by white space as Caffe reads them.

    Raises:
        DataError: The list cannot be read, is empty, or a line has not two names; names the line.
    """
    pairs = []
    for number, line in lines_of(source):
        names = line.split()
        if len(names) != 2:
            _check_kind(source)
            raise DataError("two names are expected, of a picture and of its map of labels", path=source, line=number)
        pairs.append(names)
    if not pairs:
        raise DataError(f"{os.fspath(source)}: the list is empty")
    return [picture for picture, _ in pairs], [labels for _, labels in pairs]


def read_list(path: PathLike) -> list[tuple[str, int]]:
    """Return the (picture, label) lines of a list; see :func:`labelled_lines`."""
    return [(name, label) for _, name, label in labelled_lines(path)]


def labelled_lines(path: PathLike, on_unlabelled: Callable[[], None] | None = None) -> Iterator[tuple[int, str, int]]:
    """Yield the lines of a list as convert_imageset reads it: (number of the line, picture, label); the label follows the last space.

    Args:
        path: The list. Empty lines are left out.
        on_unlabelled: Called first for a list of pictures without labels (no line has a space), whose labels are the numbers that their
            names begin with, else 0, as in Caffe. Without it such a list is refused.

    Raises:
        DataError: The list is missing or empty, or a line does not end in an integer of 32 bits; names the line.
    """
    number, labelled = 0, on_unlabelled is None
    number_of_first: int | None = None
    for number, line in lines_of(path):
        if not labelled and on_unlabelled is not None and " " not in line and not _OTHER_SEPARATOR.search(line):
            if number_of_first is None:
                _check_kind(path)
                on_unlabelled()
                number_of_first = number
            yield number, line, _atoi(line)
            continue
        labelled = True
        name, _, label = line.rpartition(" ")
        if not _LABEL.fullmatch(label):
            _check_kind(path)
            raise DataError(f"{os.fspath(path)}:{number}: '{line}' does not end in a label (a space and an integer)")
        if number_of_first is not None:
            raise DataError(f"{os.fspath(path)}:{number}: '{line}' has a label, but line {number_of_first} has none")
        value = int(label)
        if not -(1 << 31) <= value < 1 << 31:
            raise DataError(f"{os.fspath(path)}:{number}: the label {label} does not fit into the 32 bits that a Datum has for it")
        if not name:
            raise DataError(f"{os.fspath(path)}:{number}: '{line}' has no picture before its label")
        yield number, name, value
    if not number:
        raise DataError(f"{os.fspath(path)}: the list is empty")


def _check_kind(path: PathLike) -> None:
    if other := wrong_kind(DataError, path, "a list of pictures (a path and a label on each line)", allowed=(Kind.TEXT,)):
        raise other


def _atoi(text: str) -> int:
    """Return what C's atoi gives with 32-bit integers: the number that ``text`` begins with, else 0."""
    found = _LABEL.match(text)
    value = max(-(1 << 63), min(int(found[0]) if found else 0, (1 << 63) - 1))
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def read_lines(path: PathLike) -> list[tuple[int, str]]:
    """Return the lines of a list that are not blank, with their numbers from 1; bytes that are not UTF-8 are kept."""
    return list(lines_of(path))


def lines_of(path: PathLike) -> Iterator[tuple[int, str]]:
    """Yield what :func:`read_lines` returns, line by line. Raises :class:`DataError` if the list cannot be read."""
    try:
        with open_input(path) as file:
            for number, line in enumerate(file, 1):
                # Editors of Windows begin UTF-8 files with a byte order mark.
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if b"\0" in content:
                    _check_kind(path)
                    raise DataError("this is not text, and a list of pictures (a path on each line) is expected", path=path)
                if stripped := os.fsdecode(content.removesuffix(b"\n")).rstrip("\r\t "):
                    yield number, stripped
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot read the list: {error.strerror} (looked for from {Path.cwd()})") from None
