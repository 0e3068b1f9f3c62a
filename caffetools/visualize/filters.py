"""A layer's weights as a picture: in colour over BGR pictures, else grey tiles, or a histogram for shapes without tiles."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.layers.base import format_shape
from caffetools.layers.convolution import Convolution
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.registry import traits, types
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import LayerParameter, NetParameter, enum_name
from caffetools.visualize import style
from caffetools.visualize.panels import NUMBER, NUMBER_HEIGHT, Panel, number_room, panels_figure, thinned
from caffetools.visualize.style import LIGHT, PathLike, Theme
from caffetools.visualize.tiles import MOST_CHANNELS, MOST_TILES, Sheet, change_sheet, filter_sheet

Normalize = Literal["each", "common"]
ChannelOrder = Literal["bgr", "rgb"]
Source = PathLike | Caffemodel | Mapping[str, Sequence[NDArray[Any]]]

# Grey tiles, those of a filter, and pixels of each of three sheets that share a row.
_PAIR_TILES, _PAIR_CHANNELS, _PAIR_WIDTH = 256, 16, 362


@dataclass(frozen=True)
class LayerWeights:
    """The first parameter blob of a layer, and what is needed to read it.

    Attributes:
        name: The layer's name.
        weights: Its weights, any shape; see :func:`filters_figure`.
        type: Its Caffe type; if empty, it follows from the number of axes.
        group: Its convolution's groups: each filter sees only the channels of its own.
        unit_axis: The axis along which each output unit has its own weights; with groups in axis 1, each group has its own units.
    """

    name: str
    weights: NDArray[Any]
    type: str = ""
    group: int = 1
    unit_axis: int = 0

    def unit_rows(self) -> NDArray[np.float64]:
        """Return the weights as a matrix (units, weights of a unit), float64."""
        weights = np.asarray(self.weights, np.float64)
        if weights.ndim < 2:
            return weights.reshape(-1, 1)
        if self.unit_axis != 1:
            return weights.reshape(len(weights), -1)
        groups = self.group if len(weights) % self.group == 0 else 1
        parts = weights.reshape(groups, -1, weights.shape[1], *weights.shape[2:])
        return np.moveaxis(parts, 2, 1).reshape(groups * weights.shape[1], -1)


def draw_filters(
    source: Source,
    layer: str | None,
    path: PathLike,
    *,
    normalize: Normalize = "each",
    channel_order: ChannelOrder = "bgr",
    picture_shape: tuple[int, int, int] | None = None,
    theme: Theme = LIGHT,
) -> str:
    """Draw the weights of ``layer`` to ``path`` (.png or .svg) and return the caption: what is shown and how it is scaled.

    Args:
        source: A .caffemodel (its path, or as read), or arrays by layer name, weights first.
        layer: The layer's name; None takes the first one with convolution filters.
        path: The picture to write.
        normalize: As in :func:`filters_figure`.
        channel_order: As in :func:`filters_figure`.
        picture_shape: As in :func:`filters_figure`.
        theme: Colours.

    Raises:
        ModelFileError: The .caffemodel cannot be read.
        DataError: the layer does not exist (the message lists those there are), weights that
            are not finite, or another suffix than .png and .svg.
        RunFailed: ``path`` cannot be written.
    """
    style.picture_format(path)
    weights = find_weights(source, layer)
    figure, caption = filters_figure(weights, normalize=normalize, channel_order=channel_order, picture_shape=picture_shape, theme=theme)
    style.save_figure(figure, path)
    return caption


def draw_filter_changes(
    before: Source,
    after: Source,
    layer: str | None,
    path: PathLike,
    *,
    normalize: Normalize = "each",
    channel_order: ChannelOrder = "bgr",
    theme: Theme = LIGHT,
) -> str:
    """Draw a layer's weights before and after training and a map of their change; return the caption.

    Args:
        before: Weights to compare with, as ``source`` of :func:`draw_filters`.
        after: The later weights.
        layer: The layer's name; None takes the first one with convolution filters.
        path: Picture to write, .png or .svg.
        normalize: As in :func:`filters_figure`.
        channel_order: Likewise.
        theme: Colours.

    Raises:
        ModelFileError, DataError, RunFailed: as :func:`draw_filters`; DataError also where the two have different shapes.
    """
    style.picture_format(path)
    new = find_weights(after, layer)
    figure, caption = filter_changes_figure(
        find_weights(before, new.name), new, normalize=normalize, channel_order=channel_order, theme=theme
    )
    style.save_figure(figure, path)
    return caption


def filter_changes_figure(
    before: LayerWeights,
    after: LayerWeights,
    *,
    normalize: Normalize = "each",
    channel_order: ChannelOrder = "bgr",
    theme: Theme = LIGHT,
) -> tuple[Figure, str]:
    """Return the figure of :func:`draw_filter_changes` and its caption; raises :class:`DataError` as it does."""
    if np.shape(before.weights) != np.shape(after.weights):
        shapes = " and ".join(format_shape(np.shape(item.weights)) for item in (before, after))
        raise DataError(f"layer '{after.name}' has weights of {shapes} before and after; only equal shapes can be compared")
    title = f"{after.name}  ·  {describe(after)}"
    old, new = _as_points(before), _as_points(after)
    options: dict[str, Any] = {"normalize": normalize, "channel_order": channel_order, "theme": theme}
    options |= {"most_tiles": _PAIR_TILES, "most_channels": _PAIR_CHANNELS}
    large = _certain(layer_sheet(new, **options))
    scale = max(1, int(large.scale * min(1.0, _PAIR_WIDTH / large.image.shape[1])))
    sheets = [_certain(layer_sheet(item, scale=scale, **options)) for item in (old, new)]
    change = change_sheet(
        old.weights,
        new.weights,
        colour=_in_colour(new),
        gap=style.rgb(theme.background),
        scale=scale,
        most_tiles=_PAIR_TILES,
        most_channels=_PAIR_CHANNELS,
    )
    size, moved = (norm(np.asarray(values, np.float64)) for values in (old.weights, new.weights - old.weights))
    amount = f" The whole layer changed by {moved / size:.2%} of its norm." if size and moved else ""
    caption = f"{sheets[1].caption} {change.caption}{amount}"
    # The change is laid out as the filters are.
    named = ((sheets[0].image, "before"), (sheets[1].image, "after"), (change.image, "change"))
    panels = [Panel(image, title, rows=sheets[0].rows, columns=sheets[0].columns) for image, title in named]
    return panels_figure(panels, title, caption, theme=theme), caption


def filters_figure(
    layer: LayerWeights | NDArray[Any],
    *,
    normalize: Normalize = "each",
    channel_order: ChannelOrder = "bgr",
    picture_shape: tuple[int, int, int] | None = None,
    theme: Theme = LIGHT,
) -> tuple[Figure, str]:
    """Return the figure of a layer's weights, and its caption.

    Args:
        layer: Weights, with the layer's name and type or bare. (N, C, kH, kW) is drawn as tiles: in colour where C is 3 and there
            are no groups, else a grey tile for each channel. (N, K) of an InnerProduct is drawn the same way where
            ``picture_shape`` gives the shape of its K inputs. Anything else is drawn as a histogram of its values.
        normalize: ``"each"`` scales every filter by its own largest absolute weight, ``"common"`` all by the largest of all;
            zero is the middle grey either way.
        channel_order: What the three channels are, ``"bgr"`` as Caffe's tools have them or ``"rgb"``.
        picture_shape: (C, H, W) with C·H·W = K.
        theme: Colours.

    Raises:
        DataError: There are no weights, some are not finite, or ``picture_shape`` does not fit.
    """
    if not isinstance(layer, LayerWeights):
        layer = LayerWeights("", layer)
    sheet = layer_sheet(layer, normalize=normalize, channel_order=channel_order, picture_shape=picture_shape, theme=theme)
    title = f"{layer.name}  ·  {describe(layer)}" if layer.name else describe(layer)
    if sheet is None:
        return _histogram(np.asarray(layer.weights, np.float32), title, theme)
    return _tiles(sheet, title, theme), sheet.caption


def layer_sheet(
    layer: LayerWeights,
    *,
    normalize: Normalize = "each",
    channel_order: ChannelOrder = "bgr",
    picture_shape: tuple[int, int, int] | None = None,
    most_tiles: int = MOST_TILES,
    most_channels: int = MOST_CHANNELS,
    scale: int | None = None,
    theme: Theme = LIGHT,
) -> Sheet | None:
    """Return the tiles of a layer's weights alone, with ``most_tiles`` at most of grey ones, ``most_channels`` a filter; None where only a histogram is possible.

    The other arguments and what is raised are those of :func:`filters_figure`.
    """
    weights = _as_filters(layer, picture_shape)
    if weights.size == 0:
        raise DataError(f"{_named(layer)} has no weights to draw")
    if not np.isfinite(weights).all():
        raise DataError(f"{_named(layer)} holds weights that are not finite; the training that wrote them diverged")
    if weights.ndim != 4:
        return None
    transposed = traits(layer.type).coordinates == "transposed"
    sheet = filter_sheet(
        weights,
        normalize=normalize,
        channel_order=channel_order,
        colour=_in_colour(replace(layer, weights=weights)),
        words=("input channel", "output channel") if transposed else ("filter", "channel"),
        gap=style.rgb(theme.background),
        scale=scale,
        most_tiles=most_tiles,
        most_channels=most_channels,
    )
    if layer.group == 1 or weights.shape[1] == 1:
        return sheet
    return replace(sheet, caption=f"{sheet.caption} The layer has {layer.group} groups: each filter sees the channels of its own.")


def norm(values: NDArray[np.float64]) -> float:
    """Return the 2-norm of an array of any shape; numpy.linalg.norm sums in an order that depends on the number of threads."""
    return float(np.sqrt(np.square(values).sum()))


def describe(layer: LayerWeights) -> str:
    """Return ``Convolution 96 × 3 × 11 × 11``."""
    kind = layer.type or {4: Convolution.TYPE, 2: InnerProduct.TYPE}.get(np.ndim(layer.weights), "weights")
    return f"{kind} {' × '.join(map(str, np.shape(layer.weights)))}"


def find_weights(source: Source, layer: str | None = None) -> LayerWeights:
    """Return the weights of one layer.

    Args:
        source: As for :func:`draw_filters`.
        layer: The layer's name; None takes the first layer with convolution filters.

    Raises:
        ModelFileError: the .caffemodel cannot be read.
        DataError: the layer has no weights; the message lists those that have.
    """
    # Of several layers of one name the first.
    found = {item.name: item for item in reversed(all_weights(source))}
    found = dict(reversed(found.items()))
    layer = _first_filters(list(found.values())) if layer is None else layer
    if layer not in found:
        raise DataError(f"{_place(source)}no layer '{layer}' with weights; there are: {', '.join(found)}")
    return found[layer]


def all_weights(source: Source) -> list[LayerWeights]:
    """Return the weights of every layer that has some, in the file's order. Raises as :func:`find_weights` does."""
    model = read_caffemodel(source) if isinstance(source, str | os.PathLike) else source
    blobs: Mapping[str, Sequence[NDArray[Any]]] = model.blobs if isinstance(model, Caffemodel) else model
    kinds = _kinds(model.net) if isinstance(model, Caffemodel) else {}
    stored: list[tuple[str, Sequence[NDArray[Any]]]] = list(blobs.items())
    if isinstance(model, Caffemodel) and model.repeated:
        names = [str(layer.name) for layer in model.net.layer]
        stored = [(name, model.repeated.get(index, model.blobs.get(name, []))) for index, name in enumerate(names)]
    found = [
        _without_old_axes(LayerWeights(name, np.asarray(arrays[0]), *kinds.get(name, ("", 1, 0))))
        for name, arrays in stored
        if len(arrays) and np.size(arrays[0])
    ]
    if not found:
        raise DataError(f"{_place(source)}no layer has weights")
    return found


