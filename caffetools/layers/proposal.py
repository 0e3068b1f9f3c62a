"""Proposal: boxes from the scores and offsets of a region proposal network (PVANET, OpenVINO). Ren et al. (2015), Faster R-CNN."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits

Array = NDArray[np.float32]


@register("Proposal")
class Proposal(Layer):
    """The best boxes of a region proposal network: (R, 5) rows of item, x1, y1, x2, y2 in pixels; a second top (R) holds their scores.

    Bottoms: scores (N, 2 A, H, W), of which the second half counts, offsets (N, 4 A, H, W), and the image's height, width and scale (N, 3),
    or scales for height and width (N, 4). Anchors of ``base_size`` with each ``ratio`` and ``scale`` stand ``feat_stride`` apart. Boxes are
    clipped to the image; one smaller than ``min_size`` (times the scale) scores 0. Of the ``pre_nms_topn`` best, those that overlap a better
    one by more than ``nms_thresh`` are removed, and ``post_nms_topn`` stay; ``score_thresh``, where given, removes those not above it.
    Sides count both end pixels. Of equal scores the earlier anchor comes first, where PVANET's order depends on its sorting.
    """

    TRAITS = Traits(role="detection", settings="proposal_param")
    BOTTOMS = (3, 3)
    TOPS = (1, 2)
    NO_GRADIENT = frozenset({0, 1, 2})

    @classmethod
    def example_shapes(cls, param: object) -> Shapes:
        settings = param.proposal_param  # type: ignore[attr-defined]
        anchors = max(1, len(settings.ratio) * len(settings.scale))
        return [(1, 2 * anchors, 8, 8), (1, 4 * anchors, 8, 8), (1, 3)]

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.proposal_param
        n, _, h, w = self.expect_axes(bottoms[0], 4)
        if not (param.ratio and param.scale) or min(*param.ratio, *param.scale) <= 0:
            raise self.error("proposal_param needs ratio and scale, each above 0")
        self.anchors = _anchors(int(param.base_size), [float(r) for r in param.ratio], [float(s) for s in param.scale])
        count = len(self.anchors)
        wanted: list[Shape] = [(n, 2 * count, h, w), (n, 4 * count, h, w)]
        for name, shape, want in zip(self.bottoms, bottoms, wanted, strict=False):
            if tuple(shape) != want:
                raise self.error(f"'{name}' must be {format_shape(want)} for {count} anchors, not {format_shape(shape)}")
        # Height, width and one or two scales; PVANET's nets have further numbers, which are not read.
        if math.prod(bottoms[2]) % n or math.prod(bottoms[2]) < 3 * n:
            raise self.error(f"'{self.bottoms[2]}' must hold height, width and scale of each item, not {format_shape(bottoms[2])}")
        rows = n * min(int(param.post_nms_topn), count * h * w)
        return [(rows, 5), (rows,)][: len(self.tops)]

    def forward(self, scores: Tensor, offsets: Tensor, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        arrays = (t.detach().float().cpu().numpy() for t in (scores, offsets, images))
        score, offset, image = arrays
        rows, best = [], []
        for item, about in enumerate(image.reshape(len(score), -1)):
            boxes, values = self._of_item(score[item], offset[item], about)
            rows.append(np.concatenate([np.full((len(boxes), 1), item, np.float32), boxes], 1))
            best.append(values)
        table = torch.from_numpy(np.concatenate(rows)).to(scores)
        return table if len(self.tops) == 1 else (table, torch.from_numpy(np.concatenate(best)).to(scores))

    def _of_item(self, scores: Array, offsets: Array, image: Array) -> tuple[Array, Array]:
        """Boxes (R, 4) and scores (R) of one item."""
        param, count = self.param.proposal_param, len(self.anchors)
        height, width = scores.shape[1:]
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        corner = np.stack([x, y, x, y], -1).astype(np.float32)[:, :, None] * np.float32(param.feat_stride)
        anchors = (corner + self.anchors).reshape(-1, 4)
        moved = offsets.reshape(count, 4, height, width).transpose(2, 3, 0, 1).reshape(-1, 4)
        boxes = _moved(anchors, moved)
        boxes = np.clip(boxes, 0, np.array([image[1], image[0], image[1], image[0]], np.float32) - 1)
        values = scores[count:].transpose(1, 2, 0).reshape(-1).copy()
        smallest = np.float32(param.min_size) * np.array([image[3] if len(image) > 3 else image[2], image[2]], np.float32)
        values[(boxes[:, 2:] - boxes[:, :2] + 1 < smallest).any(1)] = 0
        order = np.argsort(-values, kind="stable")[: int(param.pre_nms_topn)]
        kept = order[_kept(boxes[order], float(param.nms_thresh), int(param.post_nms_topn))]
        if param.HasField("score_thresh"):
            kept = kept[values[kept] > param.score_thresh]
        return boxes[kept], values[kept]

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Return an input of ``shape``: scores from 0 to 1, small offsets, and images of the maps' size times ``feat_stride``."""
        if index < 2:
            return (random.rand(*shape) if index == 0 else random.randn(*shape) * 0.1).astype(np.float32)
        _, _, height, width = self.bottom_shapes[0]
        stride, items = float(self.param.proposal_param.feat_stride), shape[0]
        row = [height * stride, width * stride, *[1.0] * (math.prod(shape) // items - 2)]
        return np.tile(np.array(row, np.float32), (items, 1)).reshape(shape)

    NO_ONNX = "ONNX's NonMaxSuppression counts boxes less than a pixel apart as overlapping, PVANET's does not"


def _anchors(base: int, ratios: list[float], scales: list[float]) -> Array:
    """(A, 4) corners around the first pixel's cell, ratio by ratio; widths and heights of a ratio are whole numbers."""
    middle, boxes = (base - 1) / 2, []
    for ratio in ratios:
        width = math.floor(math.sqrt(base * base / ratio) + 0.5)
        height = math.floor(width * ratio + 0.5)
        for scale in scales:
            half_w, half_h = (width * scale - 1) / 2, (height * scale - 1) / 2
            boxes.append([middle - half_w, middle - half_h, middle + half_w, middle + half_h])
    return np.array(boxes, np.float32)


def _moved(boxes: Array, offsets: Array) -> Array:
    """Boxes (R, 4) moved and scaled by offsets (R, 4): dx, dy over the size, and logarithms of the sizes' ratios."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    middle = boxes[:, :2] + size / 2 + offsets[:, :2] * size
    # Wild predictions give infinite boxes, as in Caffe, and no warning.
    with np.errstate(over="ignore", invalid="ignore"):
        half = np.exp(offsets[:, 2:]) * size / 2
        corners: Array = np.concatenate([middle - half, middle + half], 1)
    return corners


def _kept(boxes: Array, threshold: float, most: int) -> list[int]:
    """Indices of the boxes, best first, that overlap no better one by more than ``threshold``; at most ``most``."""
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    alive, kept = np.ones(len(boxes), bool), []
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        others = slice(index + 1, None)
        sides = np.minimum(boxes[index, 2:], boxes[others, 2:]) - np.maximum(boxes[index, :2], boxes[others, :2])
        shared = (sides + 1).clip(min=0).prod(1) * (sides >= 0).all(1)
        alive[others] &= shared / (areas[index] + areas[others] - shared) <= threshold
    return kept
