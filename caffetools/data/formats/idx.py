"""MNIST's idx files (plain or gzip), and the pairs of Caffe's siamese example."""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Iterator
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from caffetools.data.formats.examples import ConvertOptions, Example, Part
from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.util import urls

PathLike = str | os.PathLike[str]
Pixels = NDArray[np.uint8]
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
# Names of MNIST's files, with and without .gz; some mirrors have a dot before idx.
_FILES = {"train": "train", "test": "t10k"}
_CHUNK = 1000
# As Caffe's tools store a label from a signed byte.
_MOST_LABEL = 127


def mnist_parts(folder: PathLike, options: ConvertOptions) -> list[Part]:
    """Return MNIST's parts ``train`` and ``test``, whose files lie in ``folder``.

    Raises:
        DataError: The folder has none of the files, or a file is not what its name claims.
    """
    names, parts = urls.list_files(folder), []
    for part, prefix in _FILES.items():
        images, labels = (_find(names, f"{prefix}-{kind}") for kind in ("images", "labels"))
        if images and labels:
            parts.append(idx_part(urls.join(folder, images), urls.join(folder, labels), options, name=part))
        elif images or labels:
            raise DataError(f"there is {images or labels}, but not the file of its {'labels' if images else 'images'}", path=folder)
    if not parts:
        raise DataError("it has no file like train-images-idx3-ubyte or t10k-images-idx3-ubyte.gz", path=folder)
    return parts


def idx_part(images: PathLike, labels: PathLike, options: ConvertOptions, *, name: str = "") -> Part:
    """Return the part of an idx file of images and one of labels; with ``options.pairs`` that of siamese pairs.

    Raises:
        DataError: A magic number is wrong, or the files differ in their numbers of items; names the file.
    """
    count, rows, columns = _header(images, IMAGES_MAGIC, 4)
    (label_count,) = _header(labels, LABELS_MAGIC, 2)
    if count != label_count:
        raise DataError(f"it has {label_count} labels, but {os.fspath(images)} has {count} images", path=labels)
    if not count or not rows * columns:
        raise DataError(f"it holds {count} images of {rows}x{columns}", path=images)
    if options.pairs:
        return Part(name, lambda: _pairs(images, labels, (count, rows, columns), options.seed), count)
    return Part(name, lambda: _examples(images, labels, (count, rows, columns)), count)


def _find(names: list[str], start: str) -> str | None:
    return next((name for name in names if name.startswith(start) and "idx" in name), None)


def _examples(images: PathLike, labels: PathLike, shape: tuple[int, int, int]) -> Iterator[Example]:
    count, rows, columns = shape
    with _open(images, 16) as pixels, _open(labels, 8) as numbers:
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            block = _read(pixels, size * rows * columns, images).reshape(size, 1, rows, columns)
            for index, (array, label) in enumerate(zip(block, _read(numbers, size, labels).tolist(), strict=True), start):
                yield Example(f"{index:08d}", _label(label, labels, index), array=array, place=f"{os.fspath(images)}: image {index}")


def _pairs(images: PathLike, labels: PathLike, shape: tuple[int, int, int], seed: int) -> Iterator[Example]:
    """Yield as many random pairs as there are images: two channels, label 1 for two of one class.

    The numbers are those of Caffe's generator (boost::mt19937) after caffe::Caffe::set_random_seed(seed), which the tool itself does
    not call: it seeds from the system, so no two of its databases are equal.
    """
    count, rows, columns = shape
    with _open(images, 16) as stream:
        pixels = _read(stream, math.prod(shape), images).reshape(count, rows, columns)
    with _open(labels, 8) as stream:
        numbers = _read(stream, count, labels)
    draw = mersenne_twister(seed)
    for index in range(count):
        left, right = next(draw) % count, next(draw) % count
        array = np.stack([pixels[left], pixels[right]])
        place = f"{os.fspath(images)}: images {left} and {right}"
        yield Example(f"{index:08d}", int(numbers[left] == numbers[right]), array=array, place=place)


def mersenne_twister(seed: int) -> Iterator[int]:
    """Yield the 32-bit numbers of mt19937 with a 32-bit ``seed``, as std::mt19937 and boost::mt19937 draw them."""
    generator = np.random.RandomState(seed)
    while True:
        yield from generator.randint(0, 2**32, 4096, np.uint32).tolist()


def _label(label: int, path: PathLike, index: int) -> int:
    if label > _MOST_LABEL:
        raise DataError(f"label {index} is {label}; Caffe's tool takes labels up to {_MOST_LABEL}", path=path)
    return label


def _header(path: PathLike, magic: int, words: int) -> tuple[int, ...]:
    """Return the sizes in the header of an idx file, after checking its magic number."""
    with _open(path, 0) as stream:
        data = _take(stream, 4 * words, path)
    what = "images" if magic == IMAGES_MAGIC else "labels"
    if data[:2] != bytes(2) and (other := wrong_kind(DataError, path, f"an idx file of {what}", allowed=(Kind.GZIP, Kind.LMDB))):
        raise other
    if len(data) < 4 * words:
        raise DataError(f"the file is truncated: {len(data)} bytes, fewer than the header of an idx file", path=path)
    found, *sizes = struct.unpack(f">{words}I", data)
    if found != magic:
        swapped = {IMAGES_MAGIC: "it is a file of images", LABELS_MAGIC: "it is a file of labels"}.get(found)
        raise DataError(f"this is not an idx file of {what}: its magic number is {found}, not {magic}", path=path, hint=swapped)
    return tuple(sizes)


def _open(path: PathLike, skip: int) -> IO[bytes]:
    """Open an idx file behind its first ``skip`` bytes, decompressed if it is a gzip file."""
    stream = urls.open_binary(path)
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    if packed:
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    _take(stream, skip, path)
    return stream


def _read(stream: IO[bytes], size: int, path: PathLike) -> Pixels:
    data = _take(stream, size, path)
    if len(data) < size:
        raise DataError(f"the file is truncated: {size - len(data)} bytes are missing of what its header announces", path=path)
    return np.frombuffer(data, np.uint8)


def _take(stream: IO[bytes], size: int, path: PathLike) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, OSError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise DataError(f"the file is damaged: {error}", path=path) from None
