"""How pictures are stored: resize modes, encodings, orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from caffetools.data.databases import open_database
from caffetools.data.datasets.adding import AddOptions, add_pictures
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.resizing import RESIZE_MODES, ResizeMode, resize_to
from caffetools.data.datum import parse_datum
from caffetools.data.images import read_image, resize
from caffetools.errors import DataError
from caffetools.proto.schema import Datum
from tests.data.drawing import draw, draw_classes, rows


def ramp(width: int, height: int) -> NDArray[np.uint8]:
    """Blue rises from left to right, green from top to bottom, red is 255 everywhere."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, :, 0] = np.linspace(0, 255, width).astype(np.uint8)
    image[:, :, 1] = np.linspace(0, 255, height).astype(np.uint8)[:, np.newaxis]
    return image


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(20, 20), (30, 10), (7, 50), (1, 1), (300, 200)])
@pytest.mark.parametrize("source", [(80, 40), (33, 90), (1, 60), (20, 20)])
def test_every_mode_gives_the_size_asked_for(mode: ResizeMode, size: tuple[int, int], source: tuple[int, int]) -> None:
    color = resize_to(ramp(*source), size, mode)
    assert color.shape == (size[1], size[0], 3) and color.dtype == np.uint8
    assert resize_to(ramp(*source)[:, :, 0], size, mode).shape == (size[1], size[0])


def test_the_modes_show_what_they_state() -> None:
    wide = ramp(160, 80)
    squash, crop, fill, half = (resize_to(wide, (40, 40), mode) for mode in ("squash", "crop", "fill", "half-crop"))
    np.testing.assert_array_equal(squash, cv2.resize(wide, (40, 40), interpolation=cv2.INTER_LINEAR))
    # The middle half of the width, at the full height.
    np.testing.assert_array_equal(crop, cv2.resize(wide, (80, 40), interpolation=cv2.INTER_LINEAR)[:, 20:60])
    # All of the picture between black bars.
    np.testing.assert_array_equal(fill[10:30], cv2.resize(wide, (40, 20), interpolation=cv2.INTER_LINEAR))
    assert not fill[:10].any() and not fill[30:].any()
    # Halfway: the picture at 53 x 27.
    between = cv2.resize(wide, (53, 27), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(half[6:33], between[:, 6:46])
    assert not half[:6].any() and not half[33:].any()


def data_of(path: Path) -> list[Datum]:
    database = open_database(path)
    found = [parse_datum(value, repr(key)) for key, value in database.records()]
    database.close()
    return found


def test_the_mode_is_used_and_recorded(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 2, "b": 2})
    card = build_dataset(folder, tmp_path / "out", size=16, resize_mode="crop")
    assert card.settings["resize_mode"] == "crop"
    for key, _, pixels in rows(card.train_lmdb):
        expected = resize_to(read_image(folder / key.partition("_")[2]), (16, 16), "crop")
        np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))
    with pytest.raises(DataError, match="the resize mode 'stretch' is unknown; it can be squash, crop, fill, half-crop"):
        build_dataset(folder, tmp_path / "out2", resize_mode="stretch")


@pytest.mark.parametrize(("encode", "start"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff")])
@pytest.mark.parametrize("size", [0, 16])
def test_png_and_jpeg_storage(tmp_path: Path, encode: str, start: bytes, size: int) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 2, "b": 2})
    draw(folder / "a" / "photo.jpg", 9, quality=90)
    raw = build_dataset(folder, tmp_path / "raw", size=size)
    card = build_dataset(folder, tmp_path / "out", size=size, encode=encode)
    assert card.encoded and card.settings["encode"] == encode
    found = [datum for part in (card.train_lmdb, card.val_lmdb) for datum in data_of(part)]
    assert all(datum.encoded and datum.data.startswith(start) for datum in found)
    tolerance = 0 if encode == "png" else 12
    for (_, _, pixels), (_, _, expected) in zip(rows(card.train_lmdb), rows(raw.train_lmdb), strict=True):
        assert np.abs(pixels.astype(int) - expected).mean() <= tolerance
    if not size:
        own = (folder / "a" / ("photo.jpg" if encode == "jpeg" else "p 0.png")).read_bytes()
        assert own in [datum.data for datum in found]


