"""The decoders of YOLO: YoloDetectionOutput, Yolov3DetectionOutput (MobileNet-YOLO), RegionYolo (OpenVINO). Redmon and Farhadi (2017, 2018)."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Arity, Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits

Array = NDArray[np.float32]

# The most boxes that onnxruntime's NonMaxSuppression keeps of one class.
_ALL = 2**31 - 1


class _Map(NamedTuple):
    """How one bottom's values become boxes: anchors (A, 2) over the sides (width, height) that they are sizes of."""

    columns: int
    rows: int
    anchors: Array
    sides: Array


class _YoloOutput(Layer):
    """What both decoders share: one suppression over the boxes of all maps, classes and items; rows as MobileNet-YOLO writes them."""

    BOTTOMS: ClassVar[Arity] = (1, None)
    maps: list[_Map]
    classes: int
    # Boxes are kept whose confidence is larger than the first, and that overlap no better one by more than the second.
    above: float
    limit: float

    def forward(self, *bottoms: Tensor) -> Tensor:
        boxes, scores, labels = zip(
            *(self._decoded(b.detach().float().cpu(), m) for b, m in zip(bottoms, self.maps, strict=True)), strict=True
        )
        centred, score, label = np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)
        order = np.argsort(-score, kind="stable")
        order = order[score[order] > self.above]
        kept = order[_suppressed(centred[order], self.limit)]
        if len(kept):
            middle, half = centred[kept, :2], centred[kept, 2:] / 2
            table = np.column_stack([np.zeros(len(kept)), label[kept] + 1, score[kept], middle - half, middle + half])
        else:
            table = np.full((bottoms[0].shape[0], 7), -1.0)
            table[:, 0] = np.arange(len(table))
        return torch.from_numpy(table.astype(np.float32)).to(bottoms[0].device).reshape(1, 1, -1, 7)

    def _decoded(self, values: Tensor, of: _Map) -> tuple[Array, Array, NDArray[np.int64]]:
        """Return centre, width and height (K, 4), confidence (K) and class (K) of the boxes of one map, by item, row, column, anchor."""
        count = len(of.anchors)
        cells = values.reshape(values.shape[0], count, 5 + self.classes, of.rows, of.columns).permute(0, 3, 4, 1, 2)
        y, x = torch.meshgrid(torch.arange(of.rows), torch.arange(of.columns), indexing="ij")
        corner = torch.stack([x, y], -1)[:, :, None].float()
        centre = (cells[..., :2].sigmoid() + corner) / torch.tensor([of.columns, of.rows])
        size = cells[..., 2:4].exp() * torch.from_numpy(of.anchors) / torch.from_numpy(of.sides)
        boxes = torch.cat([centre, size], -1).reshape(-1, 4)
        scores, labels = self._scores(cells[..., 5:], cells[..., 4:5].sigmoid())
        repeats = scores.shape[-1]
        return boxes.repeat_interleave(repeats, 0).numpy(), scores.reshape(-1).numpy(), labels.reshape(-1).numpy()

    def _scores(self, classes: Tensor, objectness: Tensor) -> tuple[Tensor, Tensor]:
        """Return confidences and class indices, (N, H, W, A, K) each, of scores (N, H, W, A, C) and objectness (N, H, W, A, 1)."""
        raise NotImplementedError

    def _check_map(self, bottoms: Shapes, index: int, anchors: int) -> None:
        _, channels, _, _ = self.expect_axes(bottoms[index], 4, bottom=index)
        if channels != anchors * (5 + self.classes) or bottoms[index][0] != bottoms[0][0]:
            wanted = f"{anchors} boxes of 5 values and {self.classes} classes ({anchors * (5 + self.classes)} channels) a pixel"
            raise self.error(f"'{self.bottoms[index]}' must be of {bottoms[0][0]} items with {wanted}, not {format_shape(bottoms[index])}")

    def _anchors(self, biases: list[float], mask: list[int]) -> Array:
        """Return the anchors (A, 2), width and height, that ``mask`` names of ``biases``."""
        if len(biases) % 2 or any(2 * index + 1 >= len(biases) for index in mask):
            raise self.error(f"biases must give width and height of anchor {max(mask)} and of those before; {len(biases)} values are given")
        return np.array(biases, np.float32).reshape(-1, 2)[mask]

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if any(graph.is_free(bottom, 2, 3) for bottom in self.bottoms):
            raise self.no_onnx_form("maps of any size")
        n = Nodes(graph)
        boxes, scores, labels = zip(*(self._decoded_to_onnx(n, b, m) for b, m in zip(self.bottoms, self.maps, strict=True)), strict=True)
        every = n("Concat", *boxes, axis=0), n("Concat", *scores, axis=0), n("Concat", *labels, axis=0)
        picked = n(
            "NonMaxSuppression",
            n("Unsqueeze", every[0], axes=[0]),
            n.reshape(every[1], 1, 1, -1),
            n.ints(_ALL),
            n.number(self.limit),
            n.number(self.above),
            center_point_box=1,
        )
        kept = n.reshape(n("Gather", picked, n.ints(2), axis=1), -1)
        box = n("Gather", every[0], kept, axis=0)
        score, label = (n("Unsqueeze", n("Gather", part, kept, axis=0), axes=[1]) for part in every[1:])
        middle, half = n.part(box, 0, 2, 1), n("Mul", n.part(box, 2, 4, 1), n.number(0.5))
        corners = n("Sub", middle, half), n("Add", middle, half)
        rows = n("Concat", n("Mul", label, n.number(0)), n("Add", label, n.number(1)), score, *corners, axis=1)
        # Where nothing is found, a row of −1 with its number for each item.
        items = n.part(n("Shape", self.bottoms[0]), 0, 1, 0)
        ends = [n("Squeeze", value, axes=[0]) for value in (n.ints(0), items, n.ints(1))]
        number = n("Unsqueeze", n("Cast", n("Range", *ends), to=1), axes=[1])
        empty = n("Concat", number, n("Expand", n.number(-1), n("Concat", items, n.ints(6), axis=0)), axis=1)
        none = n("Equal", n("Cast", n.part(n("Shape", rows), 0, 1, 0), to=1), graph.constant("zero", np.zeros(1, np.float32)))
        instead = n("Compress", empty, n("Expand", none, items), axis=0)
        graph.reshape(n("Concat", rows, instead, axis=0), self.tops[0], [1, 1, -1, 7])

    def _decoded_to_onnx(self, n: Nodes, bottom: str, of: _Map) -> tuple[str, str, str]:
        """Add the nodes of :meth:`_decoded`; confidences and classes are (K) float."""
        count, each = len(of.anchors), 5 + self.classes
        split = n.reshape(bottom, 0, count, each, of.rows * of.columns)
        cells = n("Transpose", split, perm=[0, 3, 1, 2])  # (N, H W, A, 5 + C)
        y, x = np.meshgrid(np.arange(of.rows), np.arange(of.columns), indexing="ij")
        corner = np.stack([x, y], -1).reshape(1, -1, 1, 2).astype(np.float32)
        place = n("Add", n("Sigmoid", n.part(cells, 0, 2, 3)), n.graph.constant("corner", corner))
        centre = n("Div", place, n.graph.constant("size", np.array([of.columns, of.rows], np.float32)))
        size = n("Mul", n("Exp", n.part(cells, 2, 4, 3)), n.graph.constant("anchors", of.anchors))
        size = n("Div", size, n.graph.constant("sides", of.sides))
        boxes = n("Concat", centre, size, axis=3)
        scores, labels, repeats = self._scores_to_onnx(n, n.part(cells, 5, each, 3), n("Sigmoid", n.part(cells, 4, 5, 3)))
        if repeats > 1:
            boxes = n("Expand", n("Unsqueeze", boxes, axes=[3]), n.ints(1, 1, 1, repeats, 1))
        return n.reshape(boxes, -1, 4), n.reshape(scores, -1), n.reshape(labels, -1)

    def _scores_to_onnx(self, n: Nodes, classes: str, objectness: str) -> tuple[str, str, int]:
        """Add the nodes of :meth:`_scores`; return confidences, classes (float), and how many of them each box has."""
        raise NotImplementedError


