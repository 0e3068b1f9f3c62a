"""Callbacks of a training: what happens at its iterations, and who is informed. docs/training.md lists the order of the hooks.

A callback is a small class with hooks that the solver calls; none of them changes what is computed. Nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from caffetools.cancel import CancelToken
from caffetools.events import CheckpointWritten, Event, EventSink, Finished, Metrics, Progress, Started, Status, Tested
from caffetools.solver.control import Output, RunControl, Snapshot, TestResult, TrainingRun, TrainStats


class Callback:
    """Hooks that a run calls, callback after callback in the order of its list. All do nothing: override what you need.

    Training by real Caffe calls ``on_train_begin``, ``on_iteration_end`` (at the iterations that its log names), ``on_log``,
    ``on_test_end``, ``on_checkpoint`` and ``on_train_end``; our solver calls all of them.
    """

    def on_train_begin(self, run: RunControl) -> None:
        """Handle the beginning of ``solve``."""

    def on_step_begin(self, run: RunControl) -> None:
        """Handle the beginning of a call of ``step``."""

    def on_iteration_begin(self, run: RunControl) -> None:
        """Handle the time before the forward pass of ``run.iteration``."""

    def on_before_update(self, run: RunControl) -> None:
        """Handle the time when the gradients are computed and the update at ``run.rate`` comes next."""

    def on_iteration_end(self, run: RunControl) -> None:
        """Handle a completed update; ``run.iteration`` is already increased."""

    def on_log(self, run: RunControl, stats: TrainStats) -> None:
        """Handle the figures of a displayed iteration."""

    def on_test_begin(self, run: RunControl, net: int) -> None:
        """Handle the beginning of a test of test net ``net``."""

    def on_test_batch_end(self, run: RunControl, done: int, total: int) -> None:
        """Handle the end of batch ``done`` of ``total`` of a test."""

    def on_test_end(self, run: RunControl, result: TestResult) -> None:
        """Handle the result of a test that ran to its end."""

    def on_checkpoint(self, run: RunControl, snapshot: Snapshot) -> None:
        """Handle a snapshot that is complete on disk."""

    def on_train_end(self, run: RunControl, stopped: bool) -> None:
        """Handle the end of ``solve``; ``stopped`` is true if it was stopped early."""


class Testing(Callback):
    """Score the test nets at regular iterations.

    Args:
        run: The solver.
        interval: Iterations between tests; 0 for none.
        at_start: Whether to test before the first iteration, too.
    """

    __test__ = False

    def __init__(self, run: TrainingRun, interval: int, at_start: bool = True):
        self._run, self.interval, self.at_start = run, interval, at_start

    def on_iteration_begin(self, run: RunControl) -> None:
        """Test if the iteration is due."""
        if self.interval and run.iteration % self.interval == 0 and (run.iteration > 0 or self.at_start):
            self._run.checkpoint_rng_before_test()
            self._run.test_all()


class Display(Callback):
    """Read the loss at regular iterations and call ``on_log`` of all callbacks.

    Args:
        run: The solver.
        interval: Iterations between displays; 0 for none.
        clock: Gives the time in seconds.
    """

    def __init__(self, run: TrainingRun, interval: int, clock: Callable[[], float] = time.perf_counter):
        self._run, self.interval, self.clock = run, interval, clock
        self._since, self._iteration = clock(), 0

    def on_step_begin(self, run: RunControl) -> None:
        """Start the clock."""
        self._since, self._iteration = self.clock(), run.iteration

    def on_before_update(self, run: RunControl) -> None:
        """Display if the iteration is due."""
        if not self.interval or run.iteration % self.interval:
            return
        loss = self._run.smoothed_loss()
        now = self.clock()
        seconds, done = now - self._since, run.iteration - self._iteration
        self._since, self._iteration = now, run.iteration
        speed = done / seconds if seconds > 0 else 0.0
        self._run.notify("on_log", TrainStats(run.iteration, loss, run.outputs(), run.rate, seconds, speed))


class Checkpoint(Callback):
    """Write a snapshot at regular iterations.

    Args:
        run: The solver.
        interval: Iterations between snapshots; 0 for none.
    """

    def __init__(self, run: TrainingRun, interval: int):
        self._run, self.interval = run, interval

    def on_iteration_end(self, run: RunControl) -> None:
        """Write a snapshot if the iteration is due."""
        if self.interval and run.iteration % self.interval == 0:
            self._run.checkpoint()


class Events(Callback):
    """Turn callbacks into typed events, and stop the run when its token is cancelled.

    Args:
        sink: Receives ``Started``, ``Progress``, ``Metrics``, ``Tested`` and ``CheckpointWritten``; :meth:`finish` adds ``Finished``.
        cancel: Checked after each event, at each iteration and after each test batch.
        command: Command line that starts the same run.
    """

    def __init__(self, sink: EventSink, cancel: CancelToken | None = None, command: str = ""):
        self._sink, self._cancel, self._command = sink, cancel, command
        self._start: float | None = None

    def on_train_begin(self, run: RunControl) -> None:
        """Emit ``Started`` and the first ``Progress``."""
        self._start = time.perf_counter()
        details = {"net": run.net_name, "solver": run.solver_type, "iteration": run.iteration, "max_iter": run.max_iter}
        details |= {"run": run.run_id, "resumed_from": run.resumed_from}
        self._emit(run, Started(task="train", title=f"Training {run.net_name or 'the net'}", command=self._command, details=details))
        self._progress(run)

    def on_iteration_begin(self, run: RunControl) -> None:
        """Stop if the run is cancelled."""
        self._check(run)

    def on_iteration_end(self, run: RunControl) -> None:
        """Emit ``Progress``."""
        self._progress(run)

    def on_log(self, run: RunControl, stats: TrainStats) -> None:
        """Emit ``Metrics``."""
        self._emit(
            run,
            Metrics(
                task="train",
                iteration=stats.iteration,
                loss=stats.loss,
                lr=stats.rate,
                outputs=named_values(stats.outputs),
                seconds=stats.seconds,
                iterations_per_second=stats.per_second,
            ),
        )

    def on_test_batch_end(self, run: RunControl, done: int, total: int) -> None:
        """Stop if the run is cancelled."""
        self._check(run)

    def on_test_end(self, run: RunControl, result: TestResult) -> None:
        """Emit ``Tested``."""
        outputs = named_values(result.outputs)
        tested = Tested(task="train", iteration=result.iteration, net=result.net, outputs=outputs, loss=result.loss, seconds=result.seconds)
        self._emit(run, tested)

    def on_checkpoint(self, run: RunControl, snapshot: Snapshot) -> None:
        """Emit ``CheckpointWritten``."""
        weights, state = str(snapshot.weights), str(snapshot.state)
        self._emit(run, CheckpointWritten(task="train", iteration=snapshot.iteration, weights=weights, state=state))

    def finish(self, *, stopped: bool = False, error: BaseException | None = None) -> None:
        """Emit ``Finished``, if ``Started`` was emitted.

        Args:
            stopped: Whether the run was stopped early.
            error: What ended it.
        """
        if self._start is None:
            return
        status: Status = "failed" if error is not None else "done"
        if stopped and error is None:
            status = "cancelled" if self._cancel is not None and self._cancel.cancelled else "stopped"
        seconds, self._start = time.perf_counter() - self._start, None
        self._sink(Finished(task="train", status=status, message="" if error is None else str(error), seconds=seconds))

    def _progress(self, run: RunControl) -> None:
        self._emit(run, Progress(task="train", done=run.iteration, total=run.max_iter, unit="iterations"))

    def _emit(self, run: RunControl, event: Event) -> None:
        self._sink(event)
        self._check(run)

    def _check(self, run: RunControl) -> None:
        if self._cancel is not None and self._cancel.cancelled and not run.stopping:
            run.stop()


@dataclass
class History(Callback):
    """Keep what was displayed, tested and saved, for a report or a test.

    Attributes:
        train: Displayed figures.
        test: Test results.
        snapshots: Snapshots written.
    """

    train: list[TrainStats] = field(default_factory=list)
    test: list[TestResult] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    def on_log(self, run: RunControl, stats: TrainStats) -> None:
        """Keep the figures."""
        self.train.append(stats)

    def on_test_end(self, run: RunControl, result: TestResult) -> None:
        """Keep the result."""
        self.test.append(result)

    def on_checkpoint(self, run: RunControl, snapshot: Snapshot) -> None:
        """Keep the snapshot."""
        self.snapshots.append(snapshot)


def named_values(outputs: list[Output]) -> dict[str, float]:
    """Return outputs as blob name → value; the values of a blob with several are numbered ``name[0]``, ``name[1]``…"""
    count: dict[str, int] = {}
    for output in outputs:
        count[output.name] = count.get(output.name, 0) + 1
    values: dict[str, float] = {}
    seen: dict[str, int] = {}
    for output in outputs:
        index = seen.get(output.name, 0)
        seen[output.name] = index + 1
        values[f"{output.name}[{index}]" if count[output.name] > 1 else output.name] = output.value
    return values


def default_callbacks(run: TrainingRun) -> list[Callback]:
    """Return the callbacks that the solver's fields ask for: tests, displays and snapshots at its intervals."""
    param = run.param
    return [Testing(run, param.test_interval, param.test_initialization), Display(run, param.display), Checkpoint(run, param.snapshot)]
