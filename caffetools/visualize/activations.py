"""What the blobs of a net hold for one picture: feature maps as tiles, vectors as bars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.layers.base import format_shape
from caffetools.layers.permute import Permute
from caffetools.net.net import Net
from caffetools.net.probe import picture_input, run_items
from caffetools.visualize import style
from caffetools.visualize.colormaps import scaled_colours, signed_colours
from caffetools.visualize.panels import PANEL_SIDE, Panel, enlarge, panels_figure, shorten_to, wrap
from caffetools.visualize.style import LIGHT, Theme
from caffetools.visualize.tiles import columns_for
from caffetools.visualize.units import Image, Inputs, other_inputs, picture_batch

_OVERVIEW_TILES = 25  # channels of each blob on the overview
_LEAST_TILE = 24  # pixels of a channel there
_MOST_LABELS = 600  # tiles up to which each has its number
_WIDTH = 1232  # pixels of a sheet without its margins
_BARS = 12
_MARGIN, _HEAD, _LABEL = 24, 46, 18


def blob_values(net: Net, image: Image, blobs: Sequence[str], inputs: Inputs | None = None) -> dict[str, NDArray[np.float32]]:
    """Return what ``blobs`` hold for one picture, without the batch axis.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed.
        blobs: Names; each gets its last value, after in-place layers.
        inputs: Values of the net's other inputs that the blobs depend on, by name.

    Raises:
        NetError: the net has no such blob, or the picture does not fit.
        DataError: the values are not finite.
    """
    others = other_inputs(net, inputs or {}, picture_input(net, blobs))
    (items,) = run_items(net, picture_batch(net, image, *blobs), others=others, blobs=blobs)
    values = items.values.blobs
    arrays = {name: np.ascontiguousarray(values[name].detach().float().cpu().numpy()) for name in blobs}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"blob '{name}' holds values that are not finite for this picture; the net's weights have diverged")
    return {name: array[0] if array.ndim > 1 else array for name, array in arrays.items()}


def computable_blobs(net: Net, others: Collection[str] = ()) -> list[str]:
    """Return the blobs that follow from the input of pictures, in the net's order: all but labels and what depends on them.

    Args:
        net: The net.
        others: Other inputs whose values are known.
    """
    order = [picture_input(net)]
    known = {*order, *others}
    for layer in net.layers:
        if not layer.IS_DATA and known.issuperset(layer.bottoms):
            known.update(layer.tops)
            order += [top for top in layer.tops if top not in order]
    return order


def channels_first(net: Net, values: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return the values with the outputs of Permute layers in the order of axes that the layers' bottoms have.

    SSD's heads and YOLO's move the channels to the end; drawn as they are, rows of the picture would be taken for channels.

    Args:
        net: The net.
        values: From :func:`blob_values`: without the batch axis, by the blobs' names.
    """
    orders: dict[str, list[int]] = {}
    for layer in net.layers:
        before = orders.get(layer.bottoms[0]) if layer.bottoms else None
        for top in layer.tops:
            orders.pop(top, None)
        if isinstance(layer, Permute) and layer.order[0] == 0 and before is None:
            orders[layer.tops[0]] = layer.order
        elif before is not None and layer.tops == layer.bottoms:
            orders[layer.tops[0]] = before
    return {
        name: np.transpose(array, np.argsort(orders[name][1:])) if name in orders and array.ndim + 1 == len(orders[name]) else array
        for name, array in values.items()
    }


