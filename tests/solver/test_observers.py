"""Each callback alone, on a real solver: when it acts, and what it reports."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.events import CheckpointWritten, Event, Finished, Metrics, Progress, Started, Tested
from caffetools.solver.callbacks import Callback, Checkpoint, Display, Events, History, Testing
from caffetools.solver.control import RunControl
from caffetools.solver.logs.files import AppendOnlyFile, MetricsLog
from caffetools.solver.signals import Signals
from caffetools.solver.solver import Solver
from tests.solver.tiny import tiny_solver


def with_only(solver: Solver, *callbacks: Callback | Callable[[Solver], Callback]) -> Solver:
    """``solver`` with these callbacks alone; one that needs the solver is given as a function of it."""
    solver.callbacks = [c if isinstance(c, Callback) else c(solver) for c in callbacks]
    return solver


class At(Callback):
    """Does something after the update that ends ``iteration``, or after a batch of a test."""

    def __init__(self, action: Callable[[], Any], iteration: int | None = None, batch: int | None = None):
        self.action, self.iteration, self.batch = action, iteration, batch

    def on_iteration_end(self, run: RunControl) -> None:
        if run.iteration == self.iteration:
            self.action()

    def on_test_batch_end(self, run: RunControl, done: int, total: int) -> None:
        if done == self.batch:
            self.action()


@pytest.mark.parametrize(("at_start", "iterations"), [(True, [0, 3, 6]), (False, [3, 6])])
def test_testing_runs_the_test_nets_at_its_interval(at_start: bool, iterations: list[int]) -> None:
    history = History()
    solver = with_only(tiny_solver("test_iter: 1 test_interval: 100"), lambda s: Testing(s, 3, at_start), history)
    solver.step(8)
    assert [test.iteration for test in history.test] == iterations


def test_display_reports_loss_rate_and_speed_at_its_interval() -> None:
    history = History()
    ticks = iter(range(0, 1000, 2))
    solver = with_only(tiny_solver(), lambda s: Display(s, 4, clock=lambda: float(next(ticks))), history)
    solver.step(9)
    assert [row.iteration for row in history.train] == [0, 4, 8]
    assert [row.per_second for row in history.train] == [0, 2, 2]
    assert all(row.seconds == 2 and row.rate == pytest.approx(0.1) and row.loss > 0 for row in history.train)
    assert [o.name for o in history.train[0].outputs] == ["loss"]


def test_a_display_interval_of_zero_reads_nothing() -> None:
    history = History()
    with_only(tiny_solver(), lambda s: Display(s, 0), history).step(3)
    assert history.train == []


def test_snapshots_are_taken_at_their_interval(tmp_path: Path) -> None:
    history = History()
    with_only(tiny_solver(folder=tmp_path), lambda s: Checkpoint(s, 4), history).step(9)
    assert [s.iteration for s in history.snapshots] == [4, 8]


def test_progress_counts_to_max_iter() -> None:
    seen: list[Event] = []
    with_only(tiny_solver(), Events(seen.append)).step(3)
    assert [(event.done, event.total, event.unit) for event in seen if isinstance(event, Progress)] == [
        (n, 20, "iterations") for n in (1, 2, 3)
    ]


# ---- metrics ----


def test_metrics_are_one_json_object_per_event() -> None:
    lines: list[str] = []
    sink = MetricsLog(lines.append)
    events: list[Event] = [
        Started(time=100.0, details={"net": "tiny", "solver": "SGD", "iteration": 0, "run": "a1"}),
        Progress(time=100.5, done=0, total=40),
        Metrics(time=102.0, iteration=20, loss=0.25, lr=0.01, outputs={"loss": 0.5, "prob[0]": 0.1, "prob[1]": 0.9}),
        Tested(time=103.0, iteration=20, net=1, outputs={"accuracy": 0.75}),
        Metrics(time=104.0, iteration=40, loss=0.25, lr=0.01, outputs={"score": math.nan, "odd[7]": 1.0}),
        CheckpointWritten(time=105.0, iteration=40, weights="out/t_iter_40.caffemodel", state="out/t_iter_40.solverstate"),
        Progress(time=105.0, done=40, total=40),
        Finished(time=106.0, status="stopped"),
    ]
    for event in events:
        sink(event)
    rows = [json.loads(line) for line in lines]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    start = {"event": "start", "phase": "train", "iteration": 0, "seconds": 0, "time": 100, "name": "tiny", "type": "SGD"}
    assert rows[0] == {**start, "run": "a1", "resumed_from": ""}
    assert rows[1] == {
        "event": "train",
        "phase": "train",
        "iteration": 20,
        "seconds": 2,
        "loss": 0.25,
        "lr": 0.01,
        "outputs": {"loss": 0.5, "prob": [0.1, 0.9]},
    }
    assert rows[2] == {"event": "test", "phase": "test", "iteration": 20, "seconds": 3, "net": 1, "outputs": {"accuracy": 0.75}}
    assert rows[3]["outputs"] == {"score": None, "odd[7]": 1.0}
    assert (rows[4]["weights"], rows[4]["state"]) == ("t_iter_40.caffemodel", "t_iter_40.solverstate")
    assert rows[5] == {"event": "end", "phase": "train", "iteration": 40, "seconds": 6, "stopped": True}


def test_a_growing_file_begins_from_scratch_or_continues(tmp_path: Path) -> None:
    for append, text in ((False, "a\n"), (False, "b\n"), (True, "c\n")):
        file = AppendOnlyFile(tmp_path / "run" / "log", append=append)
        file.write(text)
        file.close()
    assert (tmp_path / "run" / "log").read_text() == "b\nc\n"


def test_a_log_on_a_full_disk_is_one_error() -> None:
    with pytest.raises(RunFailed, match="cannot write /dev/full: No space left on device"):
        AppendOnlyFile("/dev/full").write("line\n")


# ---- signals ----


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_ends_the_iteration_takes_a_snapshot_and_stops(tmp_path: Path, number: int) -> None:
    history = History()
    with Signals() as signals:
        solver = tiny_solver("snapshot_after_train: false", folder=tmp_path, callbacks=[At(kill(number), 7), signals, history])
        solver.solve()
    assert (solver.iteration, solver.stopping) == (7, True)
    assert [s.iteration for s in history.snapshots] == [7]


def test_sigint_does_not_wait_for_the_end_of_a_test(tmp_path: Path) -> None:
    history, batches = History(), []
    counting = At(lambda: batches.append(1), batch=3)
    with Signals() as signals:
        solver = tiny_solver(
            "test_iter: 50 test_interval: 5 test_initialization: false",
            folder=tmp_path,
            callbacks=[At(kill(signal.SIGINT), batch=2), signals, history, counting],
        )
        solver.solve()
    assert (solver.iteration, history.test, batches) == (5, [], [])
    assert [s.iteration for s in history.snapshots] == [5]


def test_sighup_takes_a_snapshot_and_continues(tmp_path: Path) -> None:
    history = History()
    with Signals() as signals:
        solver = tiny_solver(folder=tmp_path, callbacks=[At(kill(signal.SIGHUP), 7), signals, history])
        solver.solve()
    assert (solver.iteration, solver.stopping) == (20, False)
    assert [s.iteration for s in history.snapshots] == [7, 20]


def test_the_effects_can_be_exchanged(tmp_path: Path) -> None:
    history = History()
    with Signals(sigint="snapshot", sighup="stop") as signals:
        callbacks = [At(kill(signal.SIGINT), 5), At(kill(signal.SIGINT), 6), At(kill(signal.SIGHUP), 9), signals, history]
        solver = tiny_solver(folder=tmp_path, callbacks=callbacks)
        solver.solve()
    assert (solver.iteration, solver.stopping) == (9, True)
    assert [s.iteration for s in history.snapshots] == [5, 6, 9]


def test_an_effect_of_none_is_none(tmp_path: Path) -> None:
    history = History()
    with Signals(sigint="none", sighup="none") as signals:
        callbacks = [At(kill(signal.SIGINT), 5), At(kill(signal.SIGHUP), 6), signals, history]
        solver = tiny_solver("snapshot_after_train: false", folder=tmp_path, callbacks=callbacks)
        solver.solve()
    assert (solver.iteration, history.snapshots) == (20, [])


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(CaffeToolsError, match="unknown sighup_effect 'reload'; it is one of stop, snapshot, none"):
        Signals(sighup="reload")
    with pytest.raises(CaffeToolsError, match="unknown sigterm 'die'"):
        Signals(sigterm="die")


def test_a_second_sigint_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        tiny_solver(folder=tmp_path, callbacks=[At(twice, 7), signals]).solve()
    assert list(tmp_path.iterdir()) == []


def test_the_old_handlers_come_back() -> None:
    numbers = signal.SIGINT, signal.SIGHUP, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    with Signals():
        assert all(signal.getsignal(number) != handler for number, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before
    with Signals(sigterm=None):
        assert signal.getsignal(signal.SIGTERM) == before[2]
