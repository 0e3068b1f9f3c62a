"""Random crops and flips of the TRAIN phase: uniform, independent, reproducible from the seed in any number of threads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum, encoded_to_datum
from caffetools.data.images import encode_image
from caffetools.data.layers.hdf5_data import RowBatches
from caffetools.data.transformer import Transformer
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import TRAIN, LayerParameter, TransformationParameter
from caffetools.proto.text import parse


def chi_square_bound(cells: int) -> float:
    """A value that chi-square with ``cells`` - 1 degrees of freedom exceeds about once in 10,000 times (Wilson and Hilferty)."""
    k = cells - 1
    return k * (1 - 2 / (9 * k) + 3.72 * math.sqrt(2 / (9 * k))) ** 3


def test_crops_and_flips_are_uniform_and_independent() -> None:
    # Every pixel is its own number, so a crop's corner tells where it was taken, and the next pixel whether it was flipped.
    height, width, crop, count = 9, 12, 5, 40_000
    picture = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    transformer = Transformer(parse(f"crop_size: {crop} mirror: true", TransformationParameter), TRAIN)
    rng = np.random.default_rng(12)
    batches = [transformer([picture] * 1000, rng) for _ in range(count // 1000)]
    first, second = (np.concatenate([batch[:, 0, 0, column] for batch in batches]) for column in (0, 1))
    flipped = second < first
    corner = first - np.where(flipped, crop - 1, 0)
    cells = (height - crop + 1) * (width - crop + 1) * 2
    seen = np.zeros((height, width, 2))
    np.add.at(seen, (corner.astype(int) // width, corner.astype(int) % width, flipped.astype(int)), 1)
    assert seen.sum() == count and np.count_nonzero(seen) == cells
    expected = count / cells
    assert ((seen[seen > 0] - expected) ** 2 / expected).sum() < chi_square_bound(cells)


@pytest.fixture
def source(tmp_path: Path) -> str:
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number in range(11):
            image = np.random.default_rng(number).integers(0, 256, (12, 14, 3), dtype=np.uint8)
            datum = (
                encoded_to_datum(encode_image(image, ".png"), number) if number % 2 else array_to_datum(image.transpose(2, 0, 1), number)
            )
            writer.put(b"%08d" % number, datum.SerializeToString())
    return str(tmp_path / "lmdb")


def data_layer(source: str, seed: int) -> Any:
    text = f'name: "d" type: "Data" top: "x" top: "y" data_param {{ source: "{source}" batch_size: 4 }} transform_param {{ crop_size: 6 mirror: true }}'
    layer = layer_class("Data")(parse(text, LayerParameter), TRAIN)
    layer.seed(seed)
    layer.configure([])
    return layer


def test_batches_depend_on_the_layers_seed_alone(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = data_layer(source, 7)
    reference = [layer()[0].clone() for _ in range(6)]
    for threads in (1, 2, 5):
        monkeypatch.setattr("caffetools.util.threads.cpu_count", lambda threads=threads: threads)
        layer, other = data_layer(source, 7), data_layer(source, 8)
        for batch in reference:
            # Other users of the global generators, and another layer, do not change them.
            torch.rand(3)
            np.random.rand(3)
            other()
            assert torch.equal(layer()[0], batch)
    before = torch.random.get_rng_state(), np.random.get_state()[1]
    layer()
    assert torch.equal(torch.random.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])


def test_hdf5_as_matlab_writes_it_is_read_in_caffes_order(tmp_path: Path) -> None:
    # MATLAB's h5create('/data', [W H C N]) in column-major order is (N, C, H, W) in the file; -v7.3 files begin with 512 other bytes.
    data = np.arange(4 * 2 * 3 * 5, dtype=np.float64).reshape(4, 2, 3, 5)
    with h5py.File(tmp_path / "m.h5", "w", userblock_size=512) as file:
        file.create_dataset("data", data=data, chunks=(1, 2, 3, 5), maxshape=(None, 2, 3, 5))
        file.create_dataset("label", data=np.float64([[1], [2], [3], [4]]))
    with (tmp_path / "m.h5").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/m.h5\n")
    batches = RowBatches(f"{tmp_path}/list.txt", ["data", "label"], 3, 0, shuffle=False)
    first, second = batches.next(), batches.next()
    np.testing.assert_array_equal(first[0], data[:3].astype(np.float32))
    assert np.asarray(second[1]).ravel().tolist() == [4, 1, 2]
