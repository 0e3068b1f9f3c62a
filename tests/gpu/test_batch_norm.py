"""On a GPU: BatchNorm, Scale and ReLU as one operator, in training, in passes without gradients, and in half precision."""

from __future__ import annotations

import copy

import pytest
import torch

from caffetools.net.net import Net
from caffetools.net.precision import set_precision
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from tests.layers.test_native_batch_norm import FIXED, NET

DATA = torch.randn(4, 16, 24, 24, generator=torch.Generator().manual_seed(1))


def made(phase: int, edit: tuple[str, str] = ("", "")) -> Net:
    """The net, with statistics of some batches."""
    torch.manual_seed(3)
    net = Net(parse(NET.replace(*edit) if edit[0] else NET, NetParameter), TRAIN)
    with torch.no_grad():
        for _ in range(2):
            net({"data": DATA})
    other = Net(net.full_param, phase)
    other.load_state_dict(net.state_dict())
    return other


@pytest.mark.parametrize("edit", [("", ""), FIXED, ("bias_term: true", "")], ids=["", "one with fixed statistics", "without a shift"])
def test_training_agrees_with_the_cpus(edit: tuple[str, str], device: torch.device) -> None:
    cpu = made(TRAIN, edit)
    gpu = copy.deepcopy(cpu).to(device)
    blobs, others = cpu({"data": DATA}), gpu({"data": DATA.to(device)})
    torch.testing.assert_close(others["loss"].cpu(), blobs["loss"], rtol=1e-5, atol=0)
    cpu.total_loss(blobs).backward()
    gpu.total_loss(others).backward()
    for one, two in zip(cpu.learnable, gpu.learnable, strict=True):
        a, b = one.parameter.grad, two.parameter.grad
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert float((a - b.cpu()).norm()) <= 1e-3 * max(float(a.norm()), 0.01 * float(blobs["loss"].detach()))
    for ours, theirs in zip(cpu.state_dict().values(), gpu.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mode", "near"), [("fp32", 1e-5), ("tf32", 2e-3), ("bf16", 2e-2), ("fp16", 2e-3)])
def test_a_pass_without_gradients_agrees_with_the_cpus(mode: str, near: float, device: torch.device) -> None:
    cpu = made(TEST)
    gpu = set_precision(copy.deepcopy(cpu).to(device), mode)
    with torch.no_grad():
        wanted = cpu({"data": DATA}, keep=["pool"])["pool"]
        for _ in range(4):
            found = gpu({"data": DATA.to(device)}, keep=["pool"])["pool"]
            assert float((found.cpu() - wanted).norm()) <= near * float(wanted.norm())
