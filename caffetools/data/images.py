"""Reading pictures as Caffe's tools do, through OpenCV: 8 bits, BGR, and one clear error for each that cannot be used."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.picture_sizes import JPEG, stated_size
from caffetools.data.png import PNG, is_damaged, png_ends, without_unread_chunks
from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, sniff_content
from caffetools.util.native_messages import native_messages
from caffetools.util.process_settings import native_errors_dropped, shared_setting
from caffetools.util.standard_input import open_input

_log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
Pixels = NDArray[np.uint8]

# The name endings of the formats that OpenCV reads.
SUFFIXES = frozenset(
    f".{kind}"
    for kind in re.split(r"\s", "jpg jpeg jpe jfif png bmp dib tif tiff webp gif pgm ppm pbm pnm pxm jp2 j2k avif sr ras hdr pic")
)

# Pixels of a picture at most, unless the user sets OpenCV's own variable to another number.
MOST_PIXELS, _PIXELS_VARIABLE = 1 << 28, "OPENCV_IO_MAX_IMAGE_PIXELS"
# Pictures of fewer pixels are decoded by any number of threads at a time.
_LARGE = 1 << 24
# End marks that fill the longest segment of a JPEG: what libjpeg reads after the end of a file, again and again.
_END_MARKS = b"\xff\xd9" * (1 << 15)
# By what a JPEG's sides are divided → the bit of cv2.IMREAD_REDUCED_….
_REDUCED = {1: 0, 2: 16, 4: 32, 8: 64}
# How the messages begin with which libjpeg reports damaged data. Its others are of unusual files that it reads well.
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file")
_MOST_NOTES = 100

# In the compressed part of a JPEG, 0xFF stands before 0x00 or a restart mark (or a fill byte); anything else ends the part.
_JPEG_MARK = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")

# Files in place of pictures for which something can be done.
_WITH_ADVICE = (Kind.LFS_POINTER, Kind.WEB_PAGE, Kind.HEIF, Kind.VIDEO)


def read_image(
    path: PathLike, *, color: bool = True, size: tuple[int, int] | None = None, on_truncated: Callable[[DataError], None] | None = None
) -> Pixels:
    """Read the picture at ``path`` as convert_imageset and the ImageData layer do (cv::imread, then cv::resize).

    Gray pictures get three equal channels if ``color`` is set, transparency is dropped, 16 bits become 8, the orientation
    in the EXIF data is applied, CMYK is converted: all as OpenCV does.

    Args:
        path: The file.
        color: Three channels in BGR order; False gives one gray channel.
        size: (width, height) to resize to; None keeps the picture's own.
        on_truncated: See :func:`decode_image`.

    Returns:
        uint8 (H, W, 3), or (H, W) for gray.

    Raises:
        DataError: the file is missing, empty, truncated or not a picture; names the file.
    """
    data = read_bytes(path)
    with pixel_budget(data):
        image = decode_image(data, color=color, what=os.fspath(path), on_truncated=on_truncated)
        return image if size is None else resize(image, size)


def read_bytes(path: PathLike) -> bytes:
    """Return the bytes of a picture's file. Raises :class:`DataError` if it is missing, unreadable, empty or no regular file."""
    name = os.fspath(path)
    try:
        # A pipe in a folder of pictures would be waited for without end. Those that a shell opens for the command are read.
        kind = _special_kind(Path(path)) if name != "-" else ""
        if kind and not name.startswith(("/dev/fd/", "/dev/stdin")):
            raise DataError(f"{name}: it is not a regular file but a {kind}; it is not read")
        with open_input(path) as file:
            data = file.read()
    except OSError as error:
        broken = " (it is a broken link)" if isinstance(error, FileNotFoundError) and Path(path).is_symlink() else ""
        raise DataError(f"{name}: cannot read the picture: {error.strerror}{broken}") from None
    if not data:
        raise DataError(f"{os.fspath(path)}: the picture's file is empty (0 bytes)")
    return data


