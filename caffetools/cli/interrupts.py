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


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Yield a list that gets an entry for each SIGINT during the block; it raises KeyboardInterrupt as ever.

    An interrupt while a library is imported leaves the library half loaded, and what follows fails with anything (RecursionError,
    AttributeError). In a destructor or a callback of the garbage collector, Python prints the traceback of a KeyboardInterrupt and goes
    on; here it comes again when that place has been left. After an interrupt the process is ending: another one ends it at once, where
    Python would print the traceback of a last step of the interpreter. A handler that somebody else has set stays in place.
    """
    noted: list[int] = []
    raised, reporting = 0, False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        noted.append(number)
        if not reporting:
            raised += 1
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    before = sys.unraisablehook

    def repeat(seen: int) -> None:
        """Send the signal until it has raised KeyboardInterrupt outside of the hook."""
        seconds = AGAIN_AFTER_SECONDS
        time.sleep(seconds)
        while raised == seen and signal.getsignal(signal.SIGINT) is note:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(seconds)
            seconds = min(2 * seconds, 1.0)

    def unraisable(ignored: sys.UnraisableHookArgs, /) -> None:
        nonlocal reporting
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        # An exception in this hook would be lost as well.
        reporting = True
        threading.Thread(target=repeat, args=(raised,), daemon=True).start()
        reporting = False

    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = unraisable
    try:
        yield noted
    finally:
        if sys.unraisablehook is unraisable:
            sys.unraisablehook = before
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.SIG_DFL if noted else signal.default_int_handler)
