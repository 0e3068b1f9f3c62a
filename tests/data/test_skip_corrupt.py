"""Damaged records: tolerated up to a number by Data layers and the mean, named by key, and counted once."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from caffetools.cancel import CancelToken
from caffetools.cli.dataset import app
from caffetools.data.databases import CorruptRecords, new_lmdb
from caffetools.data.datum import array_to_datum, encoded_to_datum
from caffetools.data.layers.batch_source import tolerating_corrupt_records
from caffetools.data.means import compute_mean
from caffetools.errors import CaffeToolsError, Cancelled, DataError
from caffetools.events import Event, Finished, Progress, Started, Warned
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN
from caffetools.solver.run import train
from tests.cli.inprocess import run, run_well

BAD = (0, 4, 7)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Twelve pictures; the records 0, 4 and 7 are damaged in three ways."""
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(12):
            image = np.full((4, 4, 3), 20 * number, np.uint8)
            value = encoded_to_datum(bytes(cv2.imencode(".png", image)[1]), number % 2).SerializeToString()
            if number == 0:
                value = encoded_to_datum(b"no picture", 0).SerializeToString()
            elif number == 4:
                value = b"\xff\xff\xff"
            elif number == 7:
                value = array_to_datum(np.zeros((3, 4, 4), np.uint8), 1).SerializeToString()[:-20]
            writer.put(f"{number:08d}_x".encode(), value)
    return tmp_path / "db"


NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{source}" batch_size: 3 backend: LMDB }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""


def write_solver(folder: Path, database: Path) -> Path:
    (folder / "net.prototxt").write_text(NET.format(source=database))
    path = folder / "solver.prototxt"
    path.write_text(
        'net: "net.prototxt"\nbase_lr: 0.0001\nlr_policy: "fixed"\nmax_iter: 9\ndisplay: 3\nrandom_seed: 1\nsnapshot_prefix: "s"\n'
    )
    return path


def test_a_layer_leaves_out_damaged_records_and_reports_each_once(database: Path, tmp_path: Path) -> None:
    write_solver(tmp_path, database)
    seen: list[str] = []
    with tolerating_corrupt_records(3, lambda error: seen.append(str(error))):
        net = Net.from_file(tmp_path / "net.prototxt", TRAIN)
    values = [float(value) for _ in range(9) for value in net.layers[0]()[0][:, 0, 0, 0]]
    net.layers[0].close()
    assert values == [20.0 * number for number in range(12) if number not in BAD] * 3
    assert len(seen) == 3 and [f"record '{number:08d}_x'" in text for number, text in zip(BAD, seen, strict=True)] == [True] * 3


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_one_damaged_record_too_many_is_an_error_that_names_it(database: Path, tmp_path: Path, limit: int) -> None:
    write_solver(tmp_path, database)
    with pytest.raises(DataError, match=f"layer 'data'.*record '{BAD[limit]:08d}_x'"):
        with tolerating_corrupt_records(limit):
            net = Net.from_file(tmp_path / "net.prototxt", TRAIN)
        for _ in range(4):
            net.layers[0]()


def test_a_database_of_damaged_records_alone_is_an_error(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(3):
            writer.put(f"{number}".encode(), b"\xff")
    write_solver(tmp_path, tmp_path / "db")
    with tolerating_corrupt_records(100), pytest.raises(DataError, match="no record can be read"):
        Net.from_file(tmp_path / "net.prototxt", TRAIN)
    with pytest.raises(DataError, match="must be 0 or more, not -1"), tolerating_corrupt_records(-1):
        pass


def test_training_warns_and_continues(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    solver, seen = write_solver(tmp_path, database), list[Event]()
    with pytest.raises(CaffeToolsError, match="00000000_x"):
        train(solver, device="cpu")
    result = train(solver, device="cpu", skip_corrupt=3, events=seen.append)
    assert result.solver.iteration == 9
    assert len([event for event in seen if isinstance(event, Warned) and "left out" in event.message]) == 3
    log = (tmp_path / "s.log").read_text()
    assert all(f"Leaving out a damaged record: {database}: record '{number:08d}_x'" in log for number in BAD)


def test_the_commands_take_the_number(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    solver = write_solver(tmp_path, database)
    assert run("train", solver, "--device", "cpu", "--quiet", "--skip-corrupt", "2").returncode == 2
    run_well("train", solver, "--device", "cpu", "--quiet", "--skip-corrupt", "3")
    scored = run("test", "net.prototxt", "--weights", "s_iter_9.caffemodel", "-n", "4", "--device", "cpu", "--skip-corrupt", "3")
    assert scored.returncode == 0 and scored.stderr.count("note: left out:") == 3
    assert run("mean", database, "--skip-corrupt", "2").returncode == 2
    assert run_well("mean", database, "--skip-corrupt", "3", "--json").stderr.count("left out") == 3
    answer = json.loads(CliRunner().invoke(app, ["inspect", str(database), "--json"]).output)
    assert (answer["damaged"], answer["damaged_keys"]) == (3, [f"{number:08d}_x" for number in BAD])
    verified = CliRunner().invoke(app, ["verify", str(database)])
    assert verified.exit_code == 1 and all(f"damaged: record '{number:08d}_x'" in verified.output for number in BAD)


def test_the_same_error_counts_once() -> None:
    corrupt = CorruptRecords(1)
    for _ in range(3):
        corrupt(DataError("truncated", record="a"))
    assert corrupt.count == 1
    with pytest.raises(DataError, match="record 'b'"):
        corrupt(DataError("truncated", record="b"))


def test_the_mean_emits_events_and_stops_when_cancelled(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffetools.data.means._BATCH_BYTES", 1)
    seen, token = list[Event](), CancelToken()
    mean = compute_mean(database, skip_corrupt=3, events=seen.append)
    np.testing.assert_allclose(mean, np.mean([20.0 * number for number in range(12) if number not in BAD]), rtol=1e-6)
    assert isinstance(seen[0], Started) and isinstance(seen[-1], Finished) and seen[-1].status == "done"
    assert [event.done for event in seen if isinstance(event, Progress)] == list(range(1, 10))
    assert len([event for event in seen if isinstance(event, Warned)]) == 3

    def sink(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Progress) and event.done == 4:
            token.cancel()

    with pytest.raises(Cancelled):
        compute_mean(database, skip_corrupt=3, events=sink, cancel=token)
    assert isinstance(seen[-1], Finished) and seen[-1].status == "cancelled"
