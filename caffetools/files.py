"""Writing files so that a reader finds either the old content or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from caffetools.errors import RunFailed


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success fsync it and rename it to ``path``, else remove it.

    Args:
        path: The final name; its folder is created when missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Raises:
        RunFailed: the folder cannot be written to, or the disk is full. ``path`` is then as it was before.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) atomically; see :func:`atomic_write`."""
    with atomic_write(path, "w") as stream:
        stream.write(text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
