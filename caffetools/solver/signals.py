"""What Ctrl-C and a hang-up do to a run: nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from caffetools.solver.observers import Observer

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver

_SIGHUP = getattr(signal, "SIGHUP", None)


class Signals(Observer):
    """SIGINT ends the iteration, takes a snapshot and stops; SIGHUP takes a snapshot and goes on. A second SIGINT stops at once.

    To be used as a context (``with Signals() as signals:``) in the main thread, which handles signals; elsewhere it does nothing.
    Stopping at once raises ``KeyboardInterrupt``; files being written then are left as they were.
    """

    def __init__(self) -> None:
        self.stop_wanted = False
        self.snapshot_wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupted)
            if _SIGHUP is not None:
                self._before[_SIGHUP] = signal.signal(_SIGHUP, self._hung_up)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def before_iteration(self, solver: Solver) -> None:
        """Stop before the forward pass where that was asked for meanwhile."""
        self._act(solver)

    def after_update(self, solver: Solver) -> None:
        """Do what was asked for during the iteration."""
        self._act(solver)

    def test_batch(self, solver: Solver, done: int, total: int) -> None:
        """A long test need not be waited for."""
        self._act(solver)

    def _act(self, solver: Solver) -> None:
        if self.stop_wanted and not solver.stopping:
            # The solver takes the snapshot itself when it stops.
            solver.stop()
        if self.snapshot_wanted:
            self.snapshot_wanted = False
            if solver.saved != solver.iteration:
                solver.snapshot()

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stop_wanted:
            raise KeyboardInterrupt
        self.stop_wanted = True

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        self.snapshot_wanted = True
