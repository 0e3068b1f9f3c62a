"""Records and protocols of a running training: what a callback, a log or a checkpoint needs to know of it.

Nothing here needs torch at run time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from caffetools.proto.schema import SolverParameter

if TYPE_CHECKING:
    from torch import Tensor

    from caffetools.net.net import Net
    from caffetools.solver.policies import LearningRate
    from caffetools.solver.random_streams import RandomStream
    from caffetools.solver.update import UpdateRule


# A log takes (file:line in Caffe's sources, text, severity: I, W or E).
Log = Callable[..., None]


def no_log(source: str, text: str, severity: str = "I") -> None:
    """Discard a log line."""


@dataclass(frozen=True)
class Output:
    """One number of an output blob.

    Attributes:
        name: Blob name.
        value: Value.
        weight: Loss weight of the blob; 0 where it is not a loss.
    """

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class TrainStats:
    """Training figures at a displayed iteration.

    Attributes:
        iteration: Iterations completed before the displayed forward pass.
        loss: Loss smoothed over ``average_loss`` iterations.
        outputs: Outputs of the last batch.
        rate: Learning rate of the last update.
        seconds: Seconds since the previous display.
        per_second: Iterations per second over the same time.
        last: Whether this is Caffe's additional forward pass after the final update.
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
    """Mean outputs of one test net over its ``test_iter`` batches.

    Attributes:
        net: Index of the test net.
        iteration: Training iteration at which it was tested.
        outputs: Mean of each output.
        loss: Mean loss; None unless the solver sets ``test_compute_loss``.
        seconds: Duration of the test.
    """

    # pytest must not collect it for its name.
    __test__ = False

    net: int
    iteration: int
    outputs: list[Output]
    loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk.

    Attributes:
        iteration: Iterations completed.
        weights: Path of the ``.caffemodel`` (or ``.caffemodel.h5``).
        state: Path of the ``.solverstate`` (or ``.solverstate.h5``).
    """

    iteration: int
    weights: Path
    state: Path


class RunControl(Protocol):
    """A running training, by our solver or by real Caffe, as callbacks see and control it."""

    # How lines reach the log.
    log: Log

    @property
    def iteration(self) -> int:
        """Iterations completed."""

    @property
    def max_iter(self) -> int:
        """Iterations after which training ends."""

    @property
    def rate(self) -> float:
        """Learning rate of the last update; 0 before the first."""

    @property
    def net_name(self) -> str:
        """Name of the training net."""

    @property
    def solver_type(self) -> str:
        """Type of the solver: ``SGD``, ``Adam``…"""

    @property
    def saved(self) -> int | None:
        """Iteration of the last snapshot; None before the first."""

    @property
    def run_id(self) -> str:
        """Identifier shared by a run and those that resume it; empty for real Caffe."""

    @property
    def resumed_from(self) -> str:
        """Path of the .solverstate that this run resumed; empty if it started from the beginning."""

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called."""

    def outputs(self) -> list[Output]:
        """Return the outputs of the last training batch that is known; real Caffe gives those that it displayed last."""

    def stop(self) -> None:
        """Stop after the current update, with a snapshot; a test stops after its current batch. Any number of calls have one effect.

        Raises:
            CaffeToolsError: the run cannot be stopped from here (real Caffe with ``--sigint_effect=none``).
        """

    def snapshot(self) -> Snapshot | None:
        """Take a snapshot now; where that is not possible at once (real Caffe, several processes), soon, and return None.

        Raises:
            RunFailed: the snapshot cannot be written.
            CaffeToolsError: no snapshot can be taken from here.
        """


class TrainingRun(RunControl, Protocol):
    """Our own solver, as its built-in callbacks, checkpoints and error messages see it."""

    param: SolverParameter
    net: Net
    test_nets: list[Net]
    random: RandomStream
    rule: UpdateRule
    learning_rate: LearningRate
    losses: deque[Tensor]
    iteration: int
    saved: int | None
    run_id: str
    prefix: str

    def smoothed_loss(self) -> float:
        """Return the loss over the last ``average_loss`` iterations."""

    def test_all(self) -> list[TestResult]:
        """Score every test net."""

    def checkpoint(self) -> Snapshot:
        """Write a snapshot now."""

    def checkpoint_rng_before_test(self) -> None:
        """Keep the random states as they are before a test."""

    def notify(self, hook: str, *arguments: object) -> None:
        """Call a hook of every callback."""
