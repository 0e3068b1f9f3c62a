"""WindowData: batches of windows cut from pictures, for detectors of the R-CNN kind (window_data_layer.cpp)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import Pixels, TruncatedNotes, decode_image, read_bytes, resize
from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, State, Tops, batch_size_of
from caffetools.data.picture_lists import read_lines
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import WindowDataParameter

_F = np.float32


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture, its corners inclusive, and its class; 0 is the background."""

    picture: str
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


@register("WindowData")
class WindowData(ReadingLayer):
    """Windows drawn at random from a list, warped to ``crop_size``: data (N, 3, crop, crop) and labels (N).

    A share ``fg_fraction`` of a batch overlaps an object by at least ``fg_threshold``; the rest overlaps by less than
    ``bg_threshold``, has label 0, and comes first. ``context_pad`` widens windows, ``crop_mode: "square"`` makes them square; what
    is outside of the picture is 0.
    """

    TRAITS = Traits(role="data", source="window_data_param", file_source=True, transforms=True, label_tops="numbers")
    TOPS = (2, 2)

    def open(self, seed: int) -> BatchMaker:
        param, transform = self.param.window_data_param, self.param.transform_param
        if param.crop_mode not in ("warp", "square"):
            raise self.error(f"crop_mode '{param.crop_mode}' is unknown; it can be warp or square")
        if transform.crop_size <= 2 * param.context_pad:
            raise self.error(f"crop_size ({transform.crop_size}) must be given, and be more than twice context_pad ({param.context_pad})")
        return WindowBatches(param, batch_size_of(self, param.batch_size), Transformer(transform, self.phase), seed)


