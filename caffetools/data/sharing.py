"""Databases that several readers of one process have open.

A TRAIN and a TEST net may read the same one, and the libraries forbid two handles.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any


class _Entry:
    def __init__(self, key: str, handle: Any):
        self.key, self.handle, self.users = key, handle, 0


class Shared:
    """One user's hold on the handle of ``path``: the first user opens it with ``opener``, the last one closes it.

    Attributes:
        handle: What ``opener`` gave; its ``close()`` is called when nobody uses it any more.
    """

    def __init__(self, path: str, opener: Callable[[str], Any]):
        key = os.path.realpath(path)
        with _lock:
            entry = _entries.get(key)
            if entry is None:
                entry = _entries[key] = _Entry(key, opener(path))
            entry.users += 1
        self.handle = entry.handle
        self._finalizer = weakref.finalize(self, _release, entry)
        # At exit a reading thread may still be at work; the system closes the files anyway.
        self._finalizer.atexit = False

    def close(self) -> None:
        """Let go; a second call does nothing."""
        self._finalizer()


_entries: dict[str, _Entry] = {}
_lock = threading.RLock()


def _release(entry: _Entry) -> None:
    with _lock:
        entry.users -= 1
        if not entry.users:
            _entries.pop(entry.key, None)
            entry.handle.close()
