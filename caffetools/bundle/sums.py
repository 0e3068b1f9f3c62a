"""SHA256SUMS, in the form that ``sha256sum -c`` checks."""

from __future__ import annotations

from pathlib import Path

from caffetools.bundle.standalone_check import SUMS
from caffetools.util.checksums import file_sha256
from caffetools.util.files import write_text


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))
