"""Every layer against what BVLC Caffe computed: forward, gradients, and parameters that the pass itself changes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.layers.registry import layer_types
from caffetools.net.device import float32_products
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "layers"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['group']}-{c['id']}")
def test_layer_gives_the_numbers_of_caffe(case: dict[str, Any]) -> None:
    check_case(case, torch.device("cpu"))


def check_case(case: dict[str, Any], device: torch.device) -> None:
    """Compute the case on ``device`` and compare all that Caffe recorded of it."""
    with np.load(FOLDER / case["npz"]) as file:
        arrays = dict(file)
    net = Net.from_file(
        FOLDER / case["prototxt"], TRAIN if case["phase"] == "TRAIN" else TEST, level=case.get("level", 0), stages=case.get("stages", ())
    )
    set_parameters(net, arrays)
    net.to(device)
    tops = [key.split(":", 1)[1] for key in arrays if key.startswith(("out:", "topdiff:", "indiff:"))]
    for step in range(case["forwards"]):
        prefix = "in:" if step == case["forwards"] - 1 else f"in{step}:"
        inputs = {
            key.removeprefix(prefix): torch.from_numpy(a).to(device).requires_grad_() for key, a in arrays.items() if key.startswith(prefix)
        }
        blobs = net({name: blob for name, blob in inputs.items() if name in net.inputs}, keep=tops)
    check_forward(net, case, arrays, blobs)
    if case["backward"]:
        check_backward(net, case, arrays, blobs, inputs)


def set_parameters(net: Net, arrays: dict[str, NDArray[Any]]) -> None:
    with torch.no_grad():
        for key, array in arrays.items():
            if key.startswith("param:"):
                _, layer, index = key.split(":")
                net.layer(layer).blobs[int(index)].copy_(torch.from_numpy(array))


def check_forward(net: Net, case: dict[str, Any], arrays: dict[str, NDArray[Any]], blobs: dict[str, torch.Tensor]) -> None:
    tolerance = case.get("forward_tolerance", case["tolerance"])
    for key, expected in arrays.items():
        if key.startswith("out:"):
            name = key.removeprefix("out:")
            assert tuple(blobs[name].shape) == expected.shape
            # How many items a Filter lets through is known only when it runs.
            assert expected.shape == net.blob_shapes[name] or "Filter" in case["layer_types"]
            np.testing.assert_allclose(blobs[name].detach().cpu().numpy(), expected, **tolerance, err_msg=key)
        elif key.startswith("paramafter:"):
            _, layer, index = key.split(":")
            np.testing.assert_allclose(
                net.layer(layer).blobs[int(index)].detach().cpu().numpy(), expected, **case["tolerance"], err_msg=key
            )
        elif key == "total_loss":
            np.testing.assert_allclose(net.total_loss(blobs).item(), expected, **case["tolerance"], err_msg=key)


def check_backward(
    net: Net,
    case: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    blobs: dict[str, torch.Tensor],
    inputs: dict[str, torch.Tensor],
) -> None:
    objective = net.total_loss(blobs)
    for name in case["top_diffs"]:
        objective = objective + (blobs[name] * torch.from_numpy(arrays[f"topdiff:{name}"]).to(blobs[name].device)).sum()
    wanted: dict[str, torch.Tensor] = {}
    for key in arrays:
        if key.startswith("indiff:"):
            name = key.removeprefix("indiff:")
            wanted[key] = inputs[name] if name in inputs else blobs[name]
        elif key.startswith("paramdiff:"):
            _, layer, index = key.split(":")
            wanted[key] = net.layer(layer).blobs[int(index)].requires_grad_()
    nothing = [None] * len(wanted)
    with float32_products(objective.device):
        gradients = torch.autograd.grad(objective, list(wanted.values()), allow_unused=True) if objective.requires_grad else nothing
    for (key, source), gradient in zip(wanted.items(), gradients, strict=True):
        got = np.zeros(tuple(source.shape), np.float32) if gradient is None else gradient.cpu().numpy()
        np.testing.assert_allclose(got, arrays[key], **case["tolerance"], err_msg=key)


def test_the_golden_cases_cover_every_layer_type_they_name() -> None:
    assert {t for case in CASES for t in case["layer_types"]} <= set(layer_types())
