"""Signals where several processes train together."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from caffetools.solver.callbacks import Observer
from caffetools.solver.launch import orphaned
from caffetools.solver.signals import Signals

if TYPE_CHECKING:
    from caffetools.solver.parallel import World
    from caffetools.solver.solver import Solver


class SharedSignals(Observer):
    """Signals that any process of a run received are acted on by all of them after the same update; SIGTERM counts as a stop.

    A context, as :class:`Signals` is, whose effects hold. A process whose launcher is gone asks to stop, too.
    """

    def __init__(self, world: World, own: Signals):
        self.world, self.own = world, own
        self._before: Any = None

    def __enter__(self) -> SharedSignals:
        self.own.__enter__()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self.own.__exit__(*error)

    def after_update(self, solver: Solver) -> None:
        """Agree on what to do."""
        wanted = self.own.stop_wanted or solver.stopping or orphaned()
        # Cleared before the others are asked: a signal that comes meanwhile is for the next time.
        save, self.own.snapshot_wanted = self.own.snapshot_wanted, False
        stop, save = self.world.any(wanted, save)
        if stop:
            # The solver takes the snapshot itself when it stops.
            solver.stop()
        elif save and solver.saved != solver.iteration:
            solver.snapshot()

    def test_batch(self, solver: Solver, done: int, total: int) -> None:
        """A long test need not be waited for, and those who wait must know that it goes on."""
        if self.own.stop_wanted:
            solver.stop()
        self.world.heartbeat()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.own.stop_wanted = True
