"""SSD's detection layers: PriorBox, DetectionOutput, and OpenVINO's PriorBoxClustered. Liu et al. (2016)."""

from __future__ import annotations

import math

import numpy as np
import torch
from google.protobuf.message import Message
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.boxes import DetectionSettings, decode_boxes, suppress
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import PriorBoxParameter, enum_name


@register("PriorBox")
class PriorBox(Layer):
    """The prior boxes of a map: (1, 2, H W P 4) with corners over the picture's size first, then a variance for each of them.

    Bottoms: the map (N, C, H, W) and the picture (N, C, H, W), both for their sizes alone. For each pixel, in the order of ``min_size``:
    a square of it, one of sqrt(min_size · max_size), and one box for each further aspect ratio (with ``flip`` its inverse too).
    """

    TRAITS = Traits(role="detection", settings="prior_box_param")
    BOTTOMS = (2, 2)
    NO_GRADIENT = SIZE_BOTTOMS = frozenset({0, 1})

    def setup(self, bottoms: Shapes) -> Shapes:
        _, _, self.rows, self.columns = self.legacy_axes(bottoms[0])
        height, width = self.legacy_axes(bottoms[1], bottom=1)[2:]
        param = self.param.prior_box_param
        self.sizes = self._sizes(param)
        self.variances = [float(v) for v in param.variance] or [0.1]
        if len(self.variances) not in (1, 4) or min(self.variances) <= 0:
            raise self.error(f"variance is given {len(self.variances)} times; once or 4 times, and positive, is possible")
        self.picture = self._pair(param, "img", (height, width), size=True)
        steps = (self.picture[0] / self.rows, self.picture[1] / self.columns)
        self.step = self._pair(param, "step", steps)
        return [(1, 2, self.rows * self.columns * len(self.sizes) * 4)]

    def _pair(self, param: Message, field: str, default: tuple[float, float], *, size: bool = False) -> tuple[float, float]:
        """Return (height, width) of img_size or step, given at once or by _h and _w."""
        whole = getattr(param, f"{field}_size" if size else field)
        high, wide = getattr(param, f"{field}_h"), getattr(param, f"{field}_w")
        if high or wide:
            if whole or not (high and wide):
                raise self.error(f"{field}_h and {field}_w must both be set, and {field} left out")
            return (float(high), float(wide))
        return (float(whole), float(whole)) if whole else (float(default[0]), float(default[1]))

    def _sizes(self, param: PriorBoxParameter) -> list[tuple[float, float]]:
        """Return (width, height) of each prior of a pixel."""
        smallest, largest = [float(s) for s in param.min_size], [float(s) for s in param.max_size]
        if not smallest or min(smallest) <= 0:
            raise self.error("min_size is missing, or not positive")
        if largest and (len(largest) != len(smallest) or any(b <= a for a, b in zip(smallest, largest, strict=True))):
            raise self.error("max_size must be given as often as min_size, each larger than its min_size")
        ratios = [1.0]
        for ratio in param.aspect_ratio:
            if ratio <= 0:
                raise self.error(f"aspect_ratio {ratio} is not positive")
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [float(ratio), 1.0 / ratio] if param.flip else [float(ratio)]
        sizes: list[tuple[float, float]] = []
        for index, side in enumerate(smallest):
            sizes.append((side, side))
            if largest:
                sizes.append((math.sqrt(side * largest[index]),) * 2)
            sizes += [(side * math.sqrt(ratio), side / math.sqrt(ratio)) for ratio in ratios[1:] if abs(ratio - 1) >= 1e-6]
        return sizes

    def priors(self) -> NDArray[np.float32]:
        """Return the top's values, (1, 2, 4 K) float32: corners and variances of K priors."""
        param = self.param.prior_box_param
        (height, width), (step_y, step_x) = self.picture, self.step
        x, y = np.meshgrid((np.arange(self.columns) + param.offset) * step_x, (np.arange(self.rows) + param.offset) * step_y)
        half = np.array(self.sizes) / 2
        centre = np.stack([x, y], -1)[:, :, None]
        boxes = np.concatenate([centre - half, centre + half], -1) / [width, height, width, height]
        if param.clip:
            boxes = boxes.clip(0, 1)
        variances = np.broadcast_to(np.array(self.variances), boxes.shape)
        return np.stack([boxes.reshape(-1), variances.reshape(-1)])[None].astype(np.float32)

    def forward(self, maps: Tensor, picture: Tensor) -> Tensor:
        return torch.from_numpy(self.priors()).to(maps.device)

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if any(graph.is_free(bottom, 2, 3) for bottom in self.bottoms):
            raise self.no_onnx_form("its boxes depend on the size of the map; give height and width (--input-shape)")
        graph.node("Identity", [graph.constant("priors", self.priors())], self.tops)


