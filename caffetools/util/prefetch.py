"""A thread that produces items ahead of their consumer."""

from __future__ import annotations

import contextvars
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Call a function in a thread and keep up to ``depth`` results ready; :meth:`next` returns them in order.

    An error of ``make`` is raised by :meth:`next` at its turn, and again by every later call. The thread ends with
    :meth:`stop`, when the object is garbage-collected, and at the interpreter's exit.

    Args:
        make: Returns the next item; called in the thread, with the context variables of the caller.
        depth: The number of items kept ready, at least 1.
    """

    def __init__(self, make: Callable[[], T], depth: int):
        self._queue: queue.Queue[T | _Failure] = queue.Queue(max(1, depth))
        self._failure: _Failure | None = None
        stopping = threading.Event()
        context = contextvars.copy_context()
        # The thread must not refer to this object, or it would never be collected.
        self._thread = threading.Thread(
            target=context.run, args=(_work, make, self._queue, stopping), name="caffetools-prefetch", daemon=True
        )
        self.stop = weakref.finalize(self, _stop, self._thread, self._queue, stopping)
        self._thread.start()

    def next(self) -> T:
        """Return the next result; waits until it is ready."""
        while self._failure is None:
            try:
                item = self._queue.get(timeout=5)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise RuntimeError("the prefetch thread no longer runs (was the process forked?)") from None
                continue
            if not isinstance(item, _Failure):
                return item
            self._failure = item
        raise self._failure.error


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


def _work(make: Callable[[], T], ready: queue.Queue[T | _Failure], stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            item: T | _Failure = make()
        except BaseException as error:  # the consumer raises it
            item = _Failure(error)
        ready.put(item)
        if isinstance(item, _Failure):
            return


def _stop(thread: threading.Thread, ready: queue.Queue[T | _Failure], stopping: threading.Event) -> None:
    stopping.set()
    # The garbage collector may run this in the thread itself, which cannot join itself.
    while thread.is_alive() and thread is not threading.current_thread():
        # The thread may be waiting for room in a full queue.
        while not ready.empty():
            ready.get_nowait()
        thread.join(0.01)
