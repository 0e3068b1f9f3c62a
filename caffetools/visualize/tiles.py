"""Filters laid out as tiles in one picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.visualize.colormaps import magnitude_colours, signed_colours

MOST_COLOUR = 400  # tiles of colour or one-channel filters
MOST_CHANNELS = 32  # grey tiles of one filter
MOST_TILES = 768  # grey tiles in all
MOST_POINTS = 512  # rows and columns of 1 x 1 filters

_WIDE, _HIGH, _TILE = 1120, 1120, 64  # pixels: weights are blown up as long as the sheet and its tiles are smaller
_BETWEEN_BLOCKS = 10  # more pixels between filters that share a row


@dataclass(frozen=True)
class Sheet:
    """Tiles in one picture.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        scale: Pixels per weight, along each side.
        caption: What is shown, what was left out, and how weights became colours.
        rows, columns: Numbers at the left and upper edge: (middle in pixels, number).
    """

    image: NDArray[np.uint8]
    scale: int
    caption: str
    rows: tuple[tuple[float, int], ...] = ()
    columns: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class _Layout:
    """``tiles`` (M, h, w, 3) in rows of ``columns``, with ``between`` pixels from one to the next and wider gaps after each ``block``."""

    tiles: NDArray[np.uint8]
    columns: int
    block: int
    between: int

    def size(self, scale: int) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        count, height, width, _ = self.tiles.shape
        rows = -(-count // self.columns)
        return rows * (height * scale + self.between) - self.between, self._left(self.columns - 1, scale) + width * scale

    def scale(self) -> int:
        side = max(self.tiles.shape[1:3])
        scale = 1
        while side * (scale + 1) <= _TILE and self.size(scale + 1)[0] <= _HIGH and self.size(scale + 1)[1] <= _WIDE:
            scale += 1
        return scale

    def draw(self, scale: int, gap: tuple[int, int, int]) -> NDArray[np.uint8]:
        image = np.empty((*self.size(scale), 3), np.uint8)
        image[:] = gap
        for index, tile in enumerate(self.tiles.repeat(scale, axis=1).repeat(scale, axis=2)):
            height, width = tile.shape[:2]
            top, left = index // self.columns * (height + self.between), self._left(index % self.columns, scale)
            image[top : top + height, left : left + width] = tile
        return image

    def numbers(self, scale: int) -> tuple[tuple[tuple[float, int], ...], tuple[tuple[float, int], ...]]:
        """Return the numbers of the rows (of the first filter in each) and of the columns, with their middles in pixels.

        A tile's filter is the row's number and, where filters share a row, as many more as there are blocks before it. Columns count
        within a block: they are the channels of a filter, or for one tile a filter what to add to the row's number.
        """
        count, height, width, _ = self.tiles.shape
        across = self.columns // self.block
        rows = tuple((row * (height * scale + self.between) + height * scale / 2, row * across) for row in range(-(-count // self.columns)))
        within = self.block if self.block > 1 else self.columns
        columns = tuple((self._left(column, scale) + width * scale / 2, column % within) for column in range(min(count, self.columns)))
        return rows, columns

    def _left(self, column: int, scale: int) -> int:
        extra = _BETWEEN_BLOCKS if 1 < self.block < self.columns else 0
        return int(column * (self.tiles.shape[2] * scale + self.between) + column // self.block * extra)


def filter_sheet(
    weights: NDArray[Any],
    *,
    normalize: str = "each",
    channel_order: str = "bgr",
    colour: bool | None = None,
    words: tuple[str, str] = ("filter", "channel"),
    gap: tuple[int, int, int] = (255, 255, 255),
    scale: int | None = None,
    most_tiles: int = MOST_TILES,
    most_channels: int = MOST_CHANNELS,
) -> Sheet:
    """Lay out weights as tiles.

    With three channels (and ``colour`` not False) or one, each filter is one tile, left to right and then down, with two dots of
    ``gap`` from one to the next (four where there are few tiles). With more, a filter is a row of grey tiles, one a channel.
    1 x 1 filters are points without gaps: rows are filters, columns channels.

    Args:
        weights: (N, C, kH, kW) float, finite.
        normalize: ``"each"`` divides a filter by its own largest absolute weight, ``"common"`` all by the largest of all; -1 is
            then black, 0 the middle grey (128), 1 white.
        channel_order: What the three channels of a coloured tile are, ``"bgr"`` or ``"rgb"``.
        colour: Draw three channels as one coloured tile; None: where C is 3.
        words: What the first and the second axis are called in the caption.
        gap: The RGB colour between tiles.
        scale: Pixels per weight; None picks what fills a page.
        most_tiles: Grey tiles at most, of whole filters.
        most_channels: Grey tiles of one filter at most.
    """
    if colour is None:
        colour = weights.shape[1] == 3
    layout, caption = _laid_out(_scaled(weights, normalize), colour, channel_order, words, (most_tiles, most_channels))
    if scale is None:
        scale = layout.scale()
    each = f"Each {words[0]} is scaled by its own largest weight"
    scaling = each if normalize == "each" else "All are scaled by the largest weight of the layer"
    caption = f"{caption[0].upper()}{caption[1:]}. {scaling}; the middle gray is 0."
    return Sheet(layout.draw(scale, gap), scale, caption, *layout.numbers(scale))


def change_sheet(
    before: NDArray[Any],
    after: NDArray[Any],
    *,
    colour: bool,
    words: tuple[str, str] = ("filter", "channel"),
    gap: tuple[int, int, int] = (255, 255, 255),
    scale: int | None = None,
    most_tiles: int = MOST_TILES,
    most_channels: int = MOST_CHANNELS,
) -> Sheet:
    """Lay out the change of weights (N, C, kH, kW) in the arrangement of :func:`filter_sheet`.

    Colour filters become one tile each with the norm of the change over the channels, from dark blue (0) to yellow; others get
    the signed change, from purple over white (0) to orange. All are scaled by the largest change of the layer.
    """
    change = np.asarray(after, np.float32) - np.asarray(before, np.float32)
    if colour:
        change = np.sqrt((change**2).sum(1, keepdims=True))
    peak = float(np.abs(change).max())
    unit = change / (peak or 1.0)
    codes = np.rint(255 * unit if colour else 127.5 + 127.5 * unit).astype(np.uint8)
    layout, _ = _laid_out(codes, False, "bgr", words, (most_tiles, most_channels))
    level = layout.tiles[..., 0] / 255
    layout = replace(layout, tiles=magnitude_colours(level) if colour else signed_colours(2 * level - 1))
    scale = layout.scale() if scale is None else scale
    if not peak:
        caption = "Change: none."
    elif colour:
        caption = f"Change: its norm over the three channels, from dark blue (0) to yellow ({peak:.3g})."
    else:
        caption = f"Change: from purple (a decrease of {peak:.3g}) over white (unchanged) to orange (an increase of {peak:.3g})."
    return Sheet(layout.draw(scale, gap), scale, caption)


def _laid_out(
    scaled: NDArray[np.uint8], colour: bool, channel_order: str, words: tuple[str, str], most: tuple[int, int]
) -> tuple[_Layout, str]:
    n, c, height, width = scaled.shape
    if (colour and c == 3) or c == 1:
        shown = min(n, MOST_COLOUR)
        tiles = scaled[:shown].transpose(0, 2, 3, 1)
        if c == 3 and channel_order == "bgr":
            tiles = tiles[..., ::-1]
        tiles = np.broadcast_to(tiles, (shown, height, width, 3))
        kind = f"in colour ({channel_order.upper()} weights)" if c == 3 else "of one channel"
        return _Layout(tiles, columns_for(shown), 1, 2 if shown > 64 else 4), f"{_first(shown, n, words[0])} {kind}"
    if height == width == 1:
        rows, columns = min(n, MOST_POINTS), min(c, MOST_POINTS)
        points = np.broadcast_to(scaled[:rows, :columns, 0, 0].reshape(-1, 1, 1, 1), (rows * columns, 1, 1, 3))
        return _Layout(
            points, columns, columns, 0
        ), f"1 × 1: rows are {_first(rows, n, words[0])}, columns are {_first(columns, c, words[1])}"
    columns = min(c, most[1])
    rows = min(n, max(1, most[0] // columns))
    tiles = np.broadcast_to(scaled[:rows, :columns].reshape(rows * columns, height, width, 1), (rows * columns, height, width, 3))
    across = _across(rows, columns)
    row = f"each row is one {words[0]}" if across == 1 else f"{across} in a row"
    return _Layout(tiles, columns * across, columns, 2), f"{_first(rows, n, words[0])}, {row}, its tiles are {_first(columns, c, words[1])}"


def _scaled(weights: NDArray[Any], normalize: str) -> NDArray[np.uint8]:
    values = np.asarray(weights, np.float32)
    largest = np.abs(values).max(axis=(1, 2, 3) if normalize == "each" else None, keepdims=True)
    unit = values / np.where(largest > 0, largest, 1)
    return np.rint(127.5 + 127.5 * unit).astype(np.uint8)


def columns_for(count: int) -> int:
    """Return how many of ``count`` tiles to put in a row: a shape between a square and two to one that leaves the fewest places empty."""
    low = max(1, int(np.ceil(count**0.5)))
    return min(range(low, 2 * low + 1), key=lambda columns: (-count % columns, columns))


def _across(rows: int, columns: int) -> int:
    """Return how many filters of ``columns`` tiles go side by side, so that narrow ones do not make a tower."""
    most = max(1, MOST_CHANNELS // columns)
    return min(range(1, most + 1), key=lambda across: (-(-rows // across) > columns * across, -rows % across, across))


def _first(shown: int, count: int, word: str) -> str:
    plural = word if count == 1 else f"{word}s"
    return f"{count} {plural}" if shown == count else f"the first {shown} of {count} {plural}"
