"""Drawings of a net's graph: SVG, PNG, and a page with search, folding and the settings of each layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.util.files import write_text
from caffetools.visualize import style
from caffetools.visualize.graph_layout import RANK_GAP, Layout, Point, lay_out
from caffetools.visualize.layer_facts import blob_facts, describe_type
from caffetools.visualize.net_graph import FAMILIES, Arrow, Box, NetGraph, Row, fold_repeats
from caffetools.visualize.output import check_suffix
from caffetools.visualize.panels import shorten_to, text_width
from caffetools.visualize.style import LIGHT, PathLike, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, one a family; each family is also named in the legend and by its layers' types.
COLOURS = {
    "data": "#56b4e9",
    "learned": "#0072b2",
    "activation": "#e69f00",
    "norm": "#cc79a7",
    "pooling": "#009e73",
    "shape": "#9a8c00",
    "loss": "#d55e00",
    "other": "#7f8894",
}
_NAME, _SMALL = 13, 11  # pixels
_PAD, _HEAD, _ROW, _STRIPE = 12, 44, 20, 6
_LEAST_WIDTH, _MOST_TEXT = 132, 260
_MARGIN, _TITLE = 24, 78
_MOST_PIXELS, _MOST_AREA = 32_000, 64e6  # of a PNG's side, of its whole
_LEAST_SCALE = 0.7  # of a PNG whose text of 11 pixels can still be read
_MOST_SHIFT = 14  # pixels by which a shape may be moved to the right: it must not reach the next box
_MOST_COLUMN, _COLUMN_GAP = 10_000, 60.0  # pixels
_LABEL_LINE = 16  # pixels from one line of text below a box to the next
_MOST_LABELS = int((RANK_GAP - 7) / _LABEL_LINE)  # lines of text below a box, above the arrow heads of the next rank


@dataclass(frozen=True)
class PlacedGraph:
    """A graph with its layout; arrows in pairs of boxes share a curve."""

    graph: NetGraph
    sizes: list[Point]
    layout: Layout
    labels: list[tuple[float, float, str]]


def draw_graph(
    graph: NetGraph,
    path: PathLike,
    *,
    title: str = "",
    fold: bool = True,
    engine: str = "auto",
    weights: Mapping[str, Sequence[NDArray[Any]]] | None = None,
) -> str:
    """Write a drawing of a net and return a caption.

    Args:
        graph: From :func:`~caffetools.visualize.net_graph.net_graph`.
        path: .svg or .png for a picture, .html for a page with search, folding, zoom and settings.
        title: Above the drawing.
        fold: Draw repeated blocks once; a page has both.
        engine: As for :func:`~caffetools.visualize.graph_layout.lay_out`.
        weights: Parameter blobs by layer, for the statistics and first values on a page.

    Raises:
        DataError: another suffix, or a net without layers.
        RunFailed: the file cannot be written.
    """
    suffix, advice = check_suffix(path), ""
    if not graph.boxes:
        raise DataError(f"the net '{graph.name}' has no layers in this phase")
    folded = fold_repeats(graph)
    title = title or graph.name or "net"
    if suffix == ".html":
        write_text(path, _page(graph, folded, title, engine, weights or {}))
    else:
        shown = place_graph(folded if fold else graph, engine=engine)
        if suffix == ".svg":
            write_text(path, svg_text(shown, title=title))
        else:
            style.save_figure(graph_figure(shown, title=title), path)
            if not is_readable_as_png(shown):
                advice = " The text is too small to be read in a PNG of this net: write .html or .svg instead."
    hidden = sum(box.folded for box in folded.boxes)
    repeats = f", {hidden} repeated blocks folded" if fold and hidden else ""
    return f"{', '.join(graph.facts)}{repeats}.{advice}"


def place_graph(graph: NetGraph, *, engine: str = "auto") -> PlacedGraph:
    """Lay out a graph. Several arrows between the same boxes become one, with the blobs' shapes as its label."""
    pairs: dict[tuple[int, int], list[Arrow]] = {}
    for arrow in graph.arrows:
        pairs.setdefault((arrow.source, arrow.target), []).append(arrow)
    sizes = [_size(box, graph, index) for index, box in enumerate(graph.boxes)]
    layout = lay_out(sizes, list(pairs), engine=engine)
    leaving: dict[int, list[list[Point]]] = {}
    for (source, _), curve in zip(pairs, layout.arrows, strict=True):
        leaving.setdefault(source, []).append(curve)
    texts: dict[int, list[str]] = {}
    for (source, _), arrows in pairs.items():
        texts.setdefault(source, []).append(_label(arrows))
    labels = []
    for source, found in texts.items():
        left, top = layout.boxes[source]
        for line, text in enumerate(_label_lines(found), start=1):
            middle, y = left + sizes[source][0] / 2, top + sizes[source][1] + _LABEL_LINE * line
            labels.append((_free_side(middle, y, text_width(text, _SMALL / 2), leaving[source]), y, text))
    return PlacedGraph(graph, sizes, layout, labels)


