"""The transformer: what golden cases do not pin (float pictures, mixed sizes, settings that do not fit)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.schema import TEST, TRAIN, TransformationParameter


def transformer(text: str, phase: int = TEST) -> Transformer:
    return Transformer(text_format.Parse(text, TransformationParameter()), phase)


def pictures(*shapes: tuple[int, int, int], dtype: Any = np.uint8) -> list[NDArray[Any]]:
    rng = np.random.default_rng(8)
    return [rng.integers(0, 256, shape).astype(dtype) for shape in shapes]


def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def test_nothing_asked_changes_nothing() -> None:
    given = pictures((3, 5, 6), (3, 5, 6))
    batch = transformer("")(given, rng())
    np.testing.assert_array_equal(batch, np.stack(given).astype(np.float32), strict=True)


def test_a_batch_may_be_one_array_and_floats_keep_their_fractions() -> None:
    given = np.random.default_rng(0).normal(size=(4, 2, 6, 6)).astype(np.float32)
    batch = transformer("crop_size: 4 scale: 2 mean_value: 1")(given, rng())
    np.testing.assert_array_equal(batch, (given[:, :, 1:5, 1:5] - np.float32(1)) * np.float32(2), strict=True)


def test_the_mean_of_a_file_is_cropped_and_flipped_with_the_picture(tmp_path: Path) -> None:
    mean = np.random.default_rng(1).uniform(0, 255, (1, 3, 7, 9)).astype(np.float32)
    write_binaryproto(tmp_path / "mean.binaryproto", mean)
    picture = pictures((3, 7, 9))[0]
    expected = picture - mean[0]
    batch = transformer(f"crop_size: 4 mirror: true mean_file: '{tmp_path / 'mean.binaryproto'}'", TRAIN)([picture] * 60, rng())
    windows = [expected[:, y : y + 4, x : x + 4][:, :, ::step] for y in range(4) for x in range(6) for step in (1, -1)]
    found = {next(i for i, window in enumerate(windows) if np.array_equal(window, item)) for item in batch}
    assert len(found) > 25


def test_every_crop_and_flip_is_about_equally_likely() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    batch = transformer("crop_size: 2 mirror: true", TRAIN)([picture] * 6000, rng())
    _, counts = np.unique(batch.reshape(len(batch), -1), axis=0, return_counts=True)
    assert len(counts) == 12 and counts.min() > 400 and counts.max() < 600


def test_pictures_of_different_sizes_fit_when_cropped() -> None:
    given = pictures((3, 8, 5), (3, 6, 9))
    batch = transformer("crop_size: 4")(given, rng())
    np.testing.assert_array_equal(batch[0], given[0][:, 2:6, 0:4].astype(np.float32))
    np.testing.assert_array_equal(batch[1], given[1][:, 1:5, 2:6].astype(np.float32))


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        ("", [(3, 5, 6), (3, 5, 7)], "picture 1 of the batch is 3 x 5 x 7, the first is 3 x 5 x 6"),
        ("crop_size: 4", [(3, 5, 6), (1, 5, 6)], "picture 1 of the batch is 1 x 5 x 6"),
        ("crop_size: 7", [(3, 5, 8)], r"crop_size 7 is larger than the picture \(8 x 5\)"),
        ("crop_size: 5", [(3, 5, 8), (3, 4, 8)], r"crop_size 5 is larger than the picture \(8 x 4\)"),
        ("mean_value: 1 mean_value: 2", [(3, 5, 8)], r"2 mean_value\(s\) for 3 channel"),
    ],
)
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_pictures_that_do_not_fit_are_refused(text: str, shapes: list[tuple[int, int, int]], reason: str, phase: int) -> None:
    with pytest.raises(DataError, match=reason):
        transformer(text, phase)(pictures(*shapes), rng())


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    write_binaryproto(tmp_path / "mean", np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match="mean_file and mean_value exclude"):
        transformer(f"mean_file: '{tmp_path / 'mean'}' mean_value: 4")
    with pytest.raises(DataError, match="force_color and force_gray exclude"):
        transformer("force_color: true force_gray: true")
    with pytest.raises(DataError, match="mean_file: .*none: cannot read"):
        transformer(f"mean_file: '{tmp_path / 'none'}'")
    with pytest.raises(DataError, match="the mean file is for pictures of 3 x 4 x 4, not 3 x 4 x 5"):
        transformer(f"mean_file: '{tmp_path / 'mean'}'")(pictures((3, 4, 5)), rng())
    write_binaryproto(tmp_path / "mean", np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match="a mean has the shape 1 x channels"):
        transformer(f"mean_file: '{tmp_path / 'mean'}'")


def test_pictures_of_bytes_and_of_floats_come_out_the_same(tmp_path: Path) -> None:
    mean = np.random.default_rng(1).uniform(0, 255, (1, 3, 7, 9)).astype(np.float32)
    write_binaryproto(tmp_path / "mean.binaryproto", mean)
    given = pictures(*[(3, 7, 9)] * 20)
    for subtract in (f"mean_file: '{tmp_path / 'mean.binaryproto'}'", "mean_value: 104.5 mean_value: 117 mean_value: 123.1"):
        make = transformer(f"crop_size: 4 mirror: true scale: 0.017 {subtract}", TRAIN)
        expected = make([picture.astype(np.float32) for picture in given], rng())
        decoded = [np.ascontiguousarray(picture.transpose(1, 2, 0)).transpose(2, 0, 1) for picture in given]
        np.testing.assert_array_equal(make(given, rng()), expected, strict=True)
        np.testing.assert_array_equal(make(decoded, rng()), expected, strict=True)
