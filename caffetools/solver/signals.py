"""What Ctrl-C and a hang-up do to a run: nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from caffetools.errors import CaffeToolsError
from caffetools.solver.callbacks import Observer

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver

_SIGHUP = getattr(signal, "SIGHUP", None)


EFFECTS = ("stop", "snapshot", "none")


class Signals(Observer):
    """What SIGINT and SIGHUP do: ``stop`` ends the iteration, takes a snapshot and stops; ``snapshot`` takes one and goes on.

    To be used as a context (``with Signals() as signals:``) in the main thread, which handles signals; elsewhere it does nothing.
    A second SIGINT stops at once where the first one asked to stop: it raises ``KeyboardInterrupt``, and files being written are
    left as they were.

    Args:
        sigint, sighup: ``stop``, ``snapshot`` or ``none``, as caffe's flags sigint_effect and sighup_effect.

    Raises:
        CaffeToolsError: an effect is none of these.
    """

    def __init__(self, sigint: str = "stop", sighup: str = "snapshot") -> None:
        for flag, effect in (("sigint_effect", sigint), ("sighup_effect", sighup)):
            if effect not in EFFECTS:
                raise CaffeToolsError(f"unknown {flag} '{effect}'; it is one of {', '.join(EFFECTS)}")
        self._effects = {signal.SIGINT: sigint} | ({_SIGHUP: sighup} if _SIGHUP is not None else {})
        self.stop_wanted = False
        self.snapshot_wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in self._effects:
                self._before[number] = signal.signal(number, self._received)
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

    def _received(self, number: int, frame: FrameType | None) -> None:
        effect = self._effects[signal.Signals(number)]
        if effect == "snapshot":
            self.snapshot_wanted = True
        elif effect == "stop":
            if self.stop_wanted and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_wanted = True
