"""The receptive field of every blob: which part of the input one of its values can depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from caffetools.errors import DataError
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.net.probe import picture_input
from caffetools.visualize import style
from caffetools.visualize.style import LIGHT, Theme

# Along one axis: output position i reads input positions stride · i + start to stride · i + end.
Span = tuple[float, float, float]

Dashes = str | tuple[int, tuple[float, ...]]

_DASHES: tuple[Dashes, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (3, 1.2, 1, 1.2)))
# Roles of layers whose top values are each one value of a bottom, or computed from one.
_MOVES = {"activation", "concat", "dropout", "permute", "rearrange", "reshape", "slice", "split"}


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a blob's values, along height and width.

    Attributes:
        blob: Its name.
        layer: The layer that made it (last).
        positions: (H, W) of the blob.
        stride: (h, w) input pixels from one position to the next.
        start, end: (h, w) first and last input pixel that position 0
            depends on, before clipping to the picture; negative ones are padding.
        whole: Each value depends on the whole picture.
        rearranged: The values are not in the order of the picture's positions any more; of several sizes ``start`` and ``end`` are
            those of the largest. Prior boxes depend on no pixel: theirs is the field of their cell of the map.
    """

    blob: str
    layer: str
    positions: tuple[int, int]
    stride: tuple[float, float]
    start: tuple[float, float]
    end: tuple[float, float]
    whole: bool = False
    rearranged: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in input pixels, padding included."""
        return tuple(round(e - s) + 1 for s, e in zip(self.start, self.end, strict=True))  # type: ignore[return-value]

    @property
    def located(self) -> bool:
        """Whether a position of the blob names a part of the picture."""
        return not (self.whole or self.rearranged)

    def box(self, y: int, x: int, picture: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right), exclusive at the end, of position (y, x) within a picture of (height, width).

        The whole picture where the field is not :attr:`located`.
        """
        if not self.located:
            return 0, 0, picture[0], picture[1]
        edges = []
        for place, stride, start, end, length in zip((y, x), self.stride, self.start, self.end, picture, strict=True):
            low, high = round(stride * place + start), round(stride * place + end) + 1
            edges.append((max(0, min(low, length - 1)), max(1, min(high, length))))
        (top, bottom), (left, right) = edges
        return top, left, bottom, right


def receptive_fields(net: Net) -> dict[str, ReceptiveField]:
    """Return the receptive field of every blob that depends on the input of pictures, in the net's order.

    Layers that keep positions (activations, sums, concatenation) pass fields on; so do layers that only move values (Permute, Flatten,
    Reshape), as ``rearranged``. Layers that mix all positions (InnerProduct, global pooling, MVN) give the whole picture. Bottoms that are
    read for their sizes alone (the second of Crop) do not count.

    Raises:
        DataError: the net's input has no positions.
    """
    source = picture_input(net)
    shape = net.blob_shapes[source]
    if len(shape) != 4:
        raise DataError(f"input '{source}' has no positions; receptive fields need N x C x H x W")
    start = ReceptiveField(source, "", (shape[2], shape[3]), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0))
    fields = {source: start}
    for layer in net.layers:
        below = _fields_below(layer, fields)
        if layer.IS_DATA or not below:
            continue
        for top, top_shape in zip(layer.tops, layer.top_shapes, strict=True):
            positions = (top_shape[2], top_shape[3]) if len(top_shape) == 4 else (1, 1)
            fields[top] = _through(layer, top, positions, below, (shape[2], shape[3]))
    return fields


