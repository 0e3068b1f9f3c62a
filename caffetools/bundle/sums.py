"""SHA256SUMS, in the form that ``sha256sum -c`` checks."""

from __future__ import annotations

import re
from pathlib import Path

from caffetools.errors import DataError
from caffetools.util.checksums import file_sha256
from caffetools.util.files import write_text

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    write_text(folder / NAME, "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))


def check_sums(folder: Path) -> list[str]:
    """Compare the files with SHA256SUMS; files that it does not list, such as engines built later, are not looked at.

    Returns:
        The names of the files, all of them intact.

    Raises:
        DataError: SHA256SUMS is missing or damaged, or a file is missing or changed; names it.
    """
    listing = folder / NAME
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError("cannot read SHA256SUMS: this is not a bundle, or it is incomplete", path=folder) from None
    names = []
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is None or Path(found[2]).is_absolute() or ".." in Path(found[2]).parts:
            raise DataError("damaged: not a SHA-256 and a file's name", path=listing, line=number)
        path = folder / found[2]
        if not path.is_file():
            raise DataError("missing, though SHA256SUMS lists it", path=path, hint="copy the bundle again")
        if file_sha256(path) != found[1]:
            raise DataError("changed: its SHA-256 is not that of SHA256SUMS", path=path, hint="copy the bundle again")
        names.append(found[2])
    return names
