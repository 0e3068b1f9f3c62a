"""Parallel maps over threads, with the results in order. Context variables (read options) hold in the threads as in the caller."""

from __future__ import annotations

import contextvars
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

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
