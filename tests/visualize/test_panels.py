"""Sheets of pictures with text: nothing overlaps, and short captions of narrow pictures are whole."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from caffetools.visualize import style
from caffetools.visualize.evaluation_figures import roc_figure
from caffetools.visualize.panels import Panel, panels_figure, text_width
from caffetools.visualize.predictions import LabelledPictures, Predictions


def drawn(figure: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def test_captions_are_whole_and_nothing_overlaps() -> None:
    narrow, wide = np.zeros((200, 12, 3), np.uint8), np.zeros((90, 232, 3), np.uint8)
    panels = [
        Panel(narrow, "inception_3a/3x3_reduce", "96 × 28 × 28"),
        Panel(wide, "is a", "one  51%\ntwo  22%\nthree  3.0%", good=False),
    ] * 4
    figure = panels_figure(panels, "Sheet", "A caption. " * 30)
    renderer = drawn(figure).get_renderer()
    assert [text.get_text() for text in figure.texts[1:7]] == [
        "inception_3a/3x3_reduce",
        "96 × 28 × 28",
        "is a",
        "one  51%",
        "two  22%",
        "three  3.0%",
    ]
    boxes = [item.get_window_extent(renderer) for item in (*figure.texts, *figure.axes)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width + 1 and box.y0 >= 0 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_pictures_of_one_size_stand_below_each_other() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    words = ["a", "a much longer name of a class  99%", "b", "c"]
    figure = panels_figure([Panel(image, "is a", word) for word in words * 3], "Sheet")
    lefts = [round(axes.get_position().x0 * figure.bbox.width) for axes in figure.axes]
    columns = len(set(lefts))
    assert columns == 4 and lefts == lefts[:4] * 3


def test_letters_without_a_picture_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_width("a \N{CAT}", 8) > 0


def test_the_legend_of_roc_curves_covers_no_curve() -> None:
    pictures = LabelledPictures((), (0, 1) * 20, ("a class with a very long name, and its synonym", "b"))
    worst = np.tile(np.array([[0.1, 0.9], [0.9, 0.1]], np.float32), (20, 1))
    figure, _ = roc_figure(Predictions(pictures, worst))
    renderer = drawn(figure).get_renderer()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    box = legend.get_window_extent(renderer)
    assert box.x0 >= axes.get_window_extent(renderer).x1 and box.x1 <= figure.bbox.width


def test_letters_that_one_font_lacks_are_taken_from_another() -> None:
    if len(style.families()) < 2:
        pytest.skip("no font with Japanese letters is installed")
    drawn = []
    for letter in "日鳥":
        figure = style.new_figure(1, 1, style.LIGHT, fitted=False)
        figure.text(0.1, 0.5, letter)
        drawn.append(style.render(figure, "png"))
    assert drawn[0] != drawn[1], "both are the same box"
    assert text_width("日本の鳥", 10) > 1.5 * text_width("abcd", 10)
