"""The state of a net's weights, layer by layer: distribution, dead units, spectrum, and change since earlier weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reporter, reporting
from caffetools.layers.base import format_shape
from caffetools.layers.registry import layer_types
from caffetools.net.device import one_thread
from caffetools.util.threads import cpu_count, ordered_map
from caffetools.visualize import style
from caffetools.visualize.filters import LayerWeights, Source, all_weights, norm
from caffetools.visualize.panels import shorten_to, wrap
from caffetools.visualize.style import LIGHT, Theme

# A unit whose weights are smaller than this share of the layer's median unit contributes nothing that matters.
_DEAD = 1e-3
_BINS = 60
_LARGEST_SIDE = 8192  # units, or inputs of a unit, up to which the spectrum is computed
_GRAM_ROWS = 1024  # of a block of the Gram matrix
_MOST_THREADS = 4  # each holds a layer in float64
_WIDTH, _ROW, _MARGIN, _HEAD = 1280, 118, 24, 86  # pixels, as are the sizes of the charts
_CHART, _HISTOGRAM, _SPECTRUM = _ROW - 46, 320, 250
_POINTS = 64  # of a spectrum
_MOST_ROWS = 256  # of a column


@dataclass(frozen=True)
class WeightStatistics:
    """The first parameter blob of a layer in numbers.

    Attributes:
        layer: Its name.
        type: Its Caffe type, where known.
        shape: Of the blob.
        count: Values in it.
        mean, deviation, smallest, largest: Of the values.
        zeros: Share of values that are exactly 0.
        units: Output units.
        dead: Units with a norm below a thousandth of the layer's median; 0 for layers of normalization, which have no units.
        spectrum: Singular values of the (units, rest) matrix, descending; empty where it was not computed, as for matrices with
            more than 8192 rows and columns.
        norm_ratio: Norm over the norm of the earlier weights.
        change: Norm of the difference over the norm of the earlier weights;
            both None without earlier weights of the same name and shape.
        histogram: (60,) counts between ``smallest`` and ``largest``.
    """

    layer: str
    type: str
    shape: tuple[int, ...]
    count: int
    mean: float
    deviation: float
    smallest: float
    largest: float
    zeros: float
    units: int
    dead: int
    spectrum: NDArray[np.float64]
    norm_ratio: float | None
    change: float | None
    histogram: NDArray[np.int64]

    @property
    def effective_rank(self) -> float | None:
        """The exponential of the entropy of the normalized singular values (Roy, Vetterli 2007); None without a spectrum."""
        total = self.spectrum.sum()
        if not total > 0:
            return None
        share = self.spectrum[self.spectrum > 0] / total
        return float(np.exp(-(share * np.log(share)).sum()))


@reporting("weights", "Describe a net's weights")
def weight_statistics(
    source: Source,
    before: Source | None = None,
    *,
    spectra: bool = True,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> list[WeightStatistics]:
    """Describe the weights of every layer. The numbers do not depend on the number of threads.

    Args:
        source: A .caffemodel (its path, or as read), or arrays by layer name, weights first.
        before: Earlier weights of the same net, to compare with.
        spectra: Compute singular values.
        events: Receives the progress in weights.
        cancel: Stops between layers.

    Raises:
        ModelFileError: a file cannot be read.
        DataError: there are no weights, or some are not finite.
        Cancelled: ``cancel`` was called.
    """
    earlier = {item.name: np.asarray(item.weights) for item in all_weights(before)} if before is not None else {}
    layers = all_weights(source)
    done, total = 0, sum(item.weights.size for item in layers)
    found, report = [], reporter(events, "weights", "weights", cancel)

    def describe(item: LayerWeights) -> WeightStatistics:
        return _describe(item, earlier.get(item.name), spectra)

    with one_thread():
        for statistics in ordered_map(describe, layers, threads=min(cpu_count(), _MOST_THREADS)):
            found.append(statistics)
            done += statistics.count
            report(done, total)
    return found


def weights_figure(statistics: Sequence[WeightStatistics], title: str, *, note: str = "", theme: Theme = LIGHT) -> Figure:
    """Draw a row for each layer: its numbers, the histogram of its weights, and its singular values; more than 256 in columns.

    Args:
        statistics: Of the layers, in order.
        title: Above all.
        note: A sentence after the caption.
        theme: Colours.
    """
    columns = max(1, -(-len(statistics) // _MOST_ROWS))
    rows = -(-len(statistics) // columns)
    compared = any(item.norm_ratio is not None for item in statistics)
    spectra = any(item.spectrum.size for item in statistics)
    caption = "Histogram: number of weights by value, square-root scale; the line marks 0. "
    caption += "Spectrum: singular values of the units × inputs matrix, relative to the largest. " if spectra else ""
    caption += f"Dead: units with less than a thousandth of the median unit's norm. {note}"
    lines = wrap(caption.strip(), _WIDTH - 2 * _MARGIN, style.SMALL)
    ink = _Ink(columns * _WIDTH, _HEAD + _ROW * rows + 24 * len(lines) + _MARGIN, theme)
    ink.write(_MARGIN, _MARGIN, shorten_to(title, _WIDTH - 2 * _MARGIN, style.TITLE, bold=True), style.TITLE, theme.text, weight="bold")
    last = 1050 if spectra else 760
    for column in range(columns):
        for left, word in ((400, "distribution"), (760, "singular values" if spectra else ""), (last, "state")):
            ink.write(column * _WIDTH + left, 62, word, style.SMALL, theme.muted)
    for index, item in enumerate(statistics):
        left, top = index // rows * _WIDTH, _HEAD + _ROW * (index % rows)
        name = shorten_to(item.layer, 350, style.LABEL, bold=True)
        ink.write(left + _MARGIN, top + 14, name, style.LABEL, theme.text, weight="bold")
        kind = f"{item.type}  {format_shape(item.shape).replace(' x ', ' × ')}".strip()
        ink.write(left + _MARGIN, top + 38, shorten_to(kind, 350, style.SMALL), style.SMALL, theme.muted)
        ink.write(left + _MARGIN, top + 60, f"{item.mean:.3g} ± {item.deviation:.3g}", style.SMALL, theme.muted)
        _draw_histogram(ink, left + 400, top + 12, item)
        if item.spectrum.size:
            _draw_spectrum(ink, left + 760, top + 12, item)
        for line, (text, alarm) in enumerate(_state(item, compared)):
            ink.write(left + last, top + 10 + 22 * line, text, style.SMALL, theme.bad if alarm else theme.muted)
    for index, line_text in enumerate(lines):
        ink.write(_MARGIN, _HEAD + _ROW * rows + 4 + 24 * index, line_text, style.SMALL, theme.muted)
    return ink.figure


class _Ink:
    """Draws by pixels from the top left corner of a figure: hundreds of small charts as axes would take minutes."""

    def __init__(self, width: int, height: int, theme: Theme):
        self.figure = style.new_figure(width / style.DPI, height / style.DPI, theme, fitted=False)
        self.width, self.height, self.theme = width, height, theme
        self.pixels = Affine2D().scale(1 / width, -1 / height).translate(0, 1) + self.figure.transFigure

    def write(self, left: float, top: float, text: str, points: float, colour: str, **look: Any) -> None:
        if text:
            place = left / self.width, 1 - top / self.height
            self.figure.text(*place, style.plain(text), fontsize=points, color=colour, **{"va": "top", **look})

    def line(self, x: NDArray[Any], y: NDArray[Any], colour: str, width: float) -> None:
        self.figure.add_artist(Line2D(x, y, color=colour, linewidth=width, transform=self.pixels))

    def area(self, x: NDArray[Any], y: NDArray[Any], colour: str) -> None:
        points = np.column_stack([x, y])
        self.figure.add_artist(Polygon(points, closed=True, facecolor=colour, linewidth=0, transform=self.pixels))

    def frame(self, left: int, top: int, width: int, ends: tuple[str, str]) -> None:
        """Draw the axes of a small chart, and what stands below their two ends."""
        bottom = top + _CHART
        self.line(np.array([left, left, left + width]), np.array([top, bottom, bottom]), self.theme.grid, 0.8)
        self.write(left, bottom + 6, ends[0], style.SMALL, self.theme.muted)
        self.write(left + width, bottom + 6, ends[1], style.SMALL, self.theme.muted, ha="right")


def _describe(layer: LayerWeights, before: NDArray[Any] | None, spectra: bool) -> WeightStatistics:
    matrix = layer.unit_rows()
    values = matrix.reshape(-1)
    if not np.isfinite(values).all():
        raise DataError(f"layer '{layer.name}' holds weights that are not finite; the training that wrote them diverged")
    norms = np.sqrt(np.square(matrix).sum(axis=1))
    ratio = change = None
    if before is not None and before.shape == layer.weights.shape:
        old = replace(layer, weights=before).unit_rows().reshape(-1)
        size = norm(old)
        if size > 0:
            ratio, change = norm(values) / size, norm(values - old) / size
    low, high = float(values.min()), float(values.max())
    edges = (low, high) if high > low else (low - 0.5, high + 0.5)
    return WeightStatistics(
        layer=layer.name,
        type=layer.type,
        shape=tuple(layer.weights.shape),
        count=values.size,
        mean=float(values.mean()),
        deviation=float(values.std()),
        smallest=low,
        largest=high,
        zeros=float((values == 0).mean()),
        units=len(norms),
        dead=0 if _is_normalization(layer.type) else int((norms <= _DEAD * np.median(norms)).sum()),
        spectrum=_singular_values(matrix) if spectra and layer.weights.ndim > 1 else np.empty(0),
        norm_ratio=ratio,
        change=change,
        histogram=np.histogram(values, bins=_BINS, range=edges)[0].astype(np.int64),
    )


def _is_normalization(kind: str) -> bool:
    return kind in layer_types() and layer_types()[kind].TRAITS.role == "normalization"


def _singular_values(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return all of them, descending, by the smaller Gram matrix; none where that is too large."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if len(rows) > _LARGEST_SIDE:
        return np.empty(0)
    # torch's own memory is aligned, on which the order of a product's sums may depend.
    x = torch.empty(rows.shape, dtype=torch.float64).copy_(torch.from_numpy(rows))
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for top in range(0, len(rows), _GRAM_ROWS):
        bottom = top + _GRAM_ROWS
        gram[top:bottom, :bottom] = x[top:bottom] @ x[:bottom].T  # eigvalsh reads the lower triangle
    squares = np.asarray(torch.linalg.eigvalsh(gram), np.float64)
    return np.sqrt(np.maximum(squares, 0))[::-1]


def _draw_histogram(ink: _Ink, left: int, top: int, item: WeightStatistics) -> None:
    low, high = (item.smallest, item.largest) if item.largest > item.smallest else (item.smallest - 0.5, item.largest + 0.5)
    bottom = top + _CHART
    heights = np.sqrt(item.histogram)
    heights = bottom - _CHART * 0.95 * heights / max(1.0, float(heights.max()))
    edges = left + _HISTOGRAM * np.linspace(0, 1, _BINS + 1)
    # Each bin is a step: both of its edges at its height, and down to the ground at the ends.
    ink.area(
        np.concatenate([edges[:1], edges.repeat(2)[1:-1], edges[-1:]]),
        np.concatenate([[bottom], heights.repeat(2), [bottom]]),
        ink.theme.series[0],
    )
    if low < 0 < high:
        zero = left + _HISTOGRAM * -low / (high - low)
        ink.line(np.array([zero, zero]), np.array([top, bottom]), ink.theme.muted, 0.8)
    ink.frame(left, top, _HISTOGRAM, (f"{item.smallest:.3g}", f"{item.largest:.3g}"))


def _draw_spectrum(ink: _Ink, left: int, top: int, item: WeightStatistics) -> None:
    relative = item.spectrum / item.spectrum[0] if item.spectrum[0] > 0 else item.spectrum
    shown = np.unique(np.linspace(0, len(relative) - 1, _POINTS).round().astype(np.intp))
    x = left + _SPECTRUM * shown / max(1, len(relative) - 1)
    ink.frame(left, top, _SPECTRUM, ("1", f"{len(relative)}" if len(relative) > 1 else ""))
    ink.line(x, top + _CHART * (1 - relative[shown] / 1.05), ink.theme.series[1], 1.4)


def _state(item: WeightStatistics, compared: bool) -> list[tuple[str, bool]]:
    """Lines of text, each with whether it deserves attention."""
    lines = [] if _is_normalization(item.type) else [(f"dead {item.dead} of {item.units}", item.dead > 0)]
    if item.zeros >= 5e-4:
        lines.append((f"zeros {item.zeros:.1%}", item.zeros > 0.5))
    if item.effective_rank is not None:
        lines.append((f"eff. rank {item.effective_rank:.0f}", False))
    if item.norm_ratio is not None:
        lines.append((f"norm ×{item.norm_ratio:.3g}, Δ {item.change:.1%}", False))
    elif compared:
        lines.append(("new or reshaped", False))
    return lines


def statistics_table(statistics: Sequence[WeightStatistics]) -> list[Mapping[str, Any]]:
    """Return plain values for JSON, one mapping a layer; spectra as their first 16 values."""
    return [
        {
            "layer": item.layer,
            "type": item.type,
            "shape": list(item.shape),
            "count": item.count,
            "mean": item.mean,
            "std": item.deviation,
            "min": item.smallest,
            "max": item.largest,
            "zeros": item.zeros,
            "units": item.units,
            "dead": item.dead,
            "effective_rank": item.effective_rank,
            "norm_ratio": item.norm_ratio,
            "change": item.change,
            "singular_values": [float(value) for value in item.spectrum[:16]],
        }
        for item in statistics
    ]
