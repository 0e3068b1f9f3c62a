"""Atomic creation of folders, by one run at a time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from caffetools.errors import CaffeToolsError, Cancelled, DataError, WriteFailed
from caffetools.util.files import make_folder, sync_folder
from caffetools.util.locks import Busy, file_lock

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def new_folder(
    path: PathLike, *, force: bool = False, replaceable: Callable[[Path], bool] | None = None, resumable: bool = False, resume: bool = False
) -> Iterator[Path]:
    """Build a folder under a hidden name next to ``path``; on success it is renamed to ``path``, otherwise removed.

    A run that is killed leaves only the hidden ``.NAME.part`` and its lock file; the next run for the same ``path`` removes them.

    Args:
        path: The folder to create; missing parents are created.
        force: Replace an existing ``path`` once the new folder is complete.
        replaceable: With ``force``, decides whether the existing ``path`` may be replaced.
        resumable: Keep the hidden folder if the body is interrupted or cancelled, or something cannot be written (or, with ``resume``,
            fails), for a later run.
        resume: Continue in the hidden folder that an interrupted run left, if there is one.

    Yields:
        The hidden folder to write into; empty unless a run is resumed.

    Raises:
        DataError: ``path`` exists (and ``force`` is not given, or may not replace it), or another run is building it.
        WriteFailed: It cannot be written, or the disk is full; an existing ``path`` is unchanged.
    """
    target = Path(path) if Path(path).name not in ("", "..") else Path(path).resolve()
    _check_free(target, force, replaceable)
    with _report_as(target, _hidden(target, "part")), _parents(target), _locked(target):
        _restore(target)
        _check_free(target, force, replaceable)
        work = _hidden(target, "part")
        if not (resume and work.is_dir()):
            remove(work)
            work.mkdir()
        keep = False
        try:
            yield work
            _replace(work, target)
        except BaseException as error:
            keep = resumable and (resume or isinstance(error, (KeyboardInterrupt, Cancelled)))
            if resumable and isinstance(error, (OSError, WriteFailed)) and _holds_something(work):
                keep = True
                raise _resumable(error, target, work) from error
            raise
        finally:
            if not keep:
                remove(work)


def _holds_something(folder: Path) -> bool:
    return any(path.is_file() and path.stat().st_size for path in folder.rglob("*"))


def _resumable(error: OSError | WriteFailed, target: Path, work: Path) -> WriteFailed:
    """Return the error of a folder that cannot be written, with how to go on."""
    hint = f"nothing was changed there, and what is written so far is in {work}: once there is room, --resume continues"
    if isinstance(error, WriteFailed):
        return WriteFailed(error.path or target, error.message, hint=hint)
    return WriteFailed(target, error.strerror or _reason(error), hint=hint)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
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
        raise DataError("already exists", path=target, hint="give another name, or --force to replace it")
    if replaceable is not None and not replaceable(target):
        raise DataError("--force may not replace it: nothing in it shows that caffetools created it", path=target)


def _replace(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``. A kill in between leaves the old content as ``.NAME.old``, which the next run restores."""
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
def _parents(target: Path) -> Iterator[None]:
    """Create the folders above ``target``; those that were created are removed after an error, if nothing is in them."""
    made = make_folder(target.parent)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target``."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(target))
        except Busy as busy:
            owner = f" (process {busy.holder[0]})" if busy.holder else ""
            raise DataError(f"another run{owner} is writing it", path=target, hint="wait for it or stop it") from None
        yield


@contextlib.contextmanager
def _report_as(target: Path, work: Path) -> Iterator[None]:
    """Report errors of the body as errors of ``target``, not of the hidden folder ``work``."""
    try:
        yield
    except CaffeToolsError as error:
        inside = None if error.path is None else Path(error.path).absolute()
        if inside is None or not inside.is_relative_to(work.absolute()):
            raise
        raise error.located(target / inside.relative_to(work.absolute()), error.line, error.column) from error
    except OSError as error:
        raise WriteFailed(target, error.strerror or _reason(error)) from error


def _reason(error: OSError) -> str:
    """Return the system's text of an error of the HDF5 library, which gives its number among its own variables."""
    found = re.search(r"\berrno = (\d+)", str(error))
    return os.strerror(int(found[1])) if found else str(error)
