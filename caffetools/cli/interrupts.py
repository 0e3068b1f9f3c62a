"""Ctrl-C of a command: an interrupt wherever the interpreter is when it comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
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

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    before = sys.unraisablehook

    def unraisable(ignored: sys.UnraisableHookArgs, /) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN_AFTER_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(ignored)

    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = unraisable
    try:
        yield noted
    finally:
        if sys.unraisablehook is unraisable:
            sys.unraisablehook = before
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.SIG_DFL if noted else signal.default_int_handler)
