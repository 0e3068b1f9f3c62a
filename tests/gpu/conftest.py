"""Tests that need a CUDA device: marked ``gpu``, left out of ``make test``, run by ``make gpu``."""

from __future__ import annotations

import pytest
import torch

from caffetools.net.net import Net
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net
from caffetools.zoo.networks import prototxt_path
from tests.net.test_golden_nets import golden_weights


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    """The first CUDA device."""
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    return torch.device("cuda", 0)


def random_net(model: str) -> Net:
    """A deploy net of the zoo with weights under which its outputs differ from picture to picture."""
    net = Net(read_net(prototxt_path(model, "deploy")), TEST, fill=False)
    with torch.no_grad():
        for layer in net.layers:
            for index, blob in enumerate(layer.blobs):
                blob.copy_(torch.from_numpy(golden_weights(layer.name, index, tuple(blob.shape), 1.0)))
    return net
