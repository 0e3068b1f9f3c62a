"""Recognize what a file is from its content, so that a reader can name a file of another kind and what to do with it.

One function, :func:`sniff`, serves every reader. Only the beginning of a file is read; protobuf messages are mapped and their top-level
fields walked.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

from caffetools.errors import CaffeToolsError
from caffetools.proto import wire

PathLike = str | os.PathLike[str]
E = TypeVar("E", bound=CaffeToolsError)

HEAD = 4096
# Top-level fields of a message that are walked at most; a mean file or net has far fewer, and damaged bytes may look like millions.
_MOST_FIELDS = 20_000


class Kind(Enum):
    """What a file is: how it is called in an error, and what to do when another kind is expected."""

    NET_TEXT = ("a net's prototxt", "")
    SOLVER_TEXT = ("a solver's prototxt", "")
    LABEL_MAP = ("a map of labels", "")
    CAFFEMODEL = ("a .caffemodel (weights)", "")
    SOLVER_STATE = ("a solver state", "the weights are in the .caffemodel of the same iteration")
    BLOB = ("a single blob, such as a mean file", "")
    ONNX = ("an ONNX model", "'caffetools import' makes a Caffe net of it")
    HDF5 = ("an HDF5 file", "names of HDF5 weights and solver states end in .h5")
    LFS_POINTER = ("a Git LFS pointer, not the file itself", "fetch the file with 'git lfs pull' or download it by its link")
    WEB_PAGE = ("a web page", "the download gave a page in place of the file; open the link in a browser")
    XML = ("XML or SVG", "")
    JSON = ("JSON", "")
    UTF16 = ("text in UTF-16", "save it as UTF-8")
    UTF32 = ("text in UTF-32", "save it as UTF-8")
    TORCH = ("a PyTorch checkpoint", "caffetools reads Caffe's weights; export the model to ONNX for other uses")
    PICKLE = ("a Python pickle", "it is not opened, since that could run code")
    ZIP = ("a zip archive", "unpack it first")
    NPZ = ("a NumPy archive (.npz)", "save the array alone, as .npy")
    GZIP = ("a gzip archive", "unpack it first")
    BZIP2 = ("a bzip2 archive", "unpack it first")
    XZ = ("an xz archive", "unpack it first")
    ZSTD = ("a zstd archive", "unpack it first")
    SEVEN_ZIP = ("a 7z archive", "unpack it first")
    RAR = ("a RAR archive", "unpack it first")
    TAR = ("a tar archive", "unpack it first")
    NPY = ("a NumPy array (.npy)", "")
    PNG = ("a PNG picture", "")
    JPEG = ("a JPEG picture", "")
    GIF = ("a GIF picture", "")
    BMP = ("a BMP picture", "")
    WEBP = ("a WebP picture", "")
    TIFF = ("a TIFF picture", "")
    PDF = ("a PDF", "")
    LMDB = ("the data file of an LMDB", "give the folder in which it is")
    HEIF = ("an HEIC or AVIF picture", "convert it to JPEG or PNG")
    VIDEO = ("a video", "save its pictures as files")
    MATLAB = ("a MATLAB file", "")
    SAFETENSORS = ("a safetensors file", "caffetools reads Caffe's weights; export the model to ONNX for other uses")
    TFLITE = ("a TensorFlow Lite model", "")
    SQLITE = ("an SQLite database", "")
    EXECUTABLE = ("a program or library", "")
    DARKNET = ("a Darknet configuration", "convert it to a Caffe prototxt first")
    NCNN = ("ncnn's description of a net", "give the Caffe files from which it was made")
    LOG = ("the log of a training run", "'caffetools curves' draws it")
    PYTHON = ("a Python script", "'caffetools run' runs it")
    TEXT = ("text", "")
    FOLDER = ("a folder", "")
    EMPTY = ("empty", "")

    @property
    def noun(self) -> str:
        """Return the kind with its article, for ``this is …``."""
        return str(self.value[0])

    @property
    def advice(self) -> str:
        """Return what to do with a file of this kind; empty where there is no advice."""
        return str(self.value[1])


class Finding(NamedTuple):
    """What a file is, with details for the error (the iteration of a solver state)."""

    kind: Kind
    detail: str = ""

    @property
    def noun(self) -> str:
        """Return the kind with its article and the detail."""
        return f"{self.kind.noun}{self.detail}"


_HDF5 = b"\x89HDF\r\n\x1a\n"
_BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (b"version https://git-lfs.github.com/spec/", Kind.LFS_POINTER),
    (b"\x89PNG\r\n\x1a\n", Kind.PNG),
    (b"\xff\xd8\xff", Kind.JPEG),
    (b"GIF8", Kind.GIF),
    (b"II*\0", Kind.TIFF),
    (b"MM\0*", Kind.TIFF),
    (b"%PDF-", Kind.PDF),
    (_HDF5, Kind.HDF5),
    (b"\x93NUMPY", Kind.NPY),
    (b"\x1f\x8b", Kind.GZIP),
    (b"BZh", Kind.BZIP2),
    (b"\xfd7zXZ\0", Kind.XZ),
    (b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    (b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
    (b"Rar!\x1a\x07", Kind.RAR),
    (b"MATLAB 5.0 MAT-file", Kind.MATLAB),
    (b"SQLite format 3\0", Kind.SQLITE),
    (b"\x7fELF", Kind.EXECUTABLE),
    (b"\xff\xfe\0\0", Kind.UTF32),
    (b"\0\0\xfe\xff", Kind.UTF32),
    (b"\xff\xfe", Kind.UTF16),
    (b"\xfe\xff", Kind.UTF16),
    (b"\x1aE\xdf\xa3", Kind.VIDEO),
)
# What stands further in; an HDF5 file may begin with bytes of its writer's own, of which MATLAB has 512.
_MARKS: tuple[tuple[int, bytes, Kind], ...] = (
    *((offset, _HDF5, Kind.HDF5) for offset in (512, 1024, 2048)),
    (257, b"ustar", Kind.TAR),
    (4, b"TFL3", Kind.TFLITE),
)
# The brands of ISO media files that are pictures; all others are taken for videos.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_RIFF = {b"WEBP": Kind.WEBP, b"AVI ": Kind.VIDEO}
_LONGEST_SAFETENSORS_HEADER = 100_000_000  # its format's limit


def sniff(path: PathLike) -> Finding | None:
    """Return what the file at ``path`` is, or None where it is not recognized or cannot be read."""
    place = Path(path)
    if place.is_dir():
        return Finding(Kind.FOLDER)
    try:
        with place.open("rb") as stream:
            head = stream.read(HEAD)
            size = os.fstat(stream.fileno()).st_size
            if not head:
                return Finding(Kind.EMPTY)
            found = sniff_bytes(head)
            if found is None and size:
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                    found = _message(view)
    except (OSError, ValueError):
        return None
    return found


def sniff_content(data: bytes) -> Finding | None:
    """Return what a file with the content ``data`` is, or None where it is not recognized."""
    return sniff_bytes(data[:HEAD]) or _message(memoryview(data))


def sniff_bytes(head: bytes) -> Finding | None:
    """Return what a file that begins with ``head`` is, as far as its first bytes show; messages are left to :func:`sniff`."""
    if not head:
        return Finding(Kind.EMPTY)
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return Finding(kind)
    if (container := _container(head)) is not None:
        return Finding(container)
    for offset, mark, kind in _MARKS:
        if head.startswith(mark, offset):
            return Finding(kind)
    if head[16:20] in (b"\xde\xc0\xef\xbe", b"\xbe\xef\xc0\xde"):
        return Finding(Kind.LMDB)
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Finding(Kind.PICKLE)
    if len(head) >= 8 and _is_utf16(head):
        return Finding(Kind.UTF16)
    return _text(head)


def _container(head: bytes) -> Kind | None:
    """Return the kind of a file whose first bytes name a container of several kinds, or hold a length; None for another."""
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return Kind.HEIF if head[8:12] in _HEIF_BRANDS else Kind.VIDEO
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LONGEST_SAFETENSORS_HEADER:
        return Kind.SAFETENSORS
    return Kind.BMP if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0" else None


def _is_utf16(head: bytes) -> bool:
    """Return whether the first bytes are ASCII text, each character with a zero byte before or after it."""
    sample = head[: min(len(head), 64) & ~1]
    printable = set(range(32, 127)) | {9, 10, 13}
    return any(all(a in printable and b == 0 for a, b in zip(x, y, strict=True)) for x, y in _halves(sample))


def _halves(sample: bytes) -> tuple[tuple[bytes, bytes], ...]:
    even, odd = sample[::2], sample[1::2]
    return (even, odd), (odd, even)


def _zip_kind(head: bytes) -> Kind:
    """Of a zip archive: a torch checkpoint's first entries are ``*/data.pkl`` or ``*/byteorder``, NumPy's end in ``.npy``."""
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length]
    if name.endswith((b"/data.pkl", b"/byteorder", b"/.format_version")):
        return Kind.TORCH
    return Kind.NPZ if name.endswith(b".npy") else Kind.ZIP


_NET_WORD = re.compile(rb"^\s*(layers?|input|input_dim|input_shape)\s*[:{]", re.MULTILINE)
_SOLVER_WORD = re.compile(
    rb"^\s*(net|train_net|test_net|base_lr|lr_policy|max_iter|snapshot_prefix|solver_mode|test_iter)\s*:", re.MULTILINE
)
# A line of glog, with which a log of Caffe begins.
_LOG_LINE = re.compile(rb"(Log file created at: |[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.+-]+:\d+\] )")
_PYTHON_WORD = re.compile(rb"^(#!.*python|import \w+|from [\w.]+ import |def \w+\()", re.MULTILINE)


def _text(head: bytes) -> Finding | None:
    if any(byte < 32 and byte not in b"\t\n\r\f\v\x1b" for byte in head):
        return None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = start[:200].lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Finding(Kind.WEB_PAGE)
    if lower.startswith((b"<?xml", b"<svg")):
        return Finding(Kind.XML)
    if lower.startswith((b"[net]", b"[convolutional]")):
        return Finding(Kind.DARKNET)
    if start.startswith(b"7767517"):
        return Finding(Kind.NCNN)
    if re.match(rb"[{\[]\s*[\"{\[\]}]", start):
        return Finding(Kind.JSON)
    if re.match(rb"item\s*\{", start):
        return Finding(Kind.LABEL_MAP)
    if _LOG_LINE.match(start):
        return Finding(Kind.LOG)
    if _PYTHON_WORD.search(start):
        return Finding(Kind.PYTHON)
    if _NET_WORD.search(start):
        return Finding(Kind.NET_TEXT)
    if _SOLVER_WORD.search(start):
        return Finding(Kind.SOLVER_TEXT)
    return Finding(Kind.TEXT)


def _message(view: memoryview) -> Finding | None:
    """Of a serialized message: by the numbers and encodings of its top-level fields."""
    seen: set[tuple[int, int]] = set()
    iteration = 0
    try:
        for index, field in enumerate(wire.walk(view)):
            seen.add((field.number, field.kind))
            if (field.number, field.kind) == (1, wire.VARINT):
                iteration = wire.read_varint(view, field.value, field.end)[0]
            if index >= _MOST_FIELDS:
                break
    except wire.WireError:
        return None
    if (100, wire.BYTES) in seen or ({(1, wire.BYTES), (2, wire.BYTES)} <= seen):
        return Finding(Kind.CAFFEMODEL)
    if (1, wire.VARINT) in seen and seen & {(7, wire.BYTES), (8, wire.BYTES)} and (5, wire.BYTES) not in seen:
        return Finding(Kind.ONNX)
    if (1, wire.VARINT) in seen and seen & {(2, wire.BYTES), (3, wire.BYTES)} and seen <= _STATE_FIELDS:
        return Finding(Kind.SOLVER_STATE, f" (iteration {iteration})")
    if seen & {(5, wire.BYTES), (8, wire.BYTES), (5, wire.FIXED32)} and seen <= _BLOB_FIELDS:
        return Finding(Kind.BLOB)
    return None


_STATE_FIELDS = {(1, wire.VARINT), (2, wire.BYTES), (3, wire.BYTES), (4, wire.VARINT)}
_BLOB_FIELDS = {
    *((number, wire.VARINT) for number in (1, 2, 3, 4, 10, 11)),
    *((number, wire.BYTES) for number in (5, 6, 7, 8, 9, 12, 13)),
    (5, wire.FIXED32),
}


def wrong_kind(error: type[E], path: PathLike, expected: str, *, allowed: tuple[Kind, ...] = ()) -> E | None:
    """Return an error that names what the file at ``path`` is, where that is recognized and not one of ``allowed``; else None.

    Args:
        error: The class of the error.
        path: The file.
        expected: What was expected, with its article: ``"a .caffemodel"``.
        allowed: Kinds that are no fault of their own: the file is damaged then, not of another kind.
    """
    found = sniff(path)
    if found is None or found.kind in allowed:
        return None
    if found.kind is Kind.EMPTY:
        return error("the file is empty", path=path)
    return error(f"this is {found.noun}, and {expected} is expected", path=path, hint=found.kind.advice or None)


def advice_for_folder(path: PathLike, *endings: str) -> str | None:
    """Return what to give in place of the folder at ``path``: a file in it with one of ``endings``; None for any other place."""
    if not Path(path).is_dir():
        return None
    if (Path(path) / "data.mdb").is_file():
        return "this folder is an LMDB"
    if (Path(path) / "CURRENT").is_file():
        return "this folder is a LevelDB"
    found = sorted(child.name for child in Path(path).iterdir() if child.name.endswith(endings))
    return f"give a file in it, such as {os.path.join(path, found[0])}" if found else "give a file"  # noqa: PTH118 (as it was written)


@contextmanager
def guard(error: type[CaffeToolsError], path: PathLike, expected: str, *, allowed: tuple[Kind, ...] = ()) -> Iterator[None]:
    """Turn any exception of a third-party reader into one ``error`` that names the file and what it is.

    Errors of caffetools, :class:`MemoryError` and :class:`KeyboardInterrupt` pass.

    Args:
        error: The class to raise.
        path: The file that is read in the ``with`` block.
        expected: What was expected, with its article.
        allowed: Kinds that the reader is for.

    Raises:
        CaffeToolsError: Of class ``error``.
    """
    try:
        yield
    except (CaffeToolsError, MemoryError):
        raise
    except FileNotFoundError as failure:
        # The system's words: HDF5 puts a paragraph of its own there.
        raise error(f"cannot read: {os.strerror(failure.errno or errno.ENOENT)}", path=path) from None
    except Exception as failure:
        if isinstance(failure, OSError) and failure.errno is not None and not os.access(path, os.R_OK):
            raise error(f"cannot read: {os.strerror(failure.errno)}", path=path) from None
        if (other := wrong_kind(error, path, expected, allowed=allowed)) is not None:
            raise other from None
        reason = one_line(f"{failure}") or type(failure).__name__
        raise error(f"damaged or not {expected}: {reason}", path=path, hint="fetch or copy the file again") from None


def one_line(text: str, longest: int = 200) -> str:
    """Return ``text`` on one line of printable characters, shortened."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
