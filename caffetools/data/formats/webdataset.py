"""WebDataset's tar files: files of one example have one name up to the first dot (``000123.jpg``, ``000123.cls``)."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from caffetools.data.formats.examples import ConvertOptions, Example, Part, Values, checked_label, example_file, example_pixels, in_files
from caffetools.data.formats.folders import picture_suffix
from caffetools.errors import DataError
from caffetools.util import urls
from caffetools.util.files import atomic_write
from caffetools.util.tars import StrictTarInfo

PathLike = str | os.PathLike[str]
_PICTURES = ("jpg", "jpeg", "png", "bmp", "webp", "ppm", "pgm", "tif", "tiff")
_LABELS = ("cls", "cls2", "txt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# A member of a hostile file could announce any size.
_MOST_BYTES = 1 << 30


def webdataset_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the one part of a tar file, of those in a folder, or of several given as ``shards-{0000..0009}.tar``; .tar.gz works too.

    A label is the integer in ``.cls``, or ``label`` or ``cls`` of ``.json``; ``options.label`` names another ending or key.

    Raises:
        DataError: No such file exists.
    """
    text = os.fspath(source)
    if found := _RANGE.search(text):
        width = len(found[1])
        files = [text[: found.start()] + f"{n:0{width}d}" + text[found.end() :] for n in range(int(found[1]), int(found[2]) + 1)]
    elif urls.is_folder(source):
        files = [urls.join(source, name) for name in urls.list_files(source) if name.endswith((".tar", ".tar.gz", ".tgz"))]
    else:
        files = [text]
    if not files:
        raise DataError("it holds no .tar file", path=source)
    return [Part("", lambda: _examples(files, options))]


def write_webdataset(path: Path, examples: Iterable[Example], options: ConvertOptions) -> int:
    """Write tar files 000000.tar … of ``options.per_file`` examples each into the folder ``path``; return the number of examples.

    Pictures keep their files, pixels become PNG, other values .npy; the label is in ``.cls``. Times are 0, so that equal examples
    give equal files.

    Raises:
        DataError: A picture cannot be decoded; names it.
    """
    count = 0
    for number, examples_of_file in enumerate(in_files(examples, options.per_file)):
        with atomic_write(path / f"{number:06d}.tar") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for example in examples_of_file:
                content, suffix = _file(example, options)
                _add(tar, f"{count:08d}{suffix}", content)
                if example.label is not None:
                    _add(tar, f"{count:08d}.cls", str(example.label).encode())
                count += 1
    return count


def _file(example: Example, options: ConvertOptions) -> tuple[bytes, str]:
    if example.array is not None and (example.array.dtype != np.uint8 or len(example.array) not in (1, 3, 4)):
        stream = io.BytesIO()
        np.save(stream, example_pixels(example, options), allow_pickle=False)
        return stream.getvalue(), ".npy"
    data = example_file(example, options)
    return data, picture_suffix(data) if picture_suffix(data) != ".bin" else Path(example.key).suffix.lower() or ".bin"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _examples(files: list[str], options: ConvertOptions) -> Iterator[Example]:
    number = 0
    for file in files:
        for key, fields in _groups(file):
            place = f"{file}: {key}"
            label = _label(fields, options, place)
            picture = next((fields[kind] for kind in _kinds(options) if kind in fields), None)
            array = None if picture is not None else _array(fields, place)
            if picture is None and array is None:
                raise DataError(f"{place}: it has no picture but {', '.join(sorted(fields))}", hint="name its ending with --data")
            yield Example(f"{number:08d}_{key}", label, picture or b"", array, place)
            number += 1


def _kinds(options: ConvertOptions) -> tuple[str, ...]:
    return (options.data.lstrip("."),) if options.data else _PICTURES


def _array(fields: dict[str, bytes], place: str) -> Values | None:
    if "npy" not in fields:
        return None
    try:
        array = np.load(io.BytesIO(fields["npy"]), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{place}: its .npy cannot be read: {error}") from None
    if array.ndim != 3 or array.dtype not in (np.uint8, np.float32):
        raise DataError(f"{place}: its array is {array.shape} of {array.dtype}, not (C, H, W) of uint8 or float32")
    values: Values = array
    return values


def _label(fields: dict[str, bytes], options: ConvertOptions, place: str) -> int | None:
    names = (options.label.lstrip("."),) if options.label else _LABELS
    for name in names:
        if name in fields:
            return _whole(fields[name].decode("utf-8", "replace").strip(), place)
    if "json" in fields:
        try:
            values = json.loads(fields["json"])
        except ValueError:
            raise DataError(f"{place}: its .json is not JSON") from None
        for name in (options.label,) if options.label else ("label", "cls"):
            if isinstance(values, dict) and name in values:
                return _whole(values[name], place)
    if options.label:
        raise DataError(f"{place}: it has no label '{options.label}' but {', '.join(sorted(fields))}")
    return None


def _whole(value: object, place: str) -> int:
    try:
        return checked_label(int(str(value)), place)
    except (ValueError, OverflowError):
        raise DataError(f"{place}: its label '{str(value)[:100]}' is not an integer") from None


def _groups(file: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (name up to the first dot, {ending: bytes}) of the examples in a tar file, which is read from front to back."""
    key: str | None = None
    fields: dict[str, bytes] = {}
    with urls.open_binary(file) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as tar:
                for member in tar:
                    if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                        continue
                    if member.size > _MOST_BYTES:
                        raise DataError(f"{member.name} has {member.size} bytes, more than the {_MOST_BYTES} that are read", path=file)
                    folder, _, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    own = f"{folder}/{stem}" if folder else stem
                    if own != key:
                        if key is not None:
                            yield key, fields
                        key, fields = own, {}
                    content = tar.extractfile(member)
                    fields[ending.lower()] = content.read() if content is not None else b""
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"the tar file is truncated or damaged: {error}", path=file) from None
    if key is not None:
        yield key, fields
