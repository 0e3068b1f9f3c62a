"""Data that several processes share, and pictures that a device transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum
from caffetools.data.device_transform import DeviceBatch, DeviceTransform
from caffetools.data.images import encode_image
from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.data.transformer import Transformer
from caffetools.layers.registry import layer_class
from caffetools.proto.binary import write_binaryproto
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, TransformationParameter
from caffetools.proto.text import parse

COUNT = 7


def layer(text: str) -> ReadingLayer:
    param = parse(text, LayerParameter)
    made = layer_class(param.type, layer=param.name)(param, TRAIN)
    assert isinstance(made, ReadingLayer)
    made.configure([])
    return made


def pictures(dtype: Any = np.uint8) -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (3, 6, 8)).astype(dtype) for _ in range(COUNT)]


@pytest.fixture
def lmdb_source(tmp_path: Path) -> str:
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number, picture in enumerate(pictures()):
            writer.put(record_key(number, "x"), array_to_datum(picture, number).SerializeToString())
    return str(tmp_path / "lmdb")


def data_layer(source: str, batch: int, transform: str = "") -> ReadingLayer:
    return layer(
        f'name: "d" type: "Data" top: "x" top: "y" data_param {{ source: "{source}" backend: LMDB batch_size: {batch} }} '
        f"transform_param {{ {transform} }}"
    )


def labels(source: ReadingLayer, batches: int) -> list[int]:
    return [int(label) for _ in range(batches) for label in source()[1].reshape(-1)]


def check_shares(whole: ReadingLayer, parts: list[ReadingLayer]) -> None:
    """Record i of the data goes to part i mod count, on and on beyond their end."""
    for rank, part in enumerate(parts):
        part.shard(rank, len(parts))
    in_order = labels(whole, 6 * len(parts))
    for rank, part in enumerate(parts):
        assert labels(part, 6) == in_order[rank :: len(parts)]
    for part in parts:
        part.close()


@pytest.mark.parametrize("count", [2, 3])
def test_records_of_a_database_are_shared_out(lmdb_source: str, count: int) -> None:
    check_shares(data_layer(lmdb_source, 2), [data_layer(lmdb_source, 2) for _ in range(count)])


@pytest.mark.parametrize("shuffle", ["false", "true"])
def test_pictures_of_a_list_are_shared_out(tmp_path: Path, shuffle: str) -> None:
    lines = []
    for number, picture in enumerate(pictures()):
        (tmp_path / f"{number}.png").write_bytes(encode_image(picture.transpose(1, 2, 0).copy(), ".png"))
        lines.append(f"{number}.png {number}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    text = f'name: "d" type: "ImageData" top: "x" top: "y" image_data_param {{ source: "{tmp_path / "list.txt"}" batch_size: 2 '
    text += f'root_folder: "{tmp_path}/" shuffle: {shuffle} }}'
    torch.manual_seed(3)
    check_shares(layer(text), [layer(text) for _ in range(2)])


@pytest.mark.parametrize("shuffle", ["false", "true"])
def test_rows_of_hdf5_files_are_shared_out(tmp_path: Path, shuffle: str) -> None:
    for name, start, stop in (("a", 0, 4), ("b", 4, COUNT)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"] = np.zeros((stop - start, 2), np.float32)
            file["y"] = np.arange(start, stop, dtype=np.float32)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.h5'}\n{tmp_path / 'b.h5'}\n")
    text = f'name: "d" type: "HDF5Data" top: "x" top: "y" hdf5_data_param {{ source: "{tmp_path / "list.txt"}" batch_size: 3 '
    text += f"shuffle: {shuffle} }}"
    torch.manual_seed(4)
    check_shares(layer(text), [layer(text) for _ in range(2)])


def test_shares_draw_crops_and_flips_of_their_own(lmdb_source: str) -> None:
    first, second, other = (data_layer(lmdb_source, 7, "crop_size: 3 mirror: true") for _ in range(3))
    for rank, part in enumerate((first, second)):
        part.shard(rank, 2)
    a, b, c = (part._source().rng.bit_generator.state for part in (first, second, other))
    assert a == c != b


def test_a_share_resumes_at_its_state(lmdb_source: str) -> None:
    part, again = (data_layer(lmdb_source, 2, "crop_size: 3 mirror: true") for _ in range(2))
    part.shard(1, 2)
    for _ in range(5):
        part()
    state = part.get_state()
    expected = [part() for _ in range(4)]
    again.shard(1, 2)
    again.set_state(state)
    for tops in expected:
        for a, b in zip(tops, again(), strict=True):
            assert torch.equal(a, b)


# ---- on a device ----

SETTINGS = [
    "scale: 1",
    "crop_size: 4",
    "mirror: true scale: 0.0078125",
    "crop_size: 4 mirror: true mean_value: 104 mean_value: 117 mean_value: 123",
    "crop_size: 4 mirror: true mean_file: 'MEAN' scale: 0.017",
    "mean_file: 'MEAN'",
]


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_device_computes_what_the_transformer_computes(tmp_path: Path, settings: str, phase: int) -> None:
    write_binaryproto(tmp_path / "mean.binaryproto", np.random.default_rng(1).uniform(0, 255, (1, 3, 6, 8)).astype(np.float32))
    param = parse(settings.replace("MEAN", str(tmp_path / "mean.binaryproto")), TransformationParameter)
    transformer = Transformer(param, phase)
    given = pictures() * 5
    expected = transformer(given, np.random.default_rng(6))
    cut = transformer.sample_crops(given, np.random.default_rng(6))
    assert cut.pixels.dtype == np.uint8 and cut.pixels.nbytes * 4 == expected.nbytes
    batch = DeviceTransform(transformer, torch.device("cpu"))(DeviceBatch(cut, pinned=False))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.numpy(), expected, strict=True)


def test_a_layer_gives_the_same_batches_when_a_device_transforms_them(lmdb_source: str) -> None:
    usual, other = (data_layer(lmdb_source, 3, "crop_size: 4 mirror: true mean_value: 100 scale: 0.5") for _ in range(2))
    other.transform_on(torch.device("cpu"))
    for _ in range(6):
        for a, b in zip(usual(), other(), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype
    assert usual.get_state() == other.get_state()
    usual.close()
    other.close()


def test_float_records_are_transformed_as_ever(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number, picture in enumerate(pictures(np.float32)):
            writer.put(record_key(number, "x"), array_to_datum(picture / 7, number).SerializeToString())
    usual, other = (data_layer(str(tmp_path / "lmdb"), 3, "crop_size: 4 mean_value: 100") for _ in range(2))
    other.transform_on(torch.device("cpu"))
    assert torch.equal(usual()[0], other()[0])
    usual.close()
    other.close()
