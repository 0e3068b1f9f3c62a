"""Reading pictures as Caffe's tools do, through OpenCV: 8 bits, BGR, and one clear error for each that cannot be used."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.proto.sniff import sniff_content

PathLike = str | os.PathLike[str]
Pixels = NDArray[np.uint8]

# The name endings of the formats that OpenCV reads.
SUFFIXES = frozenset(
    f".{kind}"
    for kind in re.split(r"\s", "jpg jpeg jpe jfif png bmp dib tif tiff webp gif pgm ppm pbm pnm pxm jp2 j2k avif sr ras hdr pic")
)

# In the compressed part of a JPEG, 0xFF stands before 0x00 or a restart mark (or a fill byte); anything else ends the part.
_JPEG_MARK = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def read_image(path: PathLike, *, color: bool = True, size: tuple[int, int] | None = None) -> Pixels:
    """Read the picture at ``path`` as convert_imageset and the ImageData layer do (cv::imread, then cv::resize).

    Gray pictures get three equal channels if ``color`` is set, transparency is dropped, 16 bits become 8, the orientation
    in the EXIF data is applied, CMYK is converted: all as OpenCV does.

    Args:
        path: The file.
        color: Three channels in BGR order; False gives one gray channel.
        size: (width, height) to resize to; None keeps the picture's own.

    Returns:
        uint8 (H, W, 3), or (H, W) for gray.

    Raises:
        DataError: the file is missing, empty, truncated or not a picture; names the file.
    """
    image = decode_image(read_bytes(path), color=color, what=os.fspath(path))
    return image if size is None else resize(image, size)


def read_bytes(path: PathLike) -> bytes:
    """Return the bytes of a picture's file. Raises :class:`DataError` if it is missing, unreadable or empty."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot read the picture: {error.strerror}") from None
    if not data:
        raise DataError(f"{os.fspath(path)}: the picture's file is empty (0 bytes)")
    return data


def decode_image(data: bytes, *, color: bool | None = True, what: str = "the picture", any_depth: bool = False) -> Pixels:
    """Decode the bytes of a picture's file (cv::imdecode).

    Args:
        data: The file's bytes.
        color: True for BGR, False for gray, None for what is stored (gray stays gray, transparency is a fourth channel and the EXIF
            orientation is not applied), as Caffe decodes a Datum if nothing is forced.
        what: The name to use in errors.
        any_depth: With ``color=None``, also accept pictures of 16 bits, which Caffe refuses.

    Returns:
        uint8 (H, W, C), or (H, W) if there is one channel; uint16 for pictures of 16 bits with ``any_depth``.

    Raises:
        DataError: truncated, not a picture, or (for ``color=None``) not of 8 bits.
    """
    import cv2

    check_whole(data, what)
    flags = cv2.IMREAD_UNCHANGED if color is None else cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    try:
        with _quiet:
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{what}: OpenCV cannot decode the picture: {error.err or error}") from None
    if image is None:
        raise DataError(f"{what}: not a picture that OpenCV can decode, or a damaged one ({_describe(data)})")
    if image.dtype != np.uint8 and not (any_depth and image.dtype == np.uint16):
        raise DataError(f"{what}: the picture has {8 * image.dtype.itemsize} bits a channel; Caffe takes 8 here. Convert it")
    pixels: Pixels = image
    return pixels


def check_whole(data: bytes, what: str = "the picture") -> None:
    """Check that a JPEG or PNG has its end mark, since decoders may fill what is missing with gray.

    Args:
        data: The file's bytes.
        what: The name to use in errors.

    Raises:
        DataError: The end is missing. Other formats are left to the decoder, which refuses truncated files.
    """
    if data.startswith(b"\xff\xd8"):
        whole = _jpeg_ends(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        whole = _png_ends(data)
    else:
        return
    if not whole:
        raise DataError(f"{what}: the picture is truncated: its {len(data)} bytes stop before its end mark")


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


def _png_ends(data: bytes) -> bool:
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        position += 12 + length
        if kind == b"IEND":
            return position <= len(data)
    return False


def _describe(data: bytes) -> str:
    """Return what kind of file the bytes are, for the error."""
    found = sniff_content(data)
    return f"it is {found.noun}" if found is not None else f"it begins with the bytes {data[:4].hex(' ')}"


class _Quiet:
    """Keeps OpenCV from printing what is raised as an error, and restores its log level after the last thread has left.

    A user who set OPENCV_LOG_LEVEL sees its messages.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and "OPENCV_LOG_LEVEL" not in os.environ:
                self._level = _set_log_level(0)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and "OPENCV_LOG_LEVEL" not in os.environ:
                _set_log_level(self._level)


def _set_log_level(level: int) -> int:
    """Set OpenCV's log level and return the one before."""
    import cv2

    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        return int(cv2.setLogLevel(level))
    logging: Any = cv2.utils.logging
    before = int(logging.getLogLevel())
    logging.setLogLevel(level)
    return before


_quiet = _Quiet()
