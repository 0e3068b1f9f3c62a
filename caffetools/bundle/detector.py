"""Detectors in a bundle: the net up to its DetectionOutput layer, whose boxes are decoded in the model and suppressed by the runners.

Runtimes differ in their operators for non-maximum suppression, and jetson-inference has its own; so the model gives all boxes and scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from caffetools.bundle.model import rename_value
from caffetools.errors import NetError
from caffetools.layers.boxes import DetectionSettings
from caffetools.layers.detection import DetectionOutput
from caffetools.net.net import Net

Array = NDArray[np.float32]
SCORES, BOXES = "scores", "boxes"
# Of the operators that decode boxes.
_ATTRIBUTES: dict[str, dict[str, Any]] = {"Concat": {"axis": 2}, "Transpose": {"perm": [0, 2, 3, 1]}}


@dataclass(frozen=True)
class Detector:
    """What a bundle needs of a net's DetectionOutput layer, or of a DetectNet.

    Attributes:
        locations: The blob of the offsets, (1, P 4), or (1, 4, H, W) of a grid.
        scores: The blob of the probabilities, (1, P classes), or (1, classes - 1, H, W) of a grid: it has none of the background.
        priors: (P, 4) corners over the size of the net's input.
        variances: (P, 4) factors of the offsets.
        code: How offsets are meant: CORNER, CENTER_SIZE or CORNER_SIZE, as :func:`~caffetools.layers.boxes.decode_boxes` takes it.
        settings: Classes, background and non-maximum suppression.
        is_grid: Whether the blobs are maps, as :mod:`caffetools.bundle.detectnet` describes.
        min_height: Smallest height of a box, over that of the net's input; None for any.
    """

    locations: str
    scores: str
    priors: Array
    variances: Array
    code: str
    settings: DetectionSettings
    is_grid: bool = False
    min_height: float | None = None


def find_detector(net: Net, output: str) -> Detector | None:
    """Return the detector that makes the blob ``output``; None if that is not made by a DetectionOutput layer.

    Raises:
        NetError: It has boxes for each class, which a bundle does not hold.
    """
    layer = next((layer for layer in net.layers if isinstance(layer, DetectionOutput) and layer.tops == [output]), None)
    if layer is None:
        return None
    if not layer.settings.share_location:
        raise NetError("share_location: false, boxes for each class, does not fit in a bundle", layer=layer.name)
    # Priors depend on sizes alone.
    inputs = {name: torch.zeros(1, *net.blob_shapes[name][1:]) for name in net.inputs}
    with torch.inference_mode():
        priors = net(inputs, keep=[layer.bottoms[2]])[layer.bottoms[2]].numpy().reshape(2, -1, 4)
    encoded = bool(layer.param.detection_output_param.variance_encoded_in_target)
    variances = np.ones_like(priors[1]) if encoded else priors[1]
    return Detector(layer.bottoms[0], layer.bottoms[1], priors[0], variances, layer.code, layer.settings)


def append_decoding(model: onnx.ModelProto, detector: Detector) -> None:
    """Make the outputs ``scores`` (1, P, classes) and ``boxes`` (1, P, 4), corners over the input's size, out of the net's two blobs."""
    graph = model.graph
    shapes = {SCORES: (1, len(detector.priors), detector.settings.classes), BOXES: (1, len(detector.priors), 4)}
    given = {"locations": detector.locations, "confidences": detector.scores}
    for name in shapes:
        rename_value(model, name, f"{name}/net")
        given = {part: f"{blob}/net" if blob == name else blob for part, blob in given.items()}
    names = given | {name: name for name in shapes}
    tensors, nodes = _decoding(detector)
    tensors |= {"scores_shape": np.array(shapes[SCORES], np.int64), "offsets_shape": np.array(shapes[BOXES], np.int64)}
    first = [("Reshape", "confidences scores_shape", SCORES), ("Reshape", "locations offsets_shape", "offsets")]
    if detector.is_grid:
        tensors["scores_shape"][2] -= 1
        tensors["background"] = np.zeros((*shapes[SCORES][:2], 1), np.float32)
        first = [
            ("Transpose", "confidences", "confidence_rows"),
            ("Reshape", "confidence_rows scores_shape", "objects"),
            ("Concat", "background objects", SCORES),
            ("Transpose", "locations", "location_rows"),
            ("Reshape", "location_rows offsets_shape", "offsets"),
        ]
    for operator, inputs, result in [*first, *nodes]:
        attributes = _ATTRIBUTES.get(operator, {})
        read = [names.get(name, f"{BOXES}/{name}") for name in inputs.split()]
        made = names.get(result, f"{BOXES}/{result}")
        graph.node.append(helper.make_node(operator, read, [made], name=f"{BOXES}/make_{result}", **attributes))
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(array), f"{BOXES}/{name}") for name, array in tensors.items())
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())


def _decoding(detector: Detector) -> tuple[dict[str, NDArray[Any]], list[tuple[str, str, str]]]:
    """Return constants by name, and operators with the names of what they read and make; see :func:`~caffetools.layers.boxes.decode_boxes`."""
    priors, variances = detector.priors, detector.variances
    size = priors[:, 2:] - priors[:, :2]
    if detector.code != "CENTER_SIZE":
        unit = np.concatenate([size, size], 1) if detector.code == "CORNER_SIZE" else np.ones_like(priors)
        return {"factors": (variances * unit)[None], "corners": priors[None]}, [
            ("Mul", "offsets factors", "shifts"),
            ("Add", "shifts corners", BOXES),
        ]
    tensors: dict[str, NDArray[Any]] = {
        "factors": (variances[:, :2] * size)[None],
        "logarithms": np.ascontiguousarray(variances[None, :, 2:]),
        "centers": ((priors[:, :2] + priors[:, 2:]) / 2)[None],
        "halves": (size / 2)[None],
        **{name: np.array([value], np.int64) for name, value in (("zero", 0), ("two", 2), ("four", 4), ("axis", 2))},
    }
    return tensors, [
        ("Slice", "offsets zero two axis", "moves"),
        ("Slice", "offsets two four axis", "growths"),
        ("Mul", "moves factors", "shifts"),
        ("Add", "shifts centers", "middles"),
        ("Mul", "growths logarithms", "powers"),
        ("Exp", "powers", "ratios"),
        ("Mul", "ratios halves", "extents"),
        ("Sub", "middles extents", "firsts"),
        ("Add", "middles extents", "lasts"),
        ("Concat", "firsts lasts", BOXES),
    ]


def expected_boxes(rows: Array, settings: DetectionSettings, place: Callable[[float, float], tuple[float, float]]) -> list[dict[str, Any]]:
    """Return the net's detections as {index, score, box}, best first.

    Args:
        rows: (K, 7) item, class, score and corners, as DetectionOutput gives them.
        settings: Those of the layer.
        place: From (x, y) over the size of the net's input to pixels of the picture.
    """
    found = [row for row in rows.tolist() if row[1] >= 0 and row[1] != settings.background]
    return [
        {"index": int(row[1]), "score": row[2], "box": [*place(row[3], row[4]), *place(row[5], row[6])]}
        for row in sorted(found, key=lambda row: -row[2])
    ]


def detection_values(detector: Detector) -> dict[str, int | float]:
    """Return what preprocessing.json states of the non-maximum suppression."""
    settings = detector.settings
    height = {} if detector.min_height is None else {"min_height": float(np.float32(detector.min_height))}
    lowest = float(np.finfo(np.float32).min)
    return {
        "priors": len(detector.priors),
        "background": settings.background,
        "threshold": max(float(np.float32(settings.threshold)), lowest),
        "nms": float(np.float32(settings.nms)),
        "eta": float(np.float32(settings.eta)),
        "top_k": settings.most,
        "keep_top_k": settings.keep,
        **height,
    }
