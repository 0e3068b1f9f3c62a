"""The state of a net's weights, layer by layer: distribution, dead units, spectrum, and change since earlier weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.layers.base import format_shape
from caffetools.layers.registry import layer_types
from caffetools.visualize import style
from caffetools.visualize.filters import Source, all_weights
from caffetools.visualize.panels import shorten_to, wrap
from caffetools.visualize.style import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A unit whose weights are smaller than this share of the layer's median unit contributes nothing that matters.
_DEAD = 1e-3
_BINS = 60
_LARGEST_SIDE = 2048  # rows or columns up to which the whole spectrum is computed
_ROW, _MARGIN, _HEAD = 118, 24, 86


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
        units: Output units (first axis).
        dead: Units with a norm below a thousandth of the layer's median; 0 for layers of normalization, which have no units.
        spectrum: Singular values of the (units, rest) matrix, descending; empty where it was not computed.
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
        """The exponential of the entropy of the normalised singular values (Roy, Vetterli 2007); None without a spectrum."""
        total = self.spectrum.sum()
        if not total > 0:
            return None
        share = self.spectrum[self.spectrum > 0] / total
        return float(np.exp(-(share * np.log(share)).sum()))


def weight_statistics(source: Source, before: Source | None = None, *, spectra: bool = True) -> list[WeightStatistics]:
    """Describe the weights of every layer.

    Args:
        source: A .caffemodel (its path, or as read), or arrays by layer name, weights first.
        before: Earlier weights of the same net, to compare with.
        spectra: Compute singular values.

    Raises:
        ModelFileError: a file cannot be read.
        DataError: there are no weights, or some are not finite.
    """
    earlier = {item.name: np.asarray(item.weights) for item in all_weights(before)} if before is not None else {}
    return [_describe(item.name, item.type, np.asarray(item.weights), earlier.get(item.name), spectra) for item in all_weights(source)]


def weights_figure(statistics: Sequence[WeightStatistics], title: str, *, theme: Theme = LIGHT) -> Figure:
    """Draw a row for each layer: its numbers, the histogram of its weights, and its singular values."""
    full = 1280
    compared = any(item.norm_ratio is not None for item in statistics)
    spectra = any(item.spectrum.size for item in statistics)
    caption = "Histogram: number of weights by value, square-root scale; the line marks 0. "
    caption += "Spectrum: singular values of the units × inputs matrix, relative to the largest. " if spectra else ""
    caption += "Dead: units with less than a thousandth of the median unit's norm."
    lines = wrap(caption, full - 2 * _MARGIN, style.SMALL)
    total = _HEAD + _ROW * len(statistics) + 24 * len(lines) + _MARGIN
    figure = style.new_figure(full / style.DPI, total / style.DPI, theme, fitted=False)

    def write(left: float, top: float, text: str, points: float, colour: str, **look: Any) -> None:
        figure.text(left / full, 1 - top / total, style.plain(text), fontsize=points, color=colour, va="top", **look)

    def axes(left: float, top: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / full, 1 - (top + height) / total, width / full, height / total))

    last = 1050 if spectra else 760
    write(_MARGIN, _MARGIN, shorten_to(title, full - 2 * _MARGIN, style.TITLE, bold=True), style.TITLE, theme.text, weight="bold")
    for left, word in ((400, "distribution"), (760, "singular values" if spectra else ""), (last, "state")):
        write(left, 62, word, style.SMALL, theme.muted)
    for index, item in enumerate(statistics):
        top = _HEAD + _ROW * index
        name = shorten_to(item.layer, 350, style.LABEL, bold=True)
        write(_MARGIN, top + 14, name, style.LABEL, theme.text, weight="bold")
        kind = f"{item.type}  {format_shape(item.shape).replace(' x ', ' × ')}".strip()
        write(_MARGIN, top + 38, shorten_to(kind, 350, style.SMALL), style.SMALL, theme.muted)
        write(_MARGIN, top + 60, f"{item.mean:.3g} ± {item.deviation:.3g}", style.SMALL, theme.muted)
        _draw_histogram(axes(400, top + 12, 320, _ROW - 46), item, theme)
        if item.spectrum.size:
            _draw_spectrum(axes(760, top + 12, 250, _ROW - 46), item, theme)
        for line, (text, alarm) in enumerate(_state(item, compared)):
            write(last, top + 10 + 22 * line, text, style.SMALL, theme.bad if alarm else theme.muted)
    for index, line_text in enumerate(lines):
        write(_MARGIN, _HEAD + _ROW * len(statistics) + 4 + 24 * index, line_text, style.SMALL, theme.muted)
    return figure


def _describe(name: str, kind: str, weights: NDArray[Any], before: NDArray[Any] | None, spectra: bool) -> WeightStatistics:
    values = weights.astype(np.float64).reshape(-1)
    if not np.isfinite(values).all():
        raise DataError(f"layer '{name}' holds weights that are not finite; the training that wrote them diverged")
    matrix = values.reshape(weights.shape[0], -1) if weights.ndim > 1 else values.reshape(-1, 1)
    norms = np.linalg.norm(matrix, axis=1)
    ratio = change = None
    if before is not None and before.shape == weights.shape:
        old = before.astype(np.float64).reshape(-1)
        size = float(np.linalg.norm(old))
        if size > 0:
            ratio, change = float(np.linalg.norm(values)) / size, float(np.linalg.norm(values - old)) / size
    low, high = float(values.min()), float(values.max())
    edges = (low, high) if high > low else (low - 0.5, high + 0.5)
    return WeightStatistics(
        layer=name,
        type=kind,
        shape=tuple(weights.shape),
        count=values.size,
        mean=float(values.mean()),
        deviation=float(values.std()),
        smallest=low,
        largest=high,
        zeros=float((values == 0).mean()),
        units=len(norms),
        dead=0 if _is_normalization(kind) else int((norms <= _DEAD * np.median(norms)).sum()),
        spectrum=_singular_values(matrix) if spectra and weights.ndim > 1 else np.empty(0),
        norm_ratio=ratio,
        change=change,
        histogram=np.histogram(values, bins=_BINS, range=edges)[0].astype(np.int64),
    )


def _is_normalization(kind: str) -> bool:
    return kind in layer_types() and layer_types()[kind].TRAITS.role == "normalization"


def _singular_values(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """All of them, by the smaller Gram matrix; of larger matrices those of an evenly spaced choice of units, which has the same form."""
    side = min(matrix.shape)
    if side > _LARGEST_SIDE:
        rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        matrix = rows[np.linspace(0, len(rows) - 1, _LARGEST_SIDE).astype(np.intp)]
    small = matrix.astype(np.float32)
    gram = small @ small.T if small.shape[0] <= small.shape[1] else small.T @ small
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram.astype(np.float64)), 0))[::-1]


def _draw_histogram(axes: Axes, item: WeightStatistics, theme: Theme) -> None:
    style.style_axes(axes, theme, grid=False)
    low, high = (item.smallest, item.largest) if item.largest > item.smallest else (item.smallest - 0.5, item.largest + 0.5)
    edges = np.linspace(low, high, _BINS + 1)
    axes.fill_between(edges, np.sqrt(np.append(item.histogram, item.histogram[-1])), step="post", color=theme.series[0], linewidth=0)
    if low < 0 < high:
        axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.set_xticks([low, high], [f"{item.smallest:.3g}", f"{item.largest:.3g}"])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _draw_spectrum(axes: Axes, item: WeightStatistics, theme: Theme) -> None:
    style.style_axes(axes, theme, grid=False)
    relative = item.spectrum / item.spectrum[0] if item.spectrum[0] > 0 else item.spectrum
    axes.plot(range(1, len(relative) + 1), relative, color=theme.series[1], linewidth=1.4)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([])
    axes.set_xlim(1, max(len(relative), 2))
    axes.set_xticks([1, len(relative)], ["1", f"{len(relative)}"])
    first, last = axes.get_xticklabels()[:2]
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


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
