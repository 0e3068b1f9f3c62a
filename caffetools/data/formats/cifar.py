"""The binary batches of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from caffetools.data.formats.examples import ConvertOptions, Example, Part
from caffetools.errors import DataError
from caffetools.util import urls

PathLike = str | os.PathLike[str]
_SIDE, _PIXELS = 32, 3072
_CHUNK = 500
_CIFAR10 = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}


def cifar10_parts(folder: PathLike, options: ConvertOptions) -> list[Part]:
    """Return CIFAR-10's parts ``train`` (data_batch_1.bin … data_batch_5.bin) and ``test`` (test_batch.bin).

    As in convert_cifar_data the channels stay in the order of the file (red first), and the pictures in theirs, which is shuffled already.

    Raises:
        DataError: A batch is missing, or its size is not a whole number of records.
    """
    return [_part(folder, name, files, 1, 0, 10, "batches.meta.txt") for name, files in _CIFAR10.items()]


def cifar100_parts(folder: PathLike, options: ConvertOptions) -> list[Part]:
    """Return CIFAR-100's parts ``train`` and ``test``, with the 100 fine labels or (``options.coarse``) the 20 coarse ones.

    Raises:
        DataError: A file is missing, or its size is not a whole number of records.
    """
    classes, names = (20, "coarse_label_names.txt") if options.coarse else (100, "fine_label_names.txt")
    return [_part(folder, name, files, 2, 0 if options.coarse else 1, classes, names) for name, files in _CIFAR100.items()]


def _part(folder: PathLike, name: str, files: list[str], labels: int, place: int, classes: int, names: str) -> Part:
    """Return a part of ``files``, whose records are ``labels`` bytes of labels, the one at ``place`` counts, and the pixels."""
    inner = folder
    if Path(folder).is_file():
        raise DataError("this is not a folder", path=folder, hint="unpack the archive, and give the folder of its .bin files")
    if not urls.exists(urls.join(folder, files[0])):
        inner = next(
            (urls.join(folder, f"cifar-{size}-batches-bin") for size in (10,) if labels == 1), urls.join(folder, "cifar-100-binary")
        )
        if not urls.exists(urls.join(inner, files[0])):
            raise DataError(f"there is no {files[0]}", path=folder, hint="the binary version of the dataset is read, not the Python one")
    texts = urls.join(inner, names)
    found = urls.read_bytes(texts).decode("utf-8", "replace").split() if urls.exists(texts) else []
    paths = [urls.join(inner, file) for file in files]
    return Part(name, lambda: _examples(paths, labels, place, classes), classes=found if len(found) == classes else [])


def _examples(paths: list[str], labels: int, place: int, classes: int) -> Iterator[Example]:
    record, number = labels + _PIXELS, 0
    for path in paths:
        before = number
        with urls.open_binary(path) as stream:
            while data := stream.read(_CHUNK * record):
                if len(data) % record:
                    raise DataError(
                        f"the file is truncated, or of another kind: it is not a whole number of {record}-byte records", path=path
                    )
                for row in np.frombuffer(data, np.uint8).reshape(-1, record):
                    label = int(row[place])
                    if label >= classes:
                        raise DataError(f"the label of picture {number} is {label}, not below {classes}", path=path)
                    array = row[labels:].reshape(3, _SIDE, _SIDE)
                    yield Example(f"{number:05d}", label, array=array, place=f"{path}: picture {number}")
                    number += 1
        if number == before:
            raise DataError("the file is empty", path=path)
