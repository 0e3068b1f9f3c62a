"""Lists of pictures: Caffe's ``path label`` lines, CSV, TSV and JSON."""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffetools.data.datasets.listing import Listing, check_class_name, natural
from caffetools.data.datasets.pictures import PARTS, Pictures, PictureTable, by_class
from caffetools.data.picture_lists import labelled_lines
from caffetools.errors import DataError
from caffetools.util.files import text_lines

if TYPE_CHECKING:
    from _csv import Reader

PathLike = str | os.PathLike[str]
_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path", "picture")
_LABELS = ("label", "class", "category", "target", "class_name", "label_name", "class_id", "label_id")
_SPLITS = ("split", "set", "subset", "part")
_PARTS = {name: part for part, names in (
    ("train", ("train", "training")), ("val", ("val", "valid", "validation", "dev")), ("test", ("test", "testing"))
) for name in names}  # fmt: skip
_TABLES = {".csv": ",", ".tsv": "\t"}
_JSON = (".json", ".jsonl")
_NUMBER, _NEGATIVE = re.compile(r"\d{1,9}"), re.compile(r"-\d{1,9}")


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a list.

    Attributes:
        path: The picture as listed.
        label: A number or a class name.
        part: ``train``, ``val`` or ``test``; empty if the list does not divide its pictures.
        number: Number of its line or entry, for errors.
        group: The value of the column to group by; None without one.
    """

    path: str
    label: str
    part: str
    number: int
    group: str | None = None


def read_listing(
    path: PathLike,
    *,
    root: PathLike | None = None,
    val: PathLike | None = None,
    test: PathLike | None = None,
    labels: PathLike | None = None,
    group_by: str | None = None,
    classes: list[str] | None = None,
) -> Listing:
    """Read a list of pictures and their labels.

    By the ending of its name: ``.csv`` (with commas or semicolons) and ``.tsv`` have columns for path and label (or class name), maybe one
    for the split, and may have a header; ``.json`` is a list of objects or pairs, an object of class name → paths, or one of path → label;
    ``.jsonl`` has an object a line; any other file has Caffe's lines, the label after the last space.

    Args:
        path: The list.
        root: Folder that paths are relative to; by default the list's folder or, if its first picture is not there, the working directory.
        val: A second list, of the pictures for validation.
        test: A list of the pictures for testing.
        labels: File of class names, one a line: label i is line i (from 0). By default the names of the pictures' folders if each
            class has one of its own, else the numbers.
        group_by: Column (of CSV and TSV with a header) or name (of JSON objects) of the group that a picture belongs to, if the list
            has it.
        classes: Class names of a dataset that the pictures are added to: labels that are numbers are indices of them. The list then
            may have a single class.

    Raises:
        DataError: A list cannot be read, a line is not a picture with a label, a picture is listed twice, labels have gaps, or the
            pictures are not at ``root``.
    """
    rows = _Rows()
    rows.read(Path(path), group_by)
    for given, part in ((val, "val"), (test, "test")):
        if given is not None:
            rows.read(Path(given), group_by, part)
    rows.check()
    names, numbers = _classes(rows, Path(path), None if labels is None else Path(labels), classes)
    table = rows.table.relabelled([numbers[text] for text in rows.texts])
    parts = [by_class(Pictures(table, np.flatnonzero(rows.parts == place)), len(names)) for place in range(3)]
    listing = Listing(
        _root(Path(path), table.path(0), root),
        names,
        parts[0],
        parts[1] if any(parts[1]) else None,
        parts[2] if any(parts[2]) else None,
        source=Path(path),
        groups=rows.groups or None,
    )
    if not any(listing.pictures):
        raise DataError("it lists no pictures for training", path=path)
    return listing


class _Rows:
    """The lines of one list or several, in a few bytes each and their paths.

    Attributes:
        table: The pictures; their labels are places in ``texts``.
        texts: The different labels as listed.
        groups: Path → group, for lines with one.
    """

    def __init__(self) -> None:
        self.table = PictureTable()
        self.texts: list[str] = []
        self.groups: dict[str, str] = {}
        self._codes: dict[str, int] = {}
        self._parts, self._numbers, self._hashes = array("b"), array("q"), array("q")
        # Number of the first row of each list, and its path.
        self._lists: list[tuple[int, Path]] = []

    @property
    def parts(self) -> NDArray[np.int8]:
        """The part of each row, (N): its place in ``PARTS``; 0 for a list that does not divide its pictures."""
        return np.maximum(np.frombuffer(self._parts, np.int8), 0)

    def read(self, path: Path, group_by: str | None, part: str = "") -> None:
        """Add the rows of a list; those of a list of one part have that part, and those before them without one train."""
        if part:
            self._parts = array("b", self.parts.tobytes())
        self._lists.append((len(self.table), path))
        for row in _read_rows(path, group_by):
            if row.label not in self._codes:
                self._codes[row.label] = len(self.texts)
                self.texts.append(row.label)
            self.table.add(row.path, self._codes[row.label])
            place = part or row.part
            self._parts.append(PARTS.index(place) if place else -1)
            self._numbers.append(row.number)
            self._hashes.append(hash(row.path))
            if row.group is not None:
                self.groups[row.path] = row.group

    def place(self, index: int) -> str:
        """Return where a row is listed."""
        path = next(path for first, path in reversed(self._lists) if first <= index)
        return _place(path, self._numbers[index])

    def first_of(self, label: str) -> int:
        """Return the first row with a label."""
        return int(np.flatnonzero(Pictures(self.table).labels == self._codes[label])[0])

    def check(self) -> None:
        """Raise :class:`DataError` if only some rows have a split, or a picture is listed twice."""
        without = np.flatnonzero(np.frombuffer(self._parts, np.int8) < 0)
        if 0 < len(without) < len(self.table):
            raise DataError(f"{self.place(int(without[0]))}: it has no split, but other lines have one")
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        twice = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
        if not len(twice):
            return
        seen: dict[str, int] = {}
        for index in np.flatnonzero(np.isin(hashes, hashes[twice])).tolist():
            path = self.table.path(index)
            if path in seen:
                where = self.place(seen[path])
                raise DataError(f"{self.place(index)}: the picture '{path}' is listed already in {where}; a picture has one label here")
            seen[path] = index


def _place(path: Path, number: int) -> str:
    return f"{path}: entry {number}" if path.suffix.lower() in _JSON else f"{path}:{number}"


def _read_rows(path: Path, group_by: str | None) -> Iterator[_Row]:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        yield from _table(path, _TABLES[suffix], group_by)
    elif suffix in _JSON:
        yield from _json(path, group_by, lines=suffix == ".jsonl")
    else:
        for number, name, label in labelled_lines(path):
            if label < 0:
                raise DataError(f"the label {label} of '{name}' is negative", path=path, line=number)
            yield _Row(name, str(label), "", number)


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot read the list: {error.strerror} (looked for from {Path.cwd()})", path=path) from None
    except UnicodeDecodeError:
        raise DataError("the list is not UTF-8", path=path, hint="save it as UTF-8") from None


def _text(path: Path) -> str:
    with _opened(path) as file:
        return file.read()


def _table(path: Path, delimiter: str, group_by: str | None) -> Iterator[_Row]:
    with _opened(path) as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if delimiter == "," and "," not in first and ";" in first:
            delimiter = ";"  # as spreadsheets write where the comma is in numbers
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            yield from _table_rows(path, reader, group_by)
        except csv.Error as error:
            raise DataError(f"it is not valid CSV: {error}", path=path, line=reader.line_num) from None


def _table_rows(path: Path, reader: Reader, group_by: str | None) -> Iterator[_Row]:
    columns: _Columns | None = None
    found = False
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns, is_header = _columns([cell.strip() for cell in cells], group_by)
            if is_header:
                continue
        if len(cells) <= columns.last:
            place = _place(path, reader.line_num)
            raise DataError(f"{place}: it has {len(cells)} column(s), but {columns.last + 1} are needed: path and label")
        part = cells[columns.part].strip() if columns.part >= 0 else ""
        group = cells[columns.group].strip() if columns.group >= 0 else None
        found = True
        yield _row(cells[columns.path].strip(), cells[columns.label].strip(), part, group, path, reader.line_num)
    if not found:
        raise DataError("the list is empty", path=path)


@dataclass(frozen=True)
class _Columns:
    """Indices of a table's columns; -1 for one that it does not have."""

    path: int
    label: int
    part: int
    group: int

    @property
    def last(self) -> int:
        return max(self.path, self.label, self.part, self.group)


