"""DetectNet (NVIDIA's DIGITS) in a bundle: for each cell of a grid how much an object covers it, and the corners of the object's box.

Its files end in a Python layer that groups the boxes of neighbouring cells; no other runtime has that layer, so it is cut off. The model
gives the boxes of all cells in the form of an SSD (:mod:`caffetools.bundle.detector`), and the runners keep the best one of those that overlap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffetools.bundle.detector import Detector
from caffetools.errors import DataError, NetError
from caffetools.infer.sidecar import read_preprocessing, write_preprocessing
from caffetools.layers.base import Shape
from caffetools.layers.boxes import DetectionSettings, decode_boxes, suppress
from caffetools.layers.registry import traits
from caffetools.net.phases import filter_net, make_state
from caffetools.onnx.cut import cut_net
from caffetools.proto.schema import TEST, LayerParameter, NetParameter
from caffetools.proto.text import read_net, write_prototxt
from caffetools.proto.upgrades.v1 import upgrade_net

PathLike = str | os.PathLike[str]
Array = NDArray[np.float32]

# The blobs' names in DIGITS' files, which jetson-inference took as well; the class of the Python layer; its threshold in those files.
COVERAGE, BBOXES, CLUSTERING, THRESHOLD = "coverage", "bboxes", "ClusterDetections", 0.6
# Largest overlap of two boxes of a class.
OVERLAP = 0.3


@dataclass(frozen=True)
class GridOutputs:
    """The two blobs that a DetectNet ends in.

    Attributes:
        coverage: The blob of the coverage, (1, classes, H, W), 0 to 1.
        boxes: The blob of the corners, (1, 4, H, W): x1, y1, x2, y2 in pixels of the input from the cell's corner.
        threshold: Coverage above this one counts.
        min_height: Smallest height of an object, in pixels of the input.
    """

    coverage: str
    boxes: str
    threshold: float = THRESHOLD
    min_height: float = 0.0


def find_grid(deploy: PathLike) -> GridOutputs | None:
    """Return the blobs of a DetectNet, by its clustering layer or by their names; None for another net.

    Raises:
        PrototxtError: ``deploy`` cannot be read.
        DataError: The clustering layer's numbers cannot be read.
    """
    net = _read(deploy)
    clustering = next((layer for layer in net.layer if _is_clustering(layer)), None)
    if clustering is not None:
        numbers = str(clustering.python_param.param_str).split(",")
        try:
            min_height = float(numbers[6]) if len(numbers) > 6 else 0.0
            return GridOutputs(clustering.bottom[0], clustering.bottom[1], float(numbers[3]), min_height)
        except (ValueError, IndexError):
            message = f"param_str of the layer '{clustering.name}' is not width, height, stride, threshold, …"
            raise DataError(message, path=deploy) from None
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    made = {top for layer in net.layer for top in layer.top} - read
    return GridOutputs(COVERAGE, BBOXES) if made == {COVERAGE, BBOXES} else None


def write_grid_net(deploy: PathLike, grid: GridOutputs, folder: Path) -> Path:
    """Write the net without its clustering layer, and its preprocessing, to ``folder``; returns the prototxt's path."""
    path = folder / Path(deploy).name
    write_prototxt(path, cut_net(_read(deploy), [grid.coverage, grid.boxes]))
    if (known := read_preprocessing(deploy)) is not None:
        write_preprocessing(path, known)
    return path


def grid_detector(grid: GridOutputs, shapes: Mapping[str, Shape], picture: Shape) -> Detector:
    """Return the detector whose priors are the cells' corners.

    Args:
        grid: The net's two outputs.
        shapes: The blobs' shapes.
        picture: The shape of the net's input, (N, C, H, W).

    Raises:
        NetError: The blobs do not have the shapes of a DetectNet.
    """
    coverage, boxes = shapes[grid.coverage], shapes[grid.boxes]
    if len(coverage) != 4 or len(boxes) != 4 or boxes[1] != 4 or coverage[2:] != boxes[2:]:
        raise NetError(f"'{grid.coverage}' {coverage} and '{grid.boxes}' {boxes} are not the coverage and the corners of a DetectNet")
    (rows, columns), (height, width) = coverage[2:], picture[2:]
    y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1)
    # As DIGITS does it, the size of a cell is a whole number of pixels.
    sizes = np.array([width, height] * 2, np.float64)
    places = np.stack([x * (width // columns), y * (height // rows)] * 2, 1) / sizes
    priors, variances = places.astype(np.float32), np.broadcast_to((1 / sizes).astype(np.float32), (rows * columns, 4))
    settings = DetectionSettings(coverage[1] + 1, 0, True, grid.threshold, -1, OVERLAP, -1, 1.0)
    return Detector(grid.boxes, grid.coverage, priors, variances, "CORNER", settings, is_grid=True, min_height=grid.min_height / height)


def grid_rows(outputs: Mapping[str, NDArray[np.float32]], detector: Detector) -> Array:
    """Return what a DetectionOutput layer would give for a DetectNet's blobs: (K, 7) item, class, score and corners over the input's size."""
    boxes = decode_boxes(outputs[detector.locations][0].reshape(4, -1).T, detector.priors, detector.variances, detector.code, encoded=False)
    how, rows = detector.settings, []
    for number, scores in enumerate(outputs[detector.scores][0].reshape(how.classes - 1, -1), 1):
        kept = suppress(boxes, scores, how.threshold, how.nms, how.most, how.eta)
        tall = [index for index in kept if boxes[index, 3] - boxes[index, 1] >= np.float32(detector.min_height)]
        rows += [[0, number, scores[index], *boxes[index]] for index in tall]
    return np.array(rows, np.float32).reshape(-1, 7)


def _read(deploy: PathLike) -> NetParameter:
    net: NetParameter = filter_net(upgrade_net(read_net(deploy)), make_state(TEST))
    return net


def _is_clustering(layer: LayerParameter) -> bool:
    return traits(layer).user_code and layer.python_param.layer == CLUSTERING and len(layer.bottom) == 2