def _label_lines(texts: Sequence[str]) -> list[str]:
    """Return the lines of text below a box: each shape once, and the number of those for which the gap between ranks has no room."""
    lines = [text for text in dict.fromkeys(texts) if text]
    hidden = len(lines) - _MOST_LABELS
    return lines if hidden <= 0 else [*lines[: _MOST_LABELS - 1], f"{lines[_MOST_LABELS - 1]} +{hidden}"]


def _free_side(middle: float, baseline: float, width: float, curves: Sequence[Sequence[Point]]) -> float:
    """Return where a label of ``width`` begins: right of where the arrows leave, or a little further or left of it where those would
    cross it there.
    """

    def crossed(left: float) -> int:
        return sum(left - 3 < x < left + width + 3 for x in reached)

    reached = [x for curve in curves for x, y in _first_points(curve) if baseline - _SMALL - 2 < y < baseline + 4]
    further = [x + 4 for x in reached if middle < x < middle + _MOST_SHIFT]
    return min((middle + 6, middle - 6 - width, max(further, default=middle + 6)), key=crossed)


def _first_points(curve: Sequence[Point]) -> list[Point]:
    """Points of the first two pieces of an arrow, which pass its label."""
    share = np.linspace(0, 1, 33)[:, None]
    found: list[Point] = []
    for first in range(0, min(len(curve) - 1, 6), 3):
        a, b, c, d = (np.array(point) for point in curve[first : first + 4])
        at = (1 - share) ** 3 * a + 3 * (1 - share) ** 2 * share * b + 3 * (1 - share) * share**2 * c + share**3 * d
        found += [(float(x), float(y)) for x, y in at]
    return found


def svg_text(placed: PlacedGraph, *, title: str = "", theme: Theme = LIGHT) -> str:
    """Return the drawing as an SVG file with its title and a legend."""
    legend = _legend(placed.graph)
    width = max(placed.layout.width, legend[-1][0] + 160 if legend else 0, 320) + 2 * _MARGIN
    height = placed.layout.height + _TITLE + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f"font-family=\"'DejaVu Sans', system-ui, sans-serif\">",
        "<metadata>caffetools</metadata>",
        f"<style>{_svg_style(theme)}</style>",
        f'<rect width="100%" height="100%" fill="{theme.background}"/>',
        f'<text class="title" x="{_MARGIN}" y="36">{_xml(shorten_to(title, width - 2 * _MARGIN, 8.5, bold=True))}</text>',
    ]
    for left, family in legend:
        parts.append(f'<rect class="s {family}" x="{_MARGIN + left:.0f}" y="52" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="d" x="{_MARGIN + left + 18:.0f}" y="62">{_xml(FAMILIES[family][0])}</text>')
    shift = _MARGIN + max(0.0, (width - 2 * _MARGIN - placed.layout.width) / 2)
    parts.append(f'<g transform="translate({shift:.1f} {_TITLE + _MARGIN})">{svg_body(placed)}</g></svg>')
    return "\n".join(parts) + "\n"


def svg_body(placed: PlacedGraph) -> str:
    """Return the boxes and arrows as SVG elements; each box is a group with ``data-box``, its place in the graph."""
    parts = [f'<path class="a" d="{_path(points)}"/>' for points in placed.layout.arrows]
    parts += [_arrow_head(points) for points in placed.layout.arrows]
    for index, (box, size, place) in enumerate(zip(placed.graph.boxes, placed.sizes, placed.layout.boxes, strict=True)):
        parts.append(_svg_box(index, box, size, place))
    parts += [f'<text class="e" x="{x:.1f}" y="{y:.1f}">{_xml(text)}</text>' for x, y, text in placed.labels]
    return "\n".join(parts)


