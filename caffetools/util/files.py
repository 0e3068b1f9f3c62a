"""Atomic writing of files: a reader finds the old content or the complete new one, never a part."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from caffetools.errors import CaffeToolsError, WriteFailed

# Characters of a file's name that its temporary file takes over; with what is added, even wide ones keep below the usual 255 bytes.
_LONGEST_NAME = 50
# Flag of the Linux call sync_file_range: write dirty pages, without waiting for them.
_SYNC_FILE_RANGE_WRITE = 2


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file in the folder of ``path``; on success fsync it and rename it to ``path``, otherwise remove it.

    A device or a pipe (``/dev/stdout``) is written to directly. A symbolic link is kept, and the file that it leads to is replaced.

    Args:
        path: The final name; its folder is created when missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Raises:
        WriteFailed: The folder cannot be written to, or the disk is full; ``path`` is unchanged.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        with _open_directly(target, mode) as stream:
            yield stream
        return
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    temporary: Path | None = None
    made: list[Path] = []
    try:
        made = make_folder(target.parent)
        # Not tempfile.mkstemp, whose files are private: the usual permissions apply here, and the umask cannot be read without setting it.
        name = target.parent / f".{target.name[:_LONGEST_NAME]}.{secrets.token_hex(4)}.part"
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        temporary = name
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
        temporary = None
    except OSError as error:
        raise WriteFailed(target, error.strerror or error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
            remove_empty(made)


def unfinished(path: str | os.PathLike[str]) -> list[Path]:
    """Return what killed processes left of ``path`` in its folder, half written by :func:`atomic_write`; another may be writing one."""
    target = Path(path)
    begin = f".{target.name[:_LONGEST_NAME]}."
    return [
        each
        for each in target.parent.glob(".*.part")
        if each.name.startswith(begin) and len(each.name) == len(begin) + len("01234567.part")
    ]


@contextlib.contextmanager
def atomic_files() -> Iterator[Callable[[str | os.PathLike[str], bytes | Callable[[IO[bytes]], object]], None]]:
    """Yield a function that writes a file, whose files get their names together when the block ends; none does after an error.

    The function takes the path and the content, or what writes it to a binary stream; it raises :class:`WriteFailed` as
    :func:`atomic_write` does.
    """
    with contextlib.ExitStack() as stack:

        def write(path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], object]) -> None:
            stream = stack.enter_context(atomic_write(path))
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()  # a full disk is known before the first file gets its name

        yield write


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) atomically; see :func:`atomic_write`."""
    with atomic_write(path, "w") as stream:
        stream.write(text)


def text_lines(text: str) -> list[str]:
    """Return the lines of a text. They end at line breaks alone, unlike those of :meth:`str.splitlines`: names may hold U+2028, say."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def fingerprint_of_file(path: str | os.PathLike[str]) -> str:
    """Return the size and the time of the last change of a file; empty if it does not exist."""
    with contextlib.suppress(OSError):
        facts = Path(path).stat()
        return f"{facts.st_size} {facts.st_mtime_ns}"
    return ""


def check_not_read(path: str | os.PathLike[str], inputs: Iterable[object]) -> None:
    """Raise :class:`CaffeToolsError` where writing ``path`` would replace a file that the same run reads.

    Args:
        path: The file to write.
        inputs: What is read: paths; other values are left out.
    """
    target = Path(path).resolve()
    if target.is_file() and any(isinstance(read, str | os.PathLike) and Path(read).resolve() == target for read in inputs):
        raise CaffeToolsError("is read here, so it cannot be written", path=path, hint="give another name")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise :class:`WriteFailed` where a file or folder cannot be written because of the place: for a command that works long before it writes.

    Args:
        path: What is to be written; folders on the way to it need not exist.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        return  # a device or a pipe
    folder = next(place for place in (target, *target.parents) if place.exists() and (place != target or place.is_dir()))
    if not folder.is_dir():
        raise WriteFailed(path, f"{folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        raise WriteFailed(path, os.strerror(errno.EROFS if read_only else errno.EACCES))


class EarlyFlush:
    """Let the system begin to write a growing file to the disk, so that a final fsync has little left to wait for. Linux; no-op elsewhere.

    Args:
        path: An existing file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)) if _sync_file_range() else -1

    def start(self) -> None:
        """Begin to write what is not on the disk yet. Errors are left to the fsync at the end."""
        function = _sync_file_range()
        if function is not None and self._descriptor >= 0:
            function(self._descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast("Callable[[int, int, int, int], int] | None", function)


@contextlib.contextmanager
def _open_directly(target: Path, mode: str) -> Iterator[IO[Any]]:
    try:
        with target.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
    except OSError as error:
        raise WriteFailed(target, error.strerror or error) from error


def make_folder(folder: Path) -> list[Path]:
    """Create ``folder`` and its parents where they are missing, and return the created ones, innermost first.

    Raises:
        OSError: They cannot be created; the message names a file that is in the way.
    """
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next((place for place in (folder, *folder.parents) if place.is_file()), folder)
        raise NotADirectoryError(errno.ENOTDIR, f"{blocking} is a file, not a folder") from None
    return missing


def allocate(path: Path) -> None:
    """Give an existing file the blocks for all of its bytes, so that a full disk is known before they are written through a mapping.

    There the system ends the process (SIGBUS), which no error can report. Where it cannot allocate, nothing happens.

    Raises:
        OSError: The disk is full.
    """
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None or not path.stat().st_size:
        return
    with path.open("rb+") as stream:
        try:
            reserve(stream.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV, errno.ENOSYS):
                raise


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first as :func:`make_folder` returns them, up to the first that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut; ignored where a file system does not support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
