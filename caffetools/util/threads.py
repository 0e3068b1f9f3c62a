"""Work in threads: a prefetcher, and parallel maps with the results in order. Context variables (read options) hold in the threads as in the caller."""

from __future__ import annotations

import atexit
import contextvars
import math
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# The value of OMP_NUM_THREADS that was set here and not by the user.
_LIMITED = "CAFFETOOLS_OMP_NUM_THREADS"


def cpu_count() -> int:
    """Return the number of threads that this process should use: OMP_NUM_THREADS where it is set, but no more than :func:`core_limit`."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    limit = core_limit()
    return min(int(wanted), limit) if wanted.isdigit() and int(wanted) else limit


def core_limit(root: str | os.PathLike[str] = "/") -> int:
    """Return how many cores this process may use: its affinity mask's, or fewer where a control group limits its CPU time.

    Args:
        root: Where ``proc`` and ``sys`` are; another folder in tests.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = list(_quotas(Path(root)))
    return max(1, min(cores, *(math.ceil(quota) for quota in quotas))) if quotas else cores


def limit_openmp(processes: int = 1) -> None:
    """Set OMP_NUM_THREADS, from which torch takes its number of threads, where the user has not set it.

    Called before torch is imported; torch itself sees affinity masks, but no control groups.

    Args:
        processes: Processes that share the cores.
    """
    if "OMP_NUM_THREADS" in os.environ and os.environ["OMP_NUM_THREADS"] != os.environ.get(_LIMITED):
        return
    limit = core_limit()
    if processes > 1 or limit < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = os.environ[_LIMITED] = str(max(1, limit // processes))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU limits, in cores, of the process's control groups (v1 and v2) and of the groups above them."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = (*line.split(":", 2), "", "")[:3]
        named = controllers.split(",")
        if number == "0" and not controllers:
            places, read = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _quota_v2
        elif "cpu" in named:
            places, read = (f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"), _quota_v1
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for place in places:
            for depth in range(len(parts) + 1):
                if quota := read(root.joinpath(place, *parts[:depth])):
                    yield quota


def _quota_v2(folder: Path) -> float:
    quota, period = (*_text(folder / "cpu.max").split(), "", "")[:2]
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def _quota_v1(folder: Path) -> float:
    quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None) -> Generator[R, None, None]:
    """Yield ``function(item)`` in the items' order, computed by several threads that run a little ahead of the consumer.

    An error of ``function`` is raised at its item's turn. Closing the generator cancels calls that have not started.

    Args:
        function: Called in the threads.
        items: Its arguments; taken lazily.
        threads: How many threads; by default :func:`cpu_count`.
    """
    threads = threads or cpu_count()
    executor = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(contextvars.copy_context().run, function, item))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def parallel_for(work: Callable[[range], object], count: int, *, threads: int | None = None) -> None:
    """Call ``work`` with contiguous ranges that cover 0 … ``count`` - 1, one range a thread; an error of it is raised.

    Args:
        work: Called with each range.
        count: The number of items.
        threads: How many threads at most; by default :func:`cpu_count`.
    """
    threads = max(1, min(threads or cpu_count(), count))
    if threads == 1:
        work(range(count))
        return
    ranges = [range(count * part // threads, count * (part + 1) // threads) for part in range(threads)]
    with ThreadPoolExecutor(threads) as executor:
        for call in [executor.submit(contextvars.copy_context().run, work, part) for part in ranges]:
            call.result()


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
        """Return the next result; waits until it is ready. Raises :class:`RuntimeError` in a forked process."""
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
