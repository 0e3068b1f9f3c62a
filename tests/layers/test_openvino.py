"""Layers that OpenVINO's importer reads, and PVANET's proposals, against plain NumPy written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.onnx.export import to_onnx
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer, one_layer
from tests.layers.test_forks import Array, agree, exported, numbers


def test_grn() -> None:
    agree('type: "GRN" grn_param { bias: 0.5 }', lambda x: x / np.sqrt((x * x).sum(1, keepdims=True) + 0.5), numbers(2, 3, 4, 2))
    agree('type: "GRN"', lambda x: x / np.sqrt((x * x).sum(1, keepdims=True) + 1e-7), numbers(2, 3, 4, 2))


def test_grn_may_pass_its_gradient_as_it_is() -> None:
    layer = one_layer('type: "GRN" grn_param { dummy_backward: true bias: 1 }', (1, 2, 1, 1))
    x = torch.tensor([[[[3.0]], [[4.0]]]], requires_grad=True)
    y = layer(x)
    np.testing.assert_allclose(y.detach().flatten(), np.array([3, 4]) / math.sqrt(26), rtol=1e-6)
    (gradient,) = torch.autograd.grad((y * torch.tensor([[[[2.0]], [[5.0]]]])).sum(), [x])
    assert gradient.flatten().tolist() == [2.0, 5.0]
    with pytest.raises(NetError, match="bias must be at least 0"):
        one_layer('type: "GRN" grn_param { bias: -1 }', (1, 2, 1, 1))


def decoded(path: list[int], going: list[int], *, merge: bool, blank: int) -> list[float]:
    labels, before = [], -1
    for step, label in enumerate(path):
        if step and not going[step]:
            break
        if label != blank and not (merge and label == before):
            labels.append(float(label))
        before = label
    return labels + [-1.0] * (len(path) - len(labels))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("blank", [-1, 1])
def test_ctc_greedy_decoder(merge: bool, blank: int) -> None:
    paths = [[0, 3, 3, 1, 1, 3, 1, 0], [3, 3, 2, 2, 2, 0, 0, 1], [1, 1, 1, 0, 1, 1, 2, 2]]
    going = [[0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]]
    scores = np.random.RandomState(0).rand(8, 3, 4) / 2
    for item, path in enumerate(paths):
        scores[np.arange(8), item, path] = 1
    text = f'type: "CTCGreedyDecoder" ctc_decoder_param {{ ctc_merge_repeated: {str(merge).lower()} blank_index: {blank} }}'
    expected = [decoded(p, g, merge=merge, blank=3 if blank < 0 else blank) for p, g in zip(paths, going, strict=True)]
    agree(text, lambda s, i: np.array(expected).reshape(3, 8, 1, 1), scores, np.array(going).T, gradients=())
    bottoms = input_layer("s", 8, 3, 4) + input_layer("i", 8, 3)
    net = Net(parse(f'{bottoms} layer {{ name: "l" bottom: "s" bottom: "i" top: "y" {text} }}', NetParameter))
    for opset in (11, 17):
        engine = OnnxRuntimeEngine.load(to_onnx(net, opset=opset).SerializeToString())
        got = engine.predict({"s": scores.astype(np.float32), "i": np.array(going, np.float32).T})["y"]
        assert got.reshape(3, 8).tolist() == expected
    with pytest.raises(NetError, match=r"the indicators 'b1' must be 8 x 3, not 3 x 8"):
        one_layer('type: "CTCGreedyDecoder"', (8, 3, 4), (3, 8))


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def regions(x: Array, count: int, coords: int, classes: int, *, softmax: bool) -> Array:
    y = x.copy()
    each = coords + 1 + classes
    for region in range(count):
        at = region * each
        y[:, at : at + 2] = logistic(x[:, at : at + 2])
        y[:, at + coords] = logistic(x[:, at + coords])
        scores = x[:, at + coords + 1 : at + each]
        e = np.exp(scores - scores.max(1, keepdims=True))
        y[:, at + coords + 1 : at + each] = e / e.sum(1, keepdims=True) if softmax else logistic(scores)
    return y


REGION2 = 'type: "RegionYolo" region_yolo_param { classes: 3 coords: 4 num: 2 do_softmax: true } flatten_param { axis: 1 end_axis: 3 }'
REGION3 = 'type: "RegionYolo" region_yolo_param { classes: 3 coords: 4 num: 9 do_softmax: false mask: 0 mask: 1 }'


def test_region_yolo_of_versions_2_and_3() -> None:
    x = numbers(2, 16, 2, 3)
    agree(REGION2, lambda x: regions(x, 2, 4, 3, softmax=True).reshape(2, -1), x)
    agree(REGION3, lambda x: regions(x, 2, 4, 3, softmax=False), x)
    with pytest.raises(NetError, match="2 regions of 8 values need 16 channels, not 15"):
        one_layer(REGION2, (2, 15, 2, 3))


def test_reorg_yolo_is_reorg() -> None:
    x = torch.tensor(numbers(2, 8, 4, 6))
    own, other = (
        one_layer(text, x.shape) for text in ('type: "ReorgYolo" reorg_yolo_param { stride: 2 }', 'type: "Reorg" reorg_param { stride: 2 }')
    )
    assert own.top_shapes == [(2, 32, 2, 3)]
    np.testing.assert_array_equal(own(x), other(x))


def test_prior_boxes_of_clustered_sizes() -> None:
    text = (
        'type: "PriorBoxClustered" prior_box_param { width: 10 width: 20 height: 30 height: 8 clip: true '
        "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 step: 16 offset: 0.5 }"
    )
    layer = one_layer(text, (1, 4, 2, 3), (1, 3, 32, 48))
    assert layer.top_shapes == [(1, 2, 2 * 3 * 2 * 4)]
    expected = []
    for row, column in np.ndindex(2, 3):
        for wide, high in ((10, 30), (20, 8)):
            x, y = (column + 0.5) * 16, (row + 0.5) * 16
            expected += [(x - wide / 2) / 48, (y - high / 2) / 32, (x + wide / 2) / 48, (y + high / 2) / 32]
    top = layer(torch.zeros(1, 4, 2, 3), torch.zeros(1, 3, 32, 48))
    np.testing.assert_allclose(top[0, 0], np.clip(expected, 0, 1), rtol=1e-6)
    np.testing.assert_allclose(top[0, 1].reshape(-1, 4), np.tile([0.1, 0.1, 0.2, 0.2], (12, 1)), rtol=1e-6)
    with pytest.raises(NetError, match="width and height must be given equally often"):
        one_layer('type: "PriorBoxClustered" prior_box_param { width: 10 }', (1, 4, 2, 3), (1, 3, 32, 48))


def proposed(
    scores: Array, offsets: Array, info: Array, anchors: list[list[float]], stride: int, least: int, first: int, thresh: float, most: int
) -> Array:
    """Faster R-CNN's proposals, box by box, in float64."""
    rows = []
    for item in range(len(scores)):
        found = []
        high, wide, *scale = info[item]
        for row, column in np.ndindex(*scores.shape[2:]):
            for k, (x1, y1, x2, y2) in enumerate(anchors):
                w, h = x2 - x1 + 1, y2 - y1 + 1
                dx, dy, dw, dh = offsets[item, 4 * k : 4 * k + 4, row, column]
                x, y = column * stride + x1 + w / 2 + dx * w, row * stride + y1 + h / 2 + dy * h
                w, h = w * math.exp(dw), h * math.exp(dh)
                box = [
                    np.clip(x - w / 2, 0, wide - 1),
                    np.clip(y - h / 2, 0, high - 1),
                    np.clip(x + w / 2, 0, wide - 1),
                    np.clip(y + h / 2, 0, high - 1),
                ]
                score = scores[item, len(anchors) + k, row, column]
                if box[2] - box[0] + 1 < least * scale[-1] or box[3] - box[1] + 1 < least * scale[0]:
                    score = 0
                found.append((score, box))
        found = sorted(found, key=lambda f: -f[0])[:first]
        kept: list[list[float]] = []
        for _, box in found:
            if len(kept) < most and all(overlap(box, other) <= thresh for other in kept):
                kept.append(box)
        rows += [[item, *box] for box in kept]
    return np.array(rows)


