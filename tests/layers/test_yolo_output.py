"""MobileNet-YOLO's decoders against loops over pixels, boxes and classes, cases worked out by hand, and their ONNX form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ExportError, NetError
from caffetools.onnx.export import to_onnx
from tests.layers.helpers import input_layer, net_of, one_layer

Array = NDArray[np.float32]

V2 = "num_classes: 3 num_box: 2 confidence_threshold: 0.3 nms_threshold: 0.4 biases: 1 biases: 1.5 biases: 2.5 biases: 2"
V3 = (
    "num_classes: 3 num_box: 2 confidence_threshold: 0.4 nms_threshold: 0.3 biases: 10 biases: 14 biases: 23 biases: 27 biases: 37 biases: 58 "
    "biases: 60 biases: 30 mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 32 anchors_scale: 16"
)
MAPS = input_layer("a", 2, 16, 4, 4) + input_layer("b", 2, 16, 8, 8)


def layer(kind: str, param: str) -> str:
    field = {"YoloDetectionOutput": "yolo_detection_output_param", "Yolov3DetectionOutput": "yolov3_detection_output_param"}[kind]
    return f'layer {{ name: "l" type: "{kind}" bottom: "a" bottom: "b" top: "y" {field} {{ {param} }} }}'


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(scores: Array) -> Array:
    powers: Array = np.exp(scores - scores.max())
    return powers / powers.sum()


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    sides = [min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)]
    shared = sides[0] * sides[1] if min(sides) >= 0 else 0.0
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def rows(found: list[tuple[float, int, tuple[float, ...]]], nms: float, items: int) -> Array:
    kept: list[tuple[float, int, tuple[float, ...]]] = []
    for candidate in sorted(found, key=lambda f: -f[0]):
        if all(overlap(candidate[2], better[2]) < nms for better in kept):
            kept.append(candidate)
    table = [[0, label + 1, score, x - w / 2, y - h / 2, x + w / 2, y + h / 2] for score, label, (x, y, w, h) in kept]
    return np.array(table or [[item, *[-1] * 6] for item in range(items)], np.float32).reshape(1, 1, -1, 7)


def version_2(*maps: Array) -> Array:
    biases, found = [(1.0, 1.5), (2.5, 2.0)], []
    for values in maps:
        side = values.shape[3]
        for item, j, i, n in np.ndindex(len(values), side, side, 2):
            v = values[item, 8 * n : 8 * n + 8, j, i]
            chances = softmax(v[5:])
            score = logistic(v[4]) * float(chances.max())
            if score >= 0.3:
                sides = [math.exp(v[2 + k]) * biases[n][k] / side for k in (0, 1)]
                found.append((score, int(chances.argmax()), ((i + logistic(v[0])) / side, (j + logistic(v[1])) / side, *sides)))
    return rows(found, 0.4, len(maps[0]))


def version_3(*maps: Array) -> Array:
    biases, mask, scales = [(10, 14), (23, 27), (37, 58), (60, 30)], [[2, 3], [0, 1]], (32, 16)
    found = []
    for values, anchors, scale in zip(maps, mask, scales, strict=True):
        high, wide = values.shape[2:]
        for item, j, i, n in np.ndindex(len(values), high, wide, 2):
            v = values[item, 8 * n : 8 * n + 8, j, i]
            sides = math.exp(v[2]) * biases[anchors[n]][0] / (wide * scale), math.exp(v[3]) * biases[anchors[n]][1] / (high * scale)
            for label in range(3):
                score = logistic(v[5 + label]) * logistic(v[4])
                if score > 0.4:
                    found.append((score, label, ((i + logistic(v[0])) / wide, (j + logistic(v[1])) / high, *sides)))
    return rows(found, 0.3, len(maps[0]))


def random_maps(scale: float, *shapes: tuple[int, ...]) -> list[Array]:
    random = np.random.RandomState(0)
    return [(random.randn(*shape) * scale).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("scale", [1.5, 0.0])
@pytest.mark.parametrize(("kind", "param", "reference"), [("YoloDetectionOutput", V2, version_2), ("Yolov3DetectionOutput", V3, version_3)])
def test_boxes_are_those_of_the_definition_in_the_net_and_in_onnx(kind: str, param: str, reference: object, scale: float) -> None:
    assert callable(reference)
    maps = random_maps(scale, (2, 16, 4, 4), (2, 16, 8, 8))
    expected = reference(*maps)
    assert (expected.shape[2] > 20) == (scale > 0)
    net = net_of(MAPS + layer(kind, param))
    got = net({"a": torch.from_numpy(maps[0]), "b": torch.from_numpy(maps[1])})["y"].numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    for opset in (11, 17):
        engine = OnnxRuntimeEngine.load(to_onnx(net, opset=opset).SerializeToString())
        np.testing.assert_allclose(engine.predict({"a": maps[0], "b": maps[1]})["y"], expected, rtol=2e-5, atol=1e-6)


def test_a_wide_map_of_version_3() -> None:
    (values,) = random_maps(1.5, (1, 16, 3, 5))
    param = V3.replace("anchors_scale: 16", "").replace("mask: 0 mask: 1", "") + " mask_group_num: 1"
    one = one_layer(f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {param} }}', (1, 16, 3, 5))
    np.testing.assert_allclose(one(torch.from_numpy(values)).numpy(), version_3_one(values), rtol=2e-5, atol=1e-6)


def version_3_one(values: Array) -> Array:
    return version_3(values, np.full((1, 16, 1, 1), -50, np.float32))


def test_version_2_by_hand() -> None:
    """Offsets of 0 put a box of the anchor's size at the middle of its pixel; objectness 0 and scores (0, ln 3) give 1/2 · 3/4."""
    param = "num_classes: 2 num_box: 1 confidence_threshold: 0.375 nms_threshold: 0.45 biases: 1 biases: 0.5"
    one = one_layer(f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {param} }}', (1, 7, 2, 2))
    x = torch.zeros(1, 7, 2, 2)
    x[0, 6] = math.log(3)
    x[0, 4, 0, 1] = 20  # the pixel at the right of the first row is certain to hold something
    table = one(x)[0, 0]
    assert table.shape == (4, 7)
    np.testing.assert_allclose(table[0], [0, 2, 0.75, 0.5, 0.125, 1.0, 0.375], rtol=1e-6)
    np.testing.assert_allclose(table[:, 2], [0.75, 0.375, 0.375, 0.375], rtol=1e-6)  # "at least" the threshold
    # One box as large as the picture overlaps each of the others by their area of 1/8, less than 0.45; twice the pixel's it is 1/2.
    x[0, 2:4, 0, 0] = torch.tensor([math.log(2), math.log(4)])
    x[0, 0, 0, 0] = 20
    x[0, 1, 0, 0] = 20
    assert one(x)[0, 0, :, 2].tolist() == pytest.approx([0.75, 0.375, 0.375, 0.375])


