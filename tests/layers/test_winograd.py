"""Winograd's convolution in training: values and all gradients against torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from caffetools.layers import native_conv, winograd

pytestmark = pytest.mark.skipif(not native_conv.available(), reason="the native library is not there")


@pytest.mark.parametrize(("n", "c", "h", "w", "outputs", "pad"), [(3, 32, 17, 13, 40, 1), (7, 33, 14, 14, 32, 0), (1, 48, 30, 31, 35, 2)])
def test_values_and_gradients(n: int, c: int, h: int, w: int, outputs: int, pad: int) -> None:
    generator = torch.Generator().manual_seed(n * c)
    x = torch.randn(n, c, h, w, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(outputs, c, 3, 3, generator=generator), torch.randn(outputs, generator=generator)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y, expected = winograd.convolve(x, weight, bias, pad), F.conv2d(wide[0], wide[1], wide[2], padding=pad)
    dy = torch.randn(y.shape, generator=generator)
    found = [y, *torch.autograd.grad(y, inputs, dy)]
    exact = [expected, *torch.autograd.grad(expected, wide, dy.double())]
    for value, reference in zip(found, exact, strict=True):
        assert bool((value - reference).abs().max() <= 3e-6 * reference.abs().max())


# Outputs, channels and side of convolutions of GoogLeNet, then of SqueezeNet, whose transforms cost as much as they save.
@pytest.mark.parametrize(
    ("outputs", "c", "side", "taken"),
    [(192, 64, 56, True), (128, 96, 28, True), (208, 96, 14, True), (320, 160, 7, True), (128, 32, 28, False), (256, 64, 14, False)],
)
def test_it_takes_what_it_computes_faster(outputs: int, c: int, side: int, taken: bool) -> None:
    x, weight = torch.zeros(16, c, side, side), torch.zeros(outputs, c, 3, 3)
    assert winograd.takes(x, weight, (1, 1), (1, 1), (1, 1), 1) is taken


# Channels that fill panels of 32 and that do not; the second has tiles for several parts, the last for fewer than a thread's.
@pytest.mark.parametrize(("n", "c", "outputs", "side", "pad"), [(5, 6, 7, 9, 1), (9, 64, 40, 30, 1), (2, 33, 65, 14, 0), (1, 32, 64, 5, 2)])
def test_gradient_of_weights(n: int, c: int, outputs: int, side: int, pad: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, c, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    dy = torch.randn(n, outputs, *[side + 2 * pad - 2] * 2, generator=generator).contiguous(memory_format=torch.channels_last)
    found = winograd.weight_gradient(x, dy, pad)
    weight = torch.zeros(outputs, c, 3, 3, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(F.conv2d(x.double(), weight, padding=pad), weight, dy.double())
    assert found.shape == exact.shape
    assert bool((found - exact).abs().max() <= 3e-6 * exact.abs().max())


def test_gradient_of_weights_has_the_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(1)
    x, dy = (torch.randn(8, channels, 17, 17).contiguous(memory_format=torch.channels_last) for channels in (48, 72))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = winograd.weight_gradient(x, dy, 1)
        torch.set_num_threads(3)
        assert torch.equal(winograd.weight_gradient(x, dy, 1), alone)
    finally:
        torch.set_num_threads(threads)


def test_gradients_of_weights_that_it_takes_of_convolutions_that_it_leaves() -> None:
    x, weight = torch.zeros(16, 32, 28, 28), torch.zeros(128, 32, 3, 3)
    assert not winograd.takes(x, weight, (1, 1), (1, 1), (1, 1), 1)
    assert winograd.takes(x, weight, (1, 1), (1, 1), (1, 1), 1, gradient=True)
    assert not winograd.takes(x[:, :8], weight[:, :8], (1, 1), (1, 1), (1, 1), 1, gradient=True)


def test_what_it_leaves_to_torch() -> None:
    x, weight = torch.zeros(4, 128, 20, 20), torch.zeros(128, 128, 3, 3)
    assert not winograd.takes(x, weight, (2, 2), (1, 1), (1, 1), 1)
    assert not winograd.takes(x, weight, (1, 1), (1, 1), (2, 2), 1)
    assert not winograd.takes(x, torch.zeros(128, 64, 3, 3), (1, 1), (1, 1), (1, 1), 2)
    assert not winograd.takes(x.double(), weight.double(), (1, 1), (1, 1), (1, 1), 1)
    assert not winograd.takes(x[:, :3], torch.zeros(128, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1)