@register("YoloDetectionOutput")
class YoloDetectionOutput(_YoloOutput):
    """The boxes of one or two YOLO v2 maps: (1, 1, K, 7) rows of 0, class from 1, confidence, and corners over the picture's size.

    Each pixel of a square map (N, B (5 + C), S, S) has ``num_box`` boxes: offsets of centre and size, objectness, and scores that get a
    softmax. ``biases`` are the anchors' widths and heights in pixels of the map. The best class of each box counts where its probability
    times the objectness is at least ``confidence_threshold``. As in MobileNet-YOLO the boxes of all classes and of all items of the batch
    are suppressed together (an overlap of ``nms_threshold`` or more with a better one), and every row has item 0. Where nothing is
    found each item gets a row of −1 with its number. Boxes are not clipped; of equal confidences the earlier item, row, column comes first.
    """

    TRAITS = Traits(
        role="detection",
        settings="yolo_detection_output_param",
        class_count=("yolo_detection_output_param.num_classes",),
        scores_bottom=None,
        box_numbers=5,
    )
    BOTTOMS = (1, 2)
    NO_GRADIENT = frozenset({0, 1})

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.yolo_detection_output_param
        if not param.HasField("num_classes") or param.num_classes < 1:
            raise self.error("yolo_detection_output_param needs num_classes")
        if param.coords != 4:
            raise self.error(f"coords is {param.coords}; boxes have 4")
        self.classes = int(param.num_classes)
        # "At least" is "more than the next smaller float32".
        self.above, self.limit = _below(param.confidence_threshold), _below(param.nms_threshold)
        anchors = self._anchors([float(b) for b in param.biases], list(range(int(param.num_box))))
        self.maps = []
        for index, shape in enumerate(bottoms):
            self._check_map(bottoms, index, len(anchors))
            if shape[2] != shape[3]:
                raise self.error(f"'{self.bottoms[index]}' is {format_shape(shape)}; its height and width must be equal")
            self.maps.append(_Map(shape[3], shape[2], anchors, np.array([shape[3], shape[2]], np.float32)))
        return [(1, 1, 1, 7)]

    def _scores(self, classes: Tensor, objectness: Tensor) -> tuple[Tensor, Tensor]:
        best, label = classes.softmax(-1).max(-1, keepdim=True)
        return objectness * best, label

    def _scores_to_onnx(self, n: Nodes, classes: str, objectness: str) -> tuple[str, str, int]:
        probability = n("Softmax", classes, axis=3)
        label = n("Cast", n("ArgMax", probability, axis=3, keepdims=1), to=1)
        top = n.graph.value("top")
        n.graph.node("TopK", [probability, n.ints(1)], [top, n.graph.value("index")], axis=3)
        return n("Mul", objectness, top), label, 1