def test_version_3_by_hand() -> None:
    """Objectness ln 3 gives 3/4; class scores of 0 and ln 3 give 1/2 and 3/4, both count, and the better one suppresses the other."""
    param = "num_classes: 2 num_box: 1 confidence_threshold: 0.37 nms_threshold: 0.45 biases: 16 biases: 8 mask: 0 mask_group_num: 1 anchors_scale: 16"
    text = 'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {} }}'
    x = torch.tensor([0, 0, 0, 0, math.log(3), 0, math.log(3)]).reshape(1, 7, 1, 1).expand(1, 7, 1, 2).contiguous()
    x[0, 4, 0, 1] = -20
    table = one_layer(text.format(param), (1, 7, 1, 2))(x)[0, 0]
    np.testing.assert_allclose(table, [[0, 2, 9 / 16, 0.0, 0.25, 0.5, 0.75]], rtol=1e-6)
    every = one_layer(text.format(param.replace("0.45", "1.1")), (1, 7, 1, 2))(x)[0, 0]
    np.testing.assert_allclose(every[:, 1:3], [[2, 9 / 16], [1, 3 / 8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "param", "message"),
    [
        ("YoloDetectionOutput", V2.replace("num_classes: 3", ""), "needs num_classes"),
        ("YoloDetectionOutput", V2 + " coords: 5", "coords is 5; boxes have 4"),
        ("YoloDetectionOutput", V2 + " biases: 1", "biases must give width and height"),
        ("YoloDetectionOutput", V2.replace("num_box: 2", "num_box: 3"), "biases must give width and height of anchor 2"),
        (
            "YoloDetectionOutput",
            V2.replace("num_classes: 3", "num_classes: 4"),
            r"'a' must be of 2 items with 2 boxes of 5 values and 4 classes \(18 channels\)",
        ),
        ("Yolov3DetectionOutput", V3 + " gaussian_box: true", "gaussian_box has two definitions"),
        ("Yolov3DetectionOutput", V3 + " mask_group_num: 3", "mask_group_num is 3, but there are 2 bottoms"),
        ("Yolov3DetectionOutput", V3.replace("anchors_scale: 16", ""), "anchors_scale must be given for each of the 2 bottoms"),
        ("Yolov3DetectionOutput", V3.replace("mask: 0 mask: 1", ""), "mask has 2 values; 2 bottoms with num_box 2 need 4"),
        ("Yolov3DetectionOutput", V3.replace("mask: 3", "mask: 4"), "of anchor 4 and of those before; 8 values are given"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: str, param: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        net_of(MAPS + layer(kind, param))


def test_version_2_wants_square_maps_and_onnx_maps_of_one_size() -> None:
    with pytest.raises(NetError, match="its height and width must be equal"):
        one_layer(f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {V2} }}', (1, 16, 3, 5))
    with pytest.raises(ExportError, match="maps of any size"):
        to_onnx(net_of(MAPS + layer("Yolov3DetectionOutput", V3)), dynamic_axes=("batch", "height", "width"))
