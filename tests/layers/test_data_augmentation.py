"""FlowNet 2's DataAugmentation in use: the middle crop with its interpolation, the running mean, weights of another crop size, ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ExportError, NetError
from caffetools.net.weights import load_weights, save_weights
from caffetools.onnx.export import to_onnx
from caffetools.proto.schema import TRAIN
from tests.layers.helpers import input_layer, net_of, one_layer

Array = NDArray[np.float32]
RUNNING = "recompute_mean: 2 mean_per_pixel: false"


def pictures(*shape: int) -> Array:
    return np.random.RandomState(0).rand(*shape).astype(np.float32)


def augmentation(param: str, *shape: int, tops: int = 1) -> str:
    second = ' top: "z"' if tops > 1 else ""
    return (
        input_layer("x", *shape)
        + f'layer {{ name: "l" type: "DataAugmentation" bottom: "x" top: "y"{second} augmentation_param {{ {param} }} }}'
    )


def crop(x: Array, height: int, width: int) -> Array:
    """The pixel loop of the definition."""
    y = np.zeros((*x.shape[:2], height, width), np.float32)
    for j, i in np.ndindex(height, width):
        at_y = min(max(j + 0.5 * x.shape[2] - 0.5 * height, 0), x.shape[2] - 1.05)
        at_x = min(max(i + 0.5 * x.shape[3] - 0.5 * width, 0), x.shape[3] - 1.05)
        b, a = int(at_y), int(at_x)
        q, p = at_y - b, at_x - a
        y[:, :, j, i] = (
            (1 - p) * (1 - q) * x[:, :, b, a]
            + p * q * x[:, :, b + 1, a + 1]
            + (1 - p) * q * x[:, :, b + 1, a]
            + p * (1 - q) * x[:, :, b, a + 1]
        )
    return y


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 5), (6, 8), (5, 7), (1, 1)])
def test_a_crop_is_the_middle_and_interpolates(height: int, width: int) -> None:
    x = pictures(2, 3, 6, 8)
    net = net_of(
        augmentation(f"crop_height: {height} crop_width: {width} mean: 0.5 mean: 0.25 mean: 1 mean_per_pixel: false mirror {{ }}", *x.shape)
    )
    expected = crop(x, height, width) - np.array([0.5, 0.25, 1], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(net({"x": torch.from_numpy(x)})["y"].numpy(), expected, atol=1e-6)
    for opset in (11, 17):
        engine = OnnxRuntimeEngine.load(to_onnx(net, opset=opset).SerializeToString())
        np.testing.assert_allclose(engine.predict({"x": x})["y"], expected, atol=1e-6)


def test_a_crop_by_hand() -> None:
    layer = one_layer('type: "DataAugmentation" augmentation_param { crop_height: 2 crop_width: 3 }', (1, 1, 2, 4))
    x = torch.tensor([[[[0.0, 10, 20, 30], [100, 110, 120, 130]]]])
    # Half a pixel to the right; the last row is only 0.95 of the way from the first.
    np.testing.assert_allclose(layer(x)[0, 0], [[5, 15, 25], [100, 110, 120]], rtol=1e-6)


@pytest.mark.parametrize("per_pixel", [True, False])
def test_the_mean_of_the_first_passes(per_pixel: bool) -> None:
    layer = one_layer(
        f'type: "DataAugmentation" augmentation_param {{ recompute_mean: 2 mean_per_pixel: {str(per_pixel).lower()} }}', (2, 3, 4, 5)
    )
    batches = [torch.from_numpy(pictures(6, 3, 4, 5)[2 * k : 2 * k + 2]) for k in range(3)]
    outputs = [layer(batch) for batch in batches]
    means = [batches[0].mean(0, keepdim=True), torch.cat(batches[:2]).mean(0, keepdim=True)]
    for batch, output, mean in zip(batches, outputs, [*means, means[1]], strict=True):
        subtracted = mean if per_pixel else mean.mean((2, 3), keepdim=True)
        np.testing.assert_allclose(output, batch - subtracted, atol=1e-6)
    assert layer.blobs[0].tolist() == [[[[3.0]]]]
    assert not any(spec.learnable for spec in layer.specs)


def test_weights_give_the_mean_also_for_pictures_of_another_size(tmp_path: Path) -> None:
    net = net_of(augmentation(RUNNING, 1, 3, 4, 6))
    x = pictures(1, 3, 4, 6)
    for _ in range(2):
        net({"x": torch.from_numpy(x)})
    save_weights(net, tmp_path / "w.caffemodel")
    for shape in ((1, 3, 4, 6), (2, 3, 7, 5)):
        used = net_of(augmentation(RUNNING, *shape))
        load_weights(used, tmp_path / "w.caffemodel")
        y = pictures(*shape)
        expected = y - x.mean((0, 2, 3)).reshape(1, 3, 1, 1)
        np.testing.assert_allclose(used({"x": torch.from_numpy(y)})["y"].numpy(), expected, atol=1e-6)
        engine = OnnxRuntimeEngine.load(to_onnx(used).SerializeToString())
        np.testing.assert_allclose(engine.predict({"x": y})["y"], expected, atol=1e-6)


def test_a_second_top_has_the_coefficients_of_an_unchanged_picture() -> None:
    net = net_of(augmentation("", 2, 3, 4, 4, tops=2))
    outputs = net({"x": torch.from_numpy(pictures(2, 3, 4, 4))})
    assert outputs["z"].shape == (2, 42, 1, 1) and not outputs["z"].any()
    np.testing.assert_array_equal(outputs["y"].numpy(), pictures(2, 3, 4, 4))
    engine = OnnxRuntimeEngine.load(to_onnx(net).SerializeToString())
    assert engine.predict({"x": pictures(5, 3, 4, 4)})["z"].shape == (5, 42, 1, 1)


def test_what_is_drawn_at_random_is_refused_and_an_incomplete_mean_is_not_exported() -> None:
    text = 'type: "DataAugmentation" augmentation_param { crop_height: 2 crop_width: 2 rotate { rand_type: "uniform" spread: 0.4 } %s }'
    x = torch.zeros(1, 3, 4, 4)
    assert one_layer(text % "", tuple(x.shape))(x).shape == (1, 3, 2, 2)
    with pytest.raises(NetError, match=r"layer 'l'.* its random changes \(rotate\) in the TRAIN phase are not computed"):
        one_layer(text % "", tuple(x.shape), phase=TRAIN)(x)
    with pytest.raises(NetError, match=r"\(rotate\) with augment_during_test are not computed"):
        one_layer(text % "augment_during_test: true", tuple(x.shape))(x)
    with pytest.raises(NetError, match="the crop of 5 x 2 must lie within 'b0', 1 x 3 x 4 x 4"):
        one_layer('type: "DataAugmentation" augmentation_param { crop_height: 5 crop_width: 2 }', tuple(x.shape))
    with pytest.raises(NetError, match="mean has 3 values, but 'b0' has 2 channels"):
        one_layer('type: "DataAugmentation" augmentation_param { mean: 1 mean: 1 mean: 1 mean_per_pixel: false }', (1, 2, 4, 4))
    with pytest.raises(ExportError, match="its mean is complete after 2 passes only"):
        to_onnx(net_of(augmentation(RUNNING, 1, 3, 4, 4)))
