"""Ctrl-C of a command: an interrupt wherever the interpreter is when it comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Long enough for the interpreter to leave the place that cannot raise.
AGAIN_AFTER_SECONDS = 0.01


class _Interrupts:
    """The handler of SIGINT and the hook for lost exceptions, while :func:`noted_interrupts` lasts."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self._raised, self._reporting = 0, False
        self._before = sys.unraisablehook

    def install(self) -> None:
        """Take the places of Python's handler and of the hook that is there."""
        signal.signal(signal.SIGINT, self._note)
        sys.unraisablehook = self._unraisable

    def remove(self) -> None:
        """Give them back, but where somebody else has taken them; after an interrupt the next one ends the process."""
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._before
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self.noted else signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted.append(number)
        if not self._reporting:
            self._raised += 1
            raise KeyboardInterrupt

    def _repeat(self, seen: int) -> None:
        """Send the signal until it has raised KeyboardInterrupt outside of the hook."""
        seconds = AGAIN_AFTER_SECONDS
        time.sleep(seconds)
        while self._raised == seen and signal.getsignal(signal.SIGINT) == self._note:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(seconds)
            seconds = min(2 * seconds, 1.0)

    def _unraisable(self, ignored: sys.UnraisableHookArgs, /) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            self._before(ignored)
            return
        # An exception in this hook would be lost as well.
        self._reporting = True
        threading.Thread(target=self._repeat, args=(self._raised,), daemon=True).start()
        self._reporting = False


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Yield a list that gets an entry for each SIGINT during the block; it raises KeyboardInterrupt as ever.

    An interrupt while a library is imported leaves the library half loaded, and what follows fails with anything (RecursionError,
    AttributeError). In a destructor or a callback of the garbage collector, Python prints the traceback of a KeyboardInterrupt and goes
    on; here it comes again when that place has been left. After an interrupt the process is ending: another one ends it at once, where
    Python would print the traceback of a last step of the interpreter. A handler that somebody else has set stays in place.
    """
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts.noted
        return
    interrupts.install()
    try:
        yield interrupts.noted
    finally:
        interrupts.remove()
