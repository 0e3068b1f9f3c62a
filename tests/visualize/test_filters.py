"""Filters as tiles: the right weight at the right dot, in the right colour."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from caffetools.errors import DataError, ModelFileError
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.schema import NetParameter
from caffetools.visualize import style
from caffetools.visualize.filters import LayerWeights, draw_filter_changes, draw_filters, filters_figure, find_weights, layer_sheet
from caffetools.visualize.panels import thinned
from caffetools.visualize.tiles import filter_sheet
from tests.conftest import GOLDEN

TINY = GOLDEN / "logs" / "tiny_iter_100.caffemodel"


def filters(n: int, c: int, height: int = 3, width: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, c, height, width)).astype(np.float32)


def test_a_filter_that_sees_red_is_drawn_red_in_its_place() -> None:
    weights = np.zeros((4, 3, 2, 2), np.float32)
    weights[2, 2, 0, 1] = 5.0  # filter 2, the R of BGR, row 0, column 1
    sheet = filter_sheet(weights, scale=1)
    assert sheet.image.shape == (2 * 2 + 4, 2 * 2 + 4, 3)  # two by two tiles, four dots between them
    assert sheet.image[6, 1].tolist() == [255, 128, 128]
    tiles = sheet.image.copy()
    tiles[6, 1] = 128
    assert (tiles[[0, 1, 6, 7]][:, [0, 1, 6, 7]] == 128).all(), "all other weights are zero: the middle grey"
    assert (sheet.image[2:6] == 255).all() and (sheet.image[:, 2:6] == 255).all(), "the ground shows between tiles"


def test_rgb_weights_are_not_swapped() -> None:
    weights = np.zeros((1, 3, 1, 2), np.float32)
    weights[0, 2, 0, 0] = -1.0
    assert filter_sheet(weights, channel_order="bgr", scale=1).image[0, 0].tolist() == [0, 128, 128]
    assert filter_sheet(weights, channel_order="rgb", scale=1).image[0, 0].tolist() == [128, 128, 0]


def test_each_filter_or_all_are_scaled_by_the_largest_weight() -> None:
    weights = np.array([1.0, 2.0, -4.0, 4.0], np.float32).reshape(2, 1, 1, 2)
    each = filter_sheet(weights, scale=1).image[0, :, 0]
    common = filter_sheet(weights, normalize="common", scale=1).image[0, :, 0]
    assert each[[0, 1, 6, 7]].tolist() == [191, 255, 0, 255]
    assert common[[0, 1, 6, 7]].tolist() == [159, 191, 0, 255]


def test_other_channels_are_grey_tiles_with_the_limit_reported() -> None:
    sheet = filter_sheet(filters(100, 40), scale=1)
    assert sheet.image.shape == (24 * 3 + 23 * 2, 32 * 3 + 31 * 2, 3)
    assert sheet.caption.startswith("The first 24 of 100 filters, each row is one filter, its tiles are the first 32 of 40 channels.")
    weights = filters(100, 40)
    expected = np.rint(127.5 + 127.5 * weights[5, 7] / np.abs(weights[5]).max())
    for channel in range(3):
        np.testing.assert_array_equal(sheet.image[25:28, 35:38, channel], expected)


def test_points_are_a_matrix_of_filters_by_channels() -> None:
    weights = filters(6, 9, 1, 1)
    image = filter_sheet(weights, normalize="common", scale=1).image
    np.testing.assert_array_equal(image[..., 0], np.rint(127.5 + 127.5 * weights[..., 0, 0] / np.abs(weights).max()))


def test_filters_of_zeros_are_the_middle_grey() -> None:
    assert (filter_sheet(np.zeros((1, 1, 3, 3), np.float32), scale=2).image == 128).all()


def test_three_channels_of_a_group_are_no_colours() -> None:
    grouped = layer_sheet(LayerWeights("conv2", filters(4, 3), "Convolution", group=2))
    plain = layer_sheet(LayerWeights("conv1", filters(4, 3), "Convolution"))
    assert grouped is not None and plain is not None
    assert (grouped.image == grouped.image[..., :1]).all()
    assert "2 groups" in grouped.caption
    assert not (plain.image == plain.image[..., :1]).all()


def test_the_png_holds_the_sheet_dot_for_dot(tmp_path: Path) -> None:
    weights = filters(10, 3)
    caption = draw_filters({"conv1": [weights]}, None, tmp_path / "filters.png")
    sheet = filter_sheet(weights)
    drawn = cv2.imread(str(tmp_path / "filters.png"))[..., ::-1]
    height, width = sheet.image.shape[:2]
    found = [
        (y, x)
        for y in range(40, drawn.shape[0] - height)
        for x in range(drawn.shape[1] - width)
        if (drawn[y, x] == sheet.image[0, 0]).all() and (drawn[y : y + height, x : x + width] == sheet.image).all()
    ]
    assert len(found) == 1
    assert caption == "10 filters in colour (BGR weights). Each filter is scaled by its own largest weight; the middle gray is 0."


def test_the_weights_of_a_caffemodel_are_drawn(tmp_path: Path) -> None:
    draw_filters(TINY, "conv1", tmp_path / "conv1.svg")
    assert (tmp_path / "conv1.svg").read_text().count("<image") == 1
    found = find_weights(read_caffemodel(TINY), None)
    assert (found.name, found.type, found.weights.shape) == ("conv1", "Convolution", (6, 1, 3, 3))


def test_an_unknown_layer_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny_iter_100\.caffemodel: no layer 'conv9' with weights; there are: conv1, ip$"):
        draw_filters(TINY, "conv9", tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_inner_products_are_histograms_or_tiles_of_the_picture_they_see() -> None:
    weights = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    layer = LayerWeights("ip", weights)
    assert layer_sheet(layer) is None
    figure, caption = filters_figure(layer)
    assert caption.startswith("24 weights: mean 11.5,")
    assert sum(bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)) == 24
    sheet = layer_sheet(layer, picture_shape=(1, 3, 4), normalize="common")
    assert sheet is not None
    tile = sheet.image[:: sheet.scale, :: sheet.scale, 0][:3, :4]
    np.testing.assert_array_equal(tile, np.rint(127.5 + 127.5 * weights[0].reshape(3, 4) / 23))
    with pytest.raises(DataError, match="do not fit inputs of 3 x 2 x 3"):
        layer_sheet(layer, picture_shape=(3, 2, 3))


def test_old_inner_products_with_four_axes_are_recognized_by_their_type() -> None:
    net = NetParameter()
    net.layers.add(name="ip", type=14)  # INNER_PRODUCT
    from caffetools.proto.model import Caffemodel

    layer = find_weights(Caffemodel(net, {"ip": [np.ones((1, 1, 4, 6), np.float32)]}))
    assert layer.type == "InnerProduct"
    assert layer_sheet(layer) is None, "not one filter of 4 by 6"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_diverged_are_refused(value: float) -> None:
    weights = filters(2, 3)
    weights[1, 0, 0, 0] = value
    with pytest.raises(DataError, match="layer 'conv1' holds weights that are not finite"):
        filters_figure(LayerWeights("conv1", weights))


def test_other_suffixes_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.png or \.svg"):
        draw_filters(TINY, None, tmp_path / "x.jpeg")
    (tmp_path / "cut.caffemodel").write_bytes(TINY.read_bytes()[:100])
    with pytest.raises(ModelFileError, match=r"cut\.caffemodel"):
        draw_filters(tmp_path / "cut.caffemodel", None, tmp_path / "x.png")
    with pytest.raises(DataError, match="no layer has weights"):
        draw_filters({"relu": []}, None, tmp_path / "x.png")


def test_the_same_weights_give_the_same_bytes() -> None:
    for kind in ("png", "svg"):
        first, second = (style.render(filters_figure(filters(4, 3))[0], kind) for _ in range(2))
        assert first == second


def test_rows_and_columns_have_their_numbers(tmp_path: Path) -> None:
    def texts(weights: np.ndarray, before: bool = False) -> list[str]:
        path = tmp_path / "filters.svg"
        if before:
            draw_filter_changes({"c": [weights]}, {"c": [weights * 2]}, "c", path)
        else:
            draw_filters({"c": [weights]}, "c", path)
        return re.findall(r">(\d+)</text>", path.read_text())

    rows, columns = ["0", "3", "6"], ["0", "1", "2", "3", "4", "5"]
    assert texts(filters(9, 6)) == rows + columns * 3, "three filters of six channels in a row"
    assert texts(filters(20, 3)) == ["0", "5", "10", "15", "0", "1", "2", "3", "4"], "in colour: add the column's to the row's"
    assert texts(filters(2, 20), before=True) == (["0", "1"] + [str(number) for number in range(0, 16, 2)]) * 3


def test_numbers_leave_each_other_room() -> None:
    points = filter_sheet(np.ones((256, 40, 1, 1), np.float32), scale=2)
    assert [number for _, number in points.rows] == list(range(256)) and len(points.columns) == 40
    kept = thinned(points.rows, 18)
    assert [number for _, number in kept] == list(range(0, 256, 16)), "the middles are 2 pixels apart"
    assert all(b - a >= 18 for (a, _), (b, _) in itertools.pairwise(kept))
    assert thinned([(5.0, 0)], 18) == [(5.0, 0)] and thinned([], 18) == []
