"""One process at a time: lock files whose lock is the system's, so that it ends with its process, however that dies."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from caffetools.util.files import make_folder

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no lock then
    fcntl = None  # type: ignore[assignment]

# Locks of this very process, which the system would let it take twice.
_held: set[Path] = set()


class Busy(Exception):
    """The lock is held. ``holder`` is (process, host) as the file says; empty where it does not say."""

    def __init__(self, holder: str):
        words = holder.split()
        self.holder: tuple[str, ...] = tuple(words) if len(words) == 2 else ()
        super().__init__(holder)


@contextlib.contextmanager
def file_lock(path: Path, *, required: bool = True) -> Iterator[None]:
    """Hold the lock file ``path``, which is there only meanwhile and names the process.

    A file that a killed process left behind hinders nobody. Child processes do not inherit the lock.

    Args:
        required: Refuse file systems that have no locks; else go on without one.

    Raises:
        Busy: another process holds it, or this one does already. OSError: the file cannot be made or locked.
    """
    path = path.absolute()
    me = f"{os.getpid()} {socket.gethostname()}"
    if path in _held:
        raise Busy(me)
    descriptor = _acquire(path, required)
    _held.add(path)
    try:
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the name is only there for the message to another run
            os.pwrite(descriptor, f"{me}\n".encode(), 0)
        yield
    finally:
        # Removed while it is still held, so that nobody can hold it meanwhile.
        with contextlib.suppress(OSError):
            path.unlink()
        _held.discard(path)
        os.close(descriptor)


def _acquire(path: Path, required: bool) -> int:
    """A descriptor of the locked file."""
    while True:
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if not _lock(descriptor, required):
                raise Busy(os.pread(descriptor, 200, 0).decode("utf-8", "replace"))
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its last holder removed the file between our opening and our locking it: take the one that is there now.
        os.close(descriptor)


def _lock(descriptor: int, required: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # A file system that has no locks.
        if required:
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
