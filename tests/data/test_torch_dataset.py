"""LmdbDataset: records by number, in any number of worker processes, from any of Caffe's databases."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from caffetools.data import LmdbDataset
from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum, encoded_to_datum
from caffetools.data.images import encode_image
from caffetools.errors import DataError
from tests.conftest import GOLDEN
from tests.data.drawing import rows

IO = GOLDEN / "io" / "db"


@pytest.mark.parametrize("name", ["lmdb_raw", "lmdb_encoded", "lmdb_gray", "lmdb_mixed"])
def test_its_items_are_the_databases_records(name: str) -> None:
    dataset = LmdbDataset(IO / name)
    expected = rows(IO / name)
    assert len(dataset) == len(expected)
    for index, (key, label, pixels) in enumerate(expected):
        picture, got = dataset[index]
        np.testing.assert_array_equal(picture.numpy(), pixels, strict=True)
        assert (got, dataset.key(index)) == (label, key)
    np.testing.assert_array_equal(dataset[-1][0], expected[-1][2])
    with pytest.raises(IndexError):
        dataset[len(expected)]


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_the_same_batches(tmp_path: Path, start: str, workers: int) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(30):
            writer.put(b"%08d" % number, array_to_datum(np.full((1, 2, 3), number, np.uint8), number % 7).SerializeToString())
    dataset = LmdbDataset(tmp_path / "db")
    dataset[3]
    context: Any = {"num_workers": workers, "multiprocessing_context": start}
    plain, parallel = (list(DataLoader(dataset, batch_size=4, **options)) for options in (dict[str, Any](), context))
    for (data, labels), (data2, labels2) in zip(plain, parallel, strict=True):
        assert torch.equal(data, data2) and torch.equal(labels, labels2)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[5][0], dataset[5][0])


def test_floats_encoded_pictures_and_a_database_of_labels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"0", array_to_datum(np.linspace(-1, 1, 6).reshape(1, 2, 3), 4).SerializeToString())
        writer.put(b"1", encoded_to_datum(encode_image(image, ".png"), 5).SerializeToString())
    with new_lmdb(tmp_path / "labels") as writer:
        for number in range(2):
            writer.put(b"%d" % number, array_to_datum(np.float32([[[number, 0.5, -2]]])).SerializeToString())
    dataset = LmdbDataset(tmp_path / "db", labels=tmp_path / "labels", color=False, transform=lambda x: x.float().mean())
    assert dataset[0][0] == pytest.approx(0, abs=1e-6) and dataset[0][1].tolist() == [0, 0.5, -2]
    assert dataset[1][1].tolist() == [1, 0.5, -2]
    assert LmdbDataset(tmp_path / "db", color=False)[1][0].shape == (1, 4, 5)
    with new_lmdb(tmp_path / "short") as writer:
        writer.put(b"0", array_to_datum(np.float32([[[1]]])).SerializeToString())
    with pytest.raises(DataError, match="short: has 1 records, but .*db has 2"):
        LmdbDataset(tmp_path / "db", labels=tmp_path / "short")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"a", b"junk")
    with pytest.raises(DataError, match="db: record 'a'"):
        LmdbDataset(tmp_path / "db")[0]


def test_a_leveldb_is_read_the_same_way(tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    import shutil

    path = shutil.copytree(IO / "leveldb_raw", tmp_path / "level")
    dataset, lmdb = LmdbDataset(path), LmdbDataset(IO / "lmdb_raw")
    assert len(dataset) == len(lmdb) and all(torch.equal(dataset[i][0], lmdb[i][0]) for i in range(len(lmdb)))


def test_pictures_of_16_bits_are_read_where_caffe_refuses_them(tmp_path: Path) -> None:
    image = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"0", encoded_to_datum(encode_image(image, ".png"), 2).SerializeToString())
    picture, label = LmdbDataset(tmp_path / "db")[0]
    assert picture.dtype == torch.int32 and label == 2
    np.testing.assert_array_equal(picture[0].numpy(), image)
    assert LmdbDataset(tmp_path / "db", color=False)[0][0].dtype == torch.uint8
