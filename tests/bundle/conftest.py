"""Bundles of a tiny net, and the C++ runner, built once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from caffetools.bundle.build import build_bundle
from caffetools.infer.classifier import PreprocessOptions
from caffetools.layers.normalization import BatchNorm
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse

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
DETECTOR = """
name: "detector"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 24 dim: 32 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 5 stride: 4 pad: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "loc" type: "Convolution" bottom: "conv" top: "loc" convolution_param { num_output: 12 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "loc_perm" type: "Permute" bottom: "loc" top: "loc_perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "loc_flat" type: "Flatten" bottom: "loc_perm" top: "boxes" }
layer { name: "conf" type: "Convolution" bottom: "conv" top: "conf" convolution_param { num_output: 12 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "conf_perm" type: "Permute" bottom: "conf" top: "conf_perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "conf_rows" type: "Reshape" bottom: "conf_perm" top: "conf_rows" reshape_param { shape { dim: 0 dim: -1 dim: 4 } } }
layer { name: "softmax" type: "Softmax" bottom: "conf_rows" top: "softmax" softmax_param { axis: 2 } }
layer { name: "conf_flat" type: "Flatten" bottom: "softmax" top: "conf_flat" }
layer { name: "priors" type: "PriorBox" bottom: "conv" bottom: "data" top: "priors"
  prior_box_param { min_size: 8 aspect_ratio: 2 flip: true variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }
layer { name: "found" type: "DetectionOutput" bottom: "boxes" bottom: "conf_flat" bottom: "priors" top: "found"
  detection_output_param { num_classes: 4 share_location: true background_label_id: 0 confidence_threshold: 0.3 keep_top_k: 20
    code_type: CENTER_SIZE nms_param { nms_threshold: 0.45 top_k: 50 } } }
"""
# DetectNet as DIGITS writes it: a grid of 8 x 6 cells of 4 pixels, two classes, and the Python layer that groups boxes.
DETECTNET = """
name: "detectnet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 24 dim: 32 } } }
layer { name: "deploy_transform" type: "Power" bottom: "data" top: "transformed" power_param { shift: -127 } }
layer { name: "conv" type: "Convolution" bottom: "transformed" top: "conv"
  convolution_param { num_output: 6 kernel_size: 5 stride: 4 pad: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "cvg/classifier" type: "Convolution" bottom: "conv" top: "cvg/classifier"
  convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.2 } } }
layer { name: "coverage/sig" type: "Sigmoid" bottom: "cvg/classifier" top: "coverage" }
layer { name: "bbox/regressor" type: "Convolution" bottom: "conv" top: "bboxes"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 3 } } }
layer { type: "Python" name: "cluster" bottom: "coverage" bottom: "bboxes" top: "bbox-list-class0" top: "bbox-list-class1"
  python_param { module: "caffe.layers.detectnet.clustering" layer: "ClusterDetections" param_str: "32, 24, 4, 0.5, 3, 0.02, 2, 2" } }
"""
# In place of the ReLU: batch normalization, and squeeze and excitation.
SQUEEZE = """
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true filler { type: "uniform" min: 0.5 max: 2 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "mean" type: "Pooling" bottom: "conv" top: "mean" pooling_param { pool: AVE global_pooling: true } }
layer { name: "excite" type: "InnerProduct" bottom: "mean" top: "excite" inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "excite" top: "excite" }
layer { name: "weighted" type: "Scale" bottom: "conv" bottom: "excite" top: "weighted" scale_param { axis: 0 } }
layer { name: "pool" type: "Pooling" bottom: "weighted" top"""
OBJECTS = ("bird", "cat", "dog")
LABELS = ("Ähre", "bee", 'a "quoted" one', "dog", "elk", "fox", "gnu")


class Nets(NamedTuple):
    deploy: Path
    weights: Path


def write_net(folder: Path, text: str = DEPLOY) -> Nets:
    """A net with seeded weights, small enough that its probabilities differ between pictures."""
    deploy, weights = folder / "deploy.prototxt", folder / "tiny.caffemodel"
    deploy.write_text(text)
    torch.manual_seed(3)
    net = Net(parse(text.partition('layer { type: "Python"')[0], NetParameter))
    factors = {"loc": 0.5, "conv": 0.03} if "DetectionOutput" in text else {"score": 0.02}
    if "ClusterDetections" in text:
        factors = {"conv": 0.02, "bbox/regressor": 2}
    with torch.no_grad():
        for layer in net.layers:
            if isinstance(layer, BatchNorm):
                layer.blobs[0].normal_(0, 5)
                layer.blobs[1].uniform_(500, 1000)
                layer.blobs[2].fill_(1)
        for name, factor in factors.items():
            net.layer(name).blobs[0].mul_(factor)
        if "ClusterDetections" in text:
            net.layer("bbox/regressor").blobs[1][:2] = -4
    save_weights(net, weights)
    return Nets(deploy, weights)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """The net's files."""
    return write_net(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """A squeeze-and-excitation net with batch normalization."""
    before = DEPLOY.partition('layer { name: "relu"')[0]
    after = DEPLOY.partition('layer { name: "pool" type: "Pooling" bottom: "conv" top')[2]
    return write_net(tmp_path_factory.mktemp("squeezed"), before + SQUEEZE + after)


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """A detector's files."""
    return write_net(tmp_path_factory.mktemp("detector"), DETECTOR)


@pytest.fixture(scope="session")
def detectnet(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """A DetectNet's files."""
    return write_net(tmp_path_factory.mktemp("detectnet"), DETECTNET)


@pytest.fixture(scope="session")
def detectnets(detectnet: Nets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of the DetectNet for each target."""
    folder = tmp_path_factory.mktemp("detectnets")
    how = PreprocessOptions(mean="0", labels=("car", "person"))
    for target in ("jetson", "onnxruntime", "opencv"):
        build_bundle(*detectnet, folder / target, target, how)
    return {target: folder / target for target in ("jetson", "onnxruntime", "opencv")}


@pytest.fixture(scope="session")
def options() -> PreprocessOptions:
    """How its pictures are prepared."""
    return PreprocessOptions(mean="104,117,123", scale=0.5, resize=(40, 30), labels=LABELS)


@pytest.fixture(scope="session")
def detectors(detector: Nets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of the detector for each target."""
    folder = tmp_path_factory.mktemp("detectors")
    how = PreprocessOptions(mean="104,117,123", resize=(40, 30), labels=OBJECTS)
    for target in ("jetson", "onnxruntime", "opencv"):
        build_bundle(*detector, folder / target, target, how)
    return {target: folder / target for target in ("jetson", "onnxruntime", "opencv")}


@pytest.fixture(scope="session")
def bundles(tiny: Nets, options: PreprocessOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle for each target."""
    folder = tmp_path_factory.mktemp("bundles")
    for target in ("jetson", "onnxruntime", "opencv"):
        build_bundle(*tiny, folder / target, target, options)
    return {target: folder / target for target in ("jetson", "onnxruntime", "opencv")}


@pytest.fixture
def copy(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles["opencv"], tmp_path / "copy"))