def _place(source: Source) -> str:
    return f"{os.fspath(source)}: " if isinstance(source, str | os.PathLike) else ""


def _first_filters(layers: Sequence[LayerWeights]) -> str:
    """Return the first layer with filters larger than a point, or just the first."""
    filters = (item.name for item in layers if np.ndim(item.weights) == 4 and np.shape(item.weights)[2:] != (1, 1))
    return next(filters, layers[0].name)


def _without_old_axes(layer: LayerWeights) -> LayerWeights:
    """Return the weights without the leading axes of 1 with which files older than 2014 give every blob four axes."""
    role = traits(layer.type).role if layer.type else "other"
    leading = 2 if layer.type == InnerProduct.TYPE else 3 if role in ("normalization", "scale", "activation") else 0
    if layer.weights.ndim == 4 and leading and layer.weights.shape[:leading] == (1,) * leading:
        return replace(layer, weights=layer.weights.reshape(layer.weights.shape[leading:]))
    return layer


def _kinds(net: NetParameter) -> dict[str, tuple[str, int, int]]:
    """Return the type, groups and axis of units of each layer.

    Layers may have today's form, or the older ones that have the type as a number or in lower case.
    """
    kinds = {layer.name: (str(layer.type), max(1, layer.convolution_param.group), _unit_axis(layer)) for layer in net.layer}
    for layer in net.layers:
        old = layer.layer if layer.HasField("layer") else None
        if old is not None:
            word, group = str(old.type), old.group
        else:
            word, group = enum_name(layer, "type"), layer.convolution_param.group
        known = {name.lower(): name for name in types(role="classifier")} | {"conv": Convolution.TYPE}
        name = layer.name or (old.name if old is not None else "")
        kinds.setdefault(name, (known.get(word.lower().replace("_", ""), word), max(1, group), 0))
    return kinds