def test_own_files_are_stored_only_of_formats_that_every_opencv_decodes(tmp_path: Path) -> None:
    """Caffe ends at a record that its OpenCV cannot decode: GIF, WebP, JPEG 2000 and, in some builds, TIFF and PNM."""
    folder = draw_classes(tmp_path / "p", {"a": 2, "b": 2})
    for kind in ("jpg", "bmp", "gif", "webp", "jp2", "tif", "ppm"):
        draw(folder / "a" / f"photo.{kind}", 9)
    raw = build_dataset(folder, tmp_path / "raw", size=0)
    card = build_dataset(folder, tmp_path / "out", size=0, encode="source")
    kinds = {}
    for part in ("train", "val"):
        for (key, _, pixels), (_, _, expected), datum in zip(
            rows(card.source(part)), rows(raw.source(part)), data_of(card.source(part)), strict=True
        ):
            np.testing.assert_array_equal(pixels, expected)
            kinds[key.rpartition(".")[2]] = datum.data[:2]
    assert kinds == {**dict.fromkeys(("png", "gif", "webp", "jp2", "tif", "ppm"), b"\x89P"), "jpg": b"\xff\xd8", "bmp": b"BM"}


def test_unknown_and_contradicting_encodings_are_refused(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 2, "b": 2})
    with pytest.raises(DataError, match="the encoding 'gif' is unknown; it can be raw, source, png, jpeg"):
        build_dataset(folder, tmp_path / "out", encode="gif")
    with pytest.raises(DataError, match="--encoded stores the pictures' own files"):
        build_dataset(folder, tmp_path / "out", encode="png", encoded=True)


@pytest.mark.parametrize("encode", ["raw", "source", "jpeg", "png"])
def test_the_exif_orientation_is_applied_in_every_storage(tmp_path: Path, encode: str) -> None:
    folder = draw_classes(tmp_path / "p", {"b": 2})
    (folder / "a").mkdir()
    upright = np.repeat(np.linspace(0, 250, 40).astype(np.uint8)[:, np.newaxis], 60, axis=1)
    for orientation, turned in {1: upright, 3: upright[::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(turned)).convert("RGB").save(folder / "a" / f"{orientation}.jpg", quality=95, exif=exif)
    card = build_dataset(folder, tmp_path / "out", size=0, encode=encode)
    found = [pixels for part in (card.train_lmdb, card.val_lmdb) for key, label, pixels in rows(part) if label == 0]
    assert len(found) == 4
    for pixels in found:
        assert pixels.shape == (3, 40, 60) and np.abs(pixels[1].astype(int) - upright).max() <= 8


def test_fast_decoding_reads_large_jpegs_at_a_reduced_scale(tmp_path: Path) -> None:
    """The default is Caffe's: in full. The choice is recorded, and holds for pictures that are added."""
    noise = np.random.default_rng(3).integers(0, 256, (256, 256, 3), np.uint8)
    for shift, path in enumerate(("photos/cat/a.jpg", "photos/cat/b.jpg", "photos/dog/c.jpg", "photos/dog/d.jpg", "new/cat/e.jpg")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / path), np.roll(noise, shift, 0))
    exact = build_dataset(tmp_path / "photos", tmp_path / "exact", size=32)
    fast = build_dataset(tmp_path / "photos", tmp_path / "fast", size=32, fast_decode=True)
    assert (exact.settings["fast_decode"], fast.settings["fast_decode"]) == (False, True)
    add_pictures(tmp_path / "fast", tmp_path / "new", AddOptions(val=0.01))
    for name, flags, count in (("exact", cv2.IMREAD_COLOR, 2), ("fast", cv2.IMREAD_REDUCED_COLOR_8, 3)):
        found = rows(tmp_path / name / "train_lmdb")
        assert len(found) == count
        for key, _, pixels in found:
            (source,) = tmp_path.glob(f"*/*/{key[-5:]}")
            whole: Any = cv2.imread(str(source), flags)
            np.testing.assert_array_equal(pixels, resize(whole, (32, 32)).transpose(2, 0, 1))
