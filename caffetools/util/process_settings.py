"""Settings of the whole process that work changes for a while: warnings, levels of loggers, folders that modules are imported from.

Several threads may be inside at once: the first one sets, and the last one that leaves restores. Set and restored by each alone, the
setting of a thread that leaves between them would be lost, or one that was meant for a moment kept for good.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

# The signals that stop a run or ask for a snapshot, as far as this system has them.
RUN_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_lock = threading.RLock()
_users: dict[object, int] = {}
_restore: dict[object, Callable[[], object]] = {}


@contextmanager
def shared_setting(key: object, change: Callable[[], Callable[[], object]]) -> Iterator[None]:
    """Change a setting of the process during the block, together with the other threads that are in one of the same ``key``.

    Args:
        key: Names the setting.
        change: Sets it, and returns what restores it; called by the first thread.
    """
    with _lock:
        if not _users.get(key):
            _restore[key] = change()
        _users[key] = _users.get(key, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[key] -= 1
            if not _users[key]:
                del _users[key]
                _restore.pop(key)()


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Let no warning be shown during the block."""

    def change() -> Callable[[], object]:
        caught = warnings.catch_warnings()
        caught.__enter__()
        warnings.simplefilter("ignore")
        return lambda: caught.__exit__(None, None, None)

    with shared_setting("warnings", change):
        yield


@contextmanager
def logger_level(name: str, level: int) -> Iterator[None]:
    """Let a logger drop records below ``level`` during the block.

    Args:
        name: The logger's name; empty for the root.
        level: A level of :mod:`logging`.
    """

    def change() -> Callable[[], object]:
        logger = logging.getLogger(name)
        before = logger.level
        logger.setLevel(level)
        return lambda: logger.setLevel(before)

    with shared_setting(("logger", name, level), change):
        yield


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Let modules be imported from the working directory during the block, after all other places."""
    here = str(Path.cwd())

    def change() -> Callable[[], object]:
        if here in sys.path or "" in sys.path:
            return lambda: None
        sys.path.append(here)
        return lambda: sys.path.remove(here) if here in sys.path else None

    with shared_setting(("sys.path", here), change):
        yield


# Package → its own folders, which its import put on sys.path.
_OWN_FOLDERS: dict[str, list[str]] = {}


@contextmanager
def import_path_kept(package: str) -> Iterator[None]:
    """Remove from ``sys.path`` what the import of ``package`` during the block adds to it: its own folders, in which others find its modules.

    Later blocks have these folders again: modules of the package that are imported then look there, and what adds them runs only once.

    Args:
        package: Name of an installed package.
    """

    def change() -> Callable[[], object]:
        before = list(sys.path)
        sys.path += [entry for entry in _OWN_FOLDERS.get(package, []) if entry not in before]

        def restore() -> None:
            _OWN_FOLDERS[package] = [entry for entry in sys.path if entry not in before and package in Path(entry).parts]
            sys.path[:] = [entry for entry in sys.path if entry not in _OWN_FOLDERS[package]]

        return restore

    with shared_setting(("sys.path of", package), change):
        yield


@contextmanager
def environment_restored() -> Iterator[None]:
    """Let the environment variables that the block sets or removes be as they were afterwards; for one thread at a time."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def send_nowhere(descriptor: int) -> None:
    """Let what is written to the open file ``descriptor`` from here on be lost."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def native_output_dropped() -> Iterator[None]:
    """Drop what is written to the standard output during the block, by C++ code too, which does not write through ``sys.stdout``."""
    with shared_setting("standard output", lambda: _drop(1, sys.stdout)):
        yield


@contextmanager
def native_errors_dropped() -> Iterator[None]:
    """Drop what is written to the standard error during the block, by C code too, which does not write through ``sys.stderr``."""
    with shared_setting("standard error", lambda: _drop(2, sys.stderr)):
        yield


def _drop(descriptor: int, stream: TextIO | None) -> Callable[[], object]:
    """Let what is written to the file ``descriptor`` and its stream be lost; return what ends that. A closed one stays closed."""
    _flush(stream)
    try:
        kept = os.dup(descriptor)
    except OSError:
        return lambda: None
    send_nowhere(descriptor)

    def restore() -> None:
        _flush(stream)
        os.dup2(kept, descriptor)
        os.close(kept)

    return restore


def _flush(stream: TextIO | None) -> None:
    with suppress(OSError, ValueError, AttributeError):
        if stream is not None:
            stream.flush()