def receptive_field_figure(net: Net, *, theme: Theme = LIGHT) -> tuple[Figure, str]:
    """Draw the receptive fields of the middle value of each blob over the outline of the input."""
    found = list(receptive_fields(net).values())[1:]
    first: dict[object, ReceptiveField] = {}
    for field in found:
        if field.located:
            first.setdefault((field.size, field.stride), field)
    fields = list(first.values())
    height, width = net.blob_shapes[picture_input(net)][2:]
    figure = style.new_figure(9.6, 1.2 + 0.24 * max(len(fields), 18), theme)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    style.style_axes(left, theme, grid=False)
    left.set_aspect("equal")
    left.add_patch(Rectangle((0, 0), width, height, facecolor=theme.grid, edgecolor="none"))
    extent = max([height, width, *(max(field.size) for field in fields)])
    for number, field in enumerate(fields):
        h, w = field.size
        colour, dashes = _look(number, theme)
        corner = (width - w) / 2, (height - h) / 2
        left.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.4))
    left.set_xlim((width - extent) / 2 - 2, (width + extent) / 2 + 2)
    left.set_ylim((height + extent) / 2 + 2, (height - extent) / 2 - 2)
    left.set_xticks([])
    left.set_yticks([])
    left.set_title(f"Input {height} × {width}", fontsize=style.TITLE, weight="bold", color=theme.text, loc="left")
    right.set_axis_off()
    right.set_xlim(0, 1)
    right.set_ylim(max(len(fields), 18) + 1, 0)
    for place, text in ((0.06, "blob"), (0.62, "field"), (0.86, "stride")):
        right.text(place, 0.5, text, fontsize=style.SMALL, color=theme.muted, va="center")
    for number, field in enumerate(fields):
        colour, dashes = _look(number, theme)
        right.plot([0, 0.045], [number + 1.5] * 2, color=colour, linestyle=dashes, linewidth=2, solid_capstyle="butt")
        right.text(0.06, number + 1.5, style.plain(style.shorten(field.blob, 26)), fontsize=style.SMALL, color=theme.text, va="center")
        right.text(0.62, number + 1.5, f"{field.size[0]} × {field.size[1]}", fontsize=style.SMALL, color=theme.text, va="center")
        right.text(0.86, number + 1.5, f"{field.stride[0]:g}", fontsize=style.SMALL, color=theme.muted, va="center")
    largest = max(fields, key=lambda field: field.size, default=None)
    whole = sum(field.whole for field in found)
    caption = f"{len(found)} blobs, {whole} of which depend on the whole picture"
    caption += f"; the largest field of the others is {largest.size[0]} × {largest.size[1]}." if largest else "."
    return figure, caption


def _look(number: int, theme: Theme) -> tuple[str, Dashes]:
    """Return colour and dashes of the outline of field ``number``: where the colours begin again, the dashes distinguish the fields."""
    again, place = divmod(number, len(theme.series))
    return theme.series[place], _DASHES[again % len(_DASHES)]


def _fields_below(layer: Layer, fields: Mapping[str, ReceptiveField]) -> list[ReceptiveField]:
    """Return the fields of the bottoms whose values the layer reads; of the first bottom, marked as rearranged, where it reads sizes alone."""
    read = [bottom for index, bottom in enumerate(layer.bottoms) if index not in layer.SIZE_BOTTOMS]
    if not read:
        return [replace(fields[bottom], rearranged=True) for bottom in layer.bottoms[:1] if bottom in fields]
    return [fields[bottom] for bottom in read if bottom in fields]


def _through(layer: Layer, top: str, positions: tuple[int, int], below: list[ReceptiveField], picture: tuple[int, int]) -> ReceptiveField:
    window = _window(layer)
    if not any(field.whole for field in below) and (window is None or any(f.rearranged for f in below)) and _moves(layer):
        return _largest(layer, top, positions, below)
    if window is None or not all(field.located for field in below):
        return ReceptiveField(top, layer.name, positions, (0.0, 0.0), (0.0, 0.0), (picture[0] - 1.0, picture[1] - 1.0), whole=True)
    sides = []
    for axis in range(2):
        step, first, last = window[axis]
        spans = [(field.stride[axis], field.start[axis], field.end[axis]) for field in below]
        # Several bottoms: the union, on the coarsest grid (they agree in nets whose shapes fit).
        stride = max(span[0] for span in spans)
        start = min(span[1] + span[0] * first for span in spans)
        end = max(span[2] + span[0] * last for span in spans)
        sides.append((stride * step, start, end))
    (sh, th, eh), (sw, tw, ew) = sides
    return ReceptiveField(top, layer.name, positions, (sh, sw), (th, tw), (eh, ew))


def _moves(layer: Layer) -> bool:
    return layer.TRAITS.role in _MOVES or len(layer.SIZE_BOTTOMS) >= len(layer.bottoms)


def _largest(layer: Layer, top: str, positions: tuple[int, int], below: list[ReceptiveField]) -> ReceptiveField:
    """Return the field of a top whose values are those of the bottoms at other places, or each computed from one of them."""
    sides = [max((f.end[axis] - f.start[axis], f.stride[axis], f.start[axis], f.end[axis]) for f in below) for axis in range(2)]
    (_, sh, th, eh), (_, sw, tw, ew) = sides
    return ReceptiveField(top, layer.name, positions, (sh, sw), (th, tw), (eh, ew), rearranged=True)


def _window(layer: Layer) -> tuple[Span, Span] | None:
    """For each axis (step, first, last): position i of the top reads positions step · i + first to step · i + last of the bottom."""
    windows = layer.spatial_windows()
    if windows is None or any(len(shape) != 4 for shape in (*layer.bottom_shapes, *layer.top_shapes)):
        return None
    rows, columns = ((float(w.scale), float(w.first // w.up), float(-(-w.last // w.up))) for w in windows)
    return rows, columns
