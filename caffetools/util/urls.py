"""Sources and outputs that are URLs (``s3://``, ``gs://``, ``hf://``, ``memory://``, ``file://``), through fsspec.

A plain path is never treated as a URL. Which kinds of URL work depends on the packages that are installed (``s3fs`` for ``s3://``,
``gcsfs`` for ``gs://``, ``huggingface_hub`` for ``hf://``).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from caffetools.errors import DataError, WriteFailed

PathLike = str | os.PathLike[str]
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_url(path: PathLike) -> bool:
    """Return whether ``path`` begins with a scheme such as ``s3://``."""
    return _SCHEME.match(os.fspath(path)) is not None


def join(base: PathLike, name: str) -> str:
    """Return the path or URL of ``name`` in the folder ``base``."""
    text = os.fspath(base)
    return f"{text.rstrip('/')}/{name}" if is_url(text) else str(Path(text) / name)


def exists(path: PathLike) -> bool:
    """Return whether a file or folder is at ``path``, a path or URL."""
    if not is_url(path):
        return os.path.lexists(path)
    with _readable(path) as (system, inner):
        return bool(system.exists(inner))


def is_folder(path: PathLike) -> bool:
    """Return whether ``path``, a path or URL, is a folder."""
    if not is_url(path):
        return Path(path).is_dir()
    with _readable(path) as (system, inner):
        return bool(system.isdir(inner))


def list_files(folder: PathLike) -> list[str]:
    """Return the files below ``folder``, a path or URL, as sorted paths relative to it, with ``/``; hidden ones are left out.

    Raises:
        DataError: The folder does not exist or cannot be read.
    """
    if not is_url(folder):
        return _local_files(Path(folder))
    with _readable(folder) as (system, inner):
        if not system.isdir(inner):
            raise DataError("this folder does not exist", path=folder)
        root = str(system._strip_protocol(inner)).rstrip("/") + "/"
        names = [str(name)[len(root) :] for name in system.find(inner)]
    return sorted(name for name in names if not _hidden(name))


def open_binary(path: PathLike) -> IO[bytes]:
    """Open the file at ``path``, a path or URL, for reading.

    Raises:
        DataError: It does not exist or cannot be read.
    """
    if not is_url(path):
        try:
            return Path(path).open("rb")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    with _readable(path) as (system, inner):
        stream: IO[bytes] = system.open(inner, "rb")
        return stream


def read_bytes(path: PathLike) -> bytes:
    """Return the bytes of the file at ``path``, a path or URL. Raises :class:`DataError` if it cannot be read."""
    with open_binary(path) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path=path) from None


@contextlib.contextmanager
def local_copy(path: PathLike) -> Iterator[Path]:
    """Yield a local path with the content of ``path``: itself, or a temporary download of the file or folder at a URL.

    Raises:
        DataError: The URL does not exist or cannot be read.
    """
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="caffetools-") as folder:
        target = Path(folder) / (os.fspath(path).rstrip("/").rpartition("/")[2] or "copy")
        download(path, target)
        yield target


def download(url: PathLike, target: Path) -> None:
    """Copy the file or folder at ``url`` to the local path ``target``. Raises :class:`DataError` if it cannot be read."""
    with _readable(url) as (system, inner):
        if system.isdir(inner):
            for name in list_files(url):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                system.get_file(f"{inner.rstrip('/')}/{name}", str(target / name))
        else:
            system.get_file(inner, str(target))


@contextlib.contextmanager
def local_output(path: PathLike, *, force: bool = False) -> Iterator[Path]:
    """Yield a local path to write a file or folder to; for a URL it is uploaded when the block ends without an error.

    Args:
        path: The output, a path or URL.
        force: Replace what is at the URL. (For a path, the writer decides.)

    Raises:
        DataError: Something is at the URL and ``force`` is not given.
        WriteFailed: It cannot be uploaded.
    """
    if not is_url(path):
        yield Path(path)
        return
    if not force and exists(path):
        raise DataError("already exists", path=path, hint="give another name, or --force to replace it")
    with tempfile.TemporaryDirectory(prefix="caffetools-") as folder:
        target = Path(folder) / (os.fspath(path).rstrip("/").rpartition("/")[2] or "output")
        yield target
        upload(target, path)


def upload(source: Path, url: PathLike) -> None:
    """Copy a local file or folder to ``url``: under another name first, then moved, where the file system can move.

    Raises:
        WriteFailed: It cannot be written; what was at ``url`` is unchanged unless the move itself failed.
    """
    system, inner = _system(url)
    try:
        part = f"{inner.rstrip('/')}.{secrets.token_hex(4)}.part"
        if source.is_dir():
            for name in _local_files(source, hidden=True):
                system.makedirs(f"{part}/{name}".rpartition("/")[0], exist_ok=True)
                system.put_file(str(source / name), f"{part}/{name}")
        else:
            system.makedirs(inner.rpartition("/")[0], exist_ok=True)
            system.put_file(str(source), part)
        if system.exists(inner):
            system.rm(inner, recursive=True)
        system.mv(part, inner, recursive=source.is_dir())
    except (OSError, ValueError, NotImplementedError) as error:
        raise WriteFailed(url, error, hint=None) from error


def _system(url: PathLike) -> tuple[Any, str]:
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(os.fspath(url))
    except (ImportError, ValueError) as error:
        raise DataError(f"this kind of URL cannot be opened: {error}", path=url) from None
    return system, str(inner)


@contextlib.contextmanager
def _readable(url: PathLike) -> Iterator[tuple[Any, str]]:
    system, inner = _system(url)
    try:
        yield system, inner
    except FileNotFoundError:
        raise DataError("does not exist", path=url) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", path=url) from None


def _local_files(folder: Path, *, hidden: bool = False) -> list[str]:
    if not folder.is_dir():
        hint = "unpack it first" if folder.suffix.lower() in _ARCHIVES and folder.is_file() else None
        raise DataError("this folder does not exist" if not folder.exists() else "this is not a folder", path=folder, hint=hint)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if hidden or not _hidden(name))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
