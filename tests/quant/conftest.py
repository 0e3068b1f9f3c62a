"""A small net trained on drawn digits, with its pictures as files and as an LMDB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import caffetools as ct
from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import image_to_record
from caffetools.infer.sidecar import write_preprocessing
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.quant.quantize import Quantization
from caffetools.results import Preprocessing

SIZE = 16
BODY = """\
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 5 stride: 1 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 12 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "conv3" type: "Convolution" bottom: "conv2" top: "conv3"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv3" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
"""
DEPLOY = (
    'name: "digits"\nlayer { name: "data" type: "Input" top: "data" '
    f"input_param {{ shape {{ dim: 1 dim: 1 dim: {SIZE} dim: {SIZE} }} }} }}\n{BODY}"
    'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }\n'
)
TRAINING = (
    'name: "digits"\nlayer { name: "data" type: "Data" top: "data" top: "label" '
    'transform_param { scale: 0.00390625 mean_value: 128 } data_param { source: "digits_lmdb" batch_size: 20 backend: LMDB } }\n'
    f'{BODY}layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}\n'
)


@dataclass(frozen=True)
class Digits:
    """A trained net and its data.

    Attributes:
        folder: Holds deploy.prototxt and .json, digits.caffemodel, pictures/ and digits_lmdb/.
        images: (N, 16, 16) uint8.
        labels: (N,) the digits.
    """

    folder: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def deploy(self) -> Path:
        return self.folder / "deploy.prototxt"

    @property
    def weights(self) -> Path:
        return self.folder / "digits.caffemodel"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def database(self) -> Path:
        return self.folder / "digits_lmdb"


def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits in a font, shifted, of different brightness, on noise."""
    random = np.random.default_rng(0)
    images = np.empty((count, SIZE, SIZE), np.uint8)
    for index in range(count):
        canvas = random.integers(0, 60, (SIZE, SIZE)).astype(np.uint8)
        place = (2 + int(random.integers(0, 3)), 12 + int(random.integers(0, 3)))
        bright = int(random.integers(150, 255))
        images[index] = cv2.putText(canvas, str(index % 10), place, cv2.FONT_HERSHEY_PLAIN, 1.0, bright, 1)
    return images, np.arange(count) % 10


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    images, labels = draw(200)
    (folder / "deploy.prototxt").write_text(DEPLOY)
    (folder / "train.prototxt").write_text(TRAINING)
    write_preprocessing(folder / "deploy.prototxt", Preprocessing(channel_order="GRAY", mean_values=(128.0,), scale=1 / 256))
    (folder / "pictures").mkdir()
    with new_lmdb(folder / "digits_lmdb") as writer:
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            cv2.imwrite(str(folder / "pictures" / f"{index:03}_{label}.png"), image)
            writer.put(record_key(index, str(index)), image_to_record(image, label))
    save_weights(_train(images, labels), folder / "digits.caffemodel")
    return Digits(folder, images, labels)


def _train(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Net:
    torch.manual_seed(1)
    net = Net(parse(DEPLOY, NetParameter), TRAIN)
    x = torch.from_numpy(((images.astype(np.float32) - 128) / 256)[:, None])
    y = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(net({"data": x})["prob"].clamp_min(1e-9).log(), y)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    return net


@pytest.fixture(scope="session")
def int8(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Quantization:
    return ct.quantize(digits.deploy, digits.weights, tmp_path_factory.mktemp("int8") / "digits.onnx", digits.pictures)
