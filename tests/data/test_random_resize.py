"""NVCaffe's random resize, its other transform fields, and several lists of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum, encoded_to_datum
from caffetools.data.images import encode_image
from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.data.random_resize import RandomResize
from caffetools.data.transformer import Transformer
from caffetools.errors import CaffeToolsError, DataError
from caffetools.layers.registry import layer_class
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, TransformationParameter
from caffetools.proto.text import parse


def resize_of(text: str) -> RandomResize:
    made = RandomResize.of(parse(text, TransformationParameter))
    assert made is not None
    return made


def layer(text: str, phase: int = TRAIN) -> ReadingLayer:
    param = parse(text, LayerParameter)
    made = layer_class(param.type, layer=param.name)(param, phase)
    assert isinstance(made, ReadingLayer)
    made.seed(3)
    made.configure([])
    return made


@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(1, 60), st.integers(0, 60), st.booleans(), st.floats(1, 3, width=32), st.integers(0, 99)
)  # fmt: skip
def test_sizes_are_in_their_limits(height: int, width: int, low: int, more: int, upscale: bool, ratio: float, seed: int) -> None:
    crop = min(height, width)
    resize = resize_of(
        f"crop_size: {crop} img_rand_resize_lower: {low} img_rand_resize_upper: {low + more} allow_upscale: {str(upscale).lower()} "
        f"rand_resize_ratio_lower: 1 rand_resize_ratio_upper: {ratio}"
    )
    rows, columns = resize.draw_size(height, width, np.random.default_rng(seed))
    assert min(rows, columns) >= crop
    if not upscale:
        assert rows <= height
        assert columns <= width
    elif min(rows, columns) > crop:
        assert low <= min(rows, columns) <= low + more


def test_without_further_fields_the_aspect_ratio_is_kept_and_all_sides_occur() -> None:
    resize = resize_of("crop_size: 8 img_rand_resize_lower: 10 img_rand_resize_upper: 14")
    rng = np.random.default_rng(1)
    sizes = [resize.draw_size(20, 40, rng) for _ in range(2000)]
    counts = np.bincount([rows for rows, _ in sizes], minlength=15)[10:]
    # Uniform over five sizes: 400 each, with a standard deviation of 18.
    assert counts.min() > 320
    assert {(rows, 2 * rows) for rows in range(10, 15)} == set(sizes)


def test_stretches_and_ratios_follow_nvcaffe() -> None:
    rng = np.random.default_rng(1)
    # As in data_transformer.cpp the pair (1, 1) of ratios has no effect.
    assert resize_of("crop_size: 4 rand_resize_ratio_lower: 1 rand_resize_ratio_upper: 1").draw_size(20, 40, rng) == (20, 40)
    assert resize_of("crop_size: 4 rand_resize_ratio_lower: 1.5 rand_resize_ratio_upper: 1.5").draw_size(20, 40, rng) == (20, 30)
    assert resize_of("crop_size: 4 vertical_stretch_lower: 0.5 vertical_stretch_upper: 0.5").draw_size(21, 40, rng) == (11, 40)
    assert resize_of("crop_size: 4 horizontal_stretch_lower: 2 horizontal_stretch_upper: 2").draw_size(20, 40, rng) == (20, 40)
    text = "crop_size: 4 allow_upscale: true horizontal_stretch_lower: 2 horizontal_stretch_upper: 2"
    assert resize_of(text).draw_size(20, 40, rng) == (20, 80)


@pytest.mark.parametrize(("side", "interpolation"), [(10, cv2.INTER_AREA), (30, cv2.INTER_LINEAR)])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_pixels_are_those_of_opencv(side: int, interpolation: int, channels: int) -> None:
    resize = resize_of(
        f"crop_size: 4 img_rand_resize_lower: {side} img_rand_resize_upper: {side} allow_upscale: true "
        "interpolation_algo_down: INTER_AREA interpolation_algo_up: INTER_LINEAR"
    )
    picture = np.random.default_rng(2).integers(0, 256, (channels, 20, 24), np.uint8)
    found = resize(picture, np.random.default_rng(0))
    size = (round(24 * side / 20), side)
    for plane, wanted in zip(found, picture, strict=True):
        assert np.array_equal(plane, cv2.resize(wanted, size, interpolation=interpolation))


def test_the_middle_of_the_mean_file_is_subtracted(tmp_path: Path) -> None:
    mean = np.random.default_rng(3).integers(0, 256, (1, 3, 12, 14)).astype(np.float32)
    write_binaryproto(tmp_path / "mean.binaryproto", mean)
    text = f'crop_size: 6 img_rand_resize_lower: 8 img_rand_resize_upper: 8 mean_file: "{tmp_path}/mean.binaryproto" scale: 0.5'
    picture = np.random.default_rng(2).integers(0, 256, (3, 20, 20), np.uint8)
    transformer = Transformer(parse(text, TransformationParameter), TEST)
    found = transformer([picture], np.random.default_rng(0))[0]
    small = cv2.resize(np.ascontiguousarray(picture.transpose(1, 2, 0)), (8, 8), interpolation=cv2.INTER_NEAREST).transpose(2, 0, 1)
    wanted = (small[:, 1:7, 1:7].astype(np.float32) - mean[0, :, 3:9, 4:10]) * np.float32(0.5)
    assert np.array_equal(found, wanted)
    deferred = transformer.sample_crops([picture], np.random.default_rng(0))
    assert np.array_equal(deferred.pixels[0], small[:, 1:7, 1:7])
    assert (deferred.tops[0], deferred.lefts[0]) == (3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("img_rand_resize_lower: 8 img_rand_resize_upper: 9", "set crop_size"),
        ("crop_size: 4 img_rand_resize_lower: 9 img_rand_resize_upper: 8", "is below img_rand_resize_lower"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Transformer(parse(text, TransformationParameter), TRAIN)


# In layers


@pytest.fixture
def pictures() -> list[Any]:
    rng = np.random.default_rng(6)
    return [rng.integers(0, 256, (3, 20, 24), np.uint8) for _ in range(4)]


def data_text(source: Path, transform: str) -> str:
    return (
        f'name: "d" type: "Data" top: "x" top: "y" data_param {{ source: "{source}" backend: LMDB batch_size: 4 }} '
        f"transform_param {{ crop_size: 12 img_rand_resize_lower: 15 img_rand_resize_upper: 15 interpolation_algo_down: INTER_CUBIC {transform} }}"
    )


@pytest.mark.parametrize("encoded", [False, True])
def test_raw_records_are_resized_as_floats_and_files_as_bytes(tmp_path: Path, pictures: list[Any], encoded: bool) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for number, picture in enumerate(pictures):
            file = encode_image(np.ascontiguousarray(picture.transpose(1, 2, 0)), ".png")
            datum = encoded_to_datum(file, number) if encoded else array_to_datum(picture, number)
            writer.put(record_key(number, "x"), datum.SerializeToString())
    found = layer(data_text(tmp_path / "db", ""), TEST)()[0].numpy()
    for top, picture in zip(found, pictures, strict=True):
        source = np.ascontiguousarray(picture.transpose(1, 2, 0))
        small = cv2.resize(source if encoded else source.astype(np.float32), (18, 15), interpolation=cv2.INTER_CUBIC)
        assert np.array_equal(top, small.transpose(2, 0, 1)[:, 1:13, 3:15])
    one, other = (layer(data_text(tmp_path / "db", "random_seed: 7"))()[0] for _ in range(2))
    assert np.array_equal(one, other)


def test_float_data_is_refused(tmp_path: Path, pictures: list[Any]) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"0", array_to_datum(pictures[0].astype(np.float32), 0).SerializeToString())
    with pytest.raises(DataError, match="float_data, which NVCaffe does not resize"):
        layer(data_text(tmp_path / "db", ""))


@pytest.mark.parametrize("field", ["crop_h: 5", "resize_param { height: 4 width: 4 prob: 1 }", "bgr2rgb: true"])
def test_fields_that_are_not_computed_are_refused_by_name(tmp_path: Path, pictures: list[Any], field: str) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"0", array_to_datum(pictures[0], 0).SerializeToString())
    with pytest.raises(CaffeToolsError, match=field.partition(":")[0].partition(" ")[0]):
        layer(data_text(tmp_path / "db", field))


def test_fields_without_an_effect_on_numbers_are_accepted(tmp_path: Path, pictures: list[Any]) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"0", array_to_datum(pictures[0], 0).SerializeToString())
    plain, more = (
        layer(data_text(tmp_path / "db", text), TEST)()[0]
        for text in ("", "forward_packing: NHWC num_labels: 3 use_gpu_transform: true display: true")
    )
    assert np.array_equal(plain, more)


# ImageData


def write_lists(folder: Path, pictures: list[Any]) -> None:
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number}.png"), picture.transpose(1, 2, 0))
    for name, factor in (("a", 1), ("b", 10), ("c", 100)):
        (folder / f"{name}.txt").write_text("".join(f"{number}.png {number * factor}\n" for number in range(len(pictures))))


def image_text(folder: Path, lists: str, more: str = "", transform: str = "") -> str:
    source = ";".join(f"{folder}/{name}.txt" for name in lists)
    return (
        f'name: "i" type: "ImageData" top: "x" top: "y" image_data_param {{ source: "{source}" root_folder: "{folder}/" batch_size: 4 {more} }} '
        f"transform_param {{ {transform} }}"
    )


def test_several_lists_give_several_labels(tmp_path: Path, pictures: list[Any]) -> None:
    write_lists(tmp_path, pictures)
    source = layer(image_text(tmp_path, "abc", "shuffle: true"))
    assert list(source.top_shapes[1]) == [4, 3]
    data, labels = (top.numpy() for top in source())
    assert sorted(labels[:, 0].tolist()) == [0, 1, 2, 3]
    assert np.array_equal(labels, labels[:, :1] * np.array([1, 10, 100], np.float32))
    for picture, row in zip(data, labels, strict=True):
        assert np.array_equal(picture, pictures[int(row[0])])


def test_lists_of_different_pictures_are_refused(tmp_path: Path, pictures: list[Any]) -> None:
    write_lists(tmp_path, pictures)
    text = (tmp_path / "b.txt").read_text()
    (tmp_path / "b.txt").write_text(text.replace("2.png", "x.png"))
    with pytest.raises(DataError, match=r"b.txt: picture 3 is 'x.png', but '2.png' in"):
        layer(image_text(tmp_path, "ab"))
    (tmp_path / "b.txt").write_text("0.png 1\n")
    with pytest.raises(DataError, match=r"b.txt: it lists 1 pictures"):
        layer(image_text(tmp_path, "ab"))


def test_short_side_resizes_as_nvcaffe(tmp_path: Path, pictures: list[Any]) -> None:
    write_lists(tmp_path, pictures)
    data, _ = layer(image_text(tmp_path, "a", "short_side: 7"), TEST)()
    wanted = cv2.resize(np.ascontiguousarray(pictures[1].transpose(1, 2, 0)), (24 * 7 // 20, 7))
    assert np.array_equal(data[1], wanted.transpose(2, 0, 1))
