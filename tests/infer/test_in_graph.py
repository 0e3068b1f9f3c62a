"""``export --preprocess``: the exported graph takes bytes of pictures and gives the probabilities of ``classify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import caffetools as ct
from caffetools.engines.onnxruntime import open_session
from caffetools.infer.sidecar import write_preprocessing
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.binary import write_binaryproto
from caffetools.results import Preprocessing
from tests.cli.inprocess import error_of, run, run_well

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: CHANNELS dim: 6 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "score" type: "InnerProduct" bottom: "conv" top: "score" inner_product_param { num_output: 4 } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""
KNOWN: dict[str, Any] = {"mean": "104,117,123", "scale": 0.5}
RANDOM = np.random.RandomState(0)


def write_net(folder: Path, channels: int, scale: float = 1.0) -> tuple[Path, Path]:
    """A net whose scores are about 1 for pixels times ``scale``."""
    deploy, weights = folder / "deploy.prototxt", folder / "net.caffemodel"
    deploy.write_text(NET.replace("CHANNELS", str(channels)))
    torch.manual_seed(0)
    net = Net.from_file(deploy)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.02)
    net.layer("conv").blobs[0].data.div_(4 * scale)
    save_weights(net, weights)
    return deploy, weights


def bytes_of(path: Path, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A user's own code: resize, cut out the centre of 8 x 6, RGB or gray."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
    image = cv2.resize(image, size).reshape(size[1], size[0], channels)
    y, x = (size[1] - 6) // 2, (size[0] - 8) // 2
    return np.ascontiguousarray(image[y : y + 6, x : x + 8, ::-1]).astype(np.uint8)


def image_of(*shape: int) -> NDArray[np.float32]:
    return (RANDOM.rand(*shape) * 200).astype(np.float32)


CASES: dict[str, tuple[int, tuple[int, int], Preprocessing]] = {
    "no mean": (3, (8, 6), Preprocessing(mean_values=())),
    "mean of each channel": (3, (8, 6), Preprocessing(mean_values=(104.0, 117.0, 123.0), scale=0.017)),
    "mean of each channel, RGB": (3, (8, 6), Preprocessing("RGB", mean_values=(123.0, 117.0, 104.0))),
    "one mean, crop": (3, (12, 9), Preprocessing(mean_values=(100.0,), scale=0.5, resize=(12, 9))),
    "mean image": (3, (8, 6), Preprocessing(mean_image=image_of(3, 6, 8))),
    "mean image, RGB": (3, (8, 6), Preprocessing("RGB", mean_image=image_of(3, 6, 8))),
    "mean image before the crop": (3, (11, 9), Preprocessing(mean_image=image_of(3, 9, 11))),
    "larger mean image": (3, (10, 6), Preprocessing(mean_image=image_of(3, 9, 11), resize=(10, 6))),
    "gray": (1, (8, 6), Preprocessing("GRAY", mean_values=(33.0,), scale=1 / 256)),
    "gray, mean image": (1, (8, 6), Preprocessing("GRAY", mean_image=image_of(1, 6, 8))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_graph_that_takes_bytes_gives_the_probabilities_of_classify(name: str, tmp_path: Path) -> None:
    channels, size, how = CASES[name]
    deploy, weights = write_net(tmp_path, channels, how.scale)
    write_preprocessing(deploy, how)
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(pictures):
        cv2.imwrite(str(path), RANDOM.randint(0, 256, (9 + number, 13, 3 if number else 1)).astype(np.uint8))
    run_well("export", deploy, weights, "-o", tmp_path / "bytes.onnx", "--preprocess")
    model = onnx.load(tmp_path / "bytes.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:] == [6, 8, channels]
    batch = np.stack([bytes_of(path, channels, size) for path in pictures])
    got = open_session(tmp_path / "bytes.onnx").run({"data": batch})["prob"]
    expected = np.zeros_like(got)
    for row, result in enumerate(ct.classify(pictures, deploy, weights, top=4)):
        for guess in result.guesses:
            expected[row, guess.index] = guess.probability
    assert expected.max() < 0.95, "these answers say little"
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_mean_image_fits_one_size(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path, 3)
    write_binaryproto(tmp_path / "mean.binaryproto", image_of(1, 3, 6, 8))
    arguments = ("export", deploy, weights, "--preprocess", "--mean", tmp_path / "mean.binaryproto", "-o", tmp_path / "m.onnx")
    text = NET.replace("CHANNELS", "3").replace('type: "InnerProduct"', 'type: "Convolution"')
    deploy.write_text(text.replace("inner_product_param { num_output: 4 }", "convolution_param { num_output: 4 kernel_size: 1 }"))
    torch.manual_seed(0)
    save_weights(Net.from_file(deploy), weights)
    message = error_of(run(*arguments, "--dynamic-axes", "height,width"))
    assert "a mean image fits one size of pictures only; give the mean of each channel" in message
    run_well(*arguments, "--dynamic-axes", "batch")


def test_our_own_commands_take_a_model_of_bytes_or_name_it(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path, 3)
    path, picture = tmp_path / "bytes.onnx", tmp_path / "picture.png"
    cv2.imwrite(str(picture), RANDOM.randint(0, 256, (9, 13, 3)).astype(np.uint8))
    mean = ("--mean", "104,117,123", "--scale", "0.5")
    run_well("export", deploy, weights, "-o", path, "--preprocess", *mean)
    (plain,), (bytes_,) = (ct.classify(picture, *files, top=4, **how) for files, how in (((deploy, weights), KNOWN), ((path,), {})))
    assert [guess.index for guess in plain.guesses] == [guess.index for guess in bytes_.guesses]
    np.testing.assert_allclose([g.probability for g in plain.guesses], [g.probability for g in bytes_.guesses], atol=2e-6)
    done = run_well("verify", deploy, weights, path, "--images", picture, *mean, "--json")
    rows = {row["candidate"]: row for row in json.loads(done.stdout)}
    assert rows["onnxruntime: bytes.onnx"]["relative"] < 1e-5
    # Random inputs are not pictures, so the model was not compared.
    done = run("verify", deploy, weights, path)
    assert done.returncode == 1 and "takes bytes of pictures" in done.stdout
    message = error_of(run("import", path, "-o", tmp_path / "net"))
    assert "input 'data' is uint8, and a Caffe net takes float32 only; export the model again without" in message
