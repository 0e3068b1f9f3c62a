"""Locks between processes and threads, on :mod:`filelock`; the system releases one when its process ends, however that happens."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from caffetools.util.files import make_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import filelock

# On a system with neither flock nor Windows' locks, filelock's are files of its own format that exist while they are held.
_SOFT = filelock.FileLock is filelock.SoftFileLock
# What a lock file of ours holds: nothing, or the holder's process and host.
_HOLDER = re.compile(rb"(\d+ [^\s\0]+\n?)?")


class Busy(Exception):
    """Another thread or process holds the lock.

    Attributes:
        holder: Its process id and host; None where the lock file does not name them.
    """

    def __init__(self, holder: tuple[str, str] | None):
        self.holder = holder
        super().__init__("the lock is held" + (f" by process {holder[0]} on {holder[1]}" if holder else ""))


def lock_path(target: Path) -> Path:
    """Return the lock file of ``target``: a hidden file next to it, ``.NAME.caffetools.lock``."""
    return target.with_name(f".{target.name}.caffetools.lock")


@contextlib.contextmanager
def file_lock(
    target: Path, *, required: bool = True, on_wait: Callable[[], None] | None = None, while_waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock of ``target`` within a ``with`` block, against other processes and the other threads of this one.

    The lock is a hidden file (:func:`lock_path`) that names the process and is removed afterwards. One that a killed process left
    behind does not block. Child processes do not inherit the lock.

    Args:
        target: The file, folder or prefix that only one run at a time may write. It need not exist.
        required: Refuse file systems without locks; otherwise continue without one.
        on_wait: Wait until the lock is free, after one call of this function; None raises :class:`Busy` instead.
        while_waiting: Called ten times a second while it waits; may raise to give up.

    Raises:
        Busy: The lock is held, and ``on_wait`` is None.
        OSError: The lock file cannot be created or locked, or a file of that name is not a lock of ours: it is not touched.
    """
    path = lock_path(target.absolute())
    make_folder(path.parent)
    if not _SOFT:
        _check_ours(path)
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        _acquire(lock, path, on_wait, while_waiting)
    except OSError:
        if required:
            raise
        yield
        return
    try:
        if not _SOFT:
            _write_holder(path)
        yield
    finally:
        # Removed while it is held; a process that opened it before notices that it has no name any more and opens another one.
        if not _SOFT:
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release(force=True)


def _acquire(lock: filelock.BaseFileLock, path: Path, on_wait: Callable[[], None] | None, while_waiting: Callable[[], None] | None) -> None:
    for _ in range(2):
        try:
            lock.acquire(blocking=False)
            return
        except filelock.Timeout:
            if _SOFT or path.exists():
                break
        # Its holder has just removed it, or it cannot be created at all, which filelock also takes for a lock that is held.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666))
    if on_wait is None:
        raise Busy(_read_holder(path))
    on_wait()
    while True:
        if while_waiting is not None:
            while_waiting()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0.1, poll_interval=0.1)
            return


def _check_ours(path: Path) -> None:
    """Refuse a link, a folder, or a file with other content than a holder's name."""
    try:
        # Not through a link, which could lead to any file of the user.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileExistsError(error.errno, "it is in the way of a lock file and is not one of caffetools", os.fspath(path)) from None
    try:
        content = os.read(descriptor, 1000)
    except OSError:  # Windows refuses to read a file that is locked; only locks are
        return
    finally:
        os.close(descriptor)
    if not _HOLDER.fullmatch(content):
        raise FileExistsError(17, "it is in the way of a lock file and is not one of caffetools", os.fspath(path))


def _write_holder(path: Path) -> None:
    # A full disk, or Windows: the name only serves the message to another run.
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        stream.truncate(0)
        stream.write(f"{os.getpid()} {socket.gethostname()}\n".encode())


def _read_holder(path: Path) -> tuple[str, str] | None:
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return None
    return (words[0], words[1]) if len(words) == 2 else None
