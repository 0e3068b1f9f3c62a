"""ROIAlign in its two definitions against plain NumPy, sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ExportError, NetError
from caffetools.net.net import Net
from caffetools.onnx.export import to_onnx
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer
from tests.layers.test_forks import Array, agree, numbers

ROIS = np.array([[0, 3.3, 1.2, 30, 37.1], [1, 8, 20, 50, 47], [1, 40, 8, 20, 60], [0, -30, -9, 80, 99], [0, 24, 24, 24.5, 24]], float)


def sample(maps: Array, y: float, x: float, *, outside: float) -> Array:
    """Bilinear values of (C, H, W); ``outside`` is how far behind the edge pixels a sample may lie."""
    h, w = maps.shape[1:]
    high, wide = (h, w) if outside == 1 else (h - outside, w - outside)
    if y < -outside or x < -outside or y > high or x > wide:
        return np.zeros(len(maps))
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    b, a = y - top, x - left
    upper = (1 - a) * maps[:, top, left] + a * maps[:, top, right]
    return np.asarray((1 - b) * upper + b * ((1 - a) * maps[:, bottom, left] + a * maps[:, bottom, right]))


def aligned(x: Array, rois: Array, scale: float, bins: tuple[int, int], ratio: int, *, half: bool) -> Array:
    y = np.zeros((len(rois), x.shape[1], *bins))
    for r, (item, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (c * scale - (0.5 if half else 0) for c in corners)
        size = [y2 - y1, x2 - x1] if half else [max(y2 - y1, 1), max(x2 - x1, 1)]
        step = [size[0] / bins[0], size[1] / bins[1]]
        counts = [ratio or math.ceil(np.float32(s)) for s in step]
        for i, j in np.ndindex(*bins):
            for a, b in np.ndindex(max(counts[0], 0), max(counts[1], 0)):
                place = (y1 + i * step[0] + (a + 0.5) * step[0] / counts[0], x1 + j * step[1] + (b + 0.5) * step[1] / counts[1])
                y[r, :, i, j] += sample(x[int(item)], *place, outside=1.0) / (counts[0] * counts[1])
    return y


@pytest.mark.parametrize("ratio", [-1, 0, 2])
@pytest.mark.parametrize("half", [False, True])
def test_bins_are_means_of_samples(ratio: int, half: bool) -> None:
    fields = f"pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 sampling_ratio: {ratio} aligned: {str(half).lower()}"
    text = f'type: "ROIAlign" roi_align_param {{ {fields} }}'
    bottoms = numbers(2, 2, 7, 8), ROIS
    layer = layer_of(text)
    top = layer({"x": torch.tensor(bottoms[0], dtype=torch.float32), "r": torch.tensor(ROIS, dtype=torch.float32)})["y"]
    np.testing.assert_allclose(top.detach(), aligned(*bottoms, 0.125, (2, 3), max(ratio, 0), half=half), rtol=1e-4, atol=1e-5)


def layer_of(text: str, shape: tuple[int, ...] = (2, 2, 7, 8), rois: int = len(ROIS)) -> Net:
    bottoms = input_layer("x", *shape) + input_layer("r", rois, 5)
    return Net(parse(f'{bottoms} layer {{ name: "l" bottom: "x" bottom: "r" top: "y" {text} }}', NetParameter))


def test_the_gradient_is_that_of_the_samples() -> None:
    net = layer_of('type: "ROIAlign" roi_align_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.125 sampling_ratio: 2 }')
    layer = net.layer("l").double()
    rois = torch.tensor(ROIS)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), torch.tensor(numbers(2, 2, 7, 8)).requires_grad_())


def cornered(x: Array, rois: Array, scale: float, bins: tuple[int, int], growth: float) -> Array:
    y = np.zeros((len(rois), x.shape[1], bins[0] + 1, bins[1] + 1))
    for r, (item, x1, y1, x2, y2) in enumerate(rois):
        wide, high = (x2 - x1 + 1) * growth, (y2 - y1 + 1) * growth
        left, top = (x1 - wide) * scale - 0.5, (y1 - high) * scale - 0.5
        width, height = (x2 + wide) * scale - 0.5 - left, (y2 + high) * scale - 0.5 - top
        if width <= 0 or height <= 0:
            continue
        for i, j in np.ndindex(bins[0] + 1, bins[1] + 1):
            y[r, :, i, j] = sample(x[int(item)], top + i * height / bins[0], left + j * width / bins[1], outside=0.5)
    return y


@pytest.mark.parametrize("growth", [0.0, 0.25])
def test_cascade_r_cnn_samples_the_corners_of_bins(growth: float) -> None:
    text = f'type: "ROIAlign" roi_pooling_param {{ pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 pad_ratio: {growth} }}'
    agree(text, lambda x, rois: cornered(x, rois, 0.125, (2, 3), growth), numbers(2, 2, 7, 8), ROIS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs either roi_align_param or roi_pooling_param"),
        ("roi_align_param { aligned_h: 3 aligned_w: 3 }", "fields that are not known here: aligned_h, aligned_w"),
        ("roi_align_param { pooled_h: 3 }", "pooled_h and pooled_w must be at least 1"),
        ("roi_align_param { pooled_h: 3 pooled_w: 3 roi_end_mode: 1 }", "roi_end_mode other than 0"),
    ],
)
def test_other_definitions_are_refused(text: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        layer_of(f'type: "ROIAlign" {text}')


@pytest.mark.parametrize(("opset", "half"), [(11, False), (16, False), (16, True), (21, True)])
@pytest.mark.parametrize("ratio", [0, 2])
def test_onnx(opset: int, half: bool, ratio: int) -> None:
    fields = f"pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 sampling_ratio: {ratio} aligned: {str(half).lower()}"
    # The first axis of all inputs is the batch in ONNX: as many items as regions.
    net = layer_of(f'type: "ROIAlign" roi_align_param {{ {fields} }}', (len(ROIS), 2, 7, 8))
    feed = {"x": numbers(len(ROIS), 2, 7, 8).astype(np.float32), "r": ROIS.astype(np.float32)}
    expected = net({name: torch.tensor(value) for name, value in feed.items()})["y"].detach()
    got = OnnxRuntimeEngine.load(to_onnx(net, opset=opset).SerializeToString()).predict(feed)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_form_without_an_onnx_operator_is_refused_by_name() -> None:
    net = layer_of('type: "ROIAlign" roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 }', (5, 2, 7, 8))
    with pytest.raises(ExportError, match="layer 'l' of type ROIAlign has no ONNX form: Cascade R-CNN's samples"):
        to_onnx(net, opset=17)
