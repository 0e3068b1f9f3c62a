"""Each observer alone, on a real solver: when it acts, and what it tells."""

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
from caffetools.solver.callbacks import Display, History, Observer, Output, Progress, Snapshots, Testing, TestResult, TrainStats
from caffetools.solver.logs.files import AppendOnlyFile, Metrics
from caffetools.solver.signals import Signals
from caffetools.solver.solver import Solver
from tests.solver.tiny import tiny_solver


def with_only(solver: Solver, *observers: Observer) -> Solver:
    solver.observers = list(observers)
    return solver


class At(Observer):
    """Does something after the update that ends ``iteration``, or after a batch of a test."""

    def __init__(self, action: Callable[[], Any], iteration: int | None = None, batch: int | None = None):
        self.action, self.iteration, self.batch = action, iteration, batch

    def after_update(self, solver: Solver) -> None:
        if solver.iteration == self.iteration:
            self.action()

    def test_batch(self, solver: Solver, done: int, total: int) -> None:
        if done == self.batch:
            self.action()


@pytest.mark.parametrize(("at_start", "iterations"), [(True, [0, 3, 6]), (False, [3, 6])])
def test_testing_runs_the_test_nets_at_its_interval(at_start: bool, iterations: list[int]) -> None:
    history = History()
    solver = with_only(tiny_solver("test_iter: 1 test_interval: 100"), Testing(3, at_start), history)
    solver.step(8)
    assert [test.iteration for test in history.test] == iterations


def test_display_tells_loss_rate_and_speed_at_its_interval() -> None:
    history = History()
    ticks = iter(range(0, 1000, 2))
    solver = with_only(tiny_solver(), Display(4, clock=lambda: float(next(ticks))), history)
    solver.step(9)
    assert [row.iteration for row in history.train] == [0, 4, 8]
    assert [row.per_second for row in history.train] == [0, 2, 2]
    assert all(row.seconds == 2 and row.rate == pytest.approx(0.1) and row.loss > 0 for row in history.train)
    assert [o.name for o in history.train[0].outputs] == ["loss"]


def test_a_display_interval_of_zero_reads_nothing() -> None:
    history = History()
    with_only(tiny_solver(), Display(0), history).step(3)
    assert history.train == []


def test_snapshots_are_taken_at_their_interval(tmp_path: Path) -> None:
    history = History()
    with_only(tiny_solver(folder=tmp_path), Snapshots(4), history).step(9)
    assert [s.iteration for s in history.snapshots] == [4, 8]


def test_progress_counts_to_max_iter() -> None:
    told: list[tuple[int, int]] = []
    with_only(tiny_solver(), Progress(lambda done, total: told.append((done, total)))).step(3)
    assert told == [(1, 20), (2, 20), (3, 20)]


# ---- metrics ----


def test_metrics_are_one_json_object_per_event() -> None:
    lines: list[str] = []
    times = iter(float(t) for t in range(100))
    solver = with_only(tiny_solver(), Metrics(lines.append, clock=lambda: next(times)))
    solver.tell("started")
    solver.tell("displayed", TrainStats(20, 0.25, [Output("loss", 0.5, 1.0), Output("prob", 0.1), Output("prob", 0.9)], 0.01))
    solver.tell("tested", TestResult(1, 20, [Output("accuracy", 0.75)]))
    solver.tell("displayed", TrainStats(40, 0.25, [Output("score", math.nan)], 0.01))
    solver.tell("finished", False)
    events = [json.loads(line) for line in lines]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert events[0] == {"event": "start", "phase": "train", "iteration": 0, "seconds": 1, "time": 0, "name": "tiny", "type": "SGD"}
    assert events[1] == {
        "event": "train",
        "phase": "train",
        "iteration": 20,
        "seconds": 2,
        "loss": 0.25,
        "lr": 0.01,
        "outputs": {"loss": 0.5, "prob": [0.1, 0.9]},
    }
    assert events[2] == {"event": "test", "phase": "test", "iteration": 20, "seconds": 3, "net": 1, "outputs": {"accuracy": 0.75}}
    assert events[3]["outputs"] == {"score": None}
    assert events[4]["event"] == "end"


def test_a_growing_file_begins_anew_or_goes_on(tmp_path: Path) -> None:
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


def test_sigint_ends_the_iteration_takes_a_snapshot_and_stops(tmp_path: Path) -> None:
    history = History()
    with Signals() as signals:
        solver = tiny_solver("snapshot_after_train: false", folder=tmp_path, observers=[At(kill(signal.SIGINT), 7), signals, history])
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
            observers=[At(kill(signal.SIGINT), batch=2), signals, history, counting],
        )
        solver.solve()
    assert (solver.iteration, history.test, batches) == (5, [], [])
    assert [s.iteration for s in history.snapshots] == [5]


def test_sighup_takes_a_snapshot_and_goes_on(tmp_path: Path) -> None:
    history = History()
    with Signals() as signals:
        solver = tiny_solver(folder=tmp_path, observers=[At(kill(signal.SIGHUP), 7), signals, history])
        solver.solve()
    assert (solver.iteration, solver.stopping) == (20, False)
    assert [s.iteration for s in history.snapshots] == [7, 20]


def test_the_effects_can_be_exchanged(tmp_path: Path) -> None:
    history = History()
    with Signals(sigint="snapshot", sighup="stop") as signals:
        observers = [At(kill(signal.SIGINT), 5), At(kill(signal.SIGINT), 6), At(kill(signal.SIGHUP), 9), signals, history]
        solver = tiny_solver(folder=tmp_path, observers=observers)
        solver.solve()
    assert (solver.iteration, solver.stopping) == (9, True)
    assert [s.iteration for s in history.snapshots] == [5, 6, 9]


def test_an_effect_of_none_is_none(tmp_path: Path) -> None:
    history = History()
    with Signals(sigint="none", sighup="none") as signals:
        observers = [At(kill(signal.SIGINT), 5), At(kill(signal.SIGHUP), 6), signals, history]
        solver = tiny_solver("snapshot_after_train: false", folder=tmp_path, observers=observers)
        solver.solve()
    assert (solver.iteration, history.snapshots) == (20, [])


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(CaffeToolsError, match="unknown sighup_effect 'reload'; it is one of stop, snapshot, none"):
        Signals(sighup="reload")


def test_a_second_sigint_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        tiny_solver(folder=tmp_path, observers=[At(twice, 7), signals]).solve()
    assert list(tmp_path.iterdir()) == []


def test_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    with Signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)) == before