def _unit_axis(layer: LayerParameter) -> int:
    axes = traits(layer).class_axes
    return axes[0] or 0 if axes else 0


def _in_colour(layer: LayerWeights) -> bool:
    return np.shape(layer.weights)[1] == 3 and layer.group == 1 and traits(layer.type).coordinates != "transposed"


def _as_points(layer: LayerWeights) -> LayerWeights:
    """Return a matrix as 1 x 1 filters, so that it is drawn as points: rows are units, columns inputs."""
    weights = np.asarray(layer.weights, np.float32)
    if weights.ndim == 4:
        return replace(layer, weights=weights)
    return replace(layer, weights=weights.reshape((len(weights) if weights.ndim > 1 else 1, -1, 1, 1)), type="")


def _certain(sheet: Sheet | None) -> Sheet:
    assert sheet is not None  # noqa: S101 (weights of four axes always give tiles)
    return sheet


def _as_filters(layer: LayerWeights, picture_shape: tuple[int, int, int] | None) -> NDArray[np.float32]:
    weights = np.asarray(_without_old_axes(layer).weights, np.float32)
    if picture_shape is None:
        return weights
    if weights.ndim != 2 or weights.shape[1] != int(np.prod(picture_shape)):
        raise DataError(f"{_named(layer)} has weights {weights.shape}, which do not fit inputs of {' x '.join(map(str, picture_shape))}")
    return weights.reshape(-1, *picture_shape)


