"""``caffetools time``, ``extract-features``, ``device-query`` and ``curves``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.data.databases import open_database
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.proto.schema import Datum
from tests.cli.inprocess import Done, run
from tests.conftest import GOLDEN

LOGS = GOLDEN / "logs"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command line in the folder of the tiny net."""
    monkeypatch.chdir(LOGS)
    return run


# ---- time ----


def shape_of(text: str) -> list[str]:
    """The log's lines from the first pass on, without dates and with N for numbers."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if "Performing Forward" in line)
    return [re.sub(r"(?<=[ (])\d[\d.e-]*(?= ms|$)", "N", line.split(" ", 3)[3].lstrip("0123456789 ")) for line in lines[start:]]


def test_where_piped_it_prints_what_caffe_prints(command: Callable[..., Done]) -> None:
    done = command("time", "-model=net.prototxt", "-iterations=10", "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert shape_of(done.stderr) == shape_of((LOGS / "time.log").read_text())
    assert "caffe.cpp:343] Use CPU." in done.stderr
    assert done.stdout == ""


def test_on_a_terminal_it_is_a_table(command: Callable[..., Done]) -> None:
    done = command("time", "net.prototxt", "-n", "2", "--device", "cpu", terminal=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) == 5 and "%" in line}
    assert rows == {"data": "HDF5Data", "conv1": "Convolution", "relu1": "ReLU", "ip": "InnerProduct", "loss": "SoftmaxWithLoss"}
    assert re.search(r"Forward and backward: \d+\.\d{3} ms an iteration", done.stdout)


def test_caffes_lines_can_be_asked_for_on_a_terminal(command: Callable[..., Done]) -> None:
    done = command("time", "net.prototxt", "-n", "1", "--caffe-format", "-phase", "TEST", terminal=True)
    assert "Average time per layer: " in done.stderr and "  accuracy\tforward: " in done.stderr
    assert done.stdout == ""


def test_json_has_the_times_of_every_layer(command: Callable[..., Done]) -> None:
    done = command("time", "net.prototxt", "-n", "2", "--json", "--weights", "tiny_iter_150.caffemodel")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [layer["name"] for layer in answer["layers"]] == ["data", "conv1", "relu1", "ip", "loss"]
    assert answer["forward_ms"] == pytest.approx(sum(layer["forward_ms"] for layer in answer["layers"]))
    assert 0 < answer["forward_ms"] + answer["backward_ms"] <= answer["iteration_ms"]


# ---- extract-features ----


def test_features_are_the_blobs_in_datums(command: Callable[..., Done], tmp_path: Path) -> None:
    databases = f"{tmp_path}/ip,{tmp_path}/conv"
    done = command("extract_features", "tiny_iter_150.caffemodel", "net.prototxt", "ip,conv1", databases, "3", "LMDB", "CPU")
    assert done.returncode == 0, done.stderr
    assert f"ip: 75 records of 4 x 1 x 1 in {tmp_path}/ip" in done.stdout
    net = Net.from_file("net.prototxt")
    load_weights(net, "tiny_iter_150.caffemodel")
    for name, blob, shape in (("ip", "ip", (4, 1, 1)), ("conv", "conv1", (6, 6, 6))):
        records = list(open_database(tmp_path / name).records())
        assert [key for key, _ in records] == [b"%010d" % number for number in range(75)]
        datums = [Datum.FromString(value) for _, value in records]
        assert all((d.channels, d.height, d.width) == shape and not d.HasField("label") and not d.data for d in datums)
        for layer in net.layers:
            if hasattr(layer, "seed"):
                layer.seed(0)
        with torch.no_grad():
            expected = torch.cat([net(keep=[blob])[blob] for _ in range(3)]).reshape(75, -1).numpy()
        np.testing.assert_array_equal(np.array([d.float_data for d in datums], np.float32), expected)


@pytest.mark.parametrize(
    ("blobs", "databases", "rest", "words"),
    [
        ("ip,conv1", "a", ["1"], r"2 blob\(s\) are named for 1 database\(s\)"),
        ("ip,conv1", "a,./a", ["1"], "two blobs cannot be written to one database"),
        ("fc9", "a", ["1"], "has no blob 'fc9'; it has data, label, conv1"),
        ("ip", "a", ["0"], "the number of batches must be at least 1"),
        ("ip", "a", ["1", "sqlite"], "the database type 'sqlite' is unknown; it can be lmdb, leveldb, hdf5 or parquet"),
        ("ip", "train.txt", ["1"], "train.txt: already exists"),
        ("loss", "a", ["1"], r"blob 'loss' is \(scalar\), and a Datum holds"),
    ],
)
def test_features_that_cannot_be_are_one_line(
    blobs: str, databases: str, rest: list[str], words: str, command: Callable[..., Done]
) -> None:
    done = command("extract-features", "tiny_iter_150.caffemodel", "net.prototxt", blobs, databases, *rest)
    assert done.returncode == 2, done.stderr
    assert re.search(words, done.stderr.splitlines()[-1])
    assert not (LOGS / "a").exists()


# ---- device-query ----


def test_device_query_lists_what_there_is(command: Callable[..., Done]) -> None:
    answer = json.loads(command("device-query", "--json").stdout)
    assert answer["torch"] == torch.__version__
    assert len(answer["devices"]) == torch.cuda.device_count()
    done = command("device_query")
    assert f"torch {torch.__version__}" in done.stdout
    assert ("No GPU is visible" in done.stdout) == (torch.cuda.device_count() == 0)
    refused = command("device_query", "-gpu", "99")
    assert refused.returncode == 2 and "no CUDA device 99" in refused.stderr


# ---- curves ----


def test_curves_draws_caffes_logs_and_ours(command: Callable[..., Done], tmp_path: Path) -> None:
    ours = tmp_path / "ours_log.jsonl"
    row = {"event": "train", "phase": "train", "seconds": 1.0, "lr": 0.1}
    ours.write_text("".join(json.dumps({**row, "iteration": n, "loss": 1.0 / (n + 1), "outputs": {"loss": 1.0}}) + "\n" for n in range(3)))
    done = command("curves", "train.log", str(ours), "-o", str(tmp_path / "curves.svg"))
    assert done.returncode == 0, done.stderr
    assert "train.log: 8 rows of training, 4 of tests" in done.stdout and "ours_log.jsonl: 3 rows of training" in done.stdout
    assert (tmp_path / "curves.svg").stat().st_size > 1000
    other = tmp_path / "other" / ours.name
    other.parent.mkdir()
    other.write_text(ours.read_text())
    done = command("curves", str(ours), str(other), str(ours), "-o", str(tmp_path / "two.svg"))
    lines = [f"{name}: 3 rows of training, 0 of tests" for name in (f"{tmp_path.name}/{ours.name}", f"other/{ours.name}")]
    assert done.stdout.splitlines()[:2] == lines
