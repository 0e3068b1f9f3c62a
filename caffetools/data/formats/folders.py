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
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
LIST = "list.txt"
_SPLITS = ("train", "val", "valid", "validation", "test")


def imagefolder_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the part of a folder with a folder for each class, or the parts of ``train``, ``val`` and ``test`` with such folders inside.

    Classes are numbered in the order of their names, as torchvision's ImageFolder does, and the same in all parts. Keys are those of
    convert_imageset: a number and the path.

    Raises:
        DataError: There is no picture, or a part has classes that another lacks.
    """
    names = [name for name in urls.list_files(source) if Path(name).suffix.lower() in SUFFIXES]
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if folders and folders <= set(_SPLITS) and all(name.count("/") >= 2 for name in names):
        parts = [part for part in _SPLITS if part in folders]
        found = {part: _classes([name.partition("/")[2] for name in names if name.startswith(f"{part}/")]) for part in parts}
        classes = sorted({name for part in found.values() for name in part})
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
    return [_part(os.fspath(source), "", _classes(inside), inside)]


def write_imagefolder(path: Path, examples: Iterable[Example], options: ConvertOptions, classes: list[str]) -> int:
    """Write each example as a file into a folder of its class below ``path``, and list.txt (``path label``) for convert_imageset.

    The files of pictures are kept byte for byte where nothing changes them; pixels become PNG, other values .npy files.

    Raises:
        DataError: A picture cannot be decoded; names it.
    """
    lines, count = [], 0
    for example in examples:
        label = -1 if example.label is None else example.label
        folder = safe_file_name(classes[label]) if 0 <= label < len(classes) else str(label) if example.label is not None else "unlabelled"
        content, suffix = _file(example, options)
        name = f"{folder}/{count:08d}{suffix}"
        (path / folder).mkdir(exist_ok=True)
        (path / name).write_bytes(content)
        lines.append(f"{name} {max(label, 0)}\n")
        count += 1
    with atomic_write(path / LIST, "w") as stream:
        stream.write("".join(lines))
    return count


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


def _part(root: str, name: str, classes: list[str], files: list[str]) -> Part:
    labels = {text: number for number, text in enumerate(classes)}
    files = sorted(files, key=lambda file: (labels[file.partition("/")[0]], file))

    def examples() -> Iterator[Example]:
        for number, file in enumerate(files):
            place = urls.join(root, file)
            data = urls.read_bytes(place)
            if not data:
                raise DataError("the picture's file is empty", path=place)
            yield Example(f"{number:08d}_{file}", labels[file.partition("/")[0]], data, place=place)

    return Part(name, examples, len(files), classes)
