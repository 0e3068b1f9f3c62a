"""Pictures from a zip or tar: paths are checked and sizes bounded before anything is used."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from caffetools.data.datasets.card import Skipped
from caffetools.data.datasets.listing import Listing, is_picture, list_pictures
from caffetools.errors import CaffeToolsError, DataError
from caffetools.util.folders import remove
from caffetools.util.tars import StrictTarInfo

PathLike = str | os.PathLike[str]
# What an archive may unpack to, in bytes, unless the caller allows more, and pictures in it at most.
MOST_BYTES, _MOST_FILES = 64 << 30, 20_000_000
_CHUNK = 1 << 20
# Links that are followed one after the other, and bytes of the path in one.
_MOST_LINKS, _LONGEST_LINK = 40, 4096
# Why a member is skipped.
_SPECIAL = "it is not a regular file but a pipe or device"
_ENDINGS = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
# Name, unpacked size as stated, and the opened file.
_Member = tuple[str, int, IO[bytes]]


def is_archive(path: PathLike) -> bool:
    """Return whether ``path`` is a file with the name or the beginning of a zip or a tar (maybe compressed with gzip, bzip2 or xz)."""
    file = Path(path)
    if not file.is_file():
        return False
    if file.name.lower().endswith(_ENDINGS):
        return True
    try:
        return zipfile.is_zipfile(file) or tarfile.is_tarfile(file)
    except Exception:  # damaged ones raise errors of many types; without an archive's ending it may be anything
        return False


def list_archive(path: PathLike, folder: Path, *, most_bytes: int = MOST_BYTES, fewest: int = 2) -> Listing:
    """Unpack the pictures of an archive into ``folder`` and list them.

    Only files with the names of pictures are unpacked. Links to files are followed inside of the archive; other links, pipes and devices
    are listed as skipped. Folders that hold nothing but one other folder are left out of the paths.

    Args:
        path: A zip, or a tar, maybe compressed.
        folder: Folder to make for the pictures.
        most_bytes: Largest total size of the pictures, in bytes.
        fewest: Number of classes that are needed.

    Raises:
        DataError: It is damaged or encrypted, a path in it leads out of the folder, it unpacks to more than ``most_bytes`` or than the
            disk has room for, or its folders are not a dataset (see :func:`~caffetools.data.datasets.listing.list_pictures`).
    """
    archive = Path(path)
    remove(folder)
    folder.mkdir()
    room = min(most_bytes, shutil.disk_usage(folder).free)
    skipped: list[Skipped] = []
    members = _members(archive, skipped)
    while True:
        with _reading(archive):
            member = next(members, None)
        if member is None:
            break
        name, size, stream = member
        with stream:
            if size > room:
                raise _too_large(archive, most_bytes)
            room -= _unpack(stream, _target(archive, folder, name), room, archive, most_bytes)
    root = _inner(folder)
    try:
        listing = list_pictures(root, fewest=fewest)
    except DataError as error:
        raise DataError(f"the archive holds no dataset: {error}".replace(str(root), archive.name), path=archive) from None
    listing.source, listing.home = archive, archive
    listing.skipped += skipped
    return listing


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn any error of the readers of zip and tar into one that names the archive; damaged ones raise errors of many types."""
    try:
        yield
    except (CaffeToolsError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise DataError(f"the archive is damaged or encrypted: {reason}", path=archive) from None


def _members(archive: Path, skipped: list[Skipped]) -> Iterator[_Member]:
    members = (_zip_members if zipfile.is_zipfile(archive) else _tar_members)(archive, skipped)
    for number, member in enumerate(members):
        if number >= _MOST_FILES:
            raise DataError(f"it holds more than {_MOST_FILES} pictures", path=archive)
        yield member


def _zip_members(archive: Path, skipped: list[Skipped]) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        encoding = _zip_encoding(opened.infolist())
        for info in opened.infolist():
            if info.is_dir() or not _wanted(info.filename):
                continue
            name = _zip_name(info, encoding)
            target, shown = _zip_target(opened, info)
            if target is not None:
                yield name, target.file_size, opened.open(target)
            else:
                skipped.append(Skipped(name, _not_inside(shown) if shown else _SPECIAL))
        links = [info for info in opened.infolist() if stat.S_ISLNK(info.external_attr >> 16) and info.file_size <= _LONGEST_LINK]
        found = {_zip_name(info, encoding): opened.read(info).decode("utf-8", "replace") for info in links}
        skipped += _folder_links(found, opened.namelist())


def _zip_target(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[zipfile.ZipInfo | None, str]:
    """Return the regular file that a member is or leads to by links inside of the zip, None without one; and where a first link leads."""
    shown = ""
    for _ in range(_MOST_LINKS):
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind in (0, stat.S_IFREG):
            return (None if info.is_dir() else info), shown
        if kind != stat.S_IFLNK or info.file_size > _LONGEST_LINK:
            break
        with opened.open(info) as stream:
            link = stream.read(_LONGEST_LINK).decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
        shown = shown or link
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(info.filename), link))
        try:
            info = opened.getinfo(inside)
        except KeyError:
            break
    return None, shown