def overlap(a: list[float], b: list[float]) -> float:
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    if min(sides) < 0:
        return 0.0
    shared = (sides[0] + 1) * (sides[1] + 1)
    return shared / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - shared)


PROPOSAL = (
    'type: "Proposal" proposal_param { feat_stride: 16 base_size: 16 min_size: 8 ratio: 0.5 ratio: 1 ratio: 2 scale: 1 scale: 2 '
    "pre_nms_topn: 60 post_nms_topn: 15 nms_thresh: 0.1 }"
)


def anchors_of_the_test() -> list[list[float]]:
    # The three ratios of a 16 x 16 cell: 23 x 12, 16 x 16, 11 x 22 (Ren et al.'s enumeration), each at two scales.
    boxes = []
    for w, h in ((23, 12), (16, 16), (11, 22)):
        for scale in (1, 2):
            boxes.append([7.5 - (w * scale - 1) / 2, 7.5 - (h * scale - 1) / 2, 7.5 + (w * scale - 1) / 2, 7.5 + (h * scale - 1) / 2])
    return boxes


@pytest.mark.parametrize("info", [[[64, 80, 1.0], [60, 70, 1.5]], [[64, 80, 1.0, 1.2], [60, 70, 1.5, 1.0]]])
def test_proposals(info: list[list[float]]) -> None:
    scores, offsets = np.random.RandomState(0).rand(2, 12, 4, 5), numbers(2, 24, 4, 5) * 0.2
    expected = proposed(scores, offsets, np.array(info), anchors_of_the_test(), 16, 8, 60, 0.1, 15)
    layer = one_layer(PROPOSAL, scores.shape, offsets.shape, np.shape(info), tops=2)
    rois, best = layer(*(torch.tensor(a, dtype=torch.float32) for a in (scores, offsets, np.array(info))))
    assert 2 < len(expected) < 30
    np.testing.assert_allclose(rois, expected, rtol=1e-4, atol=1e-3)
    assert best.shape == (len(expected),) and (best[:-1][rois[1:, 0] == rois[:-1, 0]] >= best[1:][rois[1:, 0] == rois[:-1, 0]]).all()


