"""Items made ahead in a thread: how far, and how the thread ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from caffetools.util.threads import Prefetcher


def test_the_prefetcher_runs_ahead_by_its_depth_and_no_further() -> None:
    made: list[int] = []
    reached = threading.Event()

    def make() -> int:
        made.append(len(made))
        if len(made) == 4:
            reached.set()
        return made[-1]

    ahead = Prefetcher(make, 3)
    assert reached.wait(10)
    assert ahead.next() == 0 and ahead.next() == 1
    ahead.stop()
    assert len(made) <= 7


def test_an_error_comes_at_its_turn_and_again() -> None:
    items = iter([1, 2])
    ahead = Prefetcher(lambda: next(items), 3)
    assert [ahead.next(), ahead.next()] == [1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            ahead.next()


def test_collecting_it_waits_for_no_thread() -> None:
    """The collector may run in a thread that holds what ``make`` waits for, as while a thread of an executor starts."""
    entered, proceed = threading.Event(), threading.Event()

    def make() -> int:
        entered.set()
        proceed.wait()
        return 1

    before = set(threading.enumerate())
    ahead = Prefetcher(make, 1)
    (thread,) = set(threading.enumerate()) - before
    assert entered.wait(10)
    watched = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert watched() is None and thread.is_alive()
    proceed.set()
    thread.join(10)
    assert not thread.is_alive()


def test_its_thread_ends_after_it_was_collected_with_a_full_queue() -> None:
    made = threading.Semaphore(0)

    def make() -> int:
        made.release()
        return 1

    before = set(threading.enumerate())
    ahead = Prefetcher(make, 2)
    (thread,) = set(threading.enumerate()) - before
    for _ in range(3):  # two in the queue, one that finds no room
        assert made.acquire(timeout=10)
    del ahead
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_the_interpreter_ends_while_items_are_made() -> None:
    program = "from caffetools.util.threads import Prefetcher\nahead = Prefetcher(lambda: sum(range(10000)), 2)\nprint(ahead.next())\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "49995000\n" and done.stderr == ""
