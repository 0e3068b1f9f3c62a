"""Our deploy nets are the published ones, layer by layer, and give what BVLC Caffe computed for them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.zoo.networks import build

# Where the published deploy nets lie among the wild prototxts; VGG-16 is one that kept the layers of the original.
PUBLISHED = {
    "bvlc_reference_rcnn_ilsvrc13": "BVLC+caffe/models/bvlc_reference_rcnn_ilsvrc13/deploy",
    "cifar10_quick": "BVLC+caffe/examples/cifar10/cifar10_quick",
    "cifar10_full": "BVLC+caffe/examples/cifar10/cifar10_full",
    "vgg16": "soeaver+caffe-model/cls/vgg/deploy_vgg16-dsd",
    "vgg19": "soeaver+caffe-model/cls/vgg/deploy_vgg19-pytorch",
    "resnet10": "cvjena+cnn-models/ResNet_preact/ResNet10_cvgj/deploy",
    "resnet50": "KaimingHe+deep-residual-networks/prototxt/ResNet-50-deploy",
    "resnet101": "KaimingHe+deep-residual-networks/prototxt/ResNet-101-deploy",
    "resnet152": "KaimingHe+deep-residual-networks/prototxt/ResNet-152-deploy",
    "se_resnet50": "hujie-frank+SENet/models/SE-ResNet-50",
    "mobilenet_v1": "shicai+MobileNet-Caffe/mobilenet_deploy",
    "mobilenet_v2": "shicai+MobileNet-Caffe/mobilenet_v2_deploy",
    "mtcnn_pnet": "DuinoDu+mtcnn/model/det1",
    "mtcnn_rnet": "DuinoDu+mtcnn/model/det2",
    "mtcnn_onet": "DuinoDu+mtcnn/model/det3",
}
# The wild VGG-19 comes from another framework, which called these differently.
RENAMED = {"vgg19": {"dropout6": "drop6", "dropout7": "drop7", "classifier": "fc8"}}
# Those that BVLC Caffe ran; of the alike residual networks the smallest and the largest.
COMPUTED = [name for name in PUBLISHED if name not in ("vgg16", "vgg19", "se_resnet50", "resnet101")]

# Parameters and layer counts, as the publishers' papers and files have them, of what is not among the wild prototxts too.
SIZES = {
    "nin_imagenet": (7_595_176, 12),
    "vgg19": (143_667_240, 16),
    "resnet18": (11_703_485, 21),
    "resnet50": (25_610_269, 53),
    "densenet121": (8_062_625, 121),
    "mobilenet_v1": (4_253_891, 28),
}

Described = tuple[str, list[str], list[str], dict[str, dict[str, Any]]]


def described(layer: Any) -> Described:
    """What a layer computes: type, wiring, and its numbers without defaults, fillers and the choice of an engine."""
    params = {field.name: numbers(value) for field, value in layer.ListFields() if field.name.endswith("_param")}
    return layer.type, list(layer.bottom), list(layer.top), {name: given for name, given in params.items() if given}


def numbers(param: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for field, value in param.ListFields():
        if field.name in ("weight_filler", "bias_filler", "filler", "engine"):
            continue
        if field.name in ("pad", "stride") and hasattr(value, "append"):
            # [] is what these lists are without a number in them.
            given[field.name] = [number for number in value if number != (field.name == "stride")]
        elif field.message_type is not None:
            given[field.name] = str(value)
        else:
            given[field.name] = list(value) if hasattr(value, "append") else value if value != field.default_value else None
    return {name: value for name, value in given.items() if value not in (None, [])}


def layers_of(net: Any) -> dict[str, Described]:
    return {layer.name: described(layer) for layer in upgrade_net(net).layer if layer.type != "Input"}


def published(name: str, wild: Path) -> dict[str, Described]:
    """The published layers, where they differ on purpose as ours are."""
    found = layers_of(read_net(wild / "prototxt" / f"{PUBLISHED[name]}.prototxt"))
    names = RENAMED.get(name, {})
    layers: dict[str, Described] = {}
    for layer, (kind, bottoms, tops, params) in found.items():
        if kind == "Axpy":
            layers.update(weighed_sum(layer, bottoms, tops))
            continue
        layers[names.get(layer, layer)] = (kind, [names.get(b, b) for b in bottoms], [names.get(t, t) for t in tops], params)
    return layers


def weighed_sum(name: str, bottoms: list[str], tops: list[str]) -> dict[str, Described]:
    """Axpy(a, x, y) = a * x + y in BVLC Caffe's layers: a is (N, C, 1, 1), so it loses two axes and scales x."""
    weights, x, y = bottoms
    return {
        f"{name}_prob_reshape": ("Reshape", [weights], [f"{name}_prob_reshape"], {"reshape_param": {"shape": "dim: 0\ndim: 0\n"}}),
        f"{name}_scale": ("Scale", [x, f"{name}_prob_reshape"], [f"{name}_scale"], {"scale_param": {"axis": 0}}),
        name: ("Eltwise", [f"{name}_scale", y], tops, {}),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_deploy_net_has_the_published_layers_wiring_and_numbers(name: str, wild: Path) -> None:
    ours, theirs = layers_of(build(name, "deploy")), published(name, wild)
    assert list(ours) == list(theirs)
    for layer, expected in theirs.items():
        assert ours[layer] == expected, layer


@pytest.mark.parametrize("name", COMPUTED)
def test_the_deploy_net_gives_what_bvlc_caffe_computed(name: str, wild: Path) -> None:
    golden = wild.parent / "golden" / "wildnets"
    key = PUBLISHED[name].replace("/", "_").replace("+", "_")
    case = json.loads((golden / "index.json").read_text())[key]
    net = Net(build(name, "deploy"), TEST, fill=False, input_shapes={blob: tuple(shape) for blob, shape in case["inputs"].items()})
    regenerate(net)
    rng = RandomState(7)
    inputs = {blob: torch.from_numpy((rng.randn(*shape) * 5).astype(np.float32)) for blob, shape in case["inputs"].items()}
    with torch.no_grad():
        blobs = net(inputs, keep=case["blobs"])
    for blob, (shape, total, largest) in case["blobs"].items():
        values = blobs[blob].double().abs()
        assert list(values.shape) == shape, blob
        assert values.sum().item() == pytest.approx(total, rel=1e-4), blob
        assert values.max().item() == pytest.approx(largest, rel=1e-4), blob
    with np.load(golden / f"{key}.npz") as arrays:
        for blob in case["outputs"]:
            expected = arrays[blob.replace("/", "\\")]
            got = blobs[blob].numpy().reshape(-1)
            got = got[:: max(1, got.size // 2000)][:2000]
            assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max(), blob


def regenerate(net: Net) -> None:
    """Fill ``net`` as the golden run had it."""
    with torch.no_grad():
        for layer in net.layers:
            for index, parameter in enumerate(layer.blobs):
                rng = RandomState(zlib.crc32(f"{layer.name}/{index}".encode()) % 2**31)
                parameter.copy_(torch.from_numpy(values_of(layer.type_name, index, tuple(parameter.shape), rng).astype(np.float32)))


def values_of(kind: str, index: int, shape: tuple[int, ...], rng: RandomState) -> NDArray[Any]:
    if kind == "BatchNorm":
        return rng.randn(*shape) * 0.1 if index == 0 else rng.uniform(0.5, 1.5, shape) if index == 1 else np.ones(shape)
    if kind == "Scale":
        return rng.uniform(0.5, 1.5, shape) if index == 0 else rng.randn(*shape) * 0.1
    return rng.randn(*shape) * (math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.05)


@pytest.mark.parametrize("name", SIZES)
def test_a_network_has_the_parameters_and_convolutions_that_are_told_of_it(name: str) -> None:
    parameters, convolutions = SIZES[name]
    for net, phase in ((build(name, "deploy"), TEST), (build(name), TRAIN)):
        summary = summarize(net, phase)
        assert summary.parameters == parameters
        assert sum(layer.type_name == "Convolution" for layer in summary.layers) == convolutions


def test_densenet_pools_as_the_framework_of_its_weights_did() -> None:
    summary = summarize(build("densenet121", "deploy"))
    (pool1,) = [layer for layer in summary.layers if layer.name == "pool1"]
    assert pool1.shapes == [(1, 64, 56, 56)]


@pytest.mark.parametrize(("name", "file"), [("mtcnn_pnet", "det1"), ("mtcnn_rnet", "det2"), ("mtcnn_onet", "det3")])
def test_published_weights_load_by_name_and_give_the_published_outputs(name: str, file: str, wild: Path) -> None:
    models = wild.parent / "golden" / "models"
    with np.load(models / f"mtcnn_{file}.npz") as arrays:
        inputs = {key.removeprefix("in/"): arrays[key] for key in arrays.files if key.startswith("in/")}
        outputs = {key.removeprefix("out/"): arrays[key] for key in arrays.files if key.startswith("out/")}
    net = Net(build(name, "deploy"), TEST, fill=False, input_shapes={blob: value.shape for blob, value in inputs.items()})
    report = load_weights(net, models / f"mtcnn_{file}.caffemodel")
    # R-Net's file has landmarks too, which its published deploy net does not put out.
    assert (report.fresh, report.unused) == ([], ["conv5-3"] if name == "mtcnn_rnet" else [])
    with torch.no_grad():
        blobs = net({blob: torch.from_numpy(value) for blob, value in inputs.items()})
    for blob, expected in outputs.items():
        np.testing.assert_allclose(blobs[blob].numpy(), expected, rtol=1e-4, atol=1e-5)