def _not_inside(link: str) -> str:
    return f"it is a link to '{link}', which is not a file in the archive"


def _tar_members(archive: Path, skipped: list[Skipped]) -> Iterator[_Member]:
    links: dict[str, str] = {}
    with tarfile.open(archive, tarinfo=StrictTarInfo) as opened:
        for info in opened:
            if info.issym():
                links[info.name] = info.linkname
            if info.isdir() or not _wanted(info.name):
                continue
            stream, reason = None, _SPECIAL
            if info.isreg():
                stream = opened.extractfile(info)
            elif info.islnk() or info.issym():
                reason = _not_inside(info.linkname)
                # Links that lead out of the archive, to nothing, or to each other.
                with suppress(KeyError, RecursionError):
                    stream = opened.extractfile(info)
            if stream is None:
                skipped.append(Skipped(info.name, reason))
            else:
                yield info.name, info.size, stream
        skipped += _folder_links(links, opened.getnames())


def _folder_links(links: dict[str, str], names: list[str]) -> list[Skipped]:
    """Return the links in an archive that lead to folders or out of it: they are not followed, as each picture is unpacked once.

    Args:
        links: Name of a link → where it leads; those with the names of pictures are left out.
        names: The names in the archive.
    """
    links = {name: link for name, link in links.items() if not is_picture(name) and not PurePosixPath(name).name.startswith(".")}
    if not links:
        return []
    folders = {folder for name in names if _wanted(name) for folder in map(str, PurePosixPath(name).parents)}
    found = []
    for name, link in links.items():
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
        if target in folders:
            found.append(Skipped(name, f"it is a link to the folder '{link}'; links to folders in archives are not followed"))
        elif target not in names:
            found.append(Skipped(name, _not_inside(link)))
    return found


def _zip_encoding(members: list[zipfile.ZipInfo]) -> str:
    """Return the encoding of names that are not marked as UTF-8: UTF-8 if all are valid, else GBK if they then are Chinese, else CP437."""
    names = [info.filename.encode("cp437") for info in members if not info.flag_bits & 0x800 and not info.filename.isascii()]
    with suppress(UnicodeDecodeError):
        b"".join(names).decode()
        return "utf-8"
    with suppress(UnicodeDecodeError):
        if all(letter.isascii() or "\u4e00" <= letter <= "\u9fff" for name in names for letter in name.decode("gbk")):
            return "gbk"
    return "cp437"


def _zip_name(info: zipfile.ZipInfo, encoding: str) -> str:
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    return info.filename.encode("cp437").decode(encoding)


def _wanted(name: str) -> bool:
    return is_picture(name) and not PurePosixPath(name).name.startswith(".")


def _target(archive: Path, folder: Path, name: str) -> Path:
    """Return where to write the member ``name``. Raises :class:`DataError` if that is not in ``folder``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0].startswith("/") or ":" in parts[0] or "\0" in name:
        raise DataError(f"its file '{name}' leads out of the archive's folder; the archive is not used", path=archive)
    target = folder.joinpath(*parts)
    if target.exists():
        raise DataError(f"it holds '{name}' twice (on this system)", path=archive)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _unpack(stream: IO[bytes], target: Path, room: int, archive: Path, most_bytes: int) -> int:
    """Copy ``stream`` to ``target`` and return its size; the sizes that archives state need not be true."""
    written = 0
    with target.open("wb") as file:
        while True:
            with _reading(archive):
                chunk = stream.read(_CHUNK)
            if not chunk:
                break
            written += len(chunk)
            if written > room:
                raise _too_large(archive, most_bytes)
            file.write(chunk)
    return written


def _too_large(archive: Path, most_bytes: int) -> DataError:
    limit = f"its pictures unpack to more than {most_bytes:,} bytes, or than the disk has room for"
    return DataError(limit, path=archive, hint="unpack it by hand and give the folder")


def _inner(folder: Path) -> Path:
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir() or not any(entry.is_dir() for entry in entries[0].iterdir()):
            return folder
        folder = entries[0]