class WindowBatches(BatchMaker):
    """Batches of random windows; the generator's state is the only position."""

    def __init__(self, param: WindowDataParameter, size: int, transformer: Transformer, seed: int):
        super().__init__(seed)
        foreground, background = read_windows(param.source, param.root_folder, param.fg_threshold, param.bg_threshold)
        from_foreground = int(_F(size) * _F(param.fg_fraction))
        self.draws = [(background, size - from_foreground), (foreground, from_foreground)]
        for kind, (windows, count) in zip(("background", "foreground"), self.draws, strict=True):
            if count and not windows:
                raise DataError(f"{param.source}: no {kind} windows, but a batch needs {count}; see fg_threshold and bg_threshold")
        # Caffe's scale here is that of window_data_param; transform_param's has no effect, and old nets' moves there when upgraded.
        self.scale = _F(param.scale)
        self.transformer, self.size = transformer, size
        self.pad, self.square = int(param.context_pad), param.crop_mode == "square"
        self._on_truncated = TruncatedNotes()
        self.cached: dict[str, bytes] | None = {} if param.cache_images else None

    def shapes(self) -> list[Shape]:
        return [(self.size, 3, self.transformer.crop, self.transformer.crop), (self.size,)]

    def next(self) -> Tops:
        crop = self.transformer.crop
        data, labels = np.zeros((self.size, 3, crop, crop), np.float32), np.zeros(self.size, np.float32)
        drawn = [windows[int(self.rng.integers(len(windows)))] for windows, count in self.draws for _ in range(count)]
        for item, window in enumerate(drawn):
            mirror = self.transformer.mirror and bool(self.rng.integers(2))
            self._crop(window, mirror, data[item])
            labels[item] = window.label
        return data, labels

    def position(self) -> State:
        return {}

    def seek(self, position: State) -> None:
        """Do nothing: the generator's state is the position."""

    def _crop(self, window: Window, mirror: bool, out: NDArray[np.float32]) -> None:
        image = self._image(window.picture)
        region = _region(window, image.shape[:2], self.transformer.crop, self.pad, self.square)
        left, right, top, _ = region.pads
        if mirror:
            left, right = right, left
        crop = self.transformer.crop
        # The part beyond the picture keeps its padding; rounding may make the rest a pixel too large.
        width, height = min(region.size[0], crop - left), min(region.size[1], crop - top)
        if width < 1 or height < 1:
            return
        pixels = resize(np.ascontiguousarray(image[region.rows, region.columns]), (width, height))
        if mirror:
            pixels = pixels[:, ::-1]
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        out[place] = (pixels.transpose(2, 0, 1) - self._mean(place)) * self.scale

    def _mean(self, place: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        mean, values = self.transformer.mean, self.transformer.values
        if mean is None:
            return values.reshape(-1, 1, 1) if values.size else np.zeros((1, 1, 1), np.float32)
        off = (mean.shape[2] - self.transformer.crop) // 2
        return mean[:, place[1].start + off : place[1].stop + off, place[2].start + off : place[2].stop + off]

    def _image(self, path: str) -> Pixels:
        if self.cached is None:
            return decode_image(read_bytes(path), what=path, on_truncated=self._on_truncated)
        if path not in self.cached:
            self.cached[path] = read_bytes(path)
        return decode_image(self.cached[path], what=path, on_truncated=self._on_truncated)


@dataclass(frozen=True)
class _Region:
    """The rows and columns to take, the (width, height) to warp them to, and the padding: left, right, top, bottom."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    pads: tuple[int, int, int, int]


def _region(window: Window, shape: tuple[int, ...], crop: int, pad: int, square: bool) -> _Region:
    height, width = shape[:2]
    x1, y1, x2, y2 = window.x1, window.y1, window.x2, window.y2
    if not (0 <= x1 <= x2 < width and 0 <= y1 <= y2 < height):
        raise DataError(f"{window.picture}: the window ({x1}, {y1}) to ({x2}, {y2}) is not inside of the picture ({width} x {height})")
    if not pad and not square:
        return _Region(slice(y1, y2 + 1), slice(x1, x2 + 1), (crop, crop), (0, 0, 0, 0))
    widen = _F(crop) / _F(crop - 2 * pad)
    half_h, half_w = _F(y2 - y1 + 1) / _F(2), _F(x2 - x1 + 1) / _F(2)
    centre_x, centre_y = _F(x1) + half_w, _F(y1) + half_h
    if square:
        half_h = half_w = max(half_h, half_w)
    x1, x2 = _round(centre_x - half_w * widen), _round(centre_x + half_w * widen)
    y1, y2 = _round(centre_y - half_h * widen), _round(centre_y + half_h * widen)
    scale_x, scale_y = _F(crop) / _F(x2 - x1 + 1), _F(crop) / _F(y2 - y1 + 1)
    beyond = (max(0, -x1), max(0, x2 - width + 1), max(0, -y1), max(0, y2 - height + 1))
    x1, x2, y1, y2 = x1 + beyond[0], x2 - beyond[1], y1 + beyond[2], y2 - beyond[3]
    pads = tuple(_round(_F(n) * scale) for n, scale in zip(beyond, (scale_x, scale_x, scale_y, scale_y), strict=True))
    size = (_round(_F(x2 - x1 + 1) * scale_x), _round(_F(y2 - y1 + 1) * scale_y))
    return _Region(slice(y1, y2 + 1), slice(x1, x2 + 1), size, (pads[0], pads[1], pads[2], pads[3]))


def _round(value: float) -> int:
    """C's round: halves go away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def read_windows(path: str, root: str, fg_threshold: float, bg_threshold: float) -> tuple[list[Window], list[Window]]:
    """Return the foreground and background windows of a window file: blocks of ``# index``, picture, channels, height, width, count, windows.

    Raises:
        DataError: the file is missing, or a line is not what it should be; names the line.
    """
    foreground: list[Window] = []
    background: list[Window] = []
    lines = iter(read_lines(path))
    number = 0
    try:
        for number, line in lines:
            if not line.startswith("#"):
                raise ValueError
            number, picture = next(lines)
            for _ in range(3):  # the picture's channels, height and width, which its file has, too
                number, line = next(lines)
                int(line)
            number, line = next(lines)
            for _ in range(int(line)):
                number, line = next(lines)
                label, overlap, *corners = line.split()
                x1, y1, x2, y2 = map(int, corners)
                if float(overlap) >= fg_threshold:
                    if int(label) < 1:
                        raise ValueError
                    foreground.append(Window(root + picture, int(label), x1, y1, x2, y2))
                elif float(overlap) < bg_threshold:
                    background.append(Window(root + picture, 0, x1, y1, x2, y2))
    except StopIteration:
        raise DataError(f"{path}: the window file stops inside of a block (after line {number})") from None
    except ValueError:
        raise DataError(f"{path}:{number}: '{line}' does not fit a window file (# index, picture, three sizes, count, windows)") from None
    return foreground, background
