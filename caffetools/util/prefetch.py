"""A thread that produces items ahead of their consumer."""

from __future__ import annotations

import atexit
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
    :meth:`stop`, after the object was garbage-collected, and at the interpreter's exit.

    Args:
        make: Returns the next item; called in the thread, with the context variables of the caller.
        depth: The number of items kept ready, at least 1.
    """

    def __init__(self, make: Callable[[], T], depth: int):
        self._failure: _Failure | None = None
        # The thread must not refer to this object, or it would never be collected.
        self._thread = _Thread(make, max(1, depth))
        # The garbage collector may run this in any thread, which may hold locks that ours waits for: it must not wait.
        weakref.finalize(self, self._thread.request_stop).atexit = False
        self._thread.start()

    def next(self) -> T:
        """Return the next result; waits until it is ready."""
        while self._failure is None:
            try:
                item = self._thread.ready.get(timeout=5)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise RuntimeError("the prefetch thread no longer runs (was the process forked?)") from None
                continue
            if not isinstance(item, _Failure):
                return item
            self._failure = item
        raise self._failure.error

    def stop(self) -> None:
        """End the thread and wait for it, which takes as long as one call of ``make``; a second call does nothing."""
        self._thread.stop()


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


class _Thread(threading.Thread, Generic[T]):
    def __init__(self, make: Callable[[], T], depth: int):
        super().__init__(name="caffetools-prefetch", daemon=True)
        self.ready: queue.Queue[T | _Failure] = queue.Queue(depth)
        self._make = make
        self._context = contextvars.copy_context()
        self._stopping = False

    def run(self) -> None:
        self._context.run(self._work)

    def request_stop(self) -> None:
        """Let the thread end after the item that it is making. Takes no lock."""
        self._stopping = True

    def stop(self) -> None:
        self.request_stop()
        while self.is_alive():
            # The thread may be waiting for room in a full queue.
            while not self.ready.empty():
                self.ready.get_nowait()
            self.join(0.01)

    def _work(self) -> None:
        while not self._stopping:
            try:
                item: T | _Failure = self._make()
            except BaseException as error:  # the consumer raises it
                item = _Failure(error)
            self._put(item)
            if isinstance(item, _Failure):
                return

    def _put(self, item: T | _Failure) -> None:
        while not self._stopping:
            try:
                # Nobody takes an item of an object that was collected: look at the request now and then.
                self.ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


@atexit.register
def _stop_all() -> None:
    # A daemon thread that is inside native code when the interpreter ends can crash the process.
    for thread in threading.enumerate():
        if isinstance(thread, _Thread):
            thread.stop()
