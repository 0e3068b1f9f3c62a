"""Bundles of a tiny net, and the C++ runner, built once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from caffetools.bundle.build import build_bundle
from caffetools.infer.classifier import Options
from caffetools.net.net import Net
from caffetools.net.weights import save_weights

DEPLOY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 24 dim: 32 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "score" type: "InnerProduct" bottom: "pool" top: "score"
  inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""
LABELS = ("Ähre", "bee", 'a "quoted" one', "dog", "elk", "fox", "gnu")


class Nets(NamedTuple):
    deploy: Path
    weights: Path


def write_net(folder: Path, text: str = DEPLOY) -> Nets:
    """A net with seeded weights whose probabilities differ between pictures."""
    deploy, weights = folder / "deploy.prototxt", folder / "tiny.caffemodel"
    deploy.write_text(text)
    torch.manual_seed(3)
    net = Net.from_file(deploy)
    with torch.no_grad():
        net.layer("score").blobs[0].mul_(0.02)
    save_weights(net, weights)
    return Nets(deploy, weights)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """The net's files."""
    return write_net(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def options() -> Options:
    """How its pictures are prepared."""
    return Options(mean="104,117,123", scale=0.5, resize=(40, 30), labels=LABELS)


@pytest.fixture(scope="session")
def bundles(tiny: Nets, options: Options, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle for each target."""
    folder = tmp_path_factory.mktemp("bundles")
    for target in ("jetson", "onnxruntime", "opencv"):
        build_bundle(*tiny, folder / target, target, options)
    return {target: folder / target for target in ("jetson", "onnxruntime", "opencv")}
