"""Whole networks with weights that anyone can regenerate: every blob, and in training every gradient, is what BVLC Caffe computed."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

from caffetools.net.device import float32_products
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import read_net
from caffetools.zoo.networks import prototxt_path
from tests.conftest import GOLDEN
from tests.zoo.test_networks import FACTS, MORE_FACTS

FOLDER = GOLDEN / "nets"
NETS = sorted(json.loads((FOLDER / "index.json").read_text()))
SHIPPED = {
    f"{facts}_{short}": (model, kind) for model, facts in FACTS.items() for short, kind in (("train", "train_val"), ("deploy", "deploy"))
} | {facts: shipped for shipped, facts in MORE_FACTS.items()}
# Of a blob's largest value, of its absolute sum, or of the value: what float32 in another order of summation may cost.
TOLERANCE = 1e-4
# The README's own: a gradient has come through the whole net twice, and in float64 GoogLeNet's are 1.5e-4 from Caffe's.
GRADIENT_TOLERANCE = 1e-3


@pytest.mark.parametrize("name", NETS)
def test_a_network_gives_the_numbers_of_caffe(name: str) -> None:
    check_network(name, torch.device("cpu"))


def check_network(name: str, device: torch.device) -> None:
    """Compute the network on ``device`` and compare its blobs and gradients with Caffe's."""
    golden = json.loads((FOLDER / f"{name}.golden.json").read_text())
    net = golden_net(name, golden).to(device)
    blobs = net({blob: values.to(device) for blob, values in golden_inputs(golden).items()}, keep=golden["blobs"])
    for blob, (shape, *sums) in golden["blobs"].items():
        assert list(blobs[blob].shape) == shape, blob
        assert_sums(blobs[blob], sums, f"{name}: blob {blob}")
    with np.load(FOLDER / f"{name}.npz") as arrays:
        for key in arrays.files:
            kind, _, blob = key.partition("/")
            got = blobs[blob].detach().cpu().numpy()
            assert_close(got if kind == "out" else golden_slice(got), arrays[key], f"{name}: {key}")
    if net.training:
        check_gradients(net, blobs, golden["param_diffs"], name)


def check_gradients(net: Net, blobs: dict[str, torch.Tensor], expected: dict[str, Any], name: str) -> None:
    layers = [layer for layer in net.layers if len(layer.blobs)]
    assert [layer.name for layer in layers] == list(expected)
    with float32_products(net.device):
        gradients = iter(torch.autograd.grad(net.total_loss(blobs), [blob for layer in layers for blob in layer.blobs]))
    for layer in layers:
        for index, (shape, *sums) in enumerate(expected[layer.name]):
            gradient = next(gradients)
            assert list(gradient.shape) == shape
            assert_sums(gradient, sums, f"{name}: gradient {index} of {layer.name}", GRADIENT_TOLERANCE)


def golden_net(name: str, golden: dict[str, Any]) -> Net:
    """The net as the golden run had it: inputs of batch 2 for data layers, dropout that drops nothing, and its weights."""
    param = read_net(prototxt_path(*SHIPPED[name]))
    prepared = NetParameter()
    prepared.CopyFrom(param)
    for field in ("layer", "input", "input_shape", "input_dim"):
        prepared.ClearField(field)
    for blob, (shape, _) in golden["inputs"].items():
        prepared.layer.add(name=blob, type="Input", top=[blob]).input_param.shape.add(dim=shape)
    for layer in param.layer:
        if layer.bottom:
            prepared.layer.add().CopyFrom(layer)
    for layer in prepared.layer:
        if layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = 0
    net = Net(prepared, TRAIN if golden["phase"] == "TRAIN" else TEST, fill=False)
    assert {layer.name: [list(b.shape) for b in layer.blobs] for layer in net.layers if len(layer.blobs)} == golden["params"]
    with torch.no_grad():
        for built in net.layers:
            for index, parameter in enumerate(built.blobs):
                parameter.copy_(torch.from_numpy(golden_weights(built.name, index, tuple(parameter.shape), golden["gain"])))
    return net


def golden_weights(layer: str, index: int, shape: tuple[int, ...], gain: float) -> NDArray[np.float32]:
    rng = RandomState(zlib.crc32(f"{layer}/{index}".encode()) % 2**31)
    values = rng.randn(*shape)
    values *= gain * math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.05
    return values.astype(np.float32)


def golden_inputs(golden: dict[str, Any]) -> dict[str, torch.Tensor]:
    rng = RandomState(7)
    batch = {}
    for name, (shape, _) in golden["inputs"].items():
        values = rng.randn(*shape) * 20 if len(shape) == 4 else np.arange(math.prod(shape)).reshape(shape) % 5
        batch[name] = torch.from_numpy(values.astype(np.float32))
    return batch


def golden_slice(blob: NDArray[Any]) -> NDArray[Any]:
    rows = blob.reshape(blob.shape[0], -1)
    return rows[:, :: max(1, rows.shape[1] // 500)][:, :500]


def assert_sums(got: torch.Tensor, expected: list[float], what: str, tolerance: float = TOLERANCE) -> None:
    total, absolute, largest = expected
    values = got.detach().double()
    assert values.sum().item() == pytest.approx(total, rel=0, abs=tolerance * absolute + 1e-12), what
    assert values.abs().sum().item() == pytest.approx(absolute, rel=tolerance), what
    assert values.abs().max().item() == pytest.approx(largest, rel=tolerance), what


def assert_close(got: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    assert got.shape == expected.shape, what
    difference = np.abs(got.astype(np.float64) - expected).max()
    assert difference <= TOLERANCE * np.abs(expected).max(), f"{what}: differs by {difference}"
