"""Folding BatchNorm into what stands before it changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.graph.passes.fold_batch_norm import fold_batch_norm, largest_difference
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, to_caffemodel
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net, write_prototxt
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.deploy import deploy_from
from caffetools.zoo.networks import build
from tests.cli.test_retarget import run, weights_of
from tests.surgery.nets import TINY, net_of
from tests.zoo.test_published import regenerate

NORMALIZED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 6 kernel_size: 3 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" batch_norm_param { eps: 0.001 } }
layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
layer { name: "fc" type: "InnerProduct" bottom: "bn" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "bn2" type: "BatchNorm" bottom: "fc" top: "fc" }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def weighed(param: Any) -> Caffemodel:
    net = Net(param, TEST, fill=False)
    regenerate(net)
    return to_caffemodel(net)


def test_normalizations_go_into_the_layers_before_them() -> None:
    net = net_of(NORMALIZED)
    model = weighed(net)
    folded = fold_batch_norm(net, model)
    assert folded.layers == {"conv": ["bn", "scale"], "fc": ["bn2"]}
    assert [(layer.name, list(layer.bottom), list(layer.top)) for layer in folded.net.layer] == [
        ("data", [], ["data"]),
        ("conv", ["data"], ["bn"]),
        ("relu", ["bn"], ["bn"]),
        ("fc", ["bn"], ["fc"]),
        ("prob", ["fc"], ["prob"]),
    ]
    assert net == net_of(NORMALIZED) and set(model.blobs) == {"conv", "bn", "scale", "fc", "bn2"}
    assert set(folded.weights.blobs) == {"conv", "fc"} and folded.weights.blobs["conv"][1].shape == (6,)
    assert 0 < folded.difference <= 1e-5


@pytest.mark.parametrize("model", ["mobilenet_v2", "resnet18", "resnet10"])
def test_networks_of_the_zoo_fold(model: str) -> None:
    net = build(model, "deploy")
    folded = fold_batch_norm(net, weighed(net))
    left = [layer.name for layer in folded.net.layer if layer.type == "BatchNorm"]
    # ResNet-10 has some that no convolution stands right before.
    assert len(left) == (5 if model == "resnet10" else 0)
    assert folded.difference <= 1e-5


@pytest.mark.parametrize(
    ("change", "folds"),
    [
        (('bottom: "bn" top: "bn" }\nlayer { name: "fc"', 'bottom: "conv" top: "bn2" }\nlayer { name: "fc"'), ["fc"]),
        (("batch_norm_param { eps: 0.001 }", "batch_norm_param { use_global_stats: false }"), ["fc"]),
        (("scale_param { bias_term: true }", "scale_param { axis: 2 num_axes: 1 }"), ["conv", "fc"]),
        (("num_output: 10 }", "num_output: 10 transpose: true }"), ["conv"]),
        (('top: "conv" convolution_param', 'top: "conv" param { name: "w" } convolution_param'), ["fc"]),
    ],
)
def test_what_cannot_be_folded_is_kept(change: tuple[str, str], folds: list[str]) -> None:
    assert change[0] in NORMALIZED
    net = net_of(NORMALIZED.replace(*change))
    assert list(fold_batch_norm(net, weighed(net)).layers) == folds


def test_a_net_without_normalization_and_weights_without_a_layer_are_errors() -> None:
    plain = deploy_from(net_of(TINY))
    with pytest.raises(NetError, match="has no BatchNorm right after"):
        fold_batch_norm(plain, weighed(plain))
    net = net_of(NORMALIZED)
    model = weighed(net)
    del model.blobs["bn"]
    with pytest.raises(NetError, match="layer 'bn': the weights hold nothing of it"):
        fold_batch_norm(net, model)


def test_a_fold_that_changes_numbers_is_refused() -> None:
    net = net_of(NORMALIZED)
    model = weighed(net)
    # A large bias that the mean takes away costs digits, which the folded net has.
    model.blobs["fc"][1] = np.full(10, 1e6, np.float32)
    model.blobs["bn2"][0] = np.full(10, 1e6, np.float32)
    with pytest.raises(NetError, match=r"gives other numbers: .* of the largest, more than 1e-05; it is not changed"):
        fold_batch_norm(net, model)


def test_a_not_a_number_is_a_difference() -> None:
    net = net_of(NORMALIZED)
    model, broken = weighed(net), weighed(net)
    broken.blobs["fc"][1] = np.full(10, np.nan, np.float32)
    assert not largest_difference((net, model), (net, broken)) <= 1e-5


def test_the_command_writes_net_and_weights_that_belong_together(tmp_path: Path) -> None:
    write_prototxt(tmp_path / "net.prototxt", net_of(NORMALIZED))
    weights = weights_of(net_of(NORMALIZED), tmp_path / "w.caffemodel")
    out = tmp_path / "folded.prototxt"
    code, text, err = run("deploy", tmp_path / "net.prototxt", "-o", out, "--fold-bn", "--weights", weights)
    assert (code, err) == (0, "")
    assert "3 layers folded into 2; scores differ by" in text
    net = Net(read_net(out), TEST, fill=False)
    assert load_weights(net, tmp_path / "folded.caffemodel").fresh == []
    assert set(read_caffemodel(tmp_path / "folded.caffemodel").blobs) == {"conv", "fc"}
    code, _, err = run("deploy", tmp_path / "net.prototxt", "-o", tmp_path / "folded.txt", "--fold-bn", "--weights", weights)
    assert code == 2 and "folded.caffemodel: already exists" in err
    code, _, err = run("deploy", tmp_path / "net.prototxt", "-o", tmp_path / "x.prototxt", "--fold-bn")
    assert code == 2 and "--fold-bn needs --weights" in err


SMALL = [
    "lenet",
    "cifar10_quick",
    "cifar10_full",
    "squeezenet_v1.1",
    "nin_imagenet",
    "resnet10",
    "resnet18",
    "mobilenet_v1",
    "mobilenet_v2",
]


@pytest.mark.parametrize("model", SMALL)
def test_a_deployed_networks_prob_is_the_softmax_of_the_trained_ones_scores(model: str) -> None:
    (shape,) = [tuple(layer.input_param.shape[0].dim) for layer in upgrade_net(build(model, "deploy")).layer if layer.type == "Input"]
    shape = (2, *shape[1:])
    trained = Net(data_layers_to_inputs(build(model), {"": shape}, batch=2), TEST, fill=False)
    regenerate(trained)
    deployed = Net(deploy_from(build(model), input_shape=shape), TEST, fill=False)
    assert load_weights(deployed, to_caffemodel(trained)).fresh == []
    data = torch.from_numpy(np.random.default_rng(3).normal(size=shape, scale=0.5).astype(np.float32))
    scores = next(layer.bottoms[0] for layer in deployed.layers if layer.type_name == "Softmax")
    with torch.no_grad():
        expected = torch.softmax(trained({"data": data, "label": torch.zeros(2)}, keep=[scores])[scores].double(), 1)
        got = deployed({"data": data})["prob"]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
