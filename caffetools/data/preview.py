"""A sheet of augmented pictures, to see what a configuration does before training with it."""

from __future__ import annotations

import os
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.data.augment import AugmentConfig, Augmenter
from caffetools.data.databases import open_database, shown_key
from caffetools.data.datasets.card import load_card
from caffetools.data.datasets.combine import is_dataset
from caffetools.data.datum import annotated_datum, datum_to_array, record_to_array
from caffetools.data.images import SUFFIXES, encode_image, read_image, to_planes
from caffetools.data.shards import is_index
from caffetools.errors import DataError
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
_GAP = 4
# Longest side of a sheet; JPEG holds no more.
_MOST_PIXELS = 65_500


def draw_preview(
    source: PathLike, out: PathLike, config: AugmentConfig, *, count: int = 6, variants: int = 6, seed: int = 1, side: int = 160
) -> tuple[int, int]:
    """Write a sheet: a row for each picture, with the picture itself first and augmented variants of it behind. Boxes are drawn.

    Args:
        source: A database (of Datum or SSD's AnnotatedDatum), the folder of a dataset, a folder of pictures, or a picture.
        out: The image file to write, such as ``sheet.png``.
        config: The augmentation.
        count: Pictures.
        variants: Variants of each.
        seed: Seed of the draws.
        side: Longer side of each tile, in pixels.

    Returns:
        The sheet's (width, height) in pixels.

    Raises:
        DataError: The source cannot be read or has no pictures, the sheet is too large, or torchvision is not installed.
        RunFailed: ``out`` cannot be written.
    """
    augmenter, rng = Augmenter(config), np.random.default_rng(seed)
    pictures = _pictures(Path(source), count)
    if max(len(pictures), variants + 1) * side > _MOST_PIXELS:
        raise DataError(f"a sheet of {len(pictures)} x {variants + 1} pictures has more than {_MOST_PIXELS} pixels on a side; take fewer")
    rows = []
    for number, (image, boxes) in enumerate(pictures):
        tiles = [_tile(image, boxes, side)]
        for _ in range(variants):
            changed = augmenter.transform(image, augmenter.make_params(rng, image.shape), boxes=boxes)
            result = changed.image
            if config.mixup:
                result = _mix(result, pictures[(number + 1) % len(pictures)][0], rng, config.mixup)
            tiles.append(_tile(result, changed.boxes, side))
        rows.append(np.concatenate(tiles, axis=1))
    sheet = np.concatenate(rows)
    with atomic_write(out) as stream:
        stream.write(encode_image(sheet, Path(out).suffix or ".png"))
    return sheet.shape[1], sheet.shape[0]


def _pictures(source: Path, count: int) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Return up to ``count`` pictures (C, H, W) with their boxes."""
    no_boxes = np.zeros((0, 4), np.float32)
    if is_dataset(source):
        # Not its sheet of samples, which is a picture too.
        source = load_card(source).train_lmdb
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return [(to_planes(read_image(source)), no_boxes)]
    if source.is_dir() and not is_index(source) and not (source / "data.mdb").exists() and not (source / "CURRENT").exists():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError("there are no pictures in this folder, and it is not a database", path=source)
        # From the whole folder, so that several classes are seen.
        chosen = files[:: max(1, len(files) // count)][:count]
        return [(to_planes(read_image(path)), no_boxes) for path in chosen]
    with closing(open_database(source)) as database:
        return [_record(value, shown_key(database.path, key)) for key, value in islice(database.records(), count)]


def _record(value: bytes, what: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    boxes: list[Any] = []
    try:
        array: NDArray[Any] = record_to_array(value, what=what)[0]
    except DataError:
        annotated = annotated_datum(value)
        if annotated is None:
            raise
        array = datum_to_array(annotated.datum, what=what)
        boxes = [annotation.bbox for group in annotated.annotation_group for annotation in group.annotation]
    if array.dtype != np.uint8:
        raise DataError(f"{what}: it has float_data; augmentation needs pictures of bytes")
    return array, np.array([(box.xmin, box.ymin, box.xmax, box.ymax) for box in boxes], np.float32).reshape(-1, 4)


def _mix(image: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator, alpha: float) -> NDArray[np.uint8]:
    from caffetools.data.augment import mixed

    share = float(rng.beta(alpha, alpha))
    resized = np.asarray(cv2.resize(other.transpose(1, 2, 0), image.shape[:0:-1]))
    return mixed(image, to_planes(resized), max(share, 1 - share)) if len(other) == len(image) else image


def _tile(image: NDArray[np.uint8], boxes: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """Return a picture (C, H, W) centered on a white square (side + gap), BGR, with its boxes."""
    pixels: Any = np.ascontiguousarray(image[:3].transpose(1, 2, 0)) if len(image) >= 3 else cv2.merge([image[0]] * 3)
    scale = side / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    for xmin, ymin, xmax, ymax in boxes * np.tile(size, 2):
        cv2.rectangle(pixels, (int(xmin), int(ymin)), (int(xmax) - 1, int(ymax) - 1), (0, 200, 0), 1)
    tile = np.full((side + _GAP, side + _GAP, 3), 255, np.uint8)
    top, left = (tile.shape[0] - size[1]) // 2, (tile.shape[1] - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = pixels
    return tile