def _named(layer: LayerWeights) -> str:
    return f"layer '{layer.name}'" if layer.name else "the layer"


def _tiles(sheet: Sheet, title: str, theme: Theme) -> Figure:
    """Return the sheet, dot for dot, below the title and above the caption, with the numbers of its rows and columns."""
    height, width = sheet.image.shape[:2]
    margin, head, line = 24, 44, 24
    left = margin + number_room(sheet.rows)
    head += NUMBER_HEIGHT if sheet.columns else 0
    full = max(left + width - margin, 680) + 2 * margin
    lines = textwrap.wrap(sheet.caption, int((full - 2 * margin) / 7.9))
    total = margin + head + height + 18 + line * len(lines) + margin - 8
    figure = style.new_figure(full / style.DPI, total / style.DPI, theme, fitted=False)
    bottom = total - margin - head - height
    axes = figure.add_axes((left / full, bottom / total, width / full, height / total))
    axes.imshow(sheet.image, interpolation="none", aspect="auto")
    axes.set_axis_off()
    small: dict[str, Any] = {"fontsize": NUMBER, "color": theme.muted}
    for middle, number in thinned(sheet.rows, NUMBER_HEIGHT):
        figure.text((left - 6) / full, (bottom + height - middle) / total, str(number), ha="right", va="center", **small)
    for middle, number in thinned(sheet.columns, number_room(sheet.columns)):
        figure.text((left + middle) / full, (bottom + height + 4) / total, str(number), ha="center", va="bottom", **small)
    figure.text(margin / full, 1 - margin / total, style.plain(title), fontsize=style.TITLE, weight="bold", color=theme.text, va="top")
    below = "\n".join(style.plain(text) for text in lines)
    figure.text(margin / full, (bottom - 18) / total, below, fontsize=style.SMALL, color=theme.muted, va="top", linespacing=1.5)
    return figure


def _histogram(weights: NDArray[np.float32], title: str, theme: Theme) -> tuple[Figure, str]:
    values = weights.ravel()
    caption = f"{values.size:,} weights: mean {values.mean():.3g}, standard deviation {values.std():.3g}, "
    caption += f"from {values.min():.3g} to {values.max():.3g}."
    figure = style.new_figure(7, 3.6, theme)
    axes = figure.add_subplot()
    style.style_axes(axes, theme)
    axes.hist(values, bins=min(100, max(10, int(values.size**0.5))), color=theme.series[0])
    axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.set_ylabel("weights", fontsize=style.LABEL)
    axes.set_xlabel(caption, fontsize=style.SMALL)
    axes.set_title(style.plain(title), fontsize=style.TITLE, weight="bold", color=theme.text, loc="left")
    return figure, caption
