"""Boxes of SSD: decoding them against priors, how far they overlap, non-maximum suppression. Boxes are x1, y1, x2, y2 over the size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating[Any]]


class DetectionSettings(NamedTuple):
    """The settings in ``detection_output_param``."""

    classes: int
    background: int
    share_location: bool
    threshold: float
    keep: int
    nms: float
    most: int
    eta: float


def decode_boxes(locations: Boxes, priors: Boxes, variances: Boxes, code: str, *, encoded: bool) -> Boxes:
    """Decode SSD's predicted locations to boxes.

    Args:
        locations: (P, 4) float, the predictions.
        priors: (P, 4) float: xmin, ymin, xmax, ymax from 0 to 1.
        variances: (P, 4) float.
        code: CORNER (offsets of the corners), CENTER_SIZE (of the centre over the prior's size, and the logarithm of the sizes' ratio)
            or CORNER_SIZE (offsets of the corners over the prior's size).
        encoded: The variances are in the locations already.

    Returns:
        (P, 4) float: xmin, ymin, xmax, ymax.
    """
    offsets = locations if encoded else locations * variances
    size = priors[:, 2:] - priors[:, :2]
    if code == "CORNER":
        moved: Boxes = priors + offsets
        return moved
    if code == "CORNER_SIZE":
        corners: Boxes = priors + offsets * np.concatenate([size, size], 1)
        return corners
    centre = (priors[:, :2] + priors[:, 2:]) / 2 + offsets[:, :2] * size
    half = np.exp(offsets[:, 2:]) * size / 2
    return np.concatenate([centre - half, centre + half], 1)


def overlaps(box: Boxes, others: Boxes) -> Boxes:
    """Return the intersection of ``box`` (4) with each of ``others`` (K, 4) over their union; 0 where they do not meet."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(1)
    union = _area(box[None]) + _area(others) - shared
    ratio: Boxes = np.divide(shared, union, out=np.zeros_like(shared), where=(sides > 0).all(1) & (union > 0))
    return ratio


def suppress(boxes: Boxes, scores: Boxes, threshold: float, nms: float, most: int, eta: float) -> list[int]:
    """Suppress boxes that overlap better ones (non-maximum suppression).

    Args:
        boxes: (P, 4) float: xmin, ymin, xmax, ymax.
        scores: (P) float.
        threshold: Only boxes with larger scores are kept.
        nms: A box is dropped if its intersection over union with a kept one is larger.
        most: Only the best so many are looked at; -1 is all.
        eta: Below 1, ``nms`` is multiplied by it after each box taken, while it is above 0.5.

    Returns:
        The indices of the kept boxes, best first.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > threshold]
    order = order[:most] if most >= 0 else order
    kept: list[int] = []
    for index in order.tolist():
        if not kept or overlaps(boxes[index], boxes[kept]).max() <= nms:
            kept.append(index)
            if eta < 1 and nms > 0.5:
                nms *= eta
    return kept


def _area(boxes: Boxes) -> Boxes:
    area: Boxes = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
    return area
