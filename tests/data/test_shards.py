"""Databases in shards, read as one."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.data import LmdbDataset
from caffetools.data.databases import LmdbWriter, new_lmdb, open_database, record_key
from caffetools.data.datasets.inspect import inspect_database
from caffetools.data.datasets.verify import verify_database
from caffetools.data.datum import array_to_datum
from caffetools.data.layers.batch_source import ReadingLayer
from caffetools.data.means import compute_mean
from caffetools.data.sharding import shard_bounds, shard_database
from caffetools.data.shards import ShardedDatabase, read_index
from caffetools.errors import DataError
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import TRAIN, LayerParameter
from caffetools.proto.text import parse

COUNT = 11


@pytest.fixture
def database(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number in range(COUNT):
            picture = rng.integers(0, 256, (3, 6, 8), np.uint8)
            writer.put(record_key(number, "x"), array_to_datum(picture, number % 4).SerializeToString())
    return tmp_path / "lmdb"


@pytest.fixture
def sharded(tmp_path: Path, database: Path) -> Path:
    shard_database(database, tmp_path / "sharded", 3)
    return tmp_path / "sharded"


def layer(source: Path, batch: int = 1, more: str = "") -> ReadingLayer:
    text = (
        f'name: "d" type: "Data" top: "x" top: "y" data_param {{ source: "{source}" backend: LMDB batch_size: {batch} {more} }} '
        "transform_param { crop_size: 4 mirror: true }"
    )
    param = parse(text, LayerParameter)
    made = layer_class(param.type, layer=param.name)(param, TRAIN)
    assert isinstance(made, ReadingLayer)
    made.seed(3)
    made.configure([])
    return made


def batches(source: ReadingLayer, count: int) -> list[Any]:
    return [tuple(top.numpy().copy() for top in source()) for _ in range(count)]


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


@given(st.integers(1, 500), st.data())
def test_bounds_cover_all_records_and_differ_by_one_at_most(count: int, data: st.DataObject) -> None:
    bounds = shard_bounds(count, data.draw(st.integers(1, count)))
    assert bounds[0][0] == 0
    assert bounds[-1][1] == count
    assert all(left[1] == right[0] for left, right in pairwise(bounds))
    sizes = [end - first for first, end in bounds]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)


def test_shards_are_one_database(database: Path, sharded: Path) -> None:
    with closing(open_database(database)) as whole, closing(open_database(sharded)) as parts:
        wanted = list(whole.records())
        assert len(parts) == COUNT
        assert list(parts.records()) == wanted
        for number in range(COUNT):
            assert parts.item(number) == wanted[number]
            assert list(parts.records(number)) == wanted[number:]
        assert list(parts.records(COUNT)) == []
        with pytest.raises(IndexError):
            parts.item(COUNT)
    with closing(open_database(sharded / "index.json")) as parts:
        assert list(parts.records()) == wanted


def test_readers_of_a_database_read_shards(database: Path, sharded: Path) -> None:
    assert np.array_equal(compute_mean(sharded), compute_mean(database))
    assert equal(batches(layer(sharded, 4), 5), batches(layer(database, 4), 5))
    whole, parts = LmdbDataset(database), LmdbDataset(sharded)
    assert [parts[index][1] for index in range(COUNT)] == [whole[index][1] for index in range(COUNT)]
    summary = inspect_database(sharded)
    assert (summary.backend, summary.records) == ("shards", COUNT)
    assert not verify_database(sharded).faults


def test_each_process_reads_its_own_shards_only(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = read_index(sharded)
    sizes = [shard.records for shard in index.shards]
    with closing(open_database(sharded)) as whole:
        labels = [int(array_label(value)) for _, value in whole.records()]
    opened: list[str] = []
    original = ShardedDatabase._open

    def spy(self: ShardedDatabase, number: int) -> Any:
        opened.append(self.index.shards[number].path)
        return original(self, number)

    monkeypatch.setattr(ShardedDatabase, "_open", spy)
    for rank, own in enumerate((sizes[0] + sizes[2], sizes[1])):
        source = layer(sharded)
        source.shard(rank, 2)
        opened.clear()
        found = [int(label[0]) for _, label in batches(source, 2 * own)]
        mine = labels[: sizes[0]] + labels[sizes[0] + sizes[1] :] if rank == 0 else labels[sizes[0] : sizes[0] + sizes[1]]
        assert found == mine * 2
        assert set(opened) == {index.shards[number].path for number in range(rank, 3, 2)}
        source.close()


def array_label(value: bytes) -> int:
    from caffetools.proto.schema import Datum

    return int(Datum.FromString(value).label)


def test_more_processes_than_shards_share_all_records(sharded: Path, database: Path) -> None:
    for rank in range(4):
        parts, whole = layer(sharded), layer(database)
        parts.shard(rank, 4)
        whole.shard(rank, 4)
        assert equal(batches(parts, 6), batches(whole, 6))


@pytest.mark.parametrize("processes", [1, 2])
def test_training_resumes_in_the_middle_of_a_shard(sharded: Path, processes: int) -> None:
    source = layer(sharded, 2)
    source.shard(processes - 1, processes)
    batches(source, 3)
    state = json.loads(json.dumps(source.get_state()))
    wanted = batches(source, 4)
    again = layer(sharded, 2)
    again.shard(processes - 1, processes)
    again.set_state(state)
    assert equal(batches(again, 4), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=2), "an index of version 2"),
        (lambda index: index.update(format="other"), "has the format 'other'"),
        (lambda index: index.pop("records"), "'records' is missing"),
        (lambda index: index.update(records=3), "counts 3 records, its 3 shard"),
        (lambda index: index["shards"][0].update(path="../x"), "outside of the index"),
        (lambda index: index["shards"][0].update(path="/x"), "outside of the index"),
        (lambda index: index["shards"][0].update(records=-1), "has -1 records"),
        (lambda index: index.update(shards=3), "not an index of shards"),
    ],
)
def test_a_bad_index_is_one_error_that_names_it(sharded: Path, change: Any, message: str) -> None:
    values = json.loads((sharded / "index.json").read_text())
    change(values)
    (sharded / "index.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=message) as caught:
        open_database(sharded)
    assert "index.json" in str(caught.value)


def test_an_index_that_is_cut_is_refused(sharded: Path) -> None:
    text = (sharded / "index.json").read_text()
    (sharded / "index.json").write_text(text[:-20])
    with pytest.raises(DataError, match=r"index.json: this is not an index"):
        open_database(sharded)


def test_a_shard_with_other_records_than_the_index_counts_is_found(sharded: Path) -> None:
    writer = LmdbWriter(sharded / "shard_00001")
    writer.put(b"zzz", b"more")
    writer.close()
    with (
        closing(open_database(sharded)) as database,
        pytest.raises(DataError, match=r"shard_00001: it holds 5 records, but the index counts 4"),
    ):
        list(database.records())
    faults = verify_database(sharded).faults
    assert any("shard_00001" in fault.message and "checksum" in fault.message for fault in faults)


def test_a_missing_shard_is_found(sharded: Path) -> None:
    (sharded / "shard_00002/data.mdb").unlink()
    with closing(open_database(sharded)) as database, pytest.raises(DataError, match="shard_00002"):
        list(database.records())


def test_impossible_numbers_of_shards(tmp_path: Path, database: Path) -> None:
    for shards in (0, COUNT + 1):
        with pytest.raises(DataError, match="can be split into 1 to 11 shards"):
            shard_database(database, tmp_path / "out", shards)
    assert not (tmp_path / "out").exists()


def test_shards_at_a_url(database: Path) -> None:
    import fsspec

    shard_database(database, "memory://shards/out", 2)
    try:
        with closing(open_database(database)) as whole, closing(open_database("memory://shards/out")) as parts:
            assert list(parts.records()) == list(whole.records())
        assert not verify_database("memory://shards/out").faults
    finally:
        fsspec.filesystem("memory").rm("/shards", recursive=True)
