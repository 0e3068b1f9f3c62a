"""One run at a time under a snapshot prefix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.util.locks import Busy, file_lock


@contextlib.contextmanager
def prefix_lock(prefix: str | os.PathLike[str], *, what: str | None = None, hint: str = "use another snapshot_prefix") -> Iterator[None]:
    """Hold ``PREFIX.lock`` while a run writes files that begin with ``prefix``; see :func:`~caffetools.util.locks.file_lock`.

    ``what`` it does and the ``hint`` are said to another run that comes meanwhile. On a file system that has no locks it is
    better to run than to refuse.

    Raises:
        CaffeToolsError: another run holds it; names its process. RunFailed: the folder cannot be written to.
    """
    path = Path(f"{os.fspath(prefix)}.lock").absolute()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, required=False))
        except Busy as busy:
            who = f" (process {busy.holder[0]} on {busy.holder[1]})" if busy.holder else ""
            what = what or f"writing snapshots named {os.fspath(prefix)}_iter_…"
            raise CaffeToolsError(f"another run{who} is {what}; wait for it, stop it, or {hint}") from None
        except OSError as error:
            raise RunFailed(f"cannot write {path}: {error.strerror}; snapshots need a folder that can be written to") from None
        yield
