"""Feature maps: the right channel in the right tile, whatever its number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from caffetools.errors import DataError, NetError
from caffetools.visualize.activations import activations_figure, blob_values, channels_first, computable_blobs, overview_figure
from caffetools.visualize.colormaps import magnitude_colours, overlay, scaled_colours, signed_colours
from tests.net.test_net import conv, data, net_of, relu
from tests.visualize.test_attribution import linear

TEXT = data() + data("dim: 2", "label") + conv("conv1", "data") + relu("relu1", "conv1") + linear(5, "conv1")
TEXT += 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'


def test_blobs_are_what_the_net_computes() -> None:
    net = net_of(TEXT)
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    assert computable_blobs(net) == ["data", "conv1", "ip"]
    values = blob_values(net, image, ["conv1", "ip"])
    with torch.no_grad():
        expected = torch.relu(net.layer("conv1")(torch.from_numpy(image)[None])[0])[0]
    np.testing.assert_allclose(values["conv1"], expected, atol=1e-6)
    assert values["ip"].shape == (5,)
    with pytest.raises(NetError, match="no blob 'conv9'"):
        blob_values(net, image, ["conv9"])


def test_each_channel_is_a_tile_with_its_number() -> None:
    values = np.zeros((12, 4, 4), np.float32)
    values[7, 1, 2] = 3.0
    figure, caption = activations_figure(values, "conv1")
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    bright = np.argwhere((sheet == magnitude_colours(1.0)).all(axis=2))
    assert len(bright) == 28 * 28, "one of 4 x 4 values, 28 dots wide"
    labels = [text.get_text() for text in figure.texts]
    assert labels[1:13] == [str(i) for i in range(12)]
    assert "11 of them are 0 everywhere" in caption


def test_signed_maps_have_their_own_colours_and_a_common_scale() -> None:
    assert signed_colours(np.array([-1.0, 0.0, 1.0])).tolist()[1] == [247, 247, 246]
    each, common = (activations_figure(np.array([[[1.0, -1.0]], [[0.1, 0.1]]]), "b", common=common)[0] for common in (False, True))
    one, two = (np.asarray(figure.axes[0].images[0].get_array()) for figure in (each, common))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(scaled_colours(np.zeros((2, 2))), magnitude_colours(np.zeros((2, 2))))


@pytest.mark.parametrize(
    "shape", [(3, 1, 1), (700, 3, 3), (4, 12, 6, 7), (40, 31, 3, 3), (2, 3, 4, 5, 6), (2, 40), (1,), (4096,), (600, 7, 7)]
)
def test_all_shapes_are_drawn_and_no_label_overlaps(shape: tuple[int, ...]) -> None:
    figure, _ = activations_figure(np.random.default_rng(0).standard_normal(shape), "a long name of a blob " * 9, picture="p.png")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes[:200]) for b in boxes[i + 1 : 200])


def test_slices_of_a_channel_share_its_scale_and_have_both_numbers() -> None:
    values = np.zeros((2, 3, 4, 5), np.float32)
    values[1, 0], values[1, 2] = 2.0, 1.0
    figure, caption = activations_figure(values, "conv3d")
    assert [text.get_text() for text in figure.texts][1:7] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert caption.startswith("2 channels of 3 slices (channel.slice). ") and "1 of them is 0" in caption
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    half = (sheet == magnitude_colours(0.5)).all(axis=2).sum()
    assert half == (sheet == magnitude_colours(1.0)).all(axis=2).sum() > 0, "the slice of 1 is half of the channel's largest"


def test_outputs_of_permute_are_drawn_channels_first() -> None:
    permute = 'layer { name: "p" type: "Permute" bottom: "conv1" top: "p" permute_param { order: 0 order: 2 order: 3 order: 1 } }\n'
    back = 'layer { name: "q" type: "Permute" bottom: "p" top: "q" permute_param { order: 0 order: 3 order: 1 order: 2 } }\n'
    net = net_of(data("dim: 1 dim: 3 dim: 8 dim: 6") + conv("conv1", "data") + permute + relu("in_place", "p") + back)
    values = blob_values(net, np.random.default_rng(0).standard_normal((3, 8, 6)).astype(np.float32), ["conv1", "p", "q"])
    assert values["p"].shape == (8, 6, 4)
    turned = channels_first(net, values)
    for name in ("p", "q"):
        np.testing.assert_array_equal(turned[name], np.maximum(values["conv1"], 0))


def test_vectors_name_their_classes() -> None:
    figure, caption = activations_figure(np.array([0.1, 0.7, 0.2]), "prob", labels=["a$", "b", "c"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "c", r"a\$"]
    assert caption == "3 values from 0.1 to 0.7; largest: unit 1."


def test_an_overview_has_a_panel_a_blob_and_needs_one_with_positions() -> None:
    blobs = {"conv1": np.ones((30, 5, 5)), "ip": np.ones(4), "pool": np.ones((3, 1, 1))}
    blobs["conv3d"] = np.ones((4, 2, 5, 5))
    figure, _ = overview_figure(blobs, picture=np.zeros((9, 9, 3), np.uint8))
    assert len(figure.axes) == 3 and {"4 × 2 × 5 × 5", "conv3d"} <= {text.get_text() for text in figure.texts}
    with pytest.raises(DataError, match="no blob of this net has positions"):
        overview_figure({"ip": np.ones(4)})


def test_values_that_are_not_finite_are_refused() -> None:
    net = net_of(TEXT)
    with torch.no_grad():
        net.layer("conv1").blobs[0].fill_(float("nan"))
    with pytest.raises(DataError, match="blob 'ip' holds values that are not finite"):
        blob_values(net, np.ones((3, 8, 8), np.float32), ["ip"])


def test_an_overlay_is_grey_where_the_map_is_low() -> None:
    picture = np.full((2, 2, 3), 200, np.uint8)
    heat = np.array([[0.0, 1.0], [0.0, 0.0]])
    laid = overlay(picture, heat, strength=0.0)
    assert (laid == 200).all()
    laid = overlay(picture, heat, strength=1.0)
    np.testing.assert_array_equal(laid[0, 1], magnitude_colours(1.0))


def test_the_overview_spreads_the_blobs_that_fit_evenly_over_the_net() -> None:
    blobs = {f"b{index}": np.ones((3, 4, 4)) for index in range(9)}
    figure, caption = overview_figure(blobs, most=3)
    titles = [text.get_text() for text in figure.texts]
    assert [title for title in titles if title in blobs] == ["b0", "b4", "b8"]
    assert "3 of 9 blobs" in caption
