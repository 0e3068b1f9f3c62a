"""From a picture to a deployed net's input: resize, crop, mean, scale, as the net's training did it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import Pixels, read_image, resize
from caffetools.errors import DataError
from caffetools.layers.base import Shape, format_shape
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.blobs import Array
from caffetools.proto.numpy_files import read_numbers
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.results import Preprocessing
from caffetools.util.arguments import several
from caffetools.util.files import text_lines

PathLike = str | os.PathLike[str]


class Preprocessor:
    """Makes (C, H, W) float32 arrays for a net's input of pictures, by ``Preprocessing``.

    The whole picture is resized (its proportions are not kept: datasets are built so), the centre of the input's size is cut out
    as Caffe's data layers do in the TEST phase, and ``(pixel - mean) * scale`` is what the net gets. A mean image of the resized
    pictures' size is taken off before the crop; a larger one is cut in the centre to the input's size.

    Args:
        shape: The net's input, (N, C, H, W); C is 3 (BGR) or 1 (grey).
        how: Mean, scale and size. Where ``resize`` is not given, pictures get the size of the mean image, or else the input's.

    Raises:
        DataError: the input takes no pictures, or mean and sizes do not fit it.
    """

    def __init__(self, shape: Shape, how: Preprocessing):
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise DataError(f"the net's input is {format_shape(shape)}; pictures need N x 3 x H x W, or N x 1 x H x W for gray")
        self.shape, self.how = shape, how
        self.channels, self.height, self.width = shape[1:]
        mean = how.mean_image
        self.size = how.resize or ((mean.shape[2], mean.shape[1]) if mean is not None else (self.width, self.height))
        if self.size[0] < self.width or self.size[1] < self.height:
            raise DataError(
                f"pictures resized to {self.size[0]}x{self.size[1]} are smaller than the net's input of {self.width}x{self.height}"
            )
        if how.mean_values and len(how.mean_values) not in (1, self.channels):
            raise DataError(f"the mean has {len(how.mean_values)} values, but the net's input has {self.channels} channel(s)")
        self._mean_before, self._mean_after = self._means()

    def read(self, path: PathLike) -> Pixels:
        """Return the picture at ``path``, resized: uint8 (H, W, 3) BGR, or (H, W) grey. Raises :class:`DataError` naming the file."""
        return read_image(path, color=self.channels == 3, size=self.size)

    def from_array(self, pixels: NDArray[Any], *, channel_order: str = "RGB") -> Pixels:
        """Prepare an image that is in memory as :meth:`read` prepares a file.

        Args:
            pixels: uint8 (H, W, 3), (H, W, 4) with transparency, which is dropped, or (H, W) gray; values 0 to 255.
            channel_order: Order of the channels in ``pixels``: ``"RGB"`` (Pillow, imageio, matplotlib) or ``"BGR"`` (OpenCV).

        Returns:
            The resized image, uint8 (H, W, 3) in BGR order, or (H, W) for a net with gray input.

        Raises:
            DataError: the array has another dtype or shape.
        """
        import cv2

        if (
            pixels.dtype != np.uint8
            or pixels.ndim not in (2, 3)
            or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4))
            or not pixels.size
        ):
            raise DataError(
                f"an image is a uint8 array (H, W, 3) or (H, W) with values from 0 to 255, not {pixels.dtype} {format_shape(pixels.shape)}"
            )
        if channel_order not in ("RGB", "BGR"):
            raise DataError(f"the channel order is 'RGB' or 'BGR', not '{channel_order}'")
        image: Any = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        if image.ndim == 3:
            image = image[:, :, :3] if channel_order == "BGR" else image[:, :, 2::-1]
        image = np.ascontiguousarray(image)
        if self.channels == 3 and image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        elif self.channels == 1 and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return resize(image, self.size)

    def centre(self, image: Pixels) -> Array:
        """Return the net's input for one resized picture: (1, C, H, W) float32, from its centre."""
        return self._finish(self._take(self._planes(image), *self._centre()))

    def window(self, image: Pixels, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        """Return a part of the net's input for a resized picture of the input's own size, without making the whole.

        Args:
            image: As :meth:`read` gives it, of (height, width) of the input.
            rows: First row, and the row after the last.
            columns: First column, and the column after the last.

        Returns:
            (1, C, rows, columns) float32, the values that :meth:`centre` gives there.
        """
        part = image[slice(*rows), slice(*columns)]
        if self.how.channel_order == "RGB" and part.ndim == 3:
            part = part[:, :, ::-1]
        planes = (part[np.newaxis] if part.ndim == 2 else part.transpose(2, 0, 1)).astype(np.float32)
        mean = self.input_mean
        if mean.shape[1:] != (1, 1):
            mean = mean[:, slice(*rows), slice(*columns)]
        return np.ascontiguousarray((planes - mean)[np.newaxis] * np.float32(self.how.scale), np.float32)

    def oversample(self, image: Pixels) -> Array:
        """Ten inputs for one resized picture, as ``caffe.io.oversample`` cuts them: (10, C, H, W) float32.

        The corners (top left, top right, bottom left, bottom right), the centre, then the same five mirrored.
        """
        planes = self._planes(image)
        down, right = planes.shape[1] - self.height, planes.shape[2] - self.width
        places = [(0, 0), (0, right), (down, 0), (down, right), self._centre()]
        crops = np.concatenate([self._take(planes, y, x) for y, x in places])
        return self._finish(np.concatenate([crops, crops[:, :, :, ::-1]]))

    def _planes(self, image: Pixels) -> Array:
        if image.shape[1::-1] != self.size:
            image = resize(image, self.size)
        if self.how.channel_order == "RGB" and image.ndim == 3:
            image = image[:, :, ::-1]
        planes = (image[np.newaxis] if image.ndim == 2 else image.transpose(2, 0, 1)).astype(np.float32)
        return planes if self._mean_before is None else planes - self._mean_before

    def _take(self, planes: Array, y: int, x: int) -> Array:
        return planes[np.newaxis, :, y : y + self.height, x : x + self.width]

    def _centre(self) -> tuple[int, int]:
        return (self.size[1] - self.height) // 2, (self.size[0] - self.width) // 2

    def _finish(self, crops: Array) -> Array:
        return np.ascontiguousarray((crops - self._mean_after) * np.float32(self.how.scale), np.float32)

    @property
    def input_mean(self) -> Array:
        """What is subtracted from the net's input: (C, 1, 1) values, or (C, H, W) of the input's size."""
        if self._mean_before is None:
            return self._mean_after
        y, x = self._centre()
        mean: Array = self._take(self._mean_before, y, x)[0]
        return mean

    def _means(self) -> tuple[Array | None, Array]:
        """Return what to take off the resized picture, and off the crops."""
        mean = self.how.mean_image
        if mean is None:
            values = np.array(self.how.mean_values or (0.0,), np.float32)
            return None, values.reshape(-1, 1, 1)
        nothing = np.zeros((1, 1, 1), np.float32)
        channels, height, width = mean.shape
        if channels != self.channels:
            raise DataError(f"the mean image has {channels} channel(s), but the net's input has {self.channels}")
        if (width, height) == self.size:
            return mean, nothing
        if height < self.height or width < self.width:
            raise DataError(f"the mean image of {width}x{height} is smaller than the net's input of {self.width}x{self.height}")
        y, x = (height - self.height) // 2, (width - self.width) // 2
        return None, mean[:, y : y + self.height, x : x + self.width]


def read_mean(mean: str | PathLike | Sequence[float] | NDArray[Any] | None) -> tuple[tuple[float, ...], Array | None]:
    """Return a mean as (values of the channels, image): one of the two is empty.

    Args:
        mean: ``"104,117,123"`` or numbers (in the net's channel order, BGR); the path of a .binaryproto or .npy; an array of one or
            three values or (C, H, W), (1, C, H, W); None for no mean.

    Raises:
        DataError, ModelFileError: it is none of these, or the file cannot be read.
    """
    if mean is None:
        return (), None
    if isinstance(mean, str | os.PathLike):
        text = os.fspath(mean)
        if re.fullmatch(r"[\s\d.,+eE-]+", text) and not Path(text).exists():
            return _values(text), None
        if text.endswith(".npy"):
            array: NDArray[Any] = np.array(read_numbers(text, "a mean as a NumPy array (.npy)"))
        else:
            array = read_binaryproto(text)
        origin = text
    else:
        array, origin = np.asarray(mean), "the mean"
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 1:
        return tuple(float(v) for v in array), None
    if array.ndim != 3:
        raise DataError(f"{origin}: a mean image is C x H x W, not {format_shape(array.shape)}")
    if array.shape[1:] == (1, 1):
        return tuple(float(v) for v in array[:, 0, 0]), None
    return (), np.ascontiguousarray(array, np.float32)


def read_labels(labels: PathLike | Sequence[str] | None) -> tuple[str, ...]:
    """Class names in order: a text file with one a line (as ``dataset build`` writes), or a sequence. Raises :class:`CaffeToolsError`."""
    if labels is None:
        return ()
    if not isinstance(labels, str | os.PathLike):
        return tuple(str(label) for label in several("labels", labels))
    try:
        lines = text_lines(Path(labels).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        lines = None
    except OSError as error:
        raise DataError(f"{os.fspath(labels)}: cannot read the labels: {error.strerror}") from None
    # Names may be any words, but not a net, a page or a table of another program.
    if other := wrong_kind(DataError, labels, "a text file with one class name a line", allowed=(Kind.TEXT, Kind.PYTHON, Kind.DARKNET)):
        raise other
    if lines is None or any("\0" in line for line in lines):
        raise DataError(f"{os.fspath(labels)}: not a UTF-8 text file; one class name a line is expected")
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        raise DataError(f"{os.fspath(labels)}: " + (f"line {names.index('') + 1} is empty" if names else "the file is empty"))
    return tuple(names)


def _values(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        raise DataError(f"mean '{text}' is not understood; write a file's name, 128, or 104,117,123 (in BGR order)") from None
