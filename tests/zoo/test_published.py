"""Our deploy nets are the published ones, layer by layer, and give what BVLC Caffe computed for them."""

from __future__ import annotations

import json
import math
import zlib
from functools import partial
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
from caffetools.zoo.networks import build
from tests.conftest import GOLDEN
from tests.zoo.published import DEPLOY, FILE, digests, facts, layers_of
from tests.zoo.variants import VARIANTS

GOLDEN_NETS = GOLDEN / "wildnets"
INDEX: dict[str, dict[str, Any]] = json.loads((GOLDEN_NETS / "index.json").read_text())
# Golden case → the net that we build for it.
NETS = {
    **{key: partial(build, name, "deploy") for name, file in DEPLOY.items() if (key := file.replace("/", "_").replace("+", "_")) in INDEX},
    **VARIANTS,
}

# Parameters and layer counts, as the publishers' papers and files have them, of what is not among the wild prototxts too.
SIZES = {
    "nin_imagenet": (7_595_176, 12),
    "vgg19": (143_667_240, 16),
    "resnet18": (11_703_485, 21),
    "resnet50": (25_610_269, 53),
    "densenet121": (8_062_625, 121),
    "mobilenet_v1": (4_253_891, 28),
}


@pytest.mark.parametrize("name", DEPLOY)
def test_the_deploy_net_has_the_published_layers_wiring_and_numbers(name: str) -> None:
    ours = layers_of(build(name, "deploy"))
    expected = json.loads(FILE.read_text())["deploy"][name].split()
    different = [layer for layer, one, other in zip(ours, digests(ours), expected, strict=True) if one != other]
    assert not different


@pytest.mark.wild
def test_the_facts_of_published_networks_are_those_of_their_files(wild: Path) -> None:
    assert facts(wild / "prototxt") == json.loads(FILE.read_text())


@pytest.mark.wild
@pytest.mark.parametrize("key", NETS)
def test_a_rewritten_net_has_the_layers_of_the_published_file(key: str, wild: Path) -> None:
    # What BatchNorm does in training is not a matter of a deploy net.
    def inference(layers: dict[str, Any]) -> dict[str, Any]:
        return {name: (*layer[:3], {k: v for k, v in layer[3].items() if k != "batch_norm_param"}) for name, layer in layers.items()}

    theirs = layers_of(read_net(wild / "prototxt" / INDEX[key]["prototxt"]))
    assert inference(layers_of(NETS[key]())) == inference(theirs)


def test_there_is_a_net_for_each_golden_case() -> None:
    assert set(NETS) == set(INDEX)


@pytest.mark.parametrize("key", NETS)
def test_the_deploy_net_gives_what_bvlc_caffe_computed(key: str) -> None:
    case = INDEX[key]
    net, inputs = golden_case(key)
    with torch.no_grad():
        blobs = net(inputs, keep=case["blobs"])
    for blob, (shape, total, largest) in case["blobs"].items():
        values = blobs[blob].double().abs()
        assert list(values.shape) == shape, blob
        assert values.sum().item() == pytest.approx(total, rel=1e-4), blob
        assert values.max().item() == pytest.approx(largest, rel=1e-4), blob
    with np.load(GOLDEN_NETS / f"{key}.npz") as arrays:
        for blob in case["outputs"]:
            expected = arrays[blob.replace("/", "\\")]
            assert np.abs(sample(blobs[blob].numpy()) - expected).max() <= 1e-4 * np.abs(expected).max(), blob


def golden_case(key: str) -> tuple[Net, dict[str, torch.Tensor]]:
    """The net of a golden case with its weights, and its inputs."""
    shapes = {blob: tuple(shape) for blob, shape in INDEX[key]["inputs"].items()}
    net = Net(NETS[key](), TEST, fill=False, input_shapes=shapes)
    regenerate(net)
    rng = RandomState(7)
    return net, {blob: torch.from_numpy((rng.randn(*shape) * 5).astype(np.float32)) for blob, shape in shapes.items()}


def sample(values: NDArray[Any]) -> NDArray[Any]:
    """The values of a blob that the golden files hold."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // 2000)][:2000]


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
def test_a_network_has_the_parameters_and_convolutions_of_its_paper(name: str) -> None:
    parameters, convolutions = SIZES[name]
    for net, phase in ((build(name, "deploy"), TEST), (build(name), TRAIN)):
        summary = summarize(net, phase)
        assert summary.parameters == parameters
        assert sum(layer.type_name == "Convolution" for layer in summary.layers) == convolutions


def test_densenet_pools_as_the_framework_of_its_weights_did() -> None:
    summary = summarize(build("densenet121", "deploy"))
    (pool1,) = [layer for layer in summary.layers if layer.name == "pool1"]
    assert pool1.shapes == [(1, 64, 56, 56)]


@pytest.mark.wild
@pytest.mark.parametrize(("name", "file"), [("mtcnn_pnet", "det1"), ("mtcnn_rnet", "det2"), ("mtcnn_onet", "det3")])
def test_published_weights_load_by_name_and_give_the_published_outputs(name: str, file: str, wild_golden: Path) -> None:
    models = wild_golden / "models"
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
