"""A folder of pictures for each class, read and written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from caffetools.data.formats.examples import ConvertOptions, Example, Part, example_file, example_pixels
from caffetools.data.images import SUFFIXES
from caffetools.errors import DataError
from caffetools.util import urls
from caffetools.util.files import atomic_write, text_lines

PathLike = str | os.PathLike[str]
LIST, NAMES = "list.txt", "labels.txt"
# The folder of examples without a label, and the highest label up to which a file of all names is written.
_UNLABELLED, _MOST_NAMES = "unlabelled", 1 << 20
_SPLITS = ("train", "val", "valid", "validation", "test")


def imagefolder_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the part of a folder with a folder for each class, or the parts of ``train``, ``val`` and ``test`` with such folders inside.

    Classes are numbered in the order of their names, as torchvision's ImageFolder does, and the same in all parts; where labels.txt names
    all of them, as :func:`write_imagefolder` writes it, label i is its line i. Keys are those of convert_imageset: a number and the path.

    Raises:
        DataError: There is no picture, or a part has classes that another lacks.
    """
    names = [name for name in urls.list_files(source) if Path(name).suffix.lower() in SUFFIXES]
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if folders and folders <= set(_SPLITS) and all(name.count("/") >= 2 for name in names):
        parts = [part for part in _SPLITS if part in folders]
        found = {part: _classes([name.partition("/")[2] for name in names if name.startswith(f"{part}/")]) for part in parts}
        classes = _numbered(
            sorted({name for part in found.values() for name in part}), [source, *(urls.join(source, part) for part in parts)]
        )
        for part, present in found.items():
            if missing := set(found[parts[0]]) ^ set(present):
                raise DataError(f"'{part}' and '{parts[0]}' differ in the class(es) {', '.join(sorted(missing)[:5])}", path=source)
        return [
            _part(urls.join(source, part), part, classes, [n.partition("/")[2] for n in names if n.startswith(f"{part}/")])
            for part in parts
        ]
    inside = [name for name in names if "/" in name]
    if not inside:
        raise DataError("it has no folder with pictures inside, one for each class", path=source)
    return [_part(os.fspath(source), "", _numbered(_classes(inside), [source]), inside)]


def write_imagefolder(path: Path, examples: Iterable[Example], options: ConvertOptions, classes: list[str]) -> int:
    """Write each example as a file into a folder of its class below ``path``, list.txt (``path label``) for convert_imageset, and labels.txt.

    Line i of labels.txt is the folder of label i. The files of pictures are kept byte for byte where nothing changes them; pixels become PNG, other values .npy files.

    Raises:
        DataError: A picture cannot be decoded; names it.
    """
    lines, count, folders = [], 0, _Folders(classes)
    for example in examples:
        label = -1 if example.label is None else example.label
        folder = _UNLABELLED if example.label is None else folders.of(label)
        content, suffix = _file(example, options)
        name = f"{folder}/{count:08d}{suffix}"
        (path / folder).mkdir(exist_ok=True)
        (path / name).write_bytes(content)
        lines.append(f"{name} {max(label, 0)}\n")
        count += 1
    for name, text in ((LIST, "".join(lines)), (NAMES, "".join(f"{folder}\n" for folder in folders.by_label()))):
        if text:
            with atomic_write(path / name, "w") as stream:
                stream.write(text)
    return count


class _Folders:
    """The folders of labels: the names of the classes, or the labels; no two the same, upper and lower case taken for equal.

    Args:
        classes: Names of the classes; empty if they are not known.
    """

    def __init__(self, classes: list[str]):
        self._found: dict[int, str] = {}
        self._used = {_UNLABELLED, LIST, NAMES}
        self._count = len(classes)
        for label, name in enumerate(classes):
            self._add(label, safe_file_name(name))

    def of(self, label: int) -> str:
        """Return the folder of a label."""
        if label not in self._found:
            self._add(label, str(label))
            self._count = max(self._count, label + 1)
        return self._found[label]

    def by_label(self) -> list[str]:
        """Return the folders of the labels from 0 to the highest; none if one is negative or too high to list all below it."""
        if self._count > _MOST_NAMES or min(self._found, default=0) < 0:
            return []
        return [self.of(label) for label in range(self._count)]

    def _add(self, label: int, name: str) -> None:
        folder, number = name, 1
        while folder.casefold() in self._used:
            number += 1
            folder = f"{name}_{number}"
        self._used.add(folder.casefold())
        self._found[label] = folder


def safe_file_name(text: str) -> str:
    """Return ``text`` as the name of a folder: no separators or control characters, no leading dot, not empty."""
    return re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", text).strip(" .")[:100] or "_"


def picture_suffix(data: bytes) -> str:
    """Return the name ending for a picture's file: ``.jpg`` or ``.png``, ``.bin`` for others."""
    return ".jpg" if data.startswith(b"\xff\xd8") else ".png" if data.startswith(b"\x89PNG") else ".bin"


def _file(example: Example, options: ConvertOptions) -> tuple[bytes, str]:
    if example.array is not None and (example.array.dtype != np.uint8 or len(example.array) not in (1, 3, 4)):
        stream = BytesIO()
        np.save(stream, example_pixels(example, options), allow_pickle=False)
        return stream.getvalue(), ".npy"
    data = example_file(example, options)
    suffix = picture_suffix(data)
    return data, suffix if suffix != ".bin" else Path(example.key).suffix.lower() or suffix


def _classes(names: list[str]) -> list[str]:
    return sorted({name.partition("/")[0] for name in names})


def _numbered(found: list[str], places: list[PathLike]) -> list[str]:
    """Return the classes in the order of their labels: that of the longest labels.txt in ``places`` that names all, else that of ``found``."""
    files = [urls.join(place, NAMES) for place in places]
    lists = [text_lines(urls.read_bytes(file).decode("utf-8", "surrogateescape")) for file in files if urls.exists(file)]
    fitting = [names for names in lists if names and len(set(names)) == len(names) and set(found) - {_UNLABELLED} <= set(names)]
    return max(fitting, key=len, default=found)


def _part(root: str, name: str, classes: list[str], files: list[str]) -> Part:
    labels = {text: number for number, text in enumerate(classes)}
    files = sorted(files, key=lambda file: (labels.get(file.partition("/")[0], len(labels)), file))

    def examples() -> Iterator[Example]:
        for number, file in enumerate(files):
            place = urls.join(root, file)
            data = urls.read_bytes(place)
            if not data:
                raise DataError("the picture's file is empty", path=place)
            # Without a label: of the folder that labels.txt does not name.
            yield Example(f"{number:08d}_{file}", labels.get(file.partition("/")[0]), data, place=place)

    return Part(name, examples, len(files), classes)