def _columns(cells: list[str], group_by: str | None) -> tuple[_Columns, bool]:
    """Return the columns of a table with the first line ``cells``, and whether that is a header."""
    header = [cell.lower() for cell in cells]
    path, label, part = (next((header.index(name) for name in names if name in header), -1) for names in (_PATHS, _LABELS, _SPLITS))
    if min(path, label) < 0:
        return _Columns(0, 1, 2 if len(cells) == 3 else -1, -1), False
    group = header.index(group_by.lower()) if group_by is not None and group_by.lower() in header else -1
    return _Columns(path, label, part, group), True


def _json(path: Path, group_by: str | None, *, lines: bool) -> Iterator[_Row]:
    number = 0
    for number, item in enumerate(_json_items(path, lines=lines), 1):
        group = item.get(group_by) if isinstance(item, dict) and group_by is not None else None
        yield _row(*_json_item(item), None if group is None else str(group), path, number)
    if not number:
        raise DataError("it is not a list of pictures", path=path, hint='such as [{"path": "a/1.png", "label": "a"}]')


def _json_items(path: Path, *, lines: bool) -> Iterator[object]:
    with _opened(path) as file:
        try:
            if lines:
                yield from (json.loads(line) for line in file if line.strip())
                return
            items = json.load(file)
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            raise DataError(f"it is not valid JSON: {error}", path=path) from None
    if isinstance(items, dict):
        for key, value in items.items():
            yield from ((name, key) for name in value) if isinstance(value, list) else [(key, value)]
    elif isinstance(items, list):
        yield from items


