"""Charts as plain geometry for inline SVG: they follow the page's theme, and its script shows values under the pointer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from caffetools.results import Calibration, Confusion, share_text
from caffetools.solver.logs.training_log import TrainingLog
from caffetools.visualize.curves import PANELS, TITLES, Series, series

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 40
_MOST_POINTS = 500  # of a line; longer ones are thinned evenly
_MOST_LINES = 7
MOST_CELLS = 40  # classes of a confusion matrix that is drawn cell by cell


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: Above it.
        x_label: Below it.
        alt: For readers who do not see it.
        x_ticks, y_ticks: (position, text).
        lines: For each line its name, its colour's number, whether it is dashed, and its SVG points.
        data: For the script: names, values, and the positions of all points.
    """

    title: str
    x_label: str
    alt: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def curve_charts(logs: Mapping[str, TrainingLog]) -> list[Chart]:
    """Return a chart for each of loss, accuracy and learning rate that the logs have values of. Raises DataError for empty logs."""
    lines = series(logs)
    charts = []
    for panel in PANELS:
        shown = [line for line in lines if line.panel == panel][:_MOST_LINES]
        if shown:
            charts.append(_curves(panel, shown, several=len(logs) > 1))
    return charts


def calibration_chart(calibration: Calibration) -> Chart:
    """Return accuracy against confidence by bins; a calibrated classifier lies on the diagonal."""
    bins = [b for b in calibration.bins if b.count]
    x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
    chart = _chart(
        "Calibration",
        "confidence",
        [("perfect", [0.0, 1.0], [0.0, 1.0], 6, True), ("accuracy", x, y, 0, False)],
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        percent=True,
        x_percent=True,
    )
    chart.data["notes"] = [[], [f"{b.count} pictures" for b in bins]]
    return chart


def confusion_cells(confusion: Confusion) -> list[dict[str, Any]]:
    """Return the cells that are not empty: row, column, count, title, whether correct, and opacity (0 to 1)."""
    totals = np.maximum(confusion.counts.sum(1), 1)
    cells = []
    for row, column in zip(*np.nonzero(confusion.counts), strict=True):
        count = int(confusion.counts[row, column])
        share = count / float(totals[row])
        true, given = confusion.names[row], confusion.names[column]
        title = (
            f"{true}: {count} correct ({share_text(share)})"
            if row == column
            else f"{true} predicted as {given}: {count} ({share_text(share)})"
        )
        level = 0.14 + 0.86 * math.sqrt(share)
        cells.append(
            {"row": int(row), "column": int(column), "count": count, "title": title, "good": row == column, "level": round(level, 3)}
        )
    return cells


def _curves(panel: str, shown: Sequence[Series], *, several: bool) -> Chart:
    lines = []
    for number, line in enumerate(shown):
        name = f"{line.phase} {line.name}" if line.phase != "lr" else "learning rate"
        name = f"{line.run}: {name}" if several else name
        keep = [i for i, value in enumerate(line.y) if math.isfinite(value)]
        step = max(1, -(-len(keep) // _MOST_POINTS))
        keep = sorted({*keep[::step], *keep[-1:]})
        lines.append((name, [float(line.x[i]) for i in keep], [line.y[i] for i in keep], number, line.phase == "test"))
    values = [y for _, _, ys, _, _ in lines for y in ys]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    share = panel == "accuracy" and low >= 0 and high <= 1
    log = not share and low > 0 and high / low > 30
    y_range = (0.0, 1.0) if share else (low, high) if log else (min(0.0, low), high * 1.05 if high > 0 else 1.0)
    return _chart(TITLES[panel], "iteration", lines, y_range=y_range, log=log, percent=share, steps=panel == "lr")


def _chart(
    title: str,
    x_label: str,
    lines: Sequence[tuple[str, Sequence[float], Sequence[float], int, bool]],
    *,
    y_range: tuple[float, float],
    x_range: tuple[float, float] | None = None,
    log: bool = False,
    percent: bool = False,
    x_percent: bool = False,
    steps: bool = False,
) -> Chart:
    xs = [x for _, line_x, _, _, _ in lines for x in line_x]
    x0, x1 = x_range or (min(xs, default=0.0), max(xs, default=1.0))
    x1 = x1 if x1 > x0 else x0 + 1
    y0, y1 = y_range if y_range[1] > y_range[0] else (y_range[0] - 0.5, y_range[0] + 0.5)
    low, high = (math.log10(y0), math.log10(y1)) if log and y_range[1] > y_range[0] else (y0, y1)

    def place_x(x: float) -> float:
        return round(_LEFT + (x - x0) / (x1 - x0) * (WIDTH - _LEFT - _RIGHT), 1)

    def place_y(y: float) -> float:
        value = math.log10(y) if log and y > 0 else y
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    drawn, names, points = [], [], []
    for name, line_x, line_y, colour, dashed in lines:
        spots = [(place_x(x), place_y(y)) for x, y in zip(line_x, line_y, strict=True)]
        # A learning rate keeps its value up to the next one.
        corners = [(x, y) for (_, y), (x, _) in pairwise(spots)] if steps else []
        path = [spot for pair in zip_longest(spots, corners) for spot in pair if spot is not None]
        text = " ".join(f"{x},{y}" for x, y in path)
        drawn.append({"name": name, "colour": colour % 7, "dashed": dashed, "points": text, "dots": spots if len(spots) <= 40 else []})
        names.append(name)
        points.append([[x, y, _text(vx, x_percent), _text(vy, percent)] for (x, y), vx, vy in zip(spots, line_x, line_y, strict=True)])
    ends = [f"{name} from {p[0][3]} to {p[-1][3]}" for name, p in zip(names, points, strict=True) if p]
    y_values = _log_ticks(y0, y1) if log else _ticks(y0, y1, 5)
    return Chart(
        title,
        x_label,
        f"{title} over {x_label}: " + "; ".join(ends) + ".",
        [(place_x(x), _tick(x, x_percent)) for x in _ticks(x0, x1, 6, least=0.0 if x_percent else 1.0)],
        [(place_y(y), _tick(y, percent)) for y in y_values],
        drawn,
        {"names": names, "colours": [line["colour"] for line in drawn], "points": points},
    )


def _ticks(low: float, high: float, most: int, *, least: float = 0.0) -> list[float]:
    """Round values within a range, at most ``most`` + 1 of them, whole ones where ``least`` is 1."""
    raw = max((high - low) / most, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999 and not (least and factor * power % 1))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"1e{power}") for power in powers]
    inside = [value for value in values if low * 0.999 <= value <= high * 1.001]
    return inside or [low, high]


def _text(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.2%}".replace(".00%", "%")
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"


def _tick(value: float, percent: bool) -> str:
    """Return a number of at most five or six letters: the axis leaves room for no more on a phone."""
    text = _text(value, percent)
    if percent or abs(value) >= 0.01 or (len(text) <= 5 and "e" not in text):
        return text
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
