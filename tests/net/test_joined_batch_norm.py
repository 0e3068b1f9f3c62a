"""BatchNorm, Scale and ReLU as one operator of torch: where the native one does not compute them, as on GPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from caffetools.layers import native_batch_norm
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from tests.layers.test_native_batch_norm import FIXED, NET

INNER = ("normed", "scaled", "two", "three", "sum")


@pytest.fixture
def torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the native operator."""
    monkeypatch.setattr(native_batch_norm, "takes", lambda _x: False)


@pytest.mark.usefixtures("torchs_own")
@pytest.mark.parametrize("edit", [("", ""), FIXED, ("bias_term: true", "")], ids=["", "one with fixed statistics", "without a shift"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_net_computes_as_its_layers_in_order(edit: tuple[str, str], half: bool) -> None:
    text = NET.replace(*edit) if edit[0] else NET
    torch.manual_seed(3)
    net = Net(parse(text, NetParameter), TRAIN)
    other = copy.deepcopy(net)
    data = torch.randn(4, 16, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        together, alone = net({"data": data}), other({"data": data}, keep=INNER)
    net.total_loss(together).backward()
    other.total_loss(alone).backward()
    near = 2e-2 if half else 1e-4
    torch.testing.assert_close(together["loss"], alone["loss"], rtol=near, atol=0, check_dtype=False)
    for one, two in zip(net.learnable, other.learnable, strict=True):
        a, b = one.parameter.grad, two.parameter.grad
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            # The gradient of a bias below a BatchNorm is 0 but for rounding; a rounded value may be another maximum of the pooling.
            assert float((a - b).norm()) <= 10 * near * max(float(b.norm()), 0.01 * float(together["loss"].detach()))
    for one_blob, two_blob in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one_blob, two_blob, rtol=near, atol=near)


def test_a_test_pass_on_another_device_joins_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device without values: the shapes, and that no layer of a chain but the first runs by itself."""
    net = Net(parse(NET, NetParameter), TEST).to("meta")
    ran: list[str] = []
    run_layer = net.run_layer

    def noted(index: int, layer: Layer, blobs: dict[str, Tensor]) -> None:
        ran.append(layer.name)
        run_layer(index, layer, blobs)

    monkeypatch.setattr(net, "run_layer", noted)
    with torch.no_grad():
        assert net({"data": torch.empty(2, 16, 24, 24, device="meta")})["loss"].shape == ()
        assert ran == ["one", "two", "three", "sum", "pool", "square", "loss"]
        ran.clear()
        # A blob in the middle that is to be seen.
        assert net({"data": torch.empty(2, 16, 24, 24, device="meta")}, keep=["normed"])["normed"].shape == (2, 32, 22, 22)
        assert ran[:4] == ["one", "norm", "scale", "relu"]
