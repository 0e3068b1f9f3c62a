"""Forks' layers that make maps larger or pool over regions, and their losses, against plain NumPy."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer, one_layer
from tests.layers.test_forks import Array, agree, distinct, numbers


def unpooled(x: Array, mask: Array, height: int, width: int) -> Array:
    y = np.zeros((*x.shape[:2], height * width))
    for n, c, i, j in np.ndindex(*x.shape):
        y[n, c, int(mask[n, c, i, j])] = x[n, c, i, j]
    return y.reshape(*x.shape[:2], height, width)


def places(*shape: int, among: int) -> Array:
    rng = np.random.RandomState(3)
    maps = [rng.permutation(among)[: shape[2] * shape[3]] for _ in range(shape[0] * shape[1])]
    return np.array(maps).reshape(shape)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ('type: "Upsample" upsample_param { scale: 2 }', (4, 6)),
        ('type: "Upsample"', (4, 6)),
        ('type: "Upsample" upsample_param { scale: 2 pad_out_h: true }', (3, 6)),
        ('type: "Upsample" upsample_param { scale: 2 upsample_h: 5 upsample_w: 7 }', (5, 7)),
        ('type: "Upsample" upsample_param { scale_h: 2 scale_w: 3 }', (4, 9)),
        ('type: "Unpooling" unpooling_param { kernel_size: 2 stride: 2 }', (4, 6)),
        ('type: "Unpooling" unpooling_param { kernel_size: 2 stride: 2 unpool_size: 5 }', (5, 5)),
    ],
)
def test_values_are_put_where_the_mask_points(text: str, size: tuple[int, int]) -> None:
    mask = places(2, 2, 2, 3, among=size[0] * size[1])
    agree(text, lambda x, m: unpooled(x, m, *size), numbers(2, 2, 2, 3), mask)


def test_upsampling_by_the_mask_of_a_pooling_undoes_it() -> None:
    text = input_layer("x", 1, 2, 4, 6) + (
        'layer { name: "p" type: "Pooling" bottom: "x" top: "y" top: "m" pooling_param { kernel_size: 2 stride: 2 } }'
        'layer { name: "u" type: "Upsample" bottom: "y" bottom: "m" top: "z" upsample_param { scale: 2 } }'
    )
    x = distinct(1, 2, 4, 6)
    z = Net(parse(text, NetParameter))({"x": torch.tensor(x, dtype=torch.float32)})["z"].numpy()
    largest = x.reshape(1, 2, 2, 2, 3, 2).max((3, 5), keepdims=True)
    np.testing.assert_allclose(z, np.where(x.reshape(1, 2, 2, 2, 3, 2) == largest, largest, 0).reshape(x.shape), rtol=1e-6)


def test_a_mask_that_does_not_fit_the_maps_is_named() -> None:
    layer = one_layer('type: "Upsample" upsample_param { scale: 2 }', (1, 1, 1, 1), (1, 1, 1, 1))
    with pytest.raises(NetError, match=r"layer 'l': .*the mask 'b1' names places outside of maps of 2 x 2"):
        layer(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 4.0))
    with pytest.raises(NetError, match="only MAX unpooling"):
        one_layer('type: "Unpooling" unpooling_param { unpool: AVE kernel_size: 2 }', (1, 1, 1, 1), (1, 1, 1, 1))


def test_upsample_with_one_bottom_repeats_values() -> None:
    agree('type: "Upsample" upsample_param { scale: 3 }', lambda x: x.repeat(3, 2).repeat(3, 3), numbers(2, 2, 2, 3))


def interpolated(x: Array, height: int, width: int) -> Array:
    y = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            a = i * (x.shape[2] - 1) / (height - 1) if height > 1 else 0.0
            b = j * (x.shape[3] - 1) / (width - 1) if width > 1 else 0.0
            top, left = int(a), int(b)
            bottom, right = min(top + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
            a, b = a - top, b - left
            upper = (1 - b) * x[:, :, top, left] + b * x[:, :, top, right]
            lower = (1 - b) * x[:, :, bottom, left] + b * x[:, :, bottom, right]
            y[:, :, i, j] = (1 - a) * upper + a * lower
    return y


@pytest.mark.parametrize(
    ("said", "cut", "size"),
    [
        ("height: 5 width: 8", (0, 0), (5, 8)),
        ("zoom_factor: 2", (0, 0), (7, 9)),
        ("shrink_factor: 2", (0, 0), (2, 3)),
        ("shrink_factor: 2 zoom_factor: 3", (0, 0), (4, 7)),
        ("zoom_factor: 2 pad_beg: -1 pad_end: -1", (1, 1), (3, 5)),
        ("height: 1 width: 1", (0, 0), (1, 1)),
    ],
)
def test_interp(said: str, cut: tuple[int, int], size: tuple[int, int]) -> None:
    first, last = cut
    agree(
        f'type: "Interp" interp_param {{ {said} }}',
        lambda x: interpolated(x[:, :, first : x.shape[2] - last, first : x.shape[3] - last], *size),
        numbers(1, 2, 4, 5),
    )


def test_interp_takes_the_size_of_a_second_bottom() -> None:
    agree('type: "Interp"', lambda x, like: interpolated(x, 6, 3), numbers(1, 2, 4, 5), numbers(2, 1, 6, 3))
    with pytest.raises(NetError, match="needs height and width, zoom_factor or shrink_factor"):
        one_layer('type: "Interp"', (1, 1, 2, 2))


def rounded(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def roi_pooled(x: Array, rois: Array, scale: float, height: int, width: int) -> Array:
    y = np.zeros((len(rois), x.shape[1], height, width))
    for r, (item, *corners) in enumerate(rois):
        left, top, right, bottom = (rounded(c * scale) for c in corners)
        bin_h, bin_w = max(bottom - top + 1, 1) / height, max(right - left + 1, 1) / width
        for i in range(height):
            for j in range(width):
                rows = slice(*(min(max(e + top, 0), x.shape[2]) for e in (math.floor(i * bin_h), math.ceil((i + 1) * bin_h))))
                columns = slice(*(min(max(e + left, 0), x.shape[3]) for e in (math.floor(j * bin_w), math.ceil((j + 1) * bin_w))))
                part = x[int(item), :, rows, columns]
                y[r, :, i, j] = part.max((1, 2)) if part.size else 0
    return y


ROIS = np.array([[0, 0, 0, 30, 30], [1, 8, 20, 50, 47], [1, 40, 8, 20, 60], [0, 200, 200, 300, 300], [0, 24, 24, 24, 24]], float)


def test_roi_pooling() -> None:
    text = 'type: "ROIPooling" roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 }'
    agree(text, lambda x, rois: roi_pooled(x, rois, 0.125, 2, 3), distinct(2, 2, 7, 8), ROIS)


def psroi_pooled(x: Array, rois: Array, scale: float, outputs: int, group: int) -> Array:
    y = np.zeros((len(rois), outputs, group, group))
    for r, (item, *corners) in enumerate(rois):
        left, top = rounded(corners[0]) * scale, rounded(corners[1]) * scale
        size_w = max((rounded(corners[2]) + 1) * scale - left, 0.1) / group
        size_h = max((rounded(corners[3]) + 1) * scale - top, 0.1) / group
        for d, i, j in np.ndindex(outputs, group, group):
            rows = slice(*(min(max(e, 0), x.shape[2]) for e in (math.floor(i * size_h + top), math.ceil((i + 1) * size_h + top))))
            columns = slice(*(min(max(e, 0), x.shape[3]) for e in (math.floor(j * size_w + left), math.ceil((j + 1) * size_w + left))))
            part = x[int(item), (d * group + i) * group + j, rows, columns]
            y[r, d, i, j] = part.mean() if part.size else 0
    return y


def test_psroi_pooling() -> None:
    text = 'type: "PSROIPooling" psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.125 }'
    agree(text, lambda x, rois: psroi_pooled(x, rois, 0.125, 2, 3), numbers(2, 18, 6, 7), ROIS)
    with pytest.raises(NetError, match="output_dim 2 and group_size 3 need 18 channels, not 17"):
        one_layer(text, (1, 17, 4, 4), (1, 5))


@pytest.mark.parametrize("kind", ["ROIPooling", "PSROIPooling"])
def test_a_region_of_no_item_is_named(kind: str) -> None:
    said = {
        "ROIPooling": "roi_pooling_param { pooled_h: 1 pooled_w: 1 }",
        "PSROIPooling": "psroi_pooling_param { output_dim: 1 group_size: 1 spatial_scale: 1 }",
    }[kind]
    layer = one_layer(f'type: "{kind}" {said}', (2, 1, 4, 4), (1, 5))
    with pytest.raises(NetError, match="the regions 'b1' name items outside of 0 to 1"):
        layer(torch.zeros(2, 1, 4, 4), torch.tensor([[2.0, 0, 0, 1, 1]]))


def smooth_l1(x: Array, t: Array, inside: Array | None = None, outside: Array | None = None, sigma: float = 1.0) -> Array:
    d = (x - t) * (1 if inside is None else inside)
    losses = np.where(np.abs(d) < 1 / sigma**2, 0.5 * sigma**2 * d * d, np.abs(d) - 0.5 / sigma**2)
    return np.array((losses * (1 if outside is None else outside)).sum() / len(x))


def test_smooth_l1_loss_of_fast_rcnn_and_of_ssd() -> None:
    x, t = 2 * numbers(3, 4, 2), numbers(3, 4, 2, seed=1)
    inside, outside = (numbers(3, 4, 2, seed=2) > 0).astype(float), np.abs(numbers(3, 4, 2, seed=3))
    agree('type: "SmoothL1Loss"', smooth_l1, x, t, gradients=(0, 1), phase=TRAIN)
    agree('type: "SmoothL1Loss"', smooth_l1, x, t, inside, gradients=(0, 1), phase=TRAIN)
    text = 'type: "SmoothL1Loss" smooth_l1_loss_param { sigma: 3 }'
    agree(text, partial(smooth_l1, sigma=3.0), x, t, inside, outside, gradients=(0, 1), phase=TRAIN)


def test_smooth_l1_loss_of_rfcns_caffe_is_normalized_and_gives_the_loss_of_each_place() -> None:
    x, t, weights = (torch.tensor(numbers(2, 3, 2, 4, seed=n), dtype=torch.float32) for n in range(3))
    size = (weights * (x - t)).abs()
    losses = torch.where(size < 1, 0.5 * size * size, size - 0.5)
    for settings, divisor in (("", 16), ("normalization: BATCH_SIZE", 2), ("normalize: false", 2), ("normalization: NONE", 1)):
        text = f'type: "SmoothL1Loss" top: "each" loss_weight: 1 loss_weight: 0 loss_param {{ {settings} }}'
        loss, each = one_layer(text, *([(2, 3, 2, 4)] * 3), phase=TRAIN)(x, t, weights)
        assert loss.item() == pytest.approx(losses.sum().item() / divisor, rel=1e-5)
        np.testing.assert_allclose(each, losses.sum(1, keepdim=True), atol=1e-6)
    alone = one_layer('type: "SmoothL1Loss" loss_param { normalization: VALID }', *([(2, 3, 2, 4)] * 3), phase=TRAIN)
    assert alone(x, t, weights).item() == pytest.approx(losses.sum().item() / 16, rel=1e-5)
    plain = one_layer('type: "SmoothL1Loss" loss_param { ignore_label: -1 }', *([(2, 3, 2, 4)] * 3), phase=TRAIN)
    assert plain(x, t, weights).item() == pytest.approx(losses.sum().item() / 2, rel=1e-5)
    with pytest.raises(NetError, match="has no fourth bottom"):
        one_layer('type: "SmoothL1Loss" loss_param { normalization: VALID }', *([(2, 3, 2, 4)] * 4), phase=TRAIN)


def test_triplet_loss() -> None:
    def loss(a: Array, p: Array, n: Array) -> Array:
        return np.array(np.maximum(0, 0.5 + ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1)).sum() / (2 * len(a)))

    triplet = [numbers(6, 4, seed=i) for i in range(3)]
    agree('type: "TripletLoss" triplet_loss_param { margin: 0.5 }', loss, *triplet, gradients=(0, 1, 2), phase=TRAIN)
    assert loss(*triplet) > 0


def test_center_loss_moves_centres_by_its_own_rule() -> None:
    x, labels, centres = numbers(5, 3), np.array([0, 2, 2, 0, 3]), numbers(4, 3, seed=1)
    text = 'type: "CenterLoss" center_loss_param { num_output: 4 }'
    layer = one_layer(text, (5, 3), (5,), phase=TRAIN)
    layer.blobs[0].data = torch.tensor(centres, dtype=torch.float32)
    features = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    loss = layer(features, torch.tensor(labels, dtype=torch.float32))
    distance = x - centres[labels]
    assert loss.item() == pytest.approx((distance**2).sum() / 10, rel=1e-5)
    to_features, to_centres = torch.autograd.grad(3 * loss, [features, layer.blobs[0]])
    np.testing.assert_allclose(to_features, 3 * distance / 5, rtol=1e-4, atol=1e-6)
    for j in range(4):
        of_class = -distance[labels == j].sum(0) / (1 + (labels == j).sum())
        np.testing.assert_allclose(to_centres[j], of_class, rtol=1e-4, atol=1e-6)
    with pytest.raises(NetError, match="label 4 of bottom 'b1' is outside of 0 to 3"):
        layer(features, torch.full((5,), 4.0))
