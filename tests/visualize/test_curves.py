"""Training curves: which values are drawn, where, and what is said of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from caffetools.errors import DataError
from caffetools.solver.logs.training_log import LogRow, TrainingLog, read_log
from caffetools.visualize import style
from caffetools.visualize.curves import curves_figure, draw_curves, run_names, series
from caffetools.visualize.style import LIGHT
from tests.conftest import GOLDEN

LOG = read_log(GOLDEN / "logs" / "train.log")


def log(losses: list[float], accuracies: list[float] | None = None) -> TrainingLog:
    train = [LogRow(10 * i, float(i), 0.01, outputs={"loss": value}) for i, value in enumerate(losses)]
    test = [LogRow(10 * i, float(i), 0.01, outputs={"accuracy": value}) for i, value in enumerate(accuracies or [])]
    return TrainingLog(train, test)


def test_the_values_of_a_log_of_caffe_become_lines() -> None:
    lines = {(line.phase, line.name): line for line in series({"train.log": LOG})}
    assert set(lines) == {("train", "loss"), ("test", "loss"), ("test", "accuracy"), ("lr", "lr")}
    assert lines["test", "accuracy"].x == (0, 50, 100, 150)
    assert lines["test", "accuracy"].y == (0.28, 1.0, 1.0, 1.0)
    assert lines["train", "loss"].y[:2] == (1.25327, 0.0565983)
    assert lines["lr", "lr"].y == (0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.0025, 0.0025)


def test_losses_accuracies_and_rates_have_their_panels() -> None:
    figure = curves_figure({"train.log": LOG})
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    loss, accuracy, _ = figure.axes
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), [1.41991, 0.0123193, 0.00826227, 0.00743348])
    assert loss.get_yscale() == "log", "it falls more than thirtyfold"
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["test accuracy: 100.00%"]


def test_several_runs_differ_in_colour_and_are_named() -> None:
    figure = curves_figure({"a": log([3, 2]), "b": log([3, 1])}, panels=["loss"])
    assert figure is not None
    first, second = figure.axes[0].lines
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a  train loss: 2", "b  train loss: 1"]


def test_a_run_has_one_colour_in_every_panel() -> None:
    def run(*outputs: str) -> TrainingLog:
        rows = [LogRow(i, i, 0.1, 1.0, dict.fromkeys(outputs, 0.5)) for i in range(3)]
        return TrainingLog(rows)

    figure = curves_figure({"a": run("loss", "accuracy", "accuracy_top5"), "b": run("loss", "accuracy")})
    assert figure is not None
    loss, accuracy, rates = ([(line.get_color(), line.get_linestyle()) for line in axes.lines] for axes in figure.axes)
    assert loss == rates == [(colour, "-") for colour in LIGHT.series[:2]]
    assert accuracy == [loss[0], (LIGHT.series[0], "--"), loss[1]]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["net/a.log", "net/b.log"], ["a.log", "b.log"]),
        (["runs/one/net/caffe.log", "runs/two/net/caffe.log"], ["one/net/caffe.log", "two/net/caffe.log"]),
        (["x/one/a.log", "x/two/a.log", "x/two/b.log"], ["one/a.log", "two/a.log", "b.log"]),
        (["a.log", "old/a.log", "older/old/a.log"], ["a.log", "old/a.log", "older/old/a.log"]),
        (["/a.log", "/x/a.log"], ["/a.log", "x/a.log"]),
        (["a.log", "./a.log", "x/../a.log"], ["a.log"]),
    ],
)
def test_runs_have_the_shortest_names_that_differ(paths: list[str], names: list[str]) -> None:
    assert list(run_names(paths)) == names
    assert {path.resolve() for path in run_names(paths).values()} == {Path(path).resolve() for path in paths}


def test_of_too_many_outputs_every_run_keeps_one() -> None:
    def run(*outputs: str) -> TrainingLog:
        return TrainingLog([LogRow(i, i, 0.1, 1.0, dict.fromkeys(outputs, 0.5)) for i in range(3)])

    many = {f"run{i}": run(f"own{i}") for i in range(7)}
    for logs, count in (({"a": run(*(f"loss{i}" for i in range(7))), "b": run("loss", "late")}, 6), (many, 7)):
        figure = curves_figure(logs, panels=["loss"])
        assert figure is not None
        drawn = [text.get_text().split()[0] for text in figure.axes[0].get_legend().get_texts()]
        assert len(drawn) == count and set(drawn) == set(logs)


def test_a_log_of_one_row_is_a_point_at_a_whole_iteration() -> None:
    figure = curves_figure({"a": log([3.0])})
    assert figure is not None
    for axes in figure.axes:
        assert axes.lines[0].get_marker() == "s"
        ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        assert 0.0 in ticks and all(tick == round(tick) for tick in ticks)


def test_long_names_of_runs_differ_in_the_legend() -> None:
    names = [f"{'a' * 30}-{number}-{'b' * 30}" for number in (1, 2)]
    figure = curves_figure({name: log([3, 2]) for name in names}, panels=["loss"])
    assert figure is not None
    first, second = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "-1-" in first and "-2-" in second


def test_a_long_curve_has_its_running_mean() -> None:
    values = [float(i % 2) for i in range(400)]
    figure = curves_figure({"a": log(values)}, panels=["loss"])
    assert figure is not None
    raw, mean = figure.axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    np.testing.assert_allclose(mean.get_ydata()[50:], 0.5)
    np.testing.assert_allclose(mean.get_ydata()[:3], [0, 0.5, 1 / 3])


def test_values_that_are_not_finite_are_gaps() -> None:
    figure = curves_figure({"a": log([2.0, math.nan, math.inf, 1.0])}, panels=["loss"])
    assert figure is not None
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, True, True, False]
    assert "train loss: 1" in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_a_panel_without_values_is_left_out() -> None:
    assert curves_figure({"a": log([1.0])}, panels=["accuracy"]) is None


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    draw_curves({"$x$ ": log([1.0, 2.0]), "$\\bad{$": log([1.0, 2.0])}, tmp_path / "curves.svg")
    assert "$x$" in (tmp_path / "curves.svg").read_text()


def test_the_picture_has_its_size(tmp_path: Path) -> None:
    draw_curves({"train.log": LOG}, tmp_path / "curves.png")
    height, width = cv2.imread(str(tmp_path / "curves.png")).shape[:2]
    assert (width, height) == (int(3 * 5.6 * style.DPI), int((3.9 + 2 * style.LEGEND_LINE) * style.DPI))


def test_legends_hide_no_curve_and_no_label() -> None:
    logs = {f"run {number}": log([3, 2, 1, 0.1]) for number in range(7)}
    figure = curves_figure(logs, panels=["loss"])
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    legend, label = axes.get_legend(), axes.xaxis.label.get_window_extent(renderer)
    assert legend is not None and len(legend.get_texts()) == 7
    box = legend.get_window_extent(renderer)
    assert box.y1 <= label.y0 < axes.bbox.y0, "below the label, which is below the axes"
    assert box.y0 >= 0 and box.x1 <= figure.bbox.x1 and axes.bbox.height > 0.6 * 3.9 * style.DPI


def test_a_page_has_a_light_and_a_dark_version(tmp_path: Path) -> None:
    draw_curves({"train.log": LOG}, tmp_path / "curves.html")
    page = (tmp_path / "curves.html").read_text()
    assert page.count('aria-label="Training curves"') == 1 and "data:image" not in page  # one drawing, its colours are variables
    dark = re.search(r"@media \(prefers-color-scheme:dark\)\{:root\{(--[^}]+)\}", page)
    assert dark is not None
    light_page = page.replace(dark.group(0), "")
    for rule in dark.group(1).split(";"):
        name, colour = rule.split(":")
        assert f"var({name})" in page and f"{name}:{colour}" not in light_page and re.search(rf"{name}:#[0-9a-f]{{6}}", light_page)


def test_empty_logs_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^empty\.log: no iterations"):
        draw_curves({"train.log": LOG, "empty.log": TrainingLog()}, tmp_path / "curves.png")
    with pytest.raises(DataError, match="no logs"):
        draw_curves({}, tmp_path / "curves.png")
    with pytest.raises(DataError, match=r"\.png, \.svg or \.html"):
        draw_curves({"train.log": LOG}, tmp_path / "curves.pdf")
    assert list(tmp_path.iterdir()) == []


def test_logs_of_nvcaffe_are_drawn(tmp_path: Path) -> None:
    head = "I0807 12:00:0%d.123456  1234 solver.cpp:352] [0] "
    lines = [
        head % 1 + "Iteration 0 (0 iter/s, 0.2s/20 iter), 0/90ep, loss = 6.9",
        head % 1 + "    Train net output #0: loss = 7.5 (* 1 = 7.5 loss)",
        head % 1 + "Iteration 0, lr = 0.01",
        head % 2 + "Iteration 20 (9.9 iter/s, 2.0s/20 iter), 0.8/90ep, loss = 5.5",
        head % 2 + "    Train net output #0: loss = 5.25 (* 1 = 5.25 loss)",
        head % 2 + "Iteration 20, lr = 0.005",
    ]
    (tmp_path / "nv.log").write_text("\n".join(lines) + "\n")
    log = read_log(tmp_path / "nv.log")
    assert [row.loss for row in log.train] == [6.9, 5.5]
    drawn = {(line.phase, line.name): line.y for line in series({"nv": log})}
    assert drawn == {("train", "loss"): (7.5, 5.25), ("lr", "lr"): (0.01, 0.005)}
