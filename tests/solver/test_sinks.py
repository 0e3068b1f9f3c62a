"""Experiment trackers get the numbers of training."""

from __future__ import annotations

import json
import os
import signal
import struct
from pathlib import Path

import pytest

from caffetools.errors import CaffeToolsError
from caffetools.events import Event, Finished, Metrics, Progress, Started, Status, Tested, fan_out
from caffetools.solver import sinks
from caffetools.solver.run import train
from tests.solver.together import project

EVENTS = [
    Started(task="train", command="caffetools train s.prototxt", details={"net": "n", "solver": "SGD", "max_iter": 20, "run": "x"}),
    Metrics(task="train", iteration=10, loss=2.5, lr=0.01, outputs={"loss": 2.25}),
    Tested(task="train", iteration=10, net=0, outputs={"accuracy": 0.5}),
    Tested(task="train", iteration=10, net=1, outputs={"accuracy": 0.25}),
    Metrics(task="train", iteration=20, loss=1.5, lr=0.001, outputs={"loss": 1.0}),
    Finished(task="train"),
]


def test_events_become_numbers_by_tag() -> None:
    assert sinks.scalars(EVENTS[0]) == ({}, 0)
    assert sinks.scalars(EVENTS[1]) == ({"train/loss": 2.25, "train/smoothed_loss": 2.5, "train/lr": 0.01}, 10)
    assert sinks.scalars(EVENTS[2]) == ({"test/accuracy": 0.5}, 10)
    assert sinks.scalars(EVENTS[3]) == ({"test1/accuracy": 0.25}, 10)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    (sink,) = sinks.tracker_sinks(tmp_path / "board")
    for event in EVENTS:
        sink(event)
    read = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    assert set(read.Tags()["scalars"]) == {"train/loss", "train/smoothed_loss", "train/lr", "test/accuracy", "test1/accuracy"}
    assert [(point.step, point.value) for point in read.Scalars("train/loss")] == [(10, 2.25), (20, 1.0)]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(CaffeToolsError, match="cannot write TensorBoard's files"):
        sinks.tensorboard_sink(tmp_path / "file" / "board")


def test_mlflow_keeps_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for last in (EVENTS[-1], Finished(task="train", status="stopped"), Finished(task="train", status="failed")):
        sink = sinks.mlflow_sink("digits")
        for event in [*EVENTS[:-1], last]:
            sink(event)
    sinks.mlflow_sink("digits")  # of a training that never starts: no run
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED", "KILLED"]
    for run in runs:
        assert run.data.params == {"net": "n", "solver": "SGD", "max_iter": "20", "command": "caffetools train s.prototxt"}
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [(10, 2.25), (20, 1.0)]


def test_an_experiment_of_mlflow_that_was_deleted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("digits"))
    with pytest.raises(CaffeToolsError, match="the experiment 'digits' was deleted"):
        sinks.mlflow_sink("digits")


def test_a_training_that_sigterm_ends_is_a_killed_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(project(tmp_path, batch=4))

    def end(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    done = train("solver.prototxt", device="cpu", events=fan_out([sinks.mlflow_sink("digits"), end]))
    assert done.stopped and done.solver.iteration == 3
    assert Path(done.history.snapshots[-1].state).name.endswith("_iter_3.solverstate")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "KILLED"


def test_weights_and_biases_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = sinks.wandb_sink("digits")
    assert not (tmp_path / "wandb").exists(), "a training that never starts leaves no run"
    for event in EVENTS:
        sink(event)
    wandb.teardown()  # ends the process that writes
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    records = [internal.Record.FromString(data) for data in _leveldb_log(file.read_bytes())]
    rows = [{item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in r.history.item} for r in records]
    rows = [row for row in rows if row]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [2.25, 1.0]
    assert [row["iteration"] for row in rows] == [10, 10, 10, 20]
    assert [row["test1/accuracy"] for row in rows if "test1/accuracy" in row] == [0.25]
    config = {item.key: json.loads(item.value_json) for r in records if r.HasField("run") for item in r.run.config.update}
    assert (config["net"], config["solver"], config["max_iter"]) == ("n", "SGD", 20)
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def _leveldb_log(data: bytes) -> list[bytes]:
    """Return the records of a log in LevelDB's format whose first block begins with W&B's own seven bytes."""
    records, place, part = [], 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            records.append(part)
            part = b""
    return records


def test_a_tracker_that_fails_does_not_end_the_training(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def log(values: dict[str, float], iteration: int) -> None:
        calls.append(iteration)
        raise ConnectionError("no answer")

    sink = sinks._sink("MLflow", log, lambda _: calls.append(-1))
    for event in EVENTS:
        sink(event)
    assert calls == [10]
    assert caplog.messages == ["MLflow: no answer; it gets no more numbers of this training"]


def test_a_tracker_that_refuses_at_the_start_ends_the_training_before_it_begins() -> None:
    closed: list[Status] = []

    def start(values: dict[str, str | int]) -> None:
        raise CaffeToolsError("Weights & Biases: api_key not configured")

    sink = sinks._sink("Weights & Biases", lambda values, iteration: None, closed.append, start)
    with pytest.raises(CaffeToolsError, match="api_key"):
        sink(EVENTS[0])
    for event in EVENTS[1:]:
        sink(event)
    assert closed == [], "there is no run to close"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(CaffeToolsError, match=rf"pip install 'caffetools\[{name}\]'"):
        getattr(sinks, f"{name}_sink")("x")
