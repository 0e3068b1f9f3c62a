"""Training by real Caffe, followed through its log. The external binary is a script that prints a log which Caffe wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from caffetools.cancel import CancelToken
from caffetools.data.databases import new_lmdb
from caffetools.data.sharding import shard_database
from caffetools.errors import CaffeToolsError, DataError, ModelFileError, RunFailed
from caffetools.events import Event, Finished, Metrics, Progress, Started
from caffetools.proto.binary import read_solverstate
from caffetools.solver.caffe_process import score_with_caffe, time_with_caffe, train_with_caffe
from caffetools.solver.callbacks import Callback
from caffetools.solver.control import RunControl, Snapshot, TestResult, TrainStats
from caffetools.solver.logs.training_log import read_log
from caffetools.solver.testing import TestScores
from tests.conftest import GOLDEN
from tests.engines.fake_caffe import write_fake_caffe, write_script

LOGS = GOLDEN / "logs"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tiny net, with a caffe on PATH that prints the log of a whole run."""
    for name in ("net.prototxt", "solver.prototxt"):
        shutil.copy(LOGS / name, tmp_path)
    write_fake_caffe(tmp_path / "bin" / "caffe", LOGS / "train.log")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called() -> list[str]:
    return list(json.loads(Path("called.json").read_text())["arguments"])


def read_scores(log: Path) -> TestScores:
    """The scores that ``caffe test`` logged."""
    write_fake_caffe(Path("fake") / "caffe", log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path("fake").absolute()))
        patch.delenv("CAFFETOOLS_CAFFE_PYTHON", raising=False)
        return score_with_caffe("net.prototxt", ["a.caffemodel", "b.caffemodel"], 4, arguments=["--stage=x"])


def test_scores_and_times_are_read_from_caffes_log(work: Path) -> None:
    scores = read_scores(LOGS / "test.log")
    assert called() == ["test", "--model=net.prototxt", "--iterations=4", "--stage=x", "--weights=a.caffemodel,b.caffemodel"]
    assert (scores.loss, scores.iterations) == (0.00517359, 4)
    assert [(output.name, output.value) for output in scores.outputs] == [("accuracy", 1), ("loss", 0.00517359)]
    write_fake_caffe(work / "bin" / "caffe", LOGS / "time.log")
    lines: list[str] = []
    timings = time_with_caffe("net.prototxt", iterations=10, echo=lines.append)
    assert "".join(lines) == (LOGS / "time.log").read_text()
    assert (timings.forward, timings.backward, timings.iteration) == (0.0463, 0.0392, 0.1)
    assert [(t.name, t.type, t.forward, t.backward) for t in timings.layers][1] == ("conv1", "Convolution", 0.0138, 0.0138)