@register("Yolov3DetectionOutput")
class Yolov3DetectionOutput(_YoloOutput):
    """The boxes of the YOLO v3 maps: (1, 1, K, 7) rows of 0, class from 1, confidence, and corners over the picture's size.

    Each of the ``mask_group_num`` bottoms (N, B (5 + C), H, W) has ``num_box`` boxes a pixel with the anchors that its share of ``mask`` names
    of ``biases`` (width and height in pixels of the picture, which has ``anchors_scale`` for each of the map). Every class of a box counts
    whose logistic times that of the objectness is above ``confidence_threshold``. As in MobileNet-YOLO the boxes of all classes
    and of all items of the batch are suppressed together (an overlap of ``nms_threshold`` or more with a better one), and every row has item
    0. Where nothing is found each item gets a row of −1 with its number. Boxes are not clipped; of equal confidences the earlier map, item,
    row, column, anchor, class comes first.
    """

    TRAITS = Traits(
        role="detection",
        settings="yolov3_detection_output_param",
        class_count=("yolov3_detection_output_param.num_classes",),
        scores_bottom=None,
        box_numbers=5,
    )
    NO_GRADIENT = frozenset(range(16))

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.yolov3_detection_output_param
        if not param.HasField("num_classes") or param.num_classes < 1:
            raise self.error("yolov3_detection_output_param needs num_classes")
        if param.gaussian_box:
            raise self.error("gaussian_box has two definitions in MobileNet-YOLO, one for the CPU and another for GPUs; it is not computed")
        groups, count = int(param.mask_group_num), int(param.num_box)
        if groups != len(bottoms):
            raise self.error(f"mask_group_num is {groups}, but there are {len(bottoms)} bottoms")
        if len(param.anchors_scale) < groups or min(param.anchors_scale[:groups], default=0) < 1:
            raise self.error(f"anchors_scale must be given for each of the {groups} bottoms")
        share = len(param.mask) // groups
        if share * (groups - 1) + count > len(param.mask):
            raise self.error(f"mask has {len(param.mask)} values; {groups} bottoms with num_box {count} need {groups * count}")
        self.classes = int(param.num_classes)
        self.above, self.limit = float(np.float32(param.confidence_threshold)), _below(param.nms_threshold)
        self.maps = []
        for index, (shape, scale) in enumerate(zip(bottoms, param.anchors_scale, strict=False)):
            self._check_map(bottoms, index, count)
            mask = [int(m) for m in param.mask[share * index : share * index + count]]
            sides = np.array([shape[3] * scale, shape[2] * scale], np.float32)
            self.maps.append(_Map(shape[3], shape[2], self._anchors([float(b) for b in param.biases], mask), sides))
        return [(1, 1, 1, 7)]

    def _scores(self, classes: Tensor, objectness: Tensor) -> tuple[Tensor, Tensor]:
        return classes.sigmoid() * objectness, torch.arange(self.classes).expand(classes.shape)

    def _scores_to_onnx(self, n: Nodes, classes: str, objectness: str) -> tuple[str, str, int]:
        scores = n("Mul", n("Sigmoid", classes), objectness)
        labels = n.graph.constant("labels", np.arange(self.classes, dtype=np.float32))
        return scores, n("Expand", labels, n("Shape", scores)), self.classes


