"""``caffetools dataset convert``, ``dataset shard`` and the tools of Caffe's examples."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.inprocess import run
from tests.data.foreign import records, write_cifar, write_idx


def test_convert_and_back(tmp_path: Path) -> None:
    write_idx(tmp_path / "in")
    done = run("dataset", "convert", "mnist", tmp_path / "in", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    made = str(tmp_path / "out/mnist_train_lmdb")
    assert json.loads(done.stdout)["counts"] == {made: 5}
    done = run("dataset", "convert", "lmdb", made, tmp_path / "numpy", "--to", "numpy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Wrote 5 examples to {tmp_path / 'numpy'}\n"


def test_the_tools_of_the_examples_take_caffes_arguments(tmp_path: Path) -> None:
    write_idx(tmp_path / "in")
    images, labels = tmp_path / "in/train-images-idx3-ubyte", tmp_path / "in/train-labels-idx1-ubyte"
    done = run("convert_mnist_data", "-backend=lmdb", images, labels, tmp_path / "db")
    assert done.returncode == 0, done.stderr
    run("dataset", "convert", "mnist", tmp_path / "in", tmp_path / "same", "--split", "train")
    assert records(tmp_path / "db") == records(tmp_path / "same")
    done = run("convert_mnist_siamese_data", images, labels, tmp_path / "pairs", "--backend", "lmdb")
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "pairs")) == 5
    write_cifar(tmp_path / "cifar")
    done = run("convert_cifar_data", tmp_path / "cifar", tmp_path / "examples", "lmdb")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "examples").iterdir() if path.is_dir()) == ["cifar10_test_lmdb", "cifar10_train_lmdb"]


def test_an_error_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_idx(tmp_path / "in")
    path = tmp_path / "in/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-4])
    done = run("dataset", "convert", "mnist", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{path}: the file is truncated: 4 bytes are missing" in done.stderr
    assert not (tmp_path / "out").exists()


def test_shard_inspect_and_verify(tmp_path: Path) -> None:
    write_idx(tmp_path / "in", 6)
    run("dataset", "convert", "mnist", tmp_path / "in", tmp_path / "db", "--split", "train")
    done = run("dataset", "shard", tmp_path / "db", tmp_path / "sharded", "--shards", 3)
    sharded = tmp_path / "sharded"
    assert done.stdout == f"Wrote 6 records in 3 shards, and index.json, to {sharded}\nNext: caffetools dataset verify {sharded}\n"
    done = run("dataset", "inspect", tmp_path / "sharded", "--json")
    assert json.loads(done.stdout)["backend"] == "shards"
    done = run("dataset", "verify", tmp_path / "sharded")
    assert done.returncode == 0, done.stdout
    done = run("mean", tmp_path / "sharded", tmp_path / "mean.binaryproto")
    assert done.returncode == 0, done.stderr