def activations_figure(
    values: NDArray[Any], name: str, *, common: bool = False, labels: Sequence[str] = (), picture: str = "", theme: Theme = LIGHT
) -> tuple[Figure, str]:
    """Draw all channels of one blob.

    Args:
        values: (C, H, W): a tile each, labelled with its number; (C, …, H, W): a tile for each slice of a channel, labelled with its
            indices; (C,): bars of the largest values and a line of all.
        name: The blob's name.
        common: Scale all channels by the largest value of the blob, not each by its own.
        labels: Class names for the bars, where the blob has as many values.
        picture: The image's name, for the title.
        theme: Colours.

    Returns:
        The figure and its caption.

    Raises:
        DataError: the blob has no values.
    """
    array = np.asarray(values, np.float32)
    if not array.size:
        raise DataError(f"blob '{name}' has no values to draw")
    title = f"{name}  ·  {format_shape(array.shape).replace(' x ', ' × ')}" + (f"  ·  {picture}" if picture else "")
    if array.ndim == 1 or array.size == array.shape[0]:
        return _bars(array.reshape(-1), title, labels, theme)
    channels = array if array.ndim > 2 else array[None]
    maps, numbers = _slices(channels)
    scaling = "All channels are scaled by the largest absolute value of the blob" if common else "Each channel is scaled by its own largest"
    scaling += "." if common else " absolute value."
    ends = "purple is negative, white 0, orange positive" if array.min() < 0 else "dark blue is 0, yellow the largest"
    still = int((np.abs(channels).reshape(len(channels), -1).max(1) == 0).sum())
    slices = f" of {len(maps) // len(channels)} slices (channel.slice)" if len(maps) > len(channels) else ""
    caption = f"{len(channels)} channels{slices}. {scaling} {ends[0].upper()}{ends[1:]}."
    if still:
        caption += f" {still} of them {'is' if still == 1 else 'are'} 0 everywhere for this picture."
    return _tile_figure(_coloured(maps, common, len(channels)), numbers, title, caption, theme), caption


def overview_figure(
    blobs: dict[str, NDArray[Any]],
    *,
    picture: NDArray[np.uint8] | None = None,
    title: str = "",
    most: int | None = None,
    side: int = PANEL_SIDE,
    theme: Theme = LIGHT,
) -> tuple[Figure, str]:
    """Draw the first 25 channels of each blob with positions, in the net's order, and return the figure and its caption.

    Args:
        blobs: Values by the blobs' names; of those with more axes, (C, …, H, W), the first 25 slices are drawn.
        picture: (H, W, 3) RGB, which comes first.
        title: Above all.
        most: Blobs at most, spread evenly over the net; None draws all.
        side: Pixels of a blob's square.
        theme: Colours.

    Raises:
        DataError: no blob has positions.
    """
    shown = [name for name, values in blobs.items() if values.ndim > 2 and values.size and np.prod(values.shape[1:]) > 1]
    if not shown:
        raise DataError("no blob of this net has positions; name one with --blob")
    caption = f"The first {_OVERVIEW_TILES} channels (or slices of channels) of each blob, each scaled by its own largest absolute value: from dark blue (0) to yellow; "
    caption += "where there are negative values from purple over white (0) to orange."
    if most is not None and len(shown) > most:
        caption += f" These are {most} of {len(shown)} blobs, spread evenly over the net."
        shown = [shown[round(index)] for index in np.linspace(0, len(shown) - 1, most)]
    panels = [Panel(enlarge(picture, side), "picture")] if picture is not None else []
    for name in shown:
        maps, _ = _slices(blobs[name])
        panels.append(Panel(_montage(maps[:_OVERVIEW_TILES], side, theme), name, " × ".join(map(str, blobs[name].shape))))
    return panels_figure(panels, title or "Activations", caption, width=_WIDTH, theme=theme), caption


