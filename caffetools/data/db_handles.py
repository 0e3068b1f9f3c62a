"""Handles of databases that several readers of one process share, because their library allows one handle a process."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """An open database."""

    def close(self) -> None:
        """Close it."""


H = TypeVar("H", bound=Closable)


class _Entry(Generic[H]):
    def __init__(self, key: str, handle: H):
        self.key, self.handle, self.users = key, handle, 0


class RefCountedHandle(Generic[H]):
    """One user's reference to the handle of ``path``: the first user opens it, the last one closes it.

    Args:
        path: The database.
        opener: Opens the database at a path; called if no other reader of this process has it open.

    Attributes:
        handle: What ``opener`` returned.
    """

    def __init__(self, path: str, opener: Callable[[str], H]):
        key = os.path.realpath(path)
        with _lock:
            entry = _entries.get(key)
            if entry is None:
                entry = _entries[key] = _Entry(key, opener(path))
            entry.users += 1
        _close_released()
        self.handle: H = entry.handle
        self._entry = entry
        self._finalizer = weakref.finalize(self, _release, entry)
        # At exit a reading thread may still be at work; the system closes the files anyway.
        self._finalizer.atexit = False

    def close(self) -> None:
        """Drop the reference; a second call does nothing."""
        if self._finalizer.detach():
            _released.append(self._entry)
            with _lock:
                _close_unused()
            _close_released()


_entries: dict[str, _Entry[Any]] = {}
_released: deque[_Entry[Any]] = deque()
_lock = threading.Lock()


def _release(entry: _Entry[Any]) -> None:
    _released.append(entry)
    _close_released()


def _close_released() -> None:
    # The garbage collector may call this in any thread, also in one that holds the lock: whoever holds it closes the handles, here.
    while _released and _lock.acquire(blocking=False):
        try:
            _close_unused()
        finally:
            _lock.release()


def _close_unused() -> None:
    while _released:
        entry = _released.popleft()
        entry.users -= 1
        if not entry.users:
            _entries.pop(entry.key, None)
            entry.handle.close()