def graph_figure(placed: PlacedGraph, *, title: str = "", theme: Theme = LIGHT) -> Figure:
    """Return the drawing as a figure for PNG files; a long one in columns, read from left to right."""
    legend, (columns, width, height, scale) = _legend(placed.graph), _sheet(placed)
    figure = style.new_figure(width * scale / style.DPI, height * scale / style.DPI, theme, fitted=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    points = scale * 72 / style.DPI

    def text(x: float, y: float, words: str, pixels: float, colour: str, **look: Any) -> None:
        axes.text(x, y, style.plain(words), fontsize=pixels * points, color=colour, va="baseline", **look)

    if len(columns) > 1:
        title += f"  ·  {len(columns)} columns, from left to right"
    text(_MARGIN, 36, shorten_to(title, width - 2 * _MARGIN, 8.5, bold=True), 17, theme.text, weight="bold")
    for left, family in legend:
        axes.add_patch(Rectangle((_MARGIN + left, 52), 12, 12, facecolor=COLOURS[family], linewidth=0))
        text(_MARGIN + left + 18, 62, FAMILIES[family][0], _SMALL, theme.muted)
    dx, dy = (width - columns[-1].dx - placed.layout.width) / 2, _TITLE + _MARGIN
    for column in columns:
        _figure_column(axes, placed, replace(column, dx=column.dx + dx, dy=dy - column.top), theme, points, text)
    return figure


def is_readable_as_png(placed: PlacedGraph) -> bool:
    """Return whether the text of the drawing has at least some 8 pixels in a PNG of the size that can be written."""
    return _sheet(placed)[-1] >= _LEAST_SCALE


def _figure_column(axes: Axes, placed: PlacedGraph, column: _Column, theme: Theme, points: float, text: Callable[..., None]) -> None:
    top, bottom, dx, dy = column.top, column.bottom, column.dx, column.dy
    frame = Rectangle((dx - _COLUMN_GAP / 2, top + dy), placed.layout.width + _COLUMN_GAP, bottom - top, transform=axes.transData)
    for curve in placed.layout.arrows:
        if curve[-1][1] < top or curve[0][1] > bottom:
            continue
        moved = [(x + dx, y + dy) for x, y in curve]
        codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(moved) - 1)
        arrow = PathPatch(Curve(moved, codes), facecolor="none", edgecolor=theme.muted, linewidth=1.2 * points)
        axes.add_patch(arrow)
        arrow.set_clip_path(frame)
        if top <= curve[-1][1] <= bottom:
            x, y = moved[-1]
            axes.add_patch(PathPatch(Curve([(x - 4, y - 7), (x + 4, y - 7), (x, y), (x - 4, y - 7)]), facecolor=theme.muted, linewidth=0))
    for box, size, (left, y) in zip(placed.graph.boxes, placed.sizes, placed.layout.boxes, strict=True):
        if top <= y < bottom:
            _figure_box(axes, box, size, (left + dx, y + dy), theme, points, text)
    for x, y, words in placed.labels:
        if top <= y < bottom:
            halo = {"facecolor": theme.background, "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
            text(x + dx, y + dy, words, _SMALL, theme.muted, bbox=halo)


@dataclass(frozen=True)
class _Column:
    """A part of the drawing, from ``top`` to ``bottom``, and by how much the PNG moves it."""

    top: float
    bottom: float
    dx: float = 0.0
    dy: float = 0.0


def _columns(placed: PlacedGraph) -> list[_Column]:
    """Cut a drawing that is much higher than wide between ranks of boxes, so that the picture is about as high as wide."""
    width, height = placed.layout.width, placed.layout.height
    if height <= _MOST_COLUMN:
        return [_Column(0.0, height)]
    count = max(2, round(math.sqrt(height / (width + _COLUMN_GAP))))
    gaps, reached = [], 0.0
    for top, bottom in sorted((y, y + size[1]) for (_, y), size in zip(placed.layout.boxes, placed.sizes, strict=True)):
        if top - reached >= RANK_GAP / 2:
            # Above the arrow heads, below the labels of the boxes above.
            gaps.append(top - 8.0)
        reached = max(reached, bottom)
    cuts = {min(gaps, key=lambda y: abs(y - height * i / count)) for i in range(1, count)} if gaps else set[float]()
    edges = [0.0, *sorted(cuts - {0.0}), height]
    return [_Column(a, b, dx=i * (width + _COLUMN_GAP)) for i, (a, b) in enumerate(itertools.pairwise(edges))]


def _sheet(placed: PlacedGraph) -> tuple[list[_Column], float, float, float]:
    """Return the columns of a PNG, its width and height in pixels of the drawing, and how many of its own pixels each of these has.

    At 144 pixels an inch these are 1.5, unless the picture would become too large.
    """
    legend, columns = _legend(placed.graph), _columns(placed)
    inner = columns[-1].dx + placed.layout.width
    width = max(inner, legend[-1][0] + 160 if legend else 0, 320) + 2 * _MARGIN
    height = max(column.bottom - column.top for column in columns) + _TITLE + 2 * _MARGIN
    scale = min(1.5, _MOST_PIXELS / max(width, height), math.sqrt(_MOST_AREA / (width * height)))
    return columns, width, height, scale


def _figure_box(axes: Axes, box: Box, size: Point, place: Point, theme: Theme, points: float, text: Callable[..., None]) -> None:
    left, top = place
    width, height = size
    shape = FancyBboxPatch(
        (left, top),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=6",
        facecolor=theme.background,
        edgecolor=theme.muted,
        linewidth=points,
    )
    axes.add_patch(shape)
    for y, row_height, family in _stripes(box, height):
        axes.add_patch(Rectangle((left, top + y), _STRIPE, row_height, facecolor=COLOURS[family], linewidth=0))
    for x, y, words, kind in _lines(box):
        bold = {"weight": "bold"} if kind == "n" else {}
        text(left + x, top + y, words, _NAME if kind == "n" else _SMALL, theme.text if kind == "n" else theme.muted, **bold)


def _svg_box(index: int, box: Box, size: Point, place: Point) -> str:
    width, height = size
    full = (
        f"{len(box.rows)} layers: {box.name} to {box.rows[-1].layer}" if box.folded else "; ".join(f"{r.layer}, {r.type}" for r in box.rows)
    )
    parts = [
        f'<g class="b" data-box="{index}" transform="translate({place[0]:.1f} {place[1]:.1f})"><title>{_xml(full)}</title>',
        f'<rect class="c{" f" if box.folded else ""}" width="{width:.0f}" height="{height:.0f}" rx="6"/>',
    ]
    for y, row_height, family in _stripes(box, height):
        parts.append(f'<rect class="s {family}" y="{y:.0f}" width="{_STRIPE}" height="{row_height:.0f}"/>')
    parts += [f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{_xml(words)}</text>' for x, y, words, kind in _lines(box)]
    return "".join(parts) + "</g>"


def _lines(box: Box) -> list[tuple[float, float, str, str]]:
    """Return (x, baseline, text, class) of the text in a box; class ``n`` is a name, ``d`` a detail."""
    left = _STRIPE + _PAD
    if box.folded:
        plural = "s" if box.folded > 1 else ""
        span = f"{box.name} – {box.rows[-1].layer}"
        return [(left, 19, f"× {box.folded} more block{plural}", "n"), (left, 36, _fit(span, _SMALL), "d")]
    first = box.rows[0]
    lines = [(left, 19, _fit(first.layer, _NAME), "n"), (left, 36, _fit(f"{first.type}  {first.detail}".strip(), _SMALL), "d")]
    for number, row in enumerate(box.rows[1:]):
        words = row.type if row.layer.lower() == row.type.lower() else f"{row.type}  {row.layer}"
        lines.append((left, _HEAD + 14 + _ROW * number, _fit(words, _SMALL), "d"))
    return [(float(x), float(y), words, kind) for x, y, words, kind in lines]


def _stripes(box: Box, height: float) -> list[tuple[float, float, str]]:
    if box.folded:
        families = list(dict.fromkeys(row.family for row in box.rows))
        part = (height - 8) / len(families)
        return [(4 + part * i, part, family) for i, family in enumerate(families)]
    stripes = [(4.0, _HEAD - 8.0, box.rows[0].family)]
    stripes += [(_HEAD + _ROW * i + 1.0, _ROW - 4.0, row.family) for i, row in enumerate(box.rows[1:])]
    return stripes


def _size(box: Box, graph: NetGraph, index: int) -> Point:
    wide = max(text_width(words, (_NAME if kind == "n" else _SMALL) / 2, bold=kind == "n") for _, _, words, kind in _lines(box))
    # A shape's label begins at the middle of the box's lower edge and must end before its right one.
    labels = [text_width(arrow.label, _SMALL / 2) for arrow in graph.arrows if arrow.source == index]
    rows = 0 if box.folded else len(box.rows) - 1
    width = max(_LEAST_WIDTH, wide + _STRIPE + 2 * _PAD, 2 * (max(labels, default=0.0) + 10))
    return float(round(width)), float(_HEAD + _ROW * rows)


def _fit(text: str, pixels: int) -> str:
    return shorten_to(text, _MOST_TEXT, pixels / 2, bold=pixels == _NAME)


def _label(arrows: Sequence[Arrow]) -> str:
    shapes = list(dict.fromkeys(arrow.label for arrow in arrows if arrow.label))
    return shapes[0] if len(shapes) == 1 else f"{shapes[0]} +{len(shapes) - 1}" if shapes else ""


def _legend(graph: NetGraph) -> list[tuple[float, str]]:
    """Return (left, family) of the families that occur."""
    used = {row.family for box in graph.boxes for row in box.rows}
    left, entries = 0.0, []
    for family in FAMILIES:
        if family in used:
            entries.append((left, family))
            left += 18 + text_width(FAMILIES[family][0], _SMALL / 2) + 18
    return entries


def _path(points: Sequence[Point]) -> str:
    rest = " ".join(f"{x:.1f} {y:.1f}" for x, y in points[1:])
    return f"M{points[0][0]:.1f} {points[0][1]:.1f}C{rest}"


def _arrow_head(points: Sequence[Point]) -> str:
    x, y = points[-1]
    return f'<path class="h" d="M{x - 4:.1f} {y - 7:.1f}h8L{x:.1f} {y:.1f}z"/>'


def _svg_style(theme: Theme) -> str:
    rules = [
        f".a{{fill:none;stroke:{theme.muted};stroke-width:1.2}}",
        f".h{{fill:{theme.muted}}}",
        f".c{{fill:{theme.background};stroke:{theme.muted}}}",
        ".f{stroke-dasharray:5 3}",
        f".title{{font-size:17px;font-weight:700;fill:{theme.text}}}",
        f".n{{font-size:{_NAME}px;font-weight:700;fill:{theme.text}}}",
        f".d{{font-size:{_SMALL}px;fill:{theme.muted}}}",
        f".e{{font-size:{_SMALL}px;fill:{theme.muted};paint-order:stroke;stroke:{theme.background};stroke-width:7px;stroke-linejoin:round}}",
    ]
    return "".join([*rules, *(f".{family}{{fill:{colour}}}" for family, colour in COLOURS.items())])


def _xml(text: str) -> str:
    clean = style.without_direction_marks(text.encode("utf-8", "replace").decode("utf-8"))
    return escape("".join(c if ord(c) >= 32 else " " for c in clean))


def _page(graph: NetGraph, folded: NetGraph, title: str, engine: str, weights: Mapping[str, Sequence[NDArray[Any]]]) -> str:
    from markupsafe import Markup

    from caffetools.visualize.page import render_template

    views = []
    for name, shown in (("folded", folded), ("all", graph)) if any(box.folded for box in folded.boxes) else (("all", graph),):
        placed = place_graph(shown, engine=engine)
        # The rows of the boxes one after the other are those of the net, in all views.
        boxes = [[box.folded, len(box.rows)] for box in shown.boxes]
        body = Markup(svg_body(placed))  # noqa: S704 (all text in it is escaped by _xml)
        views.append({"name": name, "width": placed.layout.width, "height": placed.layout.height, "body": body, "boxes": boxes})
    legend = [(COLOURS[family], FAMILIES[family][0]) for _, family in _legend(graph)]
    facts = " · ".join(graph.facts)
    rows = [row for box in graph.boxes for row in box.rows]
    net = {"rows": [_row_data(row, weights) for row in rows], "types": {row.type: describe_type(row.type) for row in rows}}
    return render_template("graph.html.jinja", title=title, views=views, legend=legend, facts=facts, colours=COLOURS, net=net)


def _row_data(row: Row, weights: Mapping[str, Sequence[NDArray[Any]]]) -> dict[str, Any]:
    return {
        "index": row.index,
        "layer": row.layer,
        "type": row.type,
        "inputs": [[link.blob, link.shape, link.layers] for link in row.inputs],
        "outputs": [[link.blob, link.shape, link.layers] for link in row.outputs],
        "settings": [[setting.name, setting.value, setting.default] for setting in row.settings],
        "blobs": [astuple(blob) for blob in blob_facts(row.type, row.blobs, weights.get(row.layer, ()))],
        "parameters": row.parameters,
        "macs": row.macs,
        "text": row.text.strip(),
        "note": row.note,
    }
