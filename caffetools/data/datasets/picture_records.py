"""Pictures to records: decoded, resized and stored as pixels or as files, and what they are compared by."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from caffetools.data.datasets.duplicates import difference_hash
from caffetools.data.datasets.pictures import Picture
from caffetools.data.datasets.resizing import ResizeMode, resize_to
from caffetools.data.datum import encoded_to_datum, image_to_record
from caffetools.data.images import Pixels, decode_image, encode_image, fast_divisor, pixel_budget, read_bytes
from caffetools.errors import DataError
from caffetools.util.threads import ordered_map

Encoding = Literal["raw", "source", "png", "jpeg"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
# How the files begin that are stored as they are: PNG and JPEG, and BMP. Those of other formats cannot be decoded by every OpenCV that
# Caffe is built with, which ends Caffe at the record.
_PNG, _JPEG, _BMP = b"\x89PNG", b"\xff\xd8\xff", b"BM"
_KEPT = {"source": (_PNG, _JPEG, _BMP), "png": (_PNG,), "jpeg": (_JPEG,)}


@dataclass(frozen=True)
class RecordFormat:
    """How pictures are stored.

    Attributes:
        size: (width, height) in pixels; None keeps their own sizes.
        color: Three channels (BGR); False stores one gray channel.
        encoding: ``raw``: pixels. ``png``, ``jpeg``: files of that type. ``source``: files, the picture's own where
            possible: if it is a JPEG, PNG or BMP of its size.
        resize_mode: See :func:`~caffetools.data.datasets.resizing.resize_to`.
        fast_decode: Decode large JPEGs at a reduced scale; see :func:`~caffetools.data.images.fast_divisor`.
    """

    size: tuple[int, int] | None
    color: bool = True
    encoding: Encoding = "raw"
    resize_mode: ResizeMode = "squash"
    fast_decode: bool = False


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """A record made of a picture.

    Attributes:
        value: The serialized Datum.
        shape: (height, width) of the stored picture.
        digest: SHA-256 of the picture's file.
        dhash: :func:`~caffetools.data.datasets.duplicates.difference_hash` of the stored pixels.
    """

    value: bytes
    shape: tuple[int, ...]
    digest: bytes
    dhash: int


def check_encoding(encoding: str, *, encoded: bool = False) -> Encoding:
    """Return how pictures are stored.

    Args:
        encoding: One of ``ENCODINGS``.
        encoded: The same as ``source``.

    Raises:
        DataError: It is unknown, or differs from ``source`` with ``encoded``.
    """
    if encoded and encoding not in ("raw", "source"):
        raise DataError(f"--encoded stores the pictures' own files; it cannot be combined with --encode {encoding}")
    wanted = "source" if encoded else encoding
    for known in ENCODINGS:
        if wanted == known:
            return known
    raise DataError(f"the encoding '{encoding}' is unknown; it can be {', '.join(ENCODINGS)}")


def picture_records(pictures: Iterable[Picture], root: Path, stored: RecordFormat) -> Generator[PictureRecord | DataError, None, None]:
    """Yield for each picture its record, or why it cannot be used; in order, computed by several threads."""

    def record(picture: Picture) -> PictureRecord | DataError:
        try:
            return _record(root / picture.path, picture.label, stored)
        except DataError as error:
            return error

    return ordered_map(record, pictures)


def _record(path: Path, label: int, stored: RecordFormat) -> PictureRecord:
    if "\n" in path.name or "\r" in path.name:
        raise DataError(f"{path}: its name has a line break, which no list can hold")
    data = read_bytes(path)
    divisor = fast_divisor(data, stored.size) if stored.fast_decode else 1
    with pixel_budget(data, divisor):
        image = decode_image(data, color=stored.color, what=str(path), divisor=divisor)
        original = image.shape[0] * divisor, image.shape[1] * divisor
        if stored.size is not None:
            image = resize_to(image, stored.size, stored.resize_mode)
    if stored.encoding == "raw":
        value = image_to_record(image, label)
    else:
        value = encoded_to_datum(_encoded(data, image, stored, path.suffix.lower()), label).SerializeToString()
    return PictureRecord(value, image.shape[:2], hashlib.sha256(data).digest(), difference_hash(image, original))


def _encoded(data: bytes, image: Pixels, stored: RecordFormat, suffix: str) -> bytes:
    """Return the picture's own file if a Data layer decodes it to ``image`` and it is of the type asked for; else ``image`` encoded."""
    if stored.size is None and data.startswith(_KEPT[stored.encoding]):
        # A picture of more than 8 bits a channel cannot be decoded so.
        with contextlib.suppress(DataError):
            if np.array_equal(decode_image(data, color=None), image):
                return data
    if stored.encoding == "source":
        is_jpeg = stored.size is not None and suffix in (".jpg", ".jpeg", ".jpe", ".jfif")
        return encode_image(image, ".jpg" if is_jpeg else ".png")
    return encode_image(image, ".jpg" if stored.encoding == "jpeg" else ".png")
