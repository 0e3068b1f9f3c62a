"""A thread that makes batches ahead of whoever consumes them."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls ``make`` in a thread and keeps up to ``depth`` results ready; :meth:`next` gives them in order.

    An error of ``make`` is raised by :meth:`next` at its turn, and again by every later call. The thread stops with
    :meth:`stop`, when the object goes away, and at the interpreter's exit.
    """

    def __init__(self, make: Callable[[], T], depth: int):
        self._queue: queue.Queue[T | _Failure] = queue.Queue(max(1, depth))
        self._failure: _Failure | None = None
        stopping = threading.Event()
        # The thread must not hold on to this object, or it would never go away.
        self._thread = threading.Thread(target=_work, args=(make, self._queue, stopping), name="caffetools-prefetch", daemon=True)
        self.stop = weakref.finalize(self, _stop, self._thread, self._queue, stopping)
        self._thread.start()

    def next(self) -> T:
        """The next result; waits until it is there."""
        while self._failure is None:
            try:
                item = self._queue.get(timeout=5)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise RuntimeError("the thread that reads ahead is gone (was the process forked?)") from None
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
        except BaseException as error:  # whatever it is, the consumer must hear of it
            item = _Failure(error)
        ready.put(item)
        if isinstance(item, _Failure):
            return


def _stop(thread: threading.Thread, ready: queue.Queue[T | _Failure], stopping: threading.Event) -> None:
    stopping.set()
    # The garbage collector may run this in the very thread; then it only must not wait for itself.
    while thread.is_alive() and thread is not threading.current_thread():
        # A full queue would keep the thread waiting.
        while not ready.empty():
            ready.get_nowait()
        thread.join(0.01)
