"""Figures in pages: stored once, in the colours of the reader's theme, with every pixel as it was drawn."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.results import Confusion
from caffetools.visualize import style
from caffetools.visualize.confusion import confusion_figure
from caffetools.visualize.inline_svg import inline_svg
from caffetools.visualize.page import Drawing, shown_figure
from caffetools.visualize.panels import Panel, panels_figure
from caffetools.visualize.style import DARK, LIGHT, Theme
from caffetools.visualize.thumbnails import lossless, one_for_both_themes

Pixels = NDArray[np.uint8]


def decoded(uri: str) -> Pixels:
    """Return (H, W, 4) RGBA."""
    image = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    if image.shape[2] == 3:
        image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(image[..., [2, 1, 0, 3]], np.uint8)


def on_ground(image: Pixels, theme: Theme) -> Pixels:
    return np.where(image[..., 3:] == 0, np.array(style.rgb(theme.background), np.uint8), image[..., :3])


def tiles(theme: Theme) -> Pixels:
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8)
    image[10:13] = style.rgb(theme.background)
    return image


def drawn(draw: Callable[[Theme], Figure]) -> str:
    return inline_svg(draw(LIGHT), draw(DARK), "k")


def test_a_bitmap_is_stored_once_and_looks_as_drawn_in_both_themes() -> None:
    svg = drawn(lambda theme: panels_figure([Panel(tiles(theme), "a")], "title", theme=theme))
    (uri,) = re.findall(r'xlink:href="(data:[^"]*)"', svg)
    for theme in (LIGHT, DARK):
        np.testing.assert_array_equal(on_ground(decoded(uri), theme), tiles(theme))


def test_colours_of_the_theme_are_variables_and_others_remain() -> None:
    def draw(theme: Theme) -> Figure:
        figure = style.new_figure(2, 1, theme)
        figure.text(0, 0, "title", color=theme.text)
        figure.text(0, 0.5, "fixed", color="#123456")
        return figure

    svg = drawn(draw)
    name = f"--{LIGHT.text[1:]}-{DARK.text[1:]}"
    assert f"fill: var({name})" in svg and "fill: #123456" in svg
    light, dark = re.findall(rf"{name}:(#[0-9a-f]{{6}})", svg)
    assert (light, dark) == (LIGHT.text, DARK.text)
    assert svg.index(dark) > svg.index("@media (prefers-color-scheme:dark)")
    assert svg.count(">title<") == 1


def test_names_that_look_like_colours_ids_or_markup_remain() -> None:
    name = f'{LIGHT.text} id="x" url(#a) font-family: b; <image xlink:href="data:image/png;base64,x"'

    def draw(theme: Theme) -> Figure:
        figure = style.new_figure(2, 1, theme)
        figure.text(0, 0, name)
        return figure

    svg = drawn(draw)
    assert f">{name.replace('<', '&lt;').replace('>', '&gt;')}<" in svg


def test_ids_are_those_that_are_used_and_differ_between_figures() -> None:
    confusion = Confusion.from_labels([0, 1], [0, 0], ["a", "b"])
    both = [shown_figure(Drawing("m", lambda theme: confusion_figure(confusion, theme=theme)), key).svg or "" for key in ("a-", "b-")]
    ids = re.findall(r' id="([^"]*)"', both[0] + both[1])
    assert ids and len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', both[0] + both[1]))
    assert {name or other for name, other in used} == set(ids)


def test_a_bitmap_whose_colours_differ_is_stored_for_each_theme() -> None:
    rng = np.random.default_rng(0)
    confusion = Confusion.from_labels(rng.integers(0, 70, 900), rng.integers(0, 70, 900), [str(i) for i in range(70)])
    svg = drawn(lambda theme: confusion_figure(confusion, theme=theme))
    assert [svg.count(f'<image class="on-{theme}"') for theme in ("light", "dark")] == [1, 1]


def test_drawings_that_differ_in_more_than_colours_are_both_there() -> None:
    svg = drawn(lambda theme: panels_figure([], "only light" if theme is LIGHT else "other", theme=theme))
    assert re.fullmatch(r'<g class="on-light">.*only light.*</g><g class="on-dark">.*other.*</g>', svg, re.DOTALL)


@pytest.mark.parametrize("kind", ["noise", "flat", "alpha"])
def test_lossless_keeps_every_pixel(kind: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 4 if kind == "alpha" else 3)).astype(np.uint8)
    if kind == "flat":
        image[:] = 7
    if kind == "alpha":
        image[..., 3] = np.where(image[..., 0] > 99, 255, 0)
        image[image[..., 3] == 0] = 0
    np.testing.assert_array_equal(decoded(lossless(image))[..., : image.shape[2]], image)


def test_one_bitmap_for_both_themes_only_where_it_is_exact() -> None:
    light, dark = tiles(LIGHT), tiles(DARK)
    one = one_for_both_themes(light, dark)
    assert one is not None and (on_ground(one, DARK) == dark).all() and (on_ground(one, LIGHT) == light).all()
    assert one_for_both_themes(light, light[1:]) is None
    other = dark.copy()
    other[0, 0] ^= 1
    assert one_for_both_themes(light, other) is None