@register("PriorBoxClustered")
class PriorBoxClustered(PriorBox):
    """PriorBox with one box a pixel for each ``width`` and ``height``, in pixels of the picture (Intel's training toolbox, OpenVINO).

    The boxes' sizes come from clustering a data set's; all else is as PriorBox has it.
    """

    def _sizes(self, param: PriorBoxParameter) -> list[tuple[float, float]]:
        wide, high = [float(n) for n in param.width], [float(n) for n in param.height]
        if not wide or len(wide) != len(high) or min(*wide, *high) <= 0:
            raise self.error("width and height must be given equally often, each above 0")
        return list(zip(wide, high, strict=True))


@register("DetectionOutput")
class DetectionOutput(Layer):
    """The boxes that are left: (1, 1, K, 7) rows of item, class, score, and corners over the picture's size.

    Bottoms: locations (N, P L 4), scores (N, P C), priors (1, 2, P 4), L being 1 or, without ``share_location``, C. Boxes are decoded by
    ``code_type``; of each class but the background the ``top_k`` best above ``confidence_threshold`` go through non-maximum suppression
    (its threshold times ``eta`` after each box while above 0.5); of each item the ``keep_top_k`` best stay. Where nothing is found, each
    item gets a row with -1 for all but its number. The shape rule gives one row; a run gives as many as there are.
    """

    TRAITS = Traits(
        role="detection", settings="detection_output_param", class_count=("detection_output_param.num_classes",), scores_bottom=1
    )
    BOTTOMS = (3, 3)
    NO_GRADIENT = frozenset({0, 1, 2})

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.detection_output_param
        if not param.num_classes or not param.nms_param.nms_threshold:
            raise self.error("detection_output_param needs num_classes, and nms_param a threshold above 0")
        self.settings = DetectionSettings(
            int(param.num_classes),
            int(param.background_label_id),
            bool(param.share_location),
            float(param.confidence_threshold) if param.HasField("confidence_threshold") else -math.inf,
            int(param.keep_top_k),
            float(param.nms_param.nms_threshold),
            int(param.nms_param.top_k) if param.nms_param.HasField("top_k") else -1,
            float(param.nms_param.eta),
        )
        self.code = enum_name(param, "code_type")
        self.priors = bottoms[2][2] // 4 if len(bottoms[2]) == 3 else 0
        self._check(bottoms)
        return [(1, 1, 1, 7)]

    def _check(self, bottoms: Shapes) -> None:
        locations = 1 if self.settings.share_location else self.settings.classes
        n = bottoms[0][0] if bottoms[0] else 0
        wanted: list[Shape] = [(n, self.priors * locations * 4), (n, self.priors * self.settings.classes), (1, 2, self.priors * 4)]
        for name, shape, want in zip(self.bottoms, bottoms, wanted, strict=True):
            if not shape or shape[0] != want[0] or math.prod(shape) != math.prod(want):
                raise self.error(f"'{name}' must be {format_shape(want)} for {self.priors} priors, not {format_shape(shape)}")

    def forward(self, locations: Tensor, scores: Tensor, priors: Tensor) -> Tensor:
        classes = self.settings.classes
        items = locations.shape[0]
        sets = 1 if self.settings.share_location else classes
        located = locations.detach().float().cpu().numpy().reshape(items, self.priors, sets, 4)
        scored = scores.detach().float().cpu().numpy().reshape(items, self.priors, classes)
        prior = priors.detach().float().cpu().numpy().reshape(2, self.priors, 4)
        encoded = bool(self.param.detection_output_param.variance_encoded_in_target)
        rows: list[list[float]] = []
        # Wild predictions give infinite boxes, as in Caffe, and no warning.
        with np.errstate(over="ignore", invalid="ignore"):
            for item in range(items):
                boxes = [decode_boxes(located[item, :, s], prior[0], prior[1], self.code, encoded=encoded) for s in range(sets)]
                rows += self._of_item(item, boxes, scored[item])
        if not rows:
            rows = [[item, *[-1.0] * 6] for item in range(items)]
        return torch.tensor(rows, dtype=torch.float32, device=locations.device).reshape(1, 1, -1, 7)

    ONNX_LIMITS = "eta below 1 has none"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.settings.eta < 1:
            raise self.no_onnx_form("eta below 1 changes the threshold from box to box")
        detection_output_to_onnx(graph, self, self.settings, self.priors, self.code)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Return an input of ``shape``: small offsets, scores from 0 to 1, and boxes inside of the picture."""
        if index < 2:
            return (random.rand(*shape) if index else random.randn(*shape) * 0.1).astype(np.float32)
        corners = np.sort(random.rand(self.priors, 2, 2), axis=1).reshape(-1)
        return np.stack([corners, np.full_like(corners, 0.1)]).reshape(shape).astype(np.float32)

    def _of_item(self, item: int, boxes: list[NDArray[np.float32]], scores: NDArray[np.float32]) -> list[list[float]]:
        settings = self.settings
        found: list[tuple[float, int, int]] = []
        for label in range(settings.classes):
            if label == settings.background:
                continue
            of_label = boxes[0 if settings.share_location else label]
            kept = suppress(of_label, scores[:, label], settings.threshold, settings.nms, settings.most, settings.eta)
            found += [(float(scores[index, label]), label, index) for index in kept]
        if 0 <= settings.keep < len(found):
            # The best of all classes, which then stand by class again.
            found = sorted(sorted(found, key=lambda f: -f[0])[: settings.keep], key=lambda f: f[1])
        return [[item, label, score, *boxes[0 if settings.share_location else label][index].tolist()] for score, label, index in found]


def detection_output_to_onnx(graph: OnnxGraph, layer: Layer, settings: DetectionSettings, priors: int, code: str) -> None:
    """Add the nodes of a DetectionOutput layer of ``priors`` boxes whose ``eta`` is 1; ``code`` as :func:`decode_boxes` takes it.

    Every pair of an item and a class but the background is one batch entry of NonMaxSuppression, which then needs to know neither. Of
    equal scores the prior with the lower index comes first, in Caffe as in onnxruntime.
    """
    n, count = Nodes(graph), priors
    labels = [label for label in range(settings.classes) if label != settings.background]
    boxes = _decoded(n, layer, settings, priors, code)  # (N, sets, P, 4)
    scores = n("Transpose", n.reshape(layer.bottoms[1], 0, count, settings.classes), perm=[0, 2, 1])
    scores = n("Gather", scores, n.ints(*labels), axis=1)  # (N, L, P)
    if not settings.share_location:
        boxes = n("Gather", boxes, n.ints(*labels), axis=1)
    most = count if settings.most < 0 else min(settings.most, count)
    top, index = graph.value("top"), graph.value("index")
    graph.node("TopK", [scores, n.ints(most)], [top, index], axis=2)  # (N, L, K), best first
    # The boxes in the order of the scores of each class: (N, L, K, 4).
    wide = n("Expand", boxes, n("Concat", n.part(n("Shape", scores), 0, 2, 0), n.ints(count, 4), axis=0))
    by_class = n("GatherElements", wide, n("Expand", n("Unsqueeze", index, axes=[3]), n.ints(1, 1, 1, 4)), axis=2)
    rows = n.reshape(by_class, -1, most, 4)
    kept = _suppressed(n, settings, rows, n.reshape(top, -1, 1, most), most)
    _rows_to_onnx(n, layer.tops[0], settings.keep, by_class, n.reshape(kept, -1, len(labels), most), labels, most)


def _decoded(n: Nodes, layer: Layer, settings: DetectionSettings, count: int, code: str) -> str:
    """Return (N, location sets, P, 4) corners, as :func:`~caffetools.layers.boxes.decode_boxes` gives them."""
    sets = 1 if settings.share_location else settings.classes
    offsets = n("Transpose", n.reshape(layer.bottoms[0], 0, count, sets, 4), perm=[0, 2, 1, 3])
    priors = n.reshape(layer.bottoms[2], 2, count, 4)
    variances, corners = (n("Squeeze", n.part(priors, start, start + 1, 0), axes=[0]) for start in (1, 0))
    if not layer.param.detection_output_param.variance_encoded_in_target:
        offsets = n("Mul", offsets, variances)
    if code == "CORNER":
        return n("Add", corners, offsets)
    first, last = n.part(corners, 0, 2, 1), n.part(corners, 2, 4, 1)
    size = n("Sub", last, first)
    if code == "CORNER_SIZE":
        return n("Add", corners, n("Mul", offsets, n("Concat", size, size, axis=1)))
    middle = n("Mul", n("Add", first, last), n.number(0.5))
    centre = n("Add", middle, n("Mul", n.part(offsets, 0, 2, 3), size))
    half = n("Mul", n("Mul", n("Exp", n.part(offsets, 2, 4, 3)), size), n.number(0.5))
    return n("Concat", n("Sub", centre, half), n("Add", centre, half), axis=3)


def _suppressed(n: Nodes, settings: DetectionSettings, boxes: str, scores: str, most: int) -> str:
    """Return (items · labels, K) scores of the boxes that stay, −1e30 for the others."""
    low = n.number(-1e30)
    threshold = max(settings.threshold, -1e30)
    picked = n("NonMaxSuppression", boxes, scores, n.ints(most), n.number(settings.nms), n.number(threshold))  # (S, 3): entry, 0, rank
    entry_rank = n("Gather", picked, n.ints(0, 2), axis=1)
    flat = n.reshape(scores, -1, most)
    nothing = n("Expand", low, n("Shape", flat))
    return n("ScatterND", nothing, entry_rank, n("GatherND", flat, entry_rank))


def _rows_to_onnx(n: Nodes, result: str, most_rows: int, boxes: str, kept: str, labels: list[int], most: int) -> None:
    """The rows (1, 1, K, 7): of each item the best ``most_rows`` of ``kept`` (N, L, K), by class and then by score."""
    graph, limit = n.graph, len(labels) * most
    keep = limit if most_rows < 0 else min(most_rows, limit)
    top, place = graph.value("best"), graph.value("place")
    graph.node("TopK", [n.reshape(kept, 0, -1), n.ints(keep)], [top, place], axis=1)
    # Ascending places: by class, and within it by rank. What was suppressed is dropped below.
    ordered, order = graph.value("ordered"), graph.value("order")
    graph.node("TopK", [place, n.ints(keep)], [ordered, order], axis=1, largest=0)
    score = n("GatherElements", top, order, axis=1)
    label = n("Gather", graph.constant("labels", np.array(labels, np.float32)), n("Div", ordered, n.ints(most)), axis=0)
    items = n.part(n("Shape", kept), 0, 1, 0)
    item = n("Cast", n("Range", n("Squeeze", n.ints(0), axes=[0]), n("Squeeze", items, axes=[0]), n("Squeeze", n.ints(1), axes=[0])), to=1)
    item_column = n("Unsqueeze", item, axes=[1])
    corners = n("GatherElements", n.reshape(boxes, 0, -1, 4), n("Expand", n("Unsqueeze", ordered, axes=[2]), n.ints(1, 1, 4)), axis=1)
    columns = [n("Expand", item_column, n("Shape", score)), label, score]
    table = n("Concat", *(n("Unsqueeze", column, axes=[2]) for column in columns), corners, axis=2)
    found = n("Greater", score, n.number(-1e29))
    rows = n("Compress", n.reshape(table, -1, 7), n.reshape(found, -1), axis=0)
    # Where nothing is found at all, one row of −1 an item.
    none = n("Equal", n("Cast", n.part(n("Shape", rows), 0, 1, 0), to=1), graph.constant("zero", np.zeros(1, np.float32)))
    empty = n("Concat", item_column, n("Expand", n.number(-1), n("Concat", items, n.ints(6), axis=0)), axis=1)
    instead = n("Compress", empty, n("Expand", none, items), axis=0)
    graph.reshape(n("Concat", rows, instead, axis=0), result, [1, 1, -1, 7])
