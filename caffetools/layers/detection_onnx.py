"""DetectionOutput as ONNX nodes: boxes decoded, NonMaxSuppression for each item and class, the best of each item in rows."""

from __future__ import annotations

import numpy as np

from caffetools.layers.base import Layer, OnnxGraph
from caffetools.layers.boxes import DetectionSettings
from caffetools.layers.onnx_nodes import Nodes


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
