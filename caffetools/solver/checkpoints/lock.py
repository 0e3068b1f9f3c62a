"""One run at a time under a snapshot prefix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from caffetools.errors import CaffeToolsError, WriteFailed
from caffetools.util.locks import Busy, file_lock, lock_path


@contextlib.contextmanager
def prefix_lock(prefix: str | os.PathLike[str], *, what: str | None = None, hint: str = "use another snapshot_prefix") -> Iterator[None]:
    """Hold the lock of a snapshot prefix while a run writes files that begin with it.

    A file system without locks is used without one; see :func:`~caffetools.util.locks.file_lock`.

    Args:
        prefix: The snapshot prefix.
        what: What the run does, for the error of another run; by default that it writes snapshots.
        hint: What the other run can do.

    Raises:
        CaffeToolsError: Another run, or another thread, holds the lock; the message names its process.
        WriteFailed: The folder cannot be written to.
    """
    path = Path(prefix).absolute()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, required=False))
        except Busy as busy:
            who = f" (process {busy.holder[0]} on {busy.holder[1]})" if busy.holder else ""
            what = what or f"writing snapshots named {os.fspath(prefix)}_iter_…"
            raise CaffeToolsError(f"another run{who} is {what}", hint=f"wait for it, stop it, or {hint}") from None
        except OSError as error:
            raise WriteFailed(lock_path(path), error.strerror, hint="snapshots need a folder that can be written to") from None
        yield
