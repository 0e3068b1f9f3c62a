"""Inference over many pictures into Parquet files, in this process and on a local Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum
from caffetools.data.sharding import shard_database
from caffetools.errors import CaffeToolsError, DataError
from caffetools.infer.bulk import BulkResult, classify_to_parquet, features_to_parquet
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.infer.features import extract_features
from caffetools.solver.testing import load_test_net
from tests.cli.inprocess import run
from tests.infer.colours import DEPLOY, write_labels, write_net, write_pictures

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files of a folder, in the order of their names."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.parquet")):
        found += parquet.read_table(path).to_pylist()
    return found


def classify(model: tuple[Path, Path, PreprocessOptions], pictures: list[str], out: Path, **more: Any) -> BulkResult:
    deploy, weights, options = model
    return classify_to_parquet(deploy, weights, options, pictures, out, **more)


def features(net: tuple[Path, Path], blobs: list[str], folders: list[Path], batches: int, **more: Any) -> BulkResult:
    return features_to_parquet(net[0], net[1], blobs, folders, batches, **more)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, PreprocessOptions]:
    return *write_net(tmp_path), PreprocessOptions(mean="0", labels=write_labels(tmp_path))


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    names = write_pictures(tmp_path) * 2
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    return [*names, str(tmp_path / "broken.png")]


def test_rows_are_the_results_of_a_classifier(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    result = classify(model, pictures, tmp_path / "out", top=2, per_file=3)
    assert (result.rows, len(result.errors)) == (7, 1)
    assert sorted(path.name for path in (tmp_path / "out").glob("part*")) == [f"part-0000{n}.parquet" for n in range(3)]
    assert json.loads((tmp_path / "out/summary.json").read_text()) == {"rows": 7, "files": 3, "errors": 1}
    for row, wanted in zip(rows(tmp_path / "out"), Classifier(*model).classify(pictures, top=2), strict=True):
        assert (row["picture"], row["error"]) == (wanted.picture, wanted.error)
        assert row["index"] == [guess.index for guess in wanted.guesses]
        assert row["label"] == [guess.label for guess in wanted.guesses]
        assert row["probability"] == [np.float32(guess.probability) for guess in wanted.guesses]


def test_an_existing_folder_is_replaced_by_force_only(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    classify(model, pictures, tmp_path / "out")
    with pytest.raises(DataError, match="out"):
        classify(model, pictures[:1], tmp_path / "out")
    classify(model, pictures[:1], tmp_path / "out", force=True)
    assert len(rows(tmp_path / "out")) == 1


def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    with pytest.raises(CaffeToolsError, match=r"none\.caffemodel"):
        classify((model[0], tmp_path / "none.caffemodel", model[2]), pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def train_net(tmp_path: Path) -> tuple[Path, Path]:
    """The net of colours with a Data layer over 11 records in 3 shards."""
    _, weights = write_net(tmp_path)
    rng = np.random.default_rng(1)
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(11):
            writer.put(record_key(number, "x"), array_to_datum(rng.integers(0, 256, (3, 6, 8), np.uint8), 0).SerializeToString())
    shard_database(tmp_path / "db", tmp_path / "shards", 3)
    lines = DEPLOY.splitlines()
    data = f'layer {{ name: "data" type: "Data" top: "data" data_param {{ source: "{tmp_path}/shards" batch_size: 2 backend: LMDB }} }}'
    (tmp_path / "net.prototxt").write_text("\n".join(data if "Input" in line else line for line in lines))
    return tmp_path / "net.prototxt", weights


def test_features_are_those_of_extract_features(tmp_path: Path, train_net: Any) -> None:
    # 8 batches of 2: the records start over after the 11th.
    result = features(train_net, ["mean", "prob"], [tmp_path / "mean", tmp_path / "prob"], 8, per_file=3)
    assert result.rows == 16
    extract_features(load_test_net(*train_net), ["mean", "prob"], [tmp_path / "a", tmp_path / "b"], 8)
    from caffetools.data import LmdbDataset

    for folder, database in (("mean", "a"), ("prob", "b")):
        found = rows(tmp_path / folder)
        assert [row["record"] for row in found] == list(range(16))
        dataset = LmdbDataset(tmp_path / database)
        assert len(dataset) == 16
        for number, row in enumerate(found):
            values, _ = dataset[number]
            assert row["values"] == values.reshape(-1).tolist()


def test_a_cluster_writes_the_same_files(tmp_path: Path, model: Any, pictures: list[str], train_net: Any) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")
    pytest.importorskip("ray.data", reason="needs the extra 'cluster'")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40, object_store_memory=1 << 27)
    try:
        classify(model, pictures, tmp_path / "cluster", per_file=3, cluster="local:2")
        features(train_net, ["prob"], [tmp_path / "cluster_prob"], 8, per_file=3, cluster="local:2")
    finally:
        ray.shutdown()
    classify(model, pictures, tmp_path / "one", per_file=3)
    features(train_net, ["prob"], [tmp_path / "one_prob"], 8, per_file=3)
    assert rows(tmp_path / "cluster") == rows(tmp_path / "one")
    assert rows(tmp_path / "cluster_prob") == rows(tmp_path / "one_prob")


def test_the_commands(tmp_path: Path, pictures: list[str], train_net: Any) -> None:
    deploy, weights = write_net(tmp_path)
    done = run("classify", deploy, weights, *pictures, "--mean", "0", "--parquet", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == f"Wrote 7 rows to {tmp_path / 'out'}\n"
    assert "1 of 7 pictures could not be read" in done.stderr
    done = run("extract-features", weights, train_net[0], "prob", tmp_path / "prob", 2, "parquet")
    assert (done.returncode, done.stdout) == (0, f"prob: 4 rows in {tmp_path / 'prob'}\n")
    done = run("classify", deploy, weights, *pictures, "--cluster", "local")
    assert done.returncode == 2
    assert "needs Parquet files as output" in done.stderr
