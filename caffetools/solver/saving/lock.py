"""One run at a time under a snapshot prefix."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.files import make_folder

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no lock then
    fcntl = None  # type: ignore[assignment]

# Locks of this very process, which the system would let it take twice.
_held: set[Path] = set()


@contextlib.contextmanager
def prefix_lock(prefix: str | os.PathLike[str], *, what: str | None = None, way_out: str = "use another snapshot_prefix") -> Iterator[None]:
    """Hold ``PREFIX.lock`` while a run writes files that begin with ``prefix``.

    ``what`` it does and the ``way_out`` are said to another run that comes meanwhile.

    The file names the process. The lock itself is the system's, so it ends with the process, however that dies: a file left
    behind by a killed run hinders nobody. Child processes do not inherit it.

    Raises:
        CaffeToolsError: another run holds it; names its process. RunFailed: the folder cannot be written to.
    """
    path = Path(f"{os.fspath(prefix)}.lock").absolute()
    what = what or f"writing snapshots named {os.fspath(prefix)}_iter_…"
    me = f"{os.getpid()} {socket.gethostname()}"
    if path in _held:
        raise _busy(me, what, way_out)
    descriptor = _acquire(path)
    if isinstance(descriptor, str):
        raise _busy(descriptor, what, way_out)
    _held.add(path)
    try:
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the name is only there for the message to another run
            os.pwrite(descriptor, f"{me}\n".encode(), 0)
        yield
    finally:
        # Removed while it is still held, so that nobody can hold it meanwhile.
        path.unlink(missing_ok=True)
        _held.discard(path)
        os.close(descriptor)


def _acquire(path: Path) -> int | str:
    """A descriptor of the locked file, or what the file says of the run that holds it."""
    while True:
        descriptor = _open(path)
        if not _lock(descriptor):
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace")
            os.close(descriptor)
            return holder
        if _is_at(descriptor, path):
            return descriptor
        # Its last holder removed the file between our opening and our locking it: take the one that is there now.
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror}; snapshots need a folder that can be written to") from None


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # A file system that has no locks; better to run than to refuse.
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _busy(holder: str, what: str, way_out: str) -> CaffeToolsError:
    words = holder.split()
    who = f" (process {words[0]} on {words[1]})" if len(words) == 2 else ""
    return CaffeToolsError(f"another run{who} is {what}; wait for it, stop it, or {way_out}")