def decode_image(
    data: bytes,
    *,
    color: bool | None = True,
    what: str = "the picture",
    any_depth: bool = False,
    divisor: int = 1,
    on_truncated: Callable[[DataError], None] | None = None,
    on_damaged: Callable[[DataError], None] | None = None,
) -> Pixels:
    """Decode the bytes of a picture's file (cv::imdecode).

    Args:
        data: The file's bytes.
        color: True for BGR, False for gray, None for what is stored (gray stays gray, transparency is a fourth channel and the EXIF
            orientation is not applied), as Caffe decodes a Datum if nothing is forced.
        what: The name to use in errors.
        any_depth: With ``color=None``, also accept pictures of 16 bits, which Caffe refuses.
        divisor: 2, 4 or 8 decode a JPEG at that fraction of its size, for ``color`` other than None; see :func:`fast_divisor`.
        on_truncated: Decode a truncated JPEG as cv::imread does, which Caffe's tools and layers read files with: what is missing is
            gray (128). Called with the error that would be raised otherwise.
        on_damaged: Called with an error for a JPEG whose data are damaged, which is decoded as far as that goes, as in Caffe; by default
            it is logged, once for each picture.

    Returns:
        uint8 (H, W, C), or (H, W) if there is one channel; uint16 for pictures of 16 bits with ``any_depth``.

    Raises:
        DataError: truncated, not a picture, of more than ``MOST_PIXELS`` pixels, or (for ``color=None``) not of 8 bits.
    """
    import cv2

    flags = cv2.IMREAD_UNCHANGED if color is None else cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    if on_truncated is not None and data.startswith(JPEG) and not _jpeg_ends(data):
        image = _decoded(data + _END_MARKS, what, flags | _REDUCED[divisor], divisor, on_damaged=_ignore)
        on_truncated(_truncated(data, what))
    else:
        image = _decoded(data, what, flags | _REDUCED[divisor], divisor, on_damaged=on_damaged)
    if image.dtype != np.uint8 and not (any_depth and image.dtype == np.uint16):
        raise DataError(f"{what}: the picture has {8 * image.dtype.itemsize} bits a channel; Caffe takes 8 here. Convert it")
    pixels: Pixels = image
    return pixels


def decode_stored(data: bytes, what: str = "the picture") -> NDArray[Any]:
    """Decode the bytes of a picture's file to what is stored in it: (H, W) or (H, W, C), BGR or BGRA, of any type of OpenCV.

    Args:
        data: The file's bytes.
        what: The name to use in errors.

    Raises:
        DataError: See :func:`decode_image`.
    """
    import cv2

    return _decoded(data, what, cv2.IMREAD_UNCHANGED)