def _below(value: float) -> float:
    """Return the largest float32 below ``value``."""
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))


def _suppressed(boxes: Array, limit: float) -> list[int]:
    """Return the indices of the boxes (R, 4: centre, width, height; best first) that overlap no better one by more than ``limit``."""
    low, high, areas = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2] * boxes[:, 3]
    alive, kept = np.ones(len(boxes), bool), []
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(index)
        rest = slice(index + 1, None)
        sides = np.minimum(high[index], high[rest]) - np.maximum(low[index], low[rest])
        shared = np.where((sides >= 0).all(1), sides.prod(1), np.float32(0))
        with np.errstate(invalid="ignore", divide="ignore"):
            alive[rest] &= ~(shared / (areas[index] + areas[rest] - shared) > limit)
    return kept


@register("RegionYolo")
class RegionYolo(Layer):
    """Box offsets, objectness and class scores of each pixel's regions (N, R (coords + 1 + classes), H, W), made probabilities.

    The logistic function goes over the first two offsets and the objectness. With ``do_softmax`` (YOLO v2) R is ``num``, the classes get a
    softmax, and the axes from ``flatten_param``'s axis to end_axis become one; without (YOLO v3) R is the number of ``mask`` values and the
    classes get the logistic function. ``anchors`` are for the decoder behind this layer.
    """

    TRAITS = Traits(role="detection", settings="region_yolo_param", class_count=("region_yolo_param.classes",), box_numbers=5)

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.region_yolo_param
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        self.coords, self.softmax = int(param.coords), bool(param.do_softmax)
        self.regions, self.each = int(param.num) if self.softmax else len(param.mask), int(param.coords + 1 + param.classes)
        if self.coords < 2 or param.classes < 1 or self.regions < 1:
            raise self.error("region_yolo_param needs coords of at least 2, classes, and num (or, without do_softmax, mask)")
        if c != self.regions * self.each:
            raise self.error(f"{self.regions} regions of {self.each} values need {self.regions * self.each} channels, not {c}")
        if not self.softmax:
            return [bottoms[0]]
        first = self.axis(self.param.flatten_param.axis, bottoms[0])
        last = self.axis(self.param.flatten_param.end_axis, bottoms[0], what="end_axis")
        shape = (n, c, h, w)
        return [(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])]

    def forward(self, x: Tensor) -> Tensor:
        regions = x.reshape(x.shape[0], self.regions, self.each, *x.shape[2:])
        place, size, rest = regions[:, :, :2], regions[:, :, 2 : self.coords], regions[:, :, self.coords :]
        objectness, classes = rest[:, :, :1].sigmoid(), rest[:, :, 1:]
        scores = classes.softmax(2) if self.softmax else classes.sigmoid()
        parts = torch.cat([place.sigmoid(), size, objectness, scores], 2)
        return (
            parts.reshape(x.shape[0], *self.top_shapes[0][1:])
            if self.top_shapes[0][:1] == x.shape[:1]
            else parts.reshape(self.top_shapes[0])
        )

    ONNX_LIMITS = "needs a fixed height and width; flatten_param must not include the batch"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if graph.is_free(self.bottoms[0], 2, 3):
            raise self.no_onnx_form("maps of any size")
        if self.top_shapes[0][0] != self.bottom_shapes[0][0]:
            raise self.no_onnx_form("its flatten_param joins the items of a batch")
        n, (h, w) = Nodes(graph), self.bottom_shapes[0][2:]
        regions = n.reshape(self.bottoms[0], 0, self.regions, self.each, h * w)
        place, size = n.part(regions, 0, 2, 2), n.part(regions, 2, self.coords, 2)
        objectness, classes = n.part(regions, self.coords, self.coords + 1, 2), n.part(regions, self.coords + 1, self.each, 2)
        # Softmax over the last axis is the same in all opsets.
        turned = n("Softmax", n("Transpose", classes, perm=[0, 1, 3, 2]), axis=3) if self.softmax else ""
        scores = n("Transpose", turned, perm=[0, 1, 3, 2]) if self.softmax else n("Sigmoid", classes)
        offsets = [n("Sigmoid", place)] + ([size] if self.coords > 2 else [])
        graph.reshape(n("Concat", *offsets, n("Sigmoid", objectness), scores, axis=2), self.tops[0], [0, *self.top_shapes[0][1:]])
