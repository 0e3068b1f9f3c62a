"""Batch normalization with scale, shift and ReLU as one operator: values and gradients against float64, and what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import native_batch_norm, native_conv, training_conv
from caffetools.layers.training_conv import Branch, Geometry
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse

pytestmark = pytest.mark.skipif(
    not native_conv.available() or not native_conv.has_wide_vectors(), reason="the native library is not there, or has no AVX-512"
)
EPS = 1e-5


def inputs(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, scale, shift and dy. The means of channels are far from 0, against which squares would be differences of large numbers."""
    generator = torch.Generator().manual_seed(shape[1])
    x = torch.randn(shape, generator=generator) * 3 + (torch.arange(shape[1]) % 5).reshape(1, -1, 1, 1) * 5
    scale, shift = torch.randn(2, shape[1], generator=generator).unbind()
    leaves = (x.contiguous(memory_format=torch.channels_last), scale.clone(), shift.clone())
    return (*(t.requires_grad_() for t in leaves), torch.randn(shape, generator=generator))  # type: ignore[return-value]


def exact(x: Tensor, scale: Tensor | None, shift: Tensor | None, *, rectify: bool) -> Tensor:
    centred = x - x.mean((0, 2, 3), keepdim=True)
    y = centred / (centred.square().mean((0, 2, 3), keepdim=True) + EPS).sqrt()
    y = y if scale is None else y * scale.reshape(1, -1, 1, 1)
    y = y if shift is None else y + shift.reshape(1, -1, 1, 1)
    return F.relu(y) if rectify else y


@pytest.mark.parametrize("rectify", [False, True], ids=["", "ReLU"])
@pytest.mark.parametrize("shape", [(2, 1, 3, 5), (4, 3, 21, 17), (5, 24, 9, 7), (3, 65, 33, 8), (2, 512, 7, 7)])
def test_values_and_gradients(shape: tuple[int, int, int, int], rectify: bool) -> None:
    x, scale, shift, dy = inputs(shape)
    y, mean, variance = native_batch_norm.normalize(x, scale, shift, eps=EPS, rectify=rectify)
    wide = [t.detach().double().requires_grad_() for t in (x, scale, shift)]
    wanted = exact(*wide, rectify=rectify)
    # Where the sign of a value that is nearly 0 differs, ReLU's gradient does.
    dy = dy * ((y.detach() > 1e-4) == (wanted.detach() > 1e-4))
    found = [y, mean, variance, *torch.autograd.grad(y, [x, scale, shift], dy)]
    moments = [wide[0].mean((0, 2, 3)), wide[0].transpose(0, 1).flatten(1).var(1)]
    for value, number in zip(found, [wanted, *moments, *torch.autograd.grad(wanted, wide, dy.double())], strict=True):
        assert bool((value - number).abs().max() <= 1e-5 * number.abs().max())


def test_without_scale_and_shift() -> None:
    x, _scale, shift, dy = inputs((3, 20, 6, 5))
    for term in (None, shift):
        y, _, _ = native_batch_norm.normalize(x, None, term, eps=EPS, rectify=False)
        wide = x.detach().double().requires_grad_()
        wanted = exact(wide, None, None if term is None else term.detach().double(), rectify=False)
        (found,), (number,) = torch.autograd.grad(y, [x], dy), torch.autograd.grad(wanted, [wide], dy.double())
        assert bool((y - wanted).abs().max() <= 1e-5)
        assert bool((found - number).abs().max() <= 1e-5 * number.abs().max())