def _slices(values: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Return (C, …, H, W) as (M, H, W), and the indices of each as text."""
    places = [".".join(map(str, place)) for place in np.ndindex(*values.shape[:-2])]
    return values.reshape(len(places), *values.shape[-2:]), places


def _coloured(maps: NDArray[Any], common: bool, channels: int | None = None) -> NDArray[np.uint8]:
    """Return (M, H, W, 3): signed colours for all where any value is negative; the slices of one of ``channels`` share their scale."""
    groups = np.abs(maps).reshape(channels or len(maps), -1).max(1)
    peak = groups.max() if common else groups.repeat(len(maps) // len(groups)).reshape(-1, 1, 1)
    unit = maps / np.where(peak > 0, peak, 1)
    signed = bool(maps.min() < 0)
    if signed:
        return signed_colours(unit)
    return scaled_colours(unit, 1.0)


def _montage(maps: NDArray[Any], side: int, theme: Theme) -> NDArray[np.uint8]:
    """Return channels (M, H, W) as tiles with gaps, about ``side`` pixels wide; a small ``side`` shows fewer of them."""
    most = max(1, side // _LEAST_TILE) ** 2
    maps = maps[:most]
    columns = max(1, int(np.ceil(len(maps) ** 0.5)))
    tile_side = (side - 4 * (columns - 1)) // columns
    tiles = [enlarge(tile, tile_side) for tile in _coloured(maps, False)]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.empty((rows * (height + 4) - 4, columns * (width + 4) - 4, 3), np.uint8)
    sheet[:] = style.rgb(theme.background)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 4), index % columns * (width + 4)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _tile_figure(tiles: NDArray[np.uint8], numbers: Sequence[str], title: str, caption: str, theme: Theme) -> Figure:
    count = len(tiles)
    side = 112 if count <= 80 else 64 if count <= 300 else 46 if count <= _MOST_LABELS else 34
    images = [enlarge(tile, side) for tile in tiles]
    height, width = images[0].shape[:2]
    each = count <= _MOST_LABELS
    longest = max(len(number) for number in numbers)
    cell_w, cell_h = max(width + 6, 34 if each else 0, 10 * longest + 6 if each else 0), height + (6 + _LABEL if each else 6)
    left_room = 0 if each else 56 if longest < 6 else 10 * longest + 6
    columns = min(columns_for(count), max(1, (_WIDTH - left_room) // cell_w))
    rows = -(-count // columns)
    full = max(left_room + columns * cell_w, 680) + 2 * _MARGIN
    lines = wrap(caption, full - 2 * _MARGIN, style.SMALL)
    sheet = np.empty((rows * cell_h, columns * cell_w, 3), np.uint8)
    sheet[:] = style.rgb(theme.background)
    for index, image in enumerate(images):
        top, left = index // columns * cell_h + (_LABEL if each else 0), index % columns * cell_w
        sheet[top : top + height, left : left + width] = image
    total = _MARGIN + _HEAD + len(sheet) + 10 + 24 * len(lines) + _MARGIN
    figure = style.new_figure(full / style.DPI, total / style.DPI, theme, fitted=False)
    axes = figure.add_axes(
        (
            (_MARGIN + left_room) / full,
            1 - (_MARGIN + _HEAD + len(sheet)) / total,
            sheet.shape[1] / full,
            len(sheet) / total,
        )
    )
    axes.imshow(sheet, interpolation="none", aspect="auto")
    axes.set_axis_off()

    def write(left: float, top: float, text: str, points: float, colour: str, **look: Any) -> None:
        figure.text(left / full, 1 - top / total, style.plain(text), fontsize=points, color=colour, va="top", **look)

    write(_MARGIN, _MARGIN, shorten_to(title, full - 2 * _MARGIN, style.TITLE, bold=True), style.TITLE, theme.text, weight="bold")
    for index in range(count) if each else range(0, count, columns):
        top, left = _MARGIN + _HEAD + index // columns * cell_h, _MARGIN + index % columns * cell_w
        write(left, top + (0 if each else max(0, (height - 14) // 2)), numbers[index], 6.5, theme.muted)
    for index, line in enumerate(lines):
        write(_MARGIN, _MARGIN + _HEAD + len(sheet) + 10 + 24 * index, line, style.SMALL, theme.muted)
    return figure


def _bars(values: NDArray[np.float32], title: str, labels: Sequence[str], theme: Theme) -> tuple[Figure, str]:
    order = np.argsort(-values, kind="stable")[:_BARS]
    names = [style.shorten(labels[i], 28) if len(labels) == len(values) else str(i) for i in order]
    both = len(values) > _BARS
    figure = style.new_figure(8.6 if both else 6.0, 1.1 + 0.28 * max(len(order), 4), theme)
    grid = figure.subplots(1, 2, width_ratios=(1, 1.1)) if both else [figure.subplots(1, 1)]
    left = grid[0]
    style.style_axes(left, theme)
    left.barh(range(len(order)), values[order], color=theme.series[0])
    left.set_yticks(range(len(order)), [style.plain(name) for name in names])
    left.invert_yaxis()
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set_title(style.plain(style.shorten(title, 60)), fontsize=style.TITLE, weight="bold", color=theme.text, loc="left")
    left.set_xlabel(f"the {len(order)} largest" if both else "value", fontsize=style.LABEL)
    if both:
        style.style_axes(grid[1], theme)
        grid[1].plot(range(len(values)), values, color=theme.series[0], linewidth=1.2)
        grid[1].set_xlabel(f"all {len(values)} values, by unit", fontsize=style.LABEL)
    caption = f"{len(values)} values from {values.min():.4g} to {values.max():.4g}; largest: unit {order[0]}."
    return figure, caption
