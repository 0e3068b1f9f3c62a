"""What Ctrl-C, a hang-up and SIGTERM do to a training: nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from caffetools.errors import CaffeToolsError
from caffetools.solver.callbacks import Callback
from caffetools.solver.control import RunControl

_SIGHUP = getattr(signal, "SIGHUP", None)


EFFECTS = ("stop", "snapshot", "none")


class Signals(Callback):
    """Act on SIGINT, SIGHUP and SIGTERM: ``stop`` ends the iteration, writes a snapshot and stops; ``snapshot`` writes one and continues.

    Use it as a context (``with Signals() as signals:``) in the main thread, which handles signals; in other threads it does nothing.
    A second SIGINT stops at once if the first one asked to stop: it raises ``KeyboardInterrupt``, and files being written keep
    their old content.

    Args:
        sigint: ``stop``, ``snapshot`` or ``none``, as caffe's flag sigint_effect.
        sighup: The same for SIGHUP, as caffe's flag sighup_effect.
        sigterm: The same for SIGTERM, which schedulers and ``docker stop`` send; None leaves it alone, so it ends the process.

    Raises:
        CaffeToolsError: An effect is none of these.
    """

    def __init__(self, sigint: str = "stop", sighup: str = "snapshot", sigterm: str | None = "stop") -> None:
        for flag, effect in (("sigint_effect", sigint), ("sighup_effect", sighup), ("sigterm", sigterm or "stop")):
            if effect not in EFFECTS:
                raise CaffeToolsError(f"unknown {flag} '{effect}'; it is one of {', '.join(EFFECTS)}")
        self._effects = {signal.SIGINT: sigint} | ({_SIGHUP: sighup} if _SIGHUP is not None else {})
        if sigterm is not None:
            self._effects[signal.SIGTERM] = sigterm
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

    def on_iteration_begin(self, run: RunControl) -> None:
        """Stop before the forward pass if that was asked for during a test."""
        self._act(run)

    def on_iteration_end(self, run: RunControl) -> None:
        """Do what was asked for during the iteration."""
        self._act(run)

    def on_test_batch_end(self, run: RunControl, done: int, total: int) -> None:
        """Do not wait for the end of a long test."""
        self._act(run)

    def _act(self, run: RunControl) -> None:
        if self.stop_wanted and not run.stopping:
            # The solver writes the snapshot itself when it stops.
            run.stop()
        if self.snapshot_wanted:
            self.snapshot_wanted = False
            if run.saved != run.iteration:
                run.snapshot()

    def _received(self, number: int, frame: FrameType | None) -> None:
        effect = self._effects[signal.Signals(number)]
        if effect == "snapshot":
            self.snapshot_wanted = True
        elif effect == "stop":
            if self.stop_wanted and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_wanted = True
