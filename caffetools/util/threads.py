"""Work on many pictures at once, with the results in order; OpenCV lets other threads run while it decodes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def workers() -> int:
    """How many threads this process should use: the cores that it may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None) -> Generator[R, None, None]:
    """``function`` of every item, in the items' order, computed by several threads that run a little ahead of the reader.

    An error of ``function`` is raised at its item's turn. Leaving early cancels what has not begun.
    """
    threads = threads or workers()
    executor = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_parts(work: Callable[[range], object], count: int, *, threads: int | None = None) -> None:
    """Call ``work`` with the numbers 0 … ``count`` - 1 in as many runs as there are threads, each in its own; an error is raised again."""
    threads = max(1, min(threads or workers(), count))
    if threads == 1:
        work(range(count))
        return
    runs = [range(count * part // threads, count * (part + 1) // threads) for part in range(threads)]
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, runs))
