"""What watches a solver: when it displays, tests and takes snapshots, and who is told about it.

Each observer is a small class with hooks that the solver calls; none of them changes what is computed. Nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver


@dataclass(frozen=True)
class Output:
    """One number of an output blob; ``weight`` is the blob's loss weight, 0 where it is no loss."""

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class TrainStats:
    """The state of training at an iteration: ``loss`` is smoothed over average_loss iterations, ``outputs`` are the last batch's.

    ``seconds`` have passed since the last display, at ``per_second`` iterations each. ``last`` is the pass after the final update.
    """

    iteration: int
    loss: float
    outputs: list[Output]
    rate: float
    seconds: float = 0.0
    per_second: float = 0.0
    last: bool = False


@dataclass(frozen=True)
class TestResult:
    """The mean outputs of test net ``net`` over its test_iter batches; ``loss`` only where test_compute_loss asks for it."""

    # pytest is not to collect it for its name.
    __test__ = False

    net: int
    iteration: int
    outputs: list[Output]
    loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """The two files of a snapshot."""

    iteration: int
    weights: Path
    state: Path


class Observer:
    """Hooks that a solver calls, in the order of its list of observers. All do nothing; override what you need."""

    def started(self, solver: Solver) -> None:
        """A run of ``solve`` begins."""

    def stepping(self, solver: Solver) -> None:
        """A call of ``step`` begins."""

    def before_iteration(self, solver: Solver) -> None:
        """Before the forward pass of ``solver.iteration``."""

    def before_update(self, solver: Solver) -> None:
        """The gradients of ``solver.iteration`` are there, its update at ``solver.rate`` comes next."""

    def after_update(self, solver: Solver) -> None:
        """An update was made; ``solver.iteration`` has moved on."""

    def displayed(self, solver: Solver, what: TrainStats) -> None:
        """The loss was read."""

    def testing(self, solver: Solver, net: int) -> None:
        """Test net ``net`` is about to run."""

    def test_batch(self, solver: Solver, done: int, total: int) -> None:
        """A batch of a test has run."""

    def tested(self, solver: Solver, what: TestResult) -> None:
        """A test net has run to its end."""

    def snapshotted(self, solver: Solver, what: Snapshot) -> None:
        """A snapshot is on the disk."""

    def finished(self, solver: Solver, stopped: bool) -> None:
        """``solve`` is done; ``stopped`` is true where it was asked to stop early."""


class Testing(Observer):
    """Runs the test nets every ``interval`` iterations, and before the first one where ``at_start``."""

    __test__ = False

    def __init__(self, interval: int, at_start: bool = True):
        self.interval, self.at_start = interval, at_start

    def before_iteration(self, solver: Solver) -> None:
        """Test where it is due."""
        if self.interval and solver.iteration % self.interval == 0 and (solver.iteration > 0 or self.at_start):
            solver.checkpoint_rng_before_test()
            solver.test_all()


class Display(Observer):
    """Reads the loss every ``interval`` iterations (never, where 0) and tells the other observers."""

    def __init__(self, interval: int, clock: Callable[[], float] = time.perf_counter):
        self.interval, self.clock = interval, clock
        self._since, self._iteration = clock(), 0

    def stepping(self, solver: Solver) -> None:
        """Start the clock."""
        self._since, self._iteration = self.clock(), solver.iteration

    def before_update(self, solver: Solver) -> None:
        """Display where it is due."""
        if not self.interval or solver.iteration % self.interval:
            return
        loss = solver.smoothed_loss()
        now = self.clock()
        seconds, done = now - self._since, solver.iteration - self._iteration
        self._since, self._iteration = now, solver.iteration
        speed = done / seconds if seconds > 0 else 0.0
        solver.tell("displayed", TrainStats(solver.iteration, loss, solver.read_outputs(), solver.rate, seconds, speed))


class Snapshots(Observer):
    """Takes a snapshot every ``interval`` iterations."""

    def __init__(self, interval: int):
        self.interval = interval

    def after_update(self, solver: Solver) -> None:
        """Take a snapshot where it is due."""
        if self.interval and solver.iteration % self.interval == 0:
            solver.snapshot()


class Progress(Observer):
    """Tells ``callback`` (done, total) after every update; total is max_iter."""

    def __init__(self, callback: Callable[[int, int], None]):
        self.callback = callback

    def after_update(self, solver: Solver) -> None:
        """Tell."""
        self.callback(solver.iteration, int(solver.param.max_iter))


@dataclass
class History(Observer):
    """Keeps what was displayed, tested and saved, for a report or a test."""

    train: list[TrainStats] = field(default_factory=list)
    test: list[TestResult] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    def displayed(self, solver: Solver, what: TrainStats) -> None:
        """Keep it."""
        self.train.append(what)

    def tested(self, solver: Solver, what: TestResult) -> None:
        """Keep it."""
        self.test.append(what)

    def snapshotted(self, solver: Solver, what: Snapshot) -> None:
        """Keep it."""
        self.snapshots.append(what)


def default_observers(param: Any) -> list[Observer]:
    """The observers that a ``SolverParameter`` asks for: testing, display and snapshots at its intervals."""
    return [Testing(param.test_interval, param.test_initialization), Display(param.display), Snapshots(param.snapshot)]
