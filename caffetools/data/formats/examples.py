"""What readers of datasets give and writers take: examples, in parts such as train and test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import decode_image, encode_image, pixel_budget, resize, to_planes
from caffetools.errors import DataError

Values = NDArray[Any]


@dataclass(frozen=True)
class Example:
    """One picture or array with its label.

    Attributes:
        key: Its key in a database; the names of files derive from it.
        label: Its label; None if it has none.
        image: The picture's file; empty if ``array`` is given.
        array: (C, H, W), uint8 or float32; None if ``image`` is given.
        place: Where it is stored, for errors.
    """

    key: str
    label: int | None
    image: bytes = b""
    array: Values | None = None
    place: str = ""


@dataclass(frozen=True)
class Part:
    """A part of a dataset that becomes one database.

    Attributes:
        name: ``train``, ``test``…; empty if the dataset has no parts.
        examples: Starts a pass over its examples. Raises :class:`DataError` for what cannot be read.
        count: Number of examples; None if it is not known before the pass.
        classes: Names of the classes, label i at place i; empty if unknown.
    """

    name: str
    examples: Callable[[], Iterator[Example]]
    count: int | None = None
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConvertOptions:
    """How datasets are read and what is stored.

    Attributes:
        split: Read this part only; empty for all.
        size: (width, height) that pictures of bytes are resized to; None keeps theirs.
        gray: Decode the files of pictures to one channel.
        encoded: Store the files of pictures; pixels are encoded as PNG.
        swap_channels: Reverse the channels of arrays (RGB to BGR, or back); the files of pictures are decoded to BGR without it.
        layout: Order of the axes of arrays: ``nchw`` or ``nhwc``; empty to derive it from the shape.
        data: Name of the array, dataset, column or feature of the pictures; empty for the usual one.
        label: Name of that of the labels; empty for the usual one.
        coarse: Take CIFAR-100's 20 coarse labels.
        pairs: Write MNIST's pairs for siamese nets.
        seed: Seed of the pairs.
        per_file: Most examples in a file of an output of several files.
    """

    split: str = ""
    size: tuple[int, int] | None = None
    gray: bool = False
    encoded: bool = False
    swap_channels: bool = False
    layout: str = ""
    data: str = ""
    label: str = ""
    coarse: bool = False
    pairs: bool = False
    seed: int = 1
    per_file: int = 10_000


def example_pixels(example: Example, options: ConvertOptions) -> Values:
    """Return the values (C, H, W) of an example: decoded, resized, and with swapped channels as the options ask for.

    Raises:
        DataError: The picture cannot be decoded, or it is to be resized and is not a picture of bytes; names it.
    """
    if example.array is None:
        with pixel_budget(example.image):
            pixels = decode_image(example.image, color=not options.gray, what=example.place)
            return to_planes(pixels if options.size is None else resize(pixels, options.size))
    array = example.array
    if options.swap_channels:
        array = array[::-1] if len(array) == 3 else array
    if options.size is not None and array.shape[:0:-1] != options.size:
        if array.dtype != np.uint8 or len(array) not in (1, 3, 4):
            raise DataError(f"{example.place}: only pictures of bytes with 1, 3 or 4 channels are resized; this is {array.dtype}")
        return to_planes(resize(interleaved(array), options.size))
    return array


def example_file(example: Example, options: ConvertOptions) -> bytes:
    """Return the file of an example's picture: the stored one where nothing changes it, else a new PNG or JPEG.

    Raises:
        DataError: The picture cannot be decoded, or the array is not one of bytes with 1, 3 or 4 channels; names it.
    """
    if example.image and options.size is None and not options.gray:
        decode_image(example.image, what=example.place)
        return example.image
    array = example_pixels(example, options)
    if array.dtype != np.uint8 or len(array) not in (1, 3, 4):
        shape = "x".join(map(str, array.shape))
        raise DataError(f"{example.place}: a picture's file holds bytes in 1, 3 or 4 channels, not {shape} of {array.dtype}")
    return encode_image(interleaved(array), ".jpg" if example.image.startswith(b"\xff\xd8") else ".png")


def interleaved(array: Values) -> Values:
    """Return (C, H, W) as the (H, W, C), or (H, W) for one channel, that OpenCV takes."""
    return np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def checked_label(value: object, place: str) -> int:
    """Return a label as an int. Raises :class:`DataError` if it is not an integer of 32 bits."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iufb":
        raise DataError(f"{place}: its label has {array.size} values of {array.dtype}; a Datum holds one integer")
    number = array.reshape(-1)[0]
    if not np.isfinite(number) or int(number) != number or not -(2**31) <= int(number) < 2**31:
        raise DataError(f"{place}: its label {number} is not an integer of 32 bits")
    return int(number)


def in_files(examples: Iterable[Example], per_file: int) -> Iterator[Iterator[Example]]:
    """Yield the examples of one file after the other, ``per_file`` each; those of a file are to be used up before the next file's."""
    iterator = iter(examples)
    for first in iterator:
        yield itertools.chain((first,), itertools.islice(iterator, per_file - 1))


def same_shape(arrays: Iterable[tuple[Example, Values]]) -> Iterator[tuple[Example, Values]]:
    """Yield ``arrays``; raise :class:`DataError` at one whose shape or type differs from the first one's."""
    first: Values | None = None
    for example, array in arrays:
        first = array if first is None else first
        if array.shape != first.shape or array.dtype != first.dtype:
            raise DataError(
                f"{example.place}: it is {array.shape} of {array.dtype}, the first one {first.shape} of {first.dtype}",
                hint="one array holds examples of one shape; --size resizes pictures",
            )
        yield example, array