def _json_item(item: object) -> tuple[object, object, object]:
    if isinstance(item, dict):
        path, label, part = (next((item[name] for name in names if name in item), None) for names in (_PATHS, _LABELS, _SPLITS))
        return path, label, part or ""
    if isinstance(item, list | tuple) and len(item) in (2, 3):
        return item[0], item[1], item[2] if len(item) == 3 else ""
    return None, None, ""


def _row(path: object, label: object, part: object, group: str | None, source: Path, number: int) -> _Row:
    if not isinstance(path, str) or not path:
        raise DataError(f"{_place(source, number)}: it names no picture")
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise DataError(f"{_place(source, number)}: its label must be a number or the name of a class")
    if part and str(part).lower() not in _PARTS:
        text = f"{_place(source, number)}: the split '{part}' is unknown; it can be train, val or test"
        raise DataError(text, hint="the third column of a table without a header is the split; a first line can name the columns")
    path = path.replace("\\", "/") if os.sep == "\\" else path
    return _Row(path, str(label), _PARTS.get(str(part).lower(), ""), number, group)


def _classes(rows: _Rows, path: Path, labels: Path | None, known: list[str] | None) -> tuple[list[str], dict[str, int]]:
    """Return the class names, and the label of each text that stands for one in the list."""
    texts = rows.texts
    names = _read_labels(labels) if labels is not None else None
    negative = next((text for text in texts if _NEGATIVE.fullmatch(text)), None)
    if negative is not None and all(_NUMBER.fullmatch(text.removeprefix("-")) for text in texts):
        row = rows.first_of(negative)
        raise DataError(f"{rows.place(row)}: the label {negative} of '{rows.table.path(row)}' is negative")
    if all(_NUMBER.fullmatch(text) for text in texts):
        numbers = {text: int(text) for text in texts}
        classes = _numbered(rows, numbers, path, known if names is None else names)
    else:
        classes = names if names is not None else sorted(texts, key=natural)
        unknown = sorted(set(texts) - set(classes))
        if unknown:
            raise DataError(f"the class '{unknown[0]}' is not in {labels}", path=path)
        numbers = {name: label for label, name in enumerate(classes)}
    for name in classes:
        check_class_name(name, "the class")
    if len(classes) < 2 and known is None:
        raise DataError(f"there is only one class, '{classes[0]}'; a classifier needs at least two", path=path)
    return classes, numbers


def _numbered(rows: _Rows, numbers: dict[str, int], path: Path, names: list[str] | None) -> list[str]:
    used = set(numbers.values())
    if names is not None:
        if max(used) >= len(names):
            raise DataError(f"the label {max(used)} is not below the number of class names, {len(names)}", path=path)
        return names
    missing = next((label for label in range(max(used)) if label not in used), None)
    if missing is not None:
        raise DataError(
            f"the highest label is {max(used)}, but no picture has the label {missing}",
            path=path,
            hint="labels count from 0 without gaps; or give a file of all class names with --labels",
        )
    folders: dict[int, str | None] = {}
    for picture in Pictures(rows.table):
        label, folder = numbers[rows.texts[picture.label]], _folder(picture.path)
        # None for a class whose pictures are in several folders.
        folders[label] = folder if folders.setdefault(label, folder) == folder else None
    found = [folders[label] or "" for label in range(len(used))]
    return found if all(found) and len(set(found)) == len(found) else [str(label) for label in range(len(used))]


def _folder(path: str) -> str:
    """Return the name of the folder that a picture is in; empty without one."""
    name = posixpath.basename(posixpath.dirname(path))
    # pathlib keeps each name that it sees for a while, so it is for the rare forms only.
    return name if name not in ("", ".") else PurePosixPath(path).parent.name


def _read_labels(path: Path) -> list[str]:
    names = [line.strip() for line in text_lines(_text(path))]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names or len(set(names)) < len(names):
        raise DataError("it must have one class name a line, each once", path=path)
    return names


def _root(path: Path, first: str, root: PathLike | None) -> Path:
    if root is not None:
        if not Path(root).is_dir():
            raise DataError("it is not a folder (the root of the list's pictures)", path=root)
        return Path(root)
    places = [path.parent, Path()]
    for place in places:
        if (place / first).is_file():
            return place
    looked = " nor in ".join(dict.fromkeys(str(place.resolve()) for place in places))
    either = "neither in" if " nor in " in looked else "not in"
    raise DataError(f"its first picture '{first}' is {either} {looked}", path=path, hint="give --root FOLDER")