def test_a_test_that_fails_gives_caffes_last_message(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FATAL", "Iteration 60")
    with pytest.raises(RunFailed, match="Check failed"):
        score_with_caffe("net.prototxt", ["a.caffemodel"])


class Calls(Callback):
    """The hooks that were called, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_begin(self, run: RunControl) -> None:
        self.calls.append(f"started {run.net_name} of {run.max_iter}")

    def on_log(self, run: RunControl, stats: TrainStats) -> None:
        assert [o.value for o in run.outputs()] == [o.value for o in stats.outputs] and run.rate == stats.rate
        self.calls.append(f"displayed {stats.iteration}")

    def on_test_end(self, run: RunControl, result: TestResult) -> None:
        self.calls.append(f"tested {result.iteration}")

    def on_checkpoint(self, run: RunControl, snapshot: Snapshot) -> None:
        self.calls.append(f"snapshot {snapshot.iteration} {snapshot.weights} {snapshot.state}")

    def on_train_end(self, run: RunControl, stopped: bool) -> None:
        self.calls.append(f"finished {stopped}")


@pytest.mark.parametrize("inline", [True, False])
def test_a_database_in_shards_is_refused_before_caffe_starts(work: Path, inline: bool) -> None:
    with new_lmdb(work / "db") as writer:
        for number in range(4):
            writer.put(b"%d" % number, b"x")
    shard_database(work / "db", work / "index", 2)
    net = 'layer { name: "in" type: "Data" top: "d" data_param { source: "index" batch_size: 1 } }'
    Path("net.prototxt").write_text(net)
    reads = f"net_param {{ {net} }}" if inline else 'net: "net.prototxt"'
    Path("solver.prototxt").write_text(f'{reads} base_lr: 1 lr_policy: "fixed" snapshot_prefix: "s"')
    with pytest.raises(DataError, match=r"index: layer 'in': real Caffe cannot read a database in shards; .*convert lmdb index OUT"):
        train_with_caffe("solver.prototxt")
    assert not Path("called.json").exists() and not Path("s.log").exists()


def test_a_run_is_reported_as_one_of_ours(work: Path) -> None:
    calls = Calls()
    echoed: list[str] = []
    done = train_with_caffe("solver.prototxt", callbacks=[calls], echo=echoed.append, arguments=["--gpu=0"])
    assert called() == ["train", "--solver=solver.prototxt", "--gpu=0"]
    assert calls.calls == [
        "started tiny of 150",
        "tested 0",
        *(f"displayed {n}" for n in (0, 20, 40)),
        "tested 50",
        *(f"displayed {n}" for n in (60, 80)),
        "snapshot 100 tiny_iter_100.caffemodel tiny_iter_100.solverstate",
        "tested 100",
        *(f"displayed {n}" for n in (100, 120, 140)),
        "snapshot 150 tiny_iter_150.caffemodel tiny_iter_150.solverstate",
        "tested 150",
        "finished False",
    ]
    assert (done.iteration, done.stopped, done.log) == (150, False, Path("tiny.log"))
    assert Path("tiny.log").read_text() == (LOGS / "train.log").read_text() == "".join(echoed)


def test_the_numbers_reported_are_those_of_the_log(work: Path) -> None:
    done = train_with_caffe("solver.prototxt")
    log = read_log(LOGS / "train.log")
    assert [(d.iteration, d.loss, d.rate) for d in done.history.train] == [(r.iteration, r.loss, r.lr) for r in log.train]
    assert [(t.iteration, {o.name: o.value for o in t.outputs}) for t in done.history.test] == [(r.iteration, r.outputs) for r in log.test]


def test_weights_are_passed_on_and_the_log_can_be_elsewhere(work: Path) -> None:
    train_with_caffe("solver.prototxt", weights=["a.caffemodel", "b.caffemodel"], log="logs/x.log")
    assert called()[-1] == "--weights=a.caffemodel,b.caffemodel"
    assert Path("logs/x.log").exists() and not Path("tiny.log").exists()


def test_caffes_last_words_are_the_error(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FATAL", "Iteration 60")
    with pytest.raises(RunFailed, match=r"caffe was ended by signal 6: Check failed: status == 0 .* No such file; the log is tiny\.log"):
        train_with_caffe("solver.prototxt")
    assert "Check failed" in Path("tiny.log").read_text()


def test_an_exit_code_is_an_error_too(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CODE", "1")
    with pytest.raises(RunFailed, match=r"caffe ended with exit code 1; the log is tiny\.log"):
        train_with_caffe("solver.prototxt")


def test_ctrl_c_lets_caffe_take_its_snapshot_and_stop(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PAUSE", "Iteration 80")

    def echo(line: str) -> None:
        if "Iteration 80" in line:
            os.kill(os.getpid(), signal.SIGINT)

    done = train_with_caffe("solver.prototxt", echo=echo)
    assert done.stopped and done.iteration == 80


@pytest.fixture
def snapshots(work: Path) -> Path:
    """What Caffe saved at 100 and 150, under another name in a folder of its own: Caffe itself would not find the weights."""
    (work / "old").mkdir()
    for number in (100, 150):
        for kind in ("caffemodel", "solverstate"):
            shutil.copy(LOGS / f"tiny_iter_{number}.{kind}", work / "old")
    text = (work / "solver.prototxt").read_text().replace('"tiny"', '"old/tiny"')
    (work / "solver.prototxt").write_text(text)
    return work / "old"


def test_the_newest_snapshot_is_resumed_from_with_weights_that_caffe_finds(snapshots: Path) -> None:
    train_with_caffe("solver.prototxt", resume=True)
    assert called()[-1].startswith("--snapshot=old/tiny_iter_150.caffe")
    assert read_solverstate("seen.solverstate").learned_net == "old/tiny_iter_150.caffemodel"
    original = read_solverstate(snapshots / "tiny_iter_150.solverstate")
    assert (read_solverstate("seen.solverstate").history[0] == original.history[0]).all()
    pairs = [f"tiny_iter_{number}.{kind}" for number in (100, 150) for kind in ("caffemodel", "solverstate")]
    assert sorted(p.name for p in snapshots.iterdir()) == sorted([*pairs, "tiny.log", "tiny_log.jsonl"]), "the copy is gone again"


def test_a_snapshot_that_caffe_finds_is_given_as_it_is(work: Path) -> None:
    for name in ("tiny_iter_100.caffemodel", "tiny_iter_100.solverstate"):
        shutil.copy(LOGS / name, work)
    Path("tiny.log").write_text("what was before\n")
    train_with_caffe("solver.prototxt", snapshot="tiny_iter_100.solverstate")
    assert called()[-1] == "--snapshot=tiny_iter_100.solverstate"
    assert Path("tiny.log").read_text().startswith("what was before\n")


def test_resuming_without_a_snapshot_starts(work: Path) -> None:
    train_with_caffe("solver.prototxt", resume=True)
    assert called() == ["train", "--solver=solver.prototxt"]


def test_bad_input_is_refused_before_caffe_starts(work: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.solverstate"):
        train_with_caffe("solver.prototxt", snapshot="absent.solverstate")
    with pytest.raises(CaffeToolsError, match="either a snapshot to resume from or weights"):
        train_with_caffe("solver.prototxt", snapshot="x", weights=["y"])
    assert not Path("called.json").exists() and not Path("tiny.log").exists()


# ---- events and control ----


class StopAtLoss(Callback):
    """Stop early, as a user's own callback would."""

    def on_log(self, run: RunControl, stats: TrainStats) -> None:
        if stats.iteration == 80:
            run.stop()


def test_a_callback_stops_real_caffe(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PAUSE", "Iteration 80, lr")
    done = train_with_caffe("solver.prototxt", callbacks=[StopAtLoss()])
    assert done.stopped and done.iteration == 80


def test_a_cancelled_token_stops_real_caffe_and_the_events_are_those_of_our_solver(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PAUSE", "Iteration 60, lr")
    token, seen = CancelToken(), []

    def sink(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Metrics) and event.iteration == 60:
            token.cancel()

    assert train_with_caffe("solver.prototxt", events=sink, cancel=token).stopped
    kinds = [event.kind for event in seen if not isinstance(event, Progress)]
    assert kinds == ["started", "tested", *["metrics"] * 3, "tested", "metrics", "finished"]
    assert isinstance(seen[-1], Finished) and seen[-1].status == "cancelled"
    facts = {"net": "tiny", "solver": "SGD", "iteration": 0, "max_iter": 150, "run": "", "resumed_from": ""}
    assert isinstance(seen[0], Started) and seen[0].details == facts
    rows = [json.loads(line)["event"] for line in Path("tiny_log.jsonl").read_text().splitlines()]
    assert rows == ["start", "test", *["train"] * 3, "test", "train", "end"]


def test_a_token_cancelled_before_caffe_handles_signals_stops_it_once_it_does(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PAUSE", "] Solving ")
    token = CancelToken()
    token.cancel()
    done = train_with_caffe("solver.prototxt", cancel=token)
    assert done.stopped and done.iteration == 0


def test_a_stop_that_no_signal_asks_for_is_one_error(work: Path) -> None:
    arguments = ["--sigint_effect=none"]
    with pytest.raises(CaffeToolsError, match="cannot be asked for 'stop'.*set --sigint-effect"):
        train_with_caffe("solver.prototxt", callbacks=[StopAtLoss()], arguments=arguments)


def test_a_failure_is_the_last_event(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FATAL", "Iteration 60")
    seen: list[Event] = []
    with pytest.raises(RunFailed):
        train_with_caffe("solver.prototxt", events=seen.append)
    assert isinstance(seen[-1], Finished) and seen[-1].status == "failed" and "Check failed" in seen[-1].message


def test_the_caffe_module_of_another_python_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caffe module is ours here: what is tested is the script that makes ``caffe train`` of a module."""
    for name in ("net.prototxt", "solver.prototxt", "train.h5", "test.h5", "train.txt", "test.txt"):
        shutil.copy(LOGS / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text("import caffetools\ncaffetools.install_as_caffe()\n")
    paths = os.pathsep.join([str(tmp_path / "modules"), str(Path(__file__).parents[2])])
    python = write_script(tmp_path / "python", f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "$@"\n')
    monkeypatch.setenv("CAFFETOOLS_CAFFE_PYTHON", str(python))
    done = train_with_caffe("solver.prototxt", arguments=["--stage=other", "--sighup-effect=none"])
    assert not done.stopped and (tmp_path / "tiny_iter_150.caffemodel").exists()
    log = done.log.read_text()
    assert log.index("Use CPU.") < log.index("Starting Optimization") < log.index("Optimization Done.")
    scores = score_with_caffe("net.prototxt", [LOGS / "tiny_iter_150.caffemodel"], 4)
    expected = read_scores(LOGS / "test.log")
    assert scores.loss == pytest.approx(expected.loss, rel=1e-4)
    assert [(o.name, o.value) for o in scores.outputs] == [(o.name, pytest.approx(o.value, rel=1e-4)) for o in expected.outputs]
    timings = time_with_caffe("net.prototxt", iterations=2)
    assert [layer.name for layer in timings.layers] == ["data", "conv1", "relu1", "ip", "loss"]
    assert timings.iteration >= timings.forward + timings.backward > 0
    # As a Caffe without GPUs does, which pip installs: it aborts.
    (tmp_path / "modules" / "sitecustomize.py").write_text(
        "import os, caffetools\ncaffetools.install_as_caffe()\nimport caffe\ncaffe.set_device = lambda number: os.abort()\n"
    )
    Path("solver.prototxt").write_text(Path("solver.prototxt").read_text().replace("solver_mode: CPU", "solver_mode: GPU"))
    train_with_caffe("solver.prototxt", snapshot="tiny_iter_100.solverstate")
    log = done.log.read_text()
    assert "Resuming from tiny_iter_100.solverstate" in log
    assert "solver_mode is GPU, but this Caffe has no GPU 0; it trains on the CPU" in log and "Use CPU." in log
    with pytest.raises(RunFailed, match="was ended by signal 6"):
        train_with_caffe("solver.prototxt", arguments=["--gpu=0"])
    monkeypatch.setenv("CAFFETOOLS_CAFFE_PYTHON", str(tmp_path / "none"))
    with pytest.raises(CaffeToolsError, match="CAFFETOOLS_CAFFE_PYTHON is .*none, which is not a program"):
        train_with_caffe("solver.prototxt")
