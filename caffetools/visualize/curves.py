"""Training curves: loss, accuracy and learning rate over the iterations of one or several runs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.solver.logs.training_log import LogRow, TrainingLog
from caffetools.visualize import style
from caffetools.visualize.output import check_suffix, save_picture
from caffetools.visualize.style import LIGHT, PathLike, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = ("loss", "accuracy", "lr")

# Outputs of these names are shares of 1; all others count as losses.
_SHARES = ("acc", "top1", "top-1", "top5", "top-5", "precision", "recall")
TITLES = {"loss": "Loss", "accuracy": "Accuracy", "lr": "Learning rate"}
# A training curve with at least this many rows is noisy: its running mean is drawn over it.
_MANY = 120
# Of the outputs where colours distinguish runs.
_DASHES = ("-", "--", ":", "-.")
# More outputs than this in one panel cannot be distinguished.
_MOST_OUTPUTS = 6


@dataclass(frozen=True)
class Series:
    """One line: ``x`` iterations and ``y`` values of the output ``name`` of a run in a phase (``"train"`` or ``"test"``)."""

    run: str
    phase: str
    name: str
    x: tuple[int, ...]
    y: tuple[float, ...]

    @property
    def panel(self) -> str:
        """Which of :data:`PANELS` the line belongs to."""
        if self.phase == "lr":
            return "lr"
        return "accuracy" if any(word in self.name.lower() for word in _SHARES) else "loss"


def run_names(paths: Iterable[PathLike]) -> dict[str, Path]:
    """Return the logs by the shortest names that differ: the files' names, with as many of their folders as that takes.

    Args:
        paths: Of the logs, relative or not; one that is given twice counts once.
    """
    given: dict[Path, Path] = {}
    for path in paths:
        given.setdefault(Path(path).resolve(), Path(path))
    logs = list(given.values())
    size = dict.fromkeys(range(len(logs)), 1)

    def name(index: int) -> str:
        return str(Path(*logs[index].parts[-size[index] :]))

    while True:
        count = Counter(name(index) for index in size)
        longer = [index for index in size if count[name(index)] > 1 and size[index] < len(logs[index].parts)]
        if not longer:
            return {name(index): logs[index] for index in size}
        for index in longer:
            size[index] += 1


def series(logs: Mapping[str, TrainingLog]) -> list[Series]:
    """Return every line of the runs (by name), in the order in which the outputs first appear.

    Raises:
        DataError: a log has neither training nor test rows; the message names it.
    """
    lines: list[Series] = []
    for run, log in logs.items():
        found = [*_lines(run, "train", log.train), *_lines(run, "test", log.test)]
        if not found:
            raise DataError(f"{run}: no iterations with values in this log; is it the output of a training run?")
        lines += found
    return lines


def curves_figure(
    logs: Mapping[str, TrainingLog], *, panels: Sequence[str] = PANELS, size: tuple[float, float] = (5.6, 3.9), theme: Theme = LIGHT
) -> Figure | None:
    """Return the curves of ``logs`` (runs by name), panels side by side; None where the logs hold nothing for any of ``panels``.

    Several runs differ in colour and their outputs in dashes; one run's outputs in colour. Test values have markers. A loss that falls thirtyfold is drawn on a
    logarithmic scale; a long training curve is drawn faintly, with its running mean over it.

    Args:
        logs: The log of each run by its name.
        panels: The panels to draw.
        size: Width and height of a panel, in inches, without its legend.
        theme: Colours.

    Raises:
        DataError: There are no logs, or one is empty.
    """
    if not logs:
        raise DataError("no logs to draw")
    lines = series(logs)
    used = [panel for panel in panels if any(line.panel == panel for line in lines)]
    if not used:
        return None
    # The names in the legend where there are several runs.
    shown = dict(zip(logs, style.shorten_all(list(logs), 40), strict=True)) if len(logs) > 1 else {}
    entries = max(sum(line.panel == panel for line in lines) for panel in used)
    figure = style.new_figure(size[0] * len(used), size[1] + style.LEGEND_LINE * entries, theme)
    for index, panel in enumerate(used):
        axes = figure.add_subplot(1, len(used), index + 1)
        style.style_axes(axes, theme)
        _draw_panel(figure, axes, panel, [line for line in lines if line.panel == panel], shown, theme)
    return figure


def draw_curves(logs: Mapping[str, TrainingLog], path: PathLike, *, theme: Theme = LIGHT) -> None:
    """Write :func:`curves_figure` of the runs ``logs`` (by name) to ``path``; a page has a light and a dark version.

    Raises:
        DataError: there are no logs, one is empty, or ``path`` does not end in .png, .svg or .html.
        RunFailed: it cannot be written.
    """
    page = check_suffix(path) == ".html"

    def draw(chosen: Theme) -> tuple[Figure, str]:
        figure = curves_figure(logs, theme=chosen if page else theme)
        if figure is None:
            raise DataError("the logs hold no values")
        return figure, ""

    save_picture(path, draw, title="Training curves") if page else style.save_figure(draw(theme)[0], path)


def _lines(run: str, phase: str, rows: Sequence[LogRow]) -> Iterator[Series]:
    points: dict[str, list[tuple[int, float]]] = {}
    rates: list[tuple[int, float]] = []
    for row in rows:
        for name, value in row.outputs.items():
            points.setdefault(f"{name} (net {row.net})" if row.net else name, []).append((row.iteration, value))
        if not math.isnan(row.lr) and phase == "train":
            rates.append((row.iteration, row.lr))
    for name, pairs in points.items():
        yield Series(run, phase, name, *_columns(pairs))
    if rates:
        yield Series(run, "lr", "lr", *_columns(rates))


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(x for x, _ in pairs), tuple(y for _, y in pairs)


def _draw_panel(figure: Figure, axes: Axes, panel: str, lines: Sequence[Series], shown: Mapping[str, str], theme: Theme) -> None:
    outputs = list(dict.fromkeys(line.name for line in lines))
    title = TITLES[panel]
    if len(outputs) > _MOST_OUTPUTS:
        chosen = _chosen_outputs(lines)
        title += f" ({len(chosen)} of {len(outputs)} outputs)"
        lines = [line for line in lines if line.name in chosen]
    for line, (colour, dashes) in zip(lines, _line_looks(lines, list(shown), theme), strict=True):
        _draw_line(axes, line, colour, dashes, shown)
    axes.set_title(title, fontsize=style.TITLE, weight="bold", color=theme.text, loc="left", pad=8)
    axes.set_xlabel("iteration", fontsize=style.LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    reached = {x for line in lines for x in line.x}
    if len(reached) == 1:
        # Otherwise the axis would have fractions of an iteration.
        axes.set_xlim(min(reached) - 2, max(reached) + 2)
    _scale_y(axes, panel, [y for line in lines for y in line.y if math.isfinite(y)])
    style.legend_below(figure, axes, theme)


def _chosen_outputs(lines: Sequence[Series]) -> list[str]:
    """Return the outputs that are drawn of too many: the first of every run, then the second of every run, and so on."""
    outputs: dict[str, dict[str, None]] = {}
    for line in lines:
        outputs.setdefault(line.run, {})[line.name] = None
    ranks = itertools.zip_longest(*outputs.values())
    ordered = list(dict.fromkeys(name for rank in ranks for name in rank if name is not None))
    first = {next(iter(names)) for names in outputs.values()}
    return ordered[: max(_MOST_OUTPUTS, len(first))]


def _line_looks(lines: Sequence[Series], runs: Sequence[str], theme: Theme) -> list[tuple[str, str]]:
    """Return the colour and the dashes of each line, which mean the same in every panel.

    One run: a colour for each phase and output. Several: a colour for each of ``runs``, dashes for each output.
    """
    names = list(dict.fromkeys(line.name for line in lines))
    if runs:
        looks = [(runs.index(line.run), _DASHES[names.index(line.name) % len(_DASHES)]) for line in lines]
    else:
        looks = [(2 if line.phase == "lr" else 2 * names.index(line.name) + (line.phase == "test"), "-") for line in lines]
    return [(theme.series[number % len(theme.series)], dashes) for number, dashes in looks]


def _draw_line(axes: Axes, line: Series, colour: str, dashes: str, shown: Mapping[str, str]) -> None:
    y = np.array([value if math.isfinite(value) else math.nan for value in line.y])
    look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.8}
    note = ""
    if int(np.isfinite(y).sum()) == 1:
        # A line of one point would not be seen.
        look |= {"marker": "o" if line.phase == "test" else "s", "markersize": 4}
    if line.phase == "lr":
        look["drawstyle"] = "steps-post"
    elif line.phase == "test":
        look |= {"marker": "o", "markersize": 4} if len(line.x) <= 60 else {}
    elif len(line.x) >= _MANY:
        axes.plot(line.x, y, color=colour, linewidth=0.8, alpha=0.3)
        window = len(line.x) // 40
        y, note = _running_mean(y, window), f" (mean of {window} rows)"
    else:
        look["linewidth"] = 1.4
    axes.plot(line.x, y, label=_label(line, y, shown) + note, **look)


def _label(line: Series, y: NDArray[np.float64], shown: Mapping[str, str]) -> str:
    known = y[np.isfinite(y)]
    last = "" if not known.size else f": {known[-1]:.2%}" if line.panel == "accuracy" and known[-1] <= 1 else f": {known[-1]:.4g}"
    what = f"{line.phase} {line.name}" if line.phase != "lr" else "" if shown else "lr"
    return style.plain("  ".join(part for part in (shown.get(line.run, ""), what) if part) + last)


def _running_mean(y: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the ``window`` values up to each one (of fewer at the start); values that are not numbers are left out."""
    known = np.isfinite(y)
    total, count = np.cumsum(np.where(known, y, 0.0)), np.cumsum(known)
    total[window:], count[window:] = total[window:] - total[:-window].copy(), count[window:] - count[:-window].copy()
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _scale_y(axes: Axes, panel: str, values: Sequence[float]) -> None:
    if not values:
        return
    low, high = min(values), max(values)
    number = FuncFormatter(lambda value, _: f"{value:g}")
    if panel == "accuracy" and low >= 0 and high <= 1:
        # The full scale would hide what happens above 90 %.
        axes.set_ylim(max(0.0, low - 0.05) if low > 0.5 else 0.0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    elif low > 0 and high / low > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(number)
    else:
        axes.set_ylim(bottom=min(0.0, low * 1.05), top=high * 1.08 if high > 0 else None)
        axes.yaxis.set_major_formatter(number)
