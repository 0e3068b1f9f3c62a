"""Parallel maps over threads, with the results in order. Context variables (read options) hold in the threads as in the caller."""

from __future__ import annotations

import contextvars
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cpu_count() -> int:
    """Return the number of threads that this process should use: the cores that it may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
