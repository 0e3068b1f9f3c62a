"""Writing files so that a reader finds either the old content or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from caffetools.errors import RunFailed


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success fsync it and rename it to ``path``, else remove it.

    A device or a pipe (``/dev/stdout``) is written to as it is, and a link stays a link to the new file.

    Args:
        path: The final name; its folder is created when missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Raises:
        RunFailed: the folder cannot be written to, or the disk is full. ``path`` is then as it was before.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        with _as_it_is(target, mode) as stream:
            yield stream
        return
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    temporary: str | None = None
    made: list[Path] = []
    try:
        made = make_folder(target.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        # mkstemp makes private files; what a person writes should get the usual rights.
        Path(temporary).chmod(0o666 & ~_umask())
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(target)
        temporary = None
    except OSError as error:
        raise RunFailed(f"cannot write {target}: {error.strerror or error}; nothing was changed there") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) atomically; see :func:`atomic_write`."""
    with atomic_write(path, "w") as stream:
        stream.write(text)


@contextlib.contextmanager
def _as_it_is(target: Path, mode: str) -> Iterator[IO[Any]]:
    try:
        with target.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
    except OSError as error:
        raise RunFailed(f"cannot write {target}: {error.strerror or error}; nothing was changed there") from error


def make_folder(folder: Path) -> list[Path]:
    """Create ``folder`` and those above it, where they are missing, and return the new ones, the innermost first.

    Raises ``OSError`` that says which of them is a file.
    """
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next((place for place in (folder, *folder.parents) if place.is_file()), folder)
        raise NotADirectoryError(errno.ENOTDIR, f"{blocking} is a file, not a folder") from None
    return missing


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk: a rename survives a power cut only then. File systems that refuse need it not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
