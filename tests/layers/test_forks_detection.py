"""SSD's PriorBox and DetectionOutput against plain NumPy, written here from the paper and the layers' parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.layers.detection import PriorBox
from tests.layers.helpers import one_layer
from tests.layers.test_forks import Array, numbers


def priors(rows: int, columns: int, height: float, width: float, sizes: list[tuple[float, float]], step: tuple[float, float]) -> Array:
    boxes = []
    for i in range(rows):
        for j in range(columns):
            x, y = (j + 0.5) * step[1], (i + 0.5) * step[0]
            boxes += [[(x - w / 2) / width, (y - h / 2) / height, (x + w / 2) / width, (y + h / 2) / height] for w, h in sizes]
    return np.array(boxes)


def test_prior_boxes_of_one_size_with_ratios_both_ways() -> None:
    said = "min_size: 30 max_size: 60 aspect_ratio: 2 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
    layer = one_layer(f'type: "PriorBox" prior_box_param {{ {said} }}', (1, 8, 3, 4), (1, 3, 90, 160))
    top = layer(torch.zeros(1, 8, 3, 4), torch.zeros(1, 3, 90, 160))
    root = math.sqrt(2)
    sizes = [(30, 30), (math.sqrt(1800),) * 2, (30 * root, 30 / root), (30 / root, 30 * root)]
    expected = priors(3, 4, 90, 160, sizes, (30, 40))
    assert list(top.shape) == layer.top_shapes[0] or tuple(top.shape) == layer.top_shapes[0] == (1, 2, 3 * 4 * 4 * 4)
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), expected, rtol=1e-5, atol=1e-6)
    assert top[0, 1].reshape(-1, 4).unique(dim=0).tolist() == [pytest.approx([0.1, 0.1, 0.2, 0.2])]


def test_prior_boxes_of_several_sizes_steps_and_clipping() -> None:
    said = "min_size: 16 min_size: 40 aspect_ratio: 3 aspect_ratio: 1 flip: false clip: true step: 8 img_h: 64 img_w: 32"
    layer = one_layer(f'type: "PriorBox" prior_box_param {{ {said} }}', (2, 1, 2, 3), (2, 3, 9, 9))
    top = layer(torch.zeros(2, 1, 2, 3), torch.zeros(2, 3, 9, 9))
    root = math.sqrt(3)
    sizes = [size for side in (16, 40) for size in ((side, side), (side * root, side / root))]
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), priors(2, 3, 64, 32, sizes, (8, 8)).clip(0, 1), rtol=1e-5, atol=1e-6)
    assert top[0, 1].unique().tolist() == [pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("", "min_size is missing"),
        ("min_size: 4 max_size: 3", "max_size must be given as often"),
        ("min_size: 4 variance: 1 variance: 2", "variance is given 2 times"),
        ("min_size: 4 step: 2 step_h: 3", "step_h and step_w must both be set"),
    ],
)
def test_prior_boxes_that_make_no_sense_are_refused(said: str, what: str) -> None:
    with pytest.raises(NetError, match=rf"layer 'l': \(PriorBox\) {what}"):
        one_layer(f'type: "PriorBox" prior_box_param {{ {said} }}', (1, 1, 2, 2), (1, 3, 8, 8))


def overlap(a: Array, b: Array) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def decoded(location: Array, prior: Array, variance: Array, code: str) -> Array:
    w, h = prior[2] - prior[0], prior[3] - prior[1]
    d = location * variance
    if code == "CORNER":
        return prior + d
    if code == "CORNER_SIZE":
        return prior + d * [w, h, w, h]
    x, y = (prior[0] + prior[2]) / 2 + d[0] * w, (prior[1] + prior[3]) / 2 + d[1] * h
    w, h = w * math.exp(d[2]), h * math.exp(d[3])
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def detected(location: Array, score: Array, prior: Array, code: str, shared: bool, keep: int, eta: float) -> list[list[float]]:
    rows: list[list[float]] = []
    for item in range(len(location)):
        found = []
        for label in range(1, score.shape[2]):
            boxes = [decoded(location[item, p, 0 if shared else label], prior[0, p], prior[1, p], code) for p in range(prior.shape[1])]
            order = sorted((p for p in range(len(boxes)) if score[item, p, label] > 0.2), key=lambda p: -score[item, p, label])[:8]
            kept: list[int] = []
            limit = 0.6
            for p in order:
                if all(overlap(boxes[p], boxes[q]) <= limit for q in kept):
                    kept.append(p)
                    limit *= eta if eta < 1 and limit > 0.5 else 1
            found += [(label, score[item, p, label], boxes[p]) for p in kept]
        best = sorted(found, key=lambda f: -f[1])[:keep]
        rows += [[item, label, s, *box] for label, s, box in sorted(best, key=lambda f: f[0])]
    return rows


@pytest.mark.parametrize("code", ["CORNER", "CENTER_SIZE", "CORNER_SIZE"])
@pytest.mark.parametrize(("shared", "keep", "eta"), [(True, 7, 1.0), (False, 5, 1.0), (True, 100, 0.9)])
def test_detections_are_decoded_suppressed_and_cut(code: str, shared: bool, keep: int, eta: float) -> None:
    count, classes = 12, 3
    rng = np.random.RandomState(5)
    corner = rng.rand(count, 2) * 0.5
    prior = np.stack([np.concatenate([corner, corner + 0.2 + 0.2 * rng.rand(count, 2)], 1), np.full((count, 4), 0.1)])
    location = numbers(2, count, 1 if shared else classes, 4)
    score = rng.rand(2, count, classes)
    said = f"num_classes: 3 share_location: {str(shared).lower()} code_type: {code} keep_top_k: {keep} confidence_threshold: 0.2"
    text = f'type: "DetectionOutput" detection_output_param {{ {said} nms_param {{ nms_threshold: 0.6 top_k: 8 eta: {eta} }} }}'
    arrays = [location.reshape(2, -1), score.reshape(2, -1), prior.reshape(1, 2, -1)]
    layer = one_layer(text, *(a.shape for a in arrays))
    got = layer(*(torch.tensor(a, dtype=torch.float32) for a in arrays))
    expected = detected(location, score, prior, code, shared, keep, eta)
    assert got.shape == (1, 1, len(expected), 7)
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_an_item_without_detections_gets_a_row_that_reports_it() -> None:
    said = "num_classes: 2 confidence_threshold: 0.5 nms_param { nms_threshold: 0.5 }"
    layer = one_layer(f'type: "DetectionOutput" detection_output_param {{ {said} }}', (2, 4), (2, 2), (1, 2, 4))
    got = layer(torch.zeros(2, 4), torch.full((2, 2), 0.4), torch.tensor([[[0.0, 0, 1, 1], [0.1] * 4]]))
    assert got[0, 0].tolist() == [[0, -1, -1, -1, -1, -1, -1], [1, -1, -1, -1, -1, -1, -1]]


def test_detections_of_inputs_that_do_not_fit_are_refused() -> None:
    said = "num_classes: 2 nms_param { nms_threshold: 0.5 }"
    with pytest.raises(NetError, match=r"'b1' must be 1 x 4 for 2 priors, not 1 x 6"):
        one_layer(f'type: "DetectionOutput" detection_output_param {{ {said} }}', (1, 8), (1, 6), (1, 2, 8))


def test_prior_boxes_are_the_same_for_any_values_in_the_maps() -> None:
    layer = one_layer('type: "PriorBox" prior_box_param { min_size: 4 }', (1, 1, 2, 2), (1, 3, 8, 8))
    assert isinstance(layer, PriorBox)
    one, other = (layer(torch.full((1, 1, 2, 2), v), torch.full((1, 3, 8, 8), v)) for v in (0.0, 5.0))
    assert torch.equal(one, other)
