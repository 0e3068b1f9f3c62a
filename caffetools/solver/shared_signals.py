"""Signals where several processes train together."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from caffetools.solver.callbacks import Callback
from caffetools.solver.launch import orphaned
from caffetools.solver.signals import Signals

if TYPE_CHECKING:
    from caffetools.solver.parallel import World


class SharedSignals(Callback):
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

    def on_iteration_end(self, run: Any) -> None:
        """Agree on what to do."""
        wanted = self.own.stop_wanted or run.stopping or orphaned()
        # Cleared before the others are asked: a signal that comes meanwhile is for the next time.
        save, self.own.snapshot_wanted = self.own.snapshot_wanted, False
        stop, save = self.world.any(wanted, save)
        if stop:
            # The solver takes the snapshot itself when it stops.
            run.stop()
        elif save and run.saved != run.iteration:
            run.snapshot()

    def on_test_batch_end(self, run: Any, done: int, total: int) -> None:
        """A long test need not be waited for, and those who wait must know that it goes on."""
        if self.own.stop_wanted:
            run.stop()
        self.world.heartbeat()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.own.stop_wanted = True