def test_the_number_of_threads_changes_no_bit() -> None:
    x, scale, shift, dy = inputs((4, 40, 31, 29))
    threads = torch.get_num_threads()

    def computed(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        try:
            y, mean, variance = native_batch_norm.normalize(x, scale, shift, eps=EPS, rectify=True)
            return [y.detach(), mean, variance, *torch.autograd.grad(y, [x, scale, shift], dy)]
        finally:
            torch.set_num_threads(threads)

    for one, other in zip(computed(1), computed(2), strict=True):
        assert torch.equal(one, other)


def test_it_can_be_differentiated_twice() -> None:
    x, scale, shift, dy = inputs((2, 6, 5, 4))

    def second(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(y, leaves, dy.to(y.dtype), create_graph=True)
        total = sum((part.square().sum() for part in first), torch.zeros(()))
        return list(torch.autograd.grad(total, leaves, materialize_grads=True))

    y, _, _ = native_batch_norm.normalize(x, scale, shift, eps=EPS, rectify=True)
    wide = [t.detach().double().requires_grad_() for t in (x, scale, shift)]
    for one, other in zip(second(y, [x, scale, shift]), second(exact(*wide, rectify=True), wide), strict=True):
        assert bool((one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("changed", [False, True], ids=["", "changed in place"])
def test_a_convolution_above_keeps_no_copy_of_the_result(changed: bool) -> None:
    """But for one that a layer has changed in place since."""
    x, scale, shift, _dy = inputs((4, 16, 24, 24))
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y, _, _ = native_batch_norm.normalize(x, scale, shift, eps=EPS, rectify=True)
    if changed:
        with torch.no_grad():
            y.mul_(2)
    values = y.detach().clone()
    place = Geometry((1, 1), (1, 1), (1, 1), 1)
    top = training_conv.convolve([Branch(y, weight, None, place)], rectify=False)
    pointer = y.data_ptr()
    assert (top.grad_fn.saved_tensors[0].data_ptr() == pointer) == changed
    plain = training_conv.convolve([Branch(values, weight, None, place)], rectify=False)
    dy = torch.randn(top.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(torch.autograd.grad(top, [weight], dy), torch.autograd.grad(plain, [weight], dy), strict=True):
        assert torch.equal(one, other)


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 16 dim: 24 dim: 24 } } }
layer { name: "one" type: "Convolution" bottom: "data" top: "one"
  convolution_param { num_output: 32 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "norm" type: "BatchNorm" bottom: "one" top: "normed" }
layer { name: "scale" type: "Scale" bottom: "normed" top: "scaled" scale_param { bias_term: true filler { type: "uniform" min: -1 max: 2 }
  bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "scaled" top: "scaled" }
layer { name: "two" type: "Convolution" bottom: "scaled" top: "two"
  convolution_param { num_output: 24 kernel_size: 3 pad: 1 bias_term: false weight_filler { type: "msra" } } }
layer { name: "norm2" type: "BatchNorm" bottom: "two" top: "two" }
layer { name: "relu2" type: "ReLU" bottom: "two" top: "two" }
layer { name: "three" type: "Convolution" bottom: "two" top: "three"
  convolution_param { num_output: 32 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "sum" type: "Eltwise" bottom: "three" bottom: "scaled" top: "sum" }
layer { name: "norm3" type: "BatchNorm" bottom: "sum" top: "sum" }
layer { name: "scale3" type: "Scale" bottom: "sum" top: "sum" }
layer { name: "relu3" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "square" type: "Power" bottom: "pool" top: "square" power_param { power: 2 } }
layer { name: "loss" type: "Reduction" bottom: "square" top: "loss" loss_weight: 1 }
"""


FIXED = ('"norm2" type: "BatchNorm"', '"norm2" type: "BatchNorm" batch_norm_param { use_global_stats: true }')


@pytest.mark.parametrize("edit", [("", ""), FIXED], ids=["", "one with fixed statistics"])
def test_a_net_computes_as_its_layers_in_order(edit: tuple[str, str]) -> None:
    """The last maximum that a pooling finds may be another one where values are nearly equal, so that weights are compared by their norm."""
    text = NET.replace(*edit) if edit[0] else NET
    torch.manual_seed(3)
    net = Net(parse(text, NetParameter), TRAIN)
    other = copy.deepcopy(net)
    data = torch.randn(4, 16, 24, 24, generator=torch.Generator().manual_seed(1))
    together = net({"data": data})
    net.total_loss(together).backward()
    # A blob in the middle that is to be seen: the layers run one by one.
    alone = other({"data": data}, keep=("normed", "scaled", "two", "three", "sum"))
    other.total_loss(alone).backward()
    torch.testing.assert_close(together["loss"], alone["loss"], rtol=1e-5, atol=0)
    for one, two in zip(net.learnable, other.learnable, strict=True):
        a, b = one.parameter.grad, two.parameter.grad
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            # The gradient of a bias below a BatchNorm is 0 but for rounding.
            assert float((a - b).norm()) <= 1e-4 * max(float(b.norm()), 0.01 * float(together["loss"].detach()))
    for one, two in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_what_it_leaves_to_torch() -> None:
    assert native_batch_norm.takes(torch.zeros(2, 3, 4, 4))
    assert not native_batch_norm.takes(torch.zeros(1, 3, 1, 1))
    assert not native_batch_norm.takes(torch.zeros(2, 3, 4))
    assert not native_batch_norm.takes(torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert not native_batch_norm.takes(torch.zeros(0, 3, 4, 4))
    with torch.autocast("cpu"):
        assert not native_batch_norm.takes(torch.zeros(2, 3, 4, 4))
