"""The eight charts of Caffe's plot_training_log.py: one value of training logs against iterations or seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from caffetools.errors import DataError
from caffetools.solver.logs.training_log import LogRow, TrainingLog
from caffetools.visualize import style
from caffetools.visualize.style import LIGHT, PathLike, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Kind(NamedTuple):
    title: str
    phase: str
    value: str
    against: str


_KINDS = [
    _Kind(f"{title} vs. {against}", phase, value, against)
    for title, phase, value in (
        ("Test accuracy", "test", "accuracy"),
        ("Test loss", "test", "loss"),
        ("Train learning rate", "train", "lr"),
        ("Train loss", "train", "loss"),
    )
    for against in ("Iters", "Seconds")
]


def training_chart_figure(chart: int, logs: Mapping[str, TrainingLog], *, theme: Theme = LIGHT) -> tuple[Figure, str]:
    """Return a chart as a figure, and its title.

    Args:
        chart: Type from 0 to 7, as plot_training_log.py counts them.
        logs: Legend → log.
        theme: Colours.

    Raises:
        DataError: No log has values of this kind.
    """
    kind = _KINDS[chart]
    drawn: dict[str, list[tuple[float, float]]] = {}
    for name, log in logs.items():
        rows = log.test if kind.phase == "test" else log.train
        points = [(row.seconds if kind.against == "Seconds" else row.iteration, _value(row, kind.value)) for row in rows if row.net == 0]
        drawn[name] = [(x, y) for x, y in points if not math.isnan(y)]
    if not any(drawn.values()):
        raise DataError(f"{', '.join(logs)}: the log has no values for chart {chart} ({kind.title})")
    figure = style.new_figure(7.0, 4.2 + style.LEGEND_LINE * len(drawn), theme)
    axes = figure.add_subplot()
    style.style_axes(axes, theme)
    for name, line in drawn.items():
        if line:
            axes.plot(*zip(*line, strict=True), label=style.plain(name), marker="o" if len(line) <= 30 else None, markersize=3)
    axes.set_title(kind.title, color=theme.text)
    axes.set_xlabel(kind.against)
    axes.set_ylabel(kind.title.partition(" vs.")[0])
    style.legend_below(figure, axes, theme)
    return figure, kind.title


def draw_training_chart(chart: int, logs: Mapping[str, TrainingLog], path: PathLike) -> str:
    """Write a chart as .png or .svg and return its title; see :func:`training_chart_figure`."""
    figure, title = training_chart_figure(chart, logs)
    style.save_figure(figure, path)
    return title


def _value(row: LogRow, wanted: str) -> float:
    if wanted == "lr":
        return row.lr
    found = [value for name, value in row.outputs.items() if wanted[:3] in name.lower()]
    if not found and wanted == "loss" and row.loss is not None:
        return row.loss
    return found[0] if found else math.nan
