"""Folders that appear whole or not at all, and are built by one run at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from caffetools.errors import DataError, RunFailed
from caffetools.util.files import make_folder, sync_folder
from caffetools.util.locks import Busy, file_lock

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def new_folder(path: PathLike, *, force: bool = False, replaceable: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Build a folder under a hidden name beside ``path``; on success it is renamed to ``path``, else removed.

    A run that is killed leaves only the hidden ``.NAME.part`` and ``.NAME.lock``; the next run for the same ``path`` removes them.

    Args:
        path: The folder to make; the folders above it are created when missing.
        force: Replace what is at ``path``, once the new folder is complete.
        replaceable: With ``force``, whether the folder at ``path`` may be replaced; one that is something else is left alone.

    Yields:
        The hidden folder to write into, empty.

    Raises:
        DataError: ``path`` exists (and ``force`` is not given, or may not replace it), or another run is building it.
        RunFailed: it cannot be written, or the disk is full; what was at ``path`` is still there.
    """
    target = Path(path) if Path(path).name not in ("", "..") else Path(path).resolve()
    _check_free(target, force, replaceable)
    with _explained(target, _hidden(target, "part")):
        make_folder(target.parent)
        with _locked(target):
            _restore(target)
            _check_free(target, force, replaceable)
            work = _hidden(target, "part")
            remove(work)
            work.mkdir()
            try:
                yield work
                _replace(work, target)
            finally:
                remove(work)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _hidden(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}"


def _check_free(target: Path, force: bool, replaceable: Callable[[Path], bool] | None) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise DataError(f"{target} already exists; give another name, remove it, or replace it with --force")
    if replaceable is not None and not replaceable(target):
        raise DataError(f"{target} is not something that --force may replace: nothing in it says that caffetools made it")


def _replace(work: Path, target: Path) -> None:
    """Put ``work`` at ``target``. A kill in between leaves the old content as ``.NAME.old``, which the next run puts back."""
    old = _hidden(target, "old")
    if os.path.lexists(target):
        remove(old)
        target.rename(old)
    work.rename(target)
    sync_folder(target.parent)
    remove(old)


def _restore(target: Path) -> None:
    old = _hidden(target, "old")
    if os.path.lexists(old):
        if os.path.lexists(target):
            remove(old)
        else:
            old.rename(target)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target``."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(_hidden(target, "lock")))
        except Busy as busy:
            owner = f" (process {busy.holder[0]})" if busy.holder else ""
            raise DataError(f"another run{owner} is writing {target}; wait for it or stop it") from None
        yield


@contextlib.contextmanager
def _explained(target: Path, work: Path) -> Iterator[None]:
    """Say OS errors of the body of ``target``, not of the hidden folder."""
    try:
        yield
    except RunFailed as error:
        raise RunFailed(str(error).replace(str(work), str(target))) from error
    except OSError as error:
        raise RunFailed(f"cannot write {target}: {error.strerror or error}; nothing was changed there") from error