def test_proposals_above_a_score_only_and_bad_shapes() -> None:
    layer = one_layer(PROPOSAL.replace("nms_thresh: 0.1", "nms_thresh: 0.1 score_thresh: 2"), (1, 12, 4, 5), (1, 24, 4, 5), (1, 3))
    assert layer(torch.rand(1, 12, 4, 5), torch.zeros(1, 24, 4, 5), torch.tensor([[64.0, 80.0, 1.0]])).shape == (0, 5)
    # PVANET's nets have further numbers behind the two scales.
    scores, offsets, info = np.random.RandomState(0).rand(1, 12, 4, 5), numbers(1, 24, 4, 5) * 0.2, [64, 80, 1.0, 3.0]
    found = [
        one_layer(PROPOSAL, scores.shape, offsets.shape, (1, len(about)))(
            *(torch.tensor(a, dtype=torch.float32) for a in (scores, offsets, np.array([about])))
        )
        for about in (info, [*info, 9.0, 9.0])
    ]
    np.testing.assert_array_equal(*found)
    with pytest.raises(NetError, match=r"'b1' must be 1 x 24 x 4 x 5 for 6 anchors, not 1 x 36 x 4 x 5"):
        one_layer(PROPOSAL, (1, 12, 4, 5), (1, 36, 4, 5), (1, 3))
    with pytest.raises(NetError, match="needs ratio and scale"):
        one_layer('type: "Proposal"', (1, 12, 4, 5), (1, 24, 4, 5), (1, 3))


@pytest.mark.parametrize("opset", [11, 17, 21])
@pytest.mark.parametrize("text", [REGION2, REGION3])
def test_regions_in_onnx(text: str, opset: int) -> None:
    exported(text, (2, 16, 2, 3), opset=opset)


@pytest.mark.parametrize("opset", [11, 17])
def test_the_other_layers_in_onnx(opset: int) -> None:
    exported('type: "GRN" grn_param { bias: 0.3 }', (2, 3, 4, 5), opset=opset)
    exported('type: "ReorgYolo" reorg_yolo_param { stride: 2 }', (2, 8, 4, 6), opset=opset)
    exported('type: "PriorBoxClustered" prior_box_param { width: 10 height: 30 }', (1, 4, 2, 3), (1, 3, 32, 48), opset=opset)