def fast_divisor(data: bytes, size: tuple[int, int] | None) -> int:
    """Return by what a JPEG's sides can be divided while it is decoded, if it is resized to ``size`` afterwards: 8, 4, 2, or 1.

    It does not get smaller than ``size`` in either direction, whether its EXIF data turn it or not. The decoder then computes a part of
    the frequencies only: up to twice as fast, in a fraction of the memory, but the pixels differ from those of Caffe, which decodes in full.

    Args:
        data: The picture's file. Formats other than JPEG give 1.
        size: (width, height) in pixels, or None.
    """
    stated = stated_size(data) if size is not None and data.startswith(JPEG) else None
    if stated is None or size is None:
        return 1
    ratio = min(side // wanted for shape in (stated, stated[::-1]) for side, wanted in zip(shape, size, strict=True))
    return next((divisor for divisor in (8, 4, 2) if ratio >= divisor), 1)


def _decoded(
    data: bytes, what: str, flags: int, divisor: int = 1, *, on_damaged: Callable[[DataError], None] | None = None
) -> NDArray[Any]:
    import cv2

    if not data:
        raise DataError(f"{what}: it is empty (0 bytes)")
    check_whole(data, what)
    check_pixels(data, what, divisor)
    is_png = data.startswith(PNG)
    # libpng prints what is wrong with a chunk, besides the error that is raised here.
    printed = native_errors_dropped() if is_png and is_damaged(data) else nullcontext()
    try:
        with shared_setting("opencv", _silence_opencv), printed, native_messages() as messages:
            image: Any = cv2.imdecode(np.frombuffer(without_unread_chunks(data) if is_png else data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{what}: OpenCV cannot decode the picture: {error.err or error}") from None
    if image is None:
        found = sniff_content(data)
        kind = f"it is {found.noun}" if found is not None else f"it begins with the bytes {data[:4].hex(' ')}"
        hint = found.kind.advice if found is not None and found.kind in _WITH_ADVICE else None
        raise DataError(f"{what}: not a picture that OpenCV can decode, or a damaged one ({kind})", hint=hint)
    damage = next((message for message in messages if message.startswith(_DAMAGE)), "")
    if damage:
        (on_damaged or _damage_notes)(DataError(f"{what}: the picture is damaged, and decoded as far as that goes ({damage})"))
    pixels: NDArray[Any] = image
    return pixels


def _ignore(_: DataError) -> None:
    """Drop an error about a picture of which another was reported."""


def check_whole(data: bytes, what: str = "the picture") -> None:
    """Check that a JPEG or PNG has its end mark, since decoders may fill what is missing with gray.

    Args:
        data: The file's bytes.
        what: The name to use in errors.

    Raises:
        DataError: The end is missing. Other formats are left to the decoder, which refuses truncated files.
    """
    if data.startswith(JPEG):
        whole = _jpeg_ends(data)
    elif data.startswith(PNG):
        whole = png_ends(data)
    else:
        return
    if not whole:
        raise _truncated(data, what)


def _truncated(data: bytes, what: str) -> DataError:
    return DataError(f"{what}: the picture is truncated: its {len(data)} bytes stop before its end mark")


def check_pixels(data: bytes, what: str = "the picture", divisor: int = 1) -> None:
    """Check the size that a picture's header states before memory is taken for it: a file of some kilobytes can ask for gigabytes.

    Args:
        data: The file's bytes.
        what: The name to use in errors.
        divisor: By what its sides are divided while it is decoded.

    Raises:
        DataError: It then has more than ``MOST_PIXELS`` pixels, or than the environment variable OPENCV_IO_MAX_IMAGE_PIXELS allows.
    """
    size = stated_size(data)
    given = os.environ.get(_PIXELS_VARIABLE, "")
    most = int(given) if given.isdecimal() else MOST_PIXELS
    if size is not None and -(-size[0] // divisor) * -(-size[1] // divisor) > most:
        variable = f"set the environment variable {_PIXELS_VARIABLE}={size[0] * size[1]}"
        raise DataError(
            f"{what}: the picture has {size[0]} x {size[1]} pixels, more than the limit of {most:,}",
            hint=f"make it smaller, or {variable}{', or resize JPEGs with --fast-decode' if data.startswith(JPEG) else ''}",
        )


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Return ``image`` (H, W[, C]) resized to ``size`` (width, height) as Caffe does: cv::resize, bilinear."""
    import cv2

    if image.shape[1::-1] == tuple(size):
        return image
    resized: Pixels = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return resized


def to_planes(image: Pixels) -> Pixels:
    """Return (H, W, C) or (H, W) as (C, H, W), the order in which a Datum holds pixels; a view."""
    return image[np.newaxis] if image.ndim == 2 else image.transpose(2, 0, 1)


def encode_image(image: Pixels, suffix: str) -> bytes:
    """Return ``image`` as a file of the type ``suffix`` (".png", ".jpg"). Raises :class:`DataError` for an unknown type."""
    import cv2

    try:
        with shared_setting("opencv", _silence_opencv):
            done, data = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"OpenCV cannot write pictures of type '{suffix}'; .png and .jpg are possible")
    return bytes(data)


def parse_size(size: int | str | tuple[int, int]) -> tuple[int, int] | None:
    """Return the (width, height) of ``256``, ``"256"``, ``"320x240"`` or ``(320, 240)``; 0 gives None: the pictures keep their own sizes.

    Args:
        size: One side of a square, ``"WIDTHxHEIGHT"``, or (width, height), in pixels.

    Raises:
        DataError: It is none of these.
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+)(?:\s*[xX×]\s*(\d+))?\s*", size)
        if not found:
            raise DataError(f"size '{size}' is not understood; write 256, 320x240 (width x height), or 0 to keep the pictures' own sizes")
        size = (int(found[1]), int(found[2] or found[1]))
    elif isinstance(size, int):
        size = (size, size)
    if size == (0, 0):
        return None
    if not all(1 <= n <= 65535 for n in size):
        raise DataError(f"size {size[0]}x{size[1]} is impossible; both sides must be 1 to 65535 (or 0 to keep the pictures' own sizes)")
    return size


def _special_kind(path: Path) -> str:
    """Return what a file is that has no content of its own; empty for regular files and folders."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")


def _jpeg_ends(data: bytes) -> bool:
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            # Stray bytes between segments: decoders look for the next mark as well.
            position = data.find(b"\xff", position)
            if position < 0:
                return False
            continue
        mark = data[position + 1]
        if mark == 0xD9:
            return True
        if mark == 0xFF:
            position += 1
        elif mark in (0x00, 0x01) or 0xD0 <= mark <= 0xD8:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            if mark == 0xDA:
                # No end mark can occur in the compressed part, so one at the file's end is that of the picture.
                if data.endswith(b"\xff\xd9") and position <= len(data) - 2:
                    return True
                found = _JPEG_MARK.search(data, position)
                if not found:
                    return False
                position = found.end() - 2
    return False


class DamageNotes:
    """Logs each damaged picture once, and a hundred of them: what reads the same pictures again and again has one.

    Args:
        ending: What is said after each.
    """

    def __init__(self, ending: str = "") -> None:
        self._ending = ending
        self._seen: set[str] = set()

    def __call__(self, error: DataError) -> None:
        """Log ``error`` as a warning unless it was logged before."""
        if str(error) not in self._seen and len(self._seen) < _MOST_NOTES:
            self._seen.add(str(error))
            more = "; further ones are not named" if len(self._seen) == _MOST_NOTES else ""
            _log.warning("%s%s%s", error, self._ending, more)


class TruncatedNotes(DamageNotes):
    """Logs truncated pictures: an ``on_truncated`` of :func:`decode_image`."""

    def __init__(self) -> None:
        super().__init__("; what is missing is gray, as in Caffe")


_damage_notes = DamageNotes()


class PixelBudget:
    """Bounds the memory of pictures that threads decode at a time: large ones wait for each other; one that exceeds it is decoded alone.

    Called with the bytes of a picture's file, and by what its sides are divided (see :func:`fast_divisor`), around its decoding and what makes it smaller; not to be nested.

    Args:
        most: Pixels at a time, of pictures of 16 million and more.
    """

    def __init__(self, most: int):
        self._most, self._used = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, data: bytes, divisor: int = 1) -> Iterator[None]:
        width, height = stated_size(data) or (0, 0)
        pixels = width * height // divisor**2
        if pixels < _LARGE:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


pixel_budget = PixelBudget(MOST_PIXELS)


def _silence_opencv() -> Callable[[], object]:
    """Keep OpenCV from printing what is raised as an error; return what restores its log level.

    A user who set OPENCV_LOG_LEVEL sees its messages.
    """
    if "OPENCV_LOG_LEVEL" in os.environ:
        return lambda: None
    level = _set_log_level(0)
    return lambda: _set_log_level(level)


def _set_log_level(level: int) -> int:
    """Set OpenCV's log level and return the one before."""
    import cv2

    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        return int(cv2.setLogLevel(level))
    logging: Any = cv2.utils.logging
    before = int(logging.getLogLevel())
    logging.setLogLevel(level)
    return before
