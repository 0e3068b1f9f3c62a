"""Convolutions in training by the native library: values and gradients against torch's in float64, alone and several as one blob."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference, native_conv, native_product, training_conv
from caffetools.layers.training_conv import Branch, Geometry
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse

pytestmark = pytest.mark.skipif(
    not native_conv.available() or not native_conv.has_wide_vectors(), reason="the native library is not there, or has no AVX-512"
)


def plain(kernel: int, *, stride: int = 1, pad: int = 0, dilation: int = 1, groups: int = 1) -> tuple[int, Geometry]:
    return kernel, Geometry((stride, stride), (pad, pad), (dilation, dilation), groups)


def branch_of(x: Tensor, outputs: int, form: tuple[int, Geometry], *, bias: bool, seed: int) -> Branch:
    generator = torch.Generator().manual_seed(seed)
    kernel, geometry = form
    weight = torch.randn(outputs, x.shape[1] // geometry.groups, kernel, kernel, generator=generator)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    return Branch(x, weight, torch.randn(outputs, generator=generator).requires_grad_() if bias else None, geometry)


def reference(branch: Branch) -> tuple[Tensor, list[Tensor]]:
    """Return the output in float64, and the tensors whose gradients are compared."""
    inputs = [t.detach().double().requires_grad_() for t in (branch.x, branch.weight, branch.bias) if t is not None]
    g = branch.geometry
    bias = inputs[2] if len(inputs) > 2 else None
    return F.conv2d(inputs[0], inputs[1], bias, g.stride, g.pad, g.dilation, g.groups), inputs


# Kernels and channels for which each of the algorithms is chosen, forward or backward, and those that torch computes in part.
FORMS = [
    (48, 64, plain(1)),
    (16, 96, plain(3, pad=1)),
    (96, 48, plain(3, pad=1)),
    (32, 80, plain(5, pad=2, groups=2)),
    (40, 72, plain(3, pad=2, dilation=2)),
    (24, 65, plain(3, stride=2, pad=1)),
    (64, 64, plain(3, pad=1, groups=4)),
    (16, 130, plain(1, pad=1)),
    (128, 128, plain(1, stride=2)),
    (16, 64, plain(7, stride=2, pad=3)),
    (64, 128, plain(2, stride=3, pad=1)),
    (64, 128, plain(5, stride=4, pad=2, groups=2)),
    (3, 192, plain(5, stride=2, pad=1)),
]


@pytest.mark.parametrize("rectify", [False, True], ids=["", "ReLU"])
@pytest.mark.parametrize(("c", "outputs", "form"), FORMS, ids=[f"{c}-{o}-{f[0]}" for c, o, f in FORMS])
def test_values_and_gradients(c: int, outputs: int, form: tuple[int, Geometry], rectify: bool) -> None:
    x = torch.randn(5, c, 21, 17, generator=torch.Generator().manual_seed(c)).contiguous(memory_format=torch.channels_last).requires_grad_()
    branch = branch_of(x, outputs, form, bias=c != 16, seed=outputs)
    assert training_conv.takes(branch)
    y = training_conv.convolve([branch], rectify=rectify)
    wanted, inputs = reference(branch)
    wanted = F.relu(wanted) if rectify else wanted
    assert y.shape == wanted.shape
    # Where the sign of a value that is nearly 0 differs, ReLU's gradient does.
    clear = (y.detach() > 1e-3) == (wanted.detach() > 1e-3)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)) * clear
    own = [t for t in (branch.x, branch.weight, branch.bias) if t is not None]
    found, exact = [y, *torch.autograd.grad(y, own, dy)], [wanted, *torch.autograd.grad(wanted, inputs, dy.double())]
    for value, number in zip(found, exact, strict=True):
        assert bool((value - number).abs().max() <= 3e-6 * number.abs().max())


def joined() -> tuple[Tensor, list[Branch]]:
    x = (
        torch.randn(4, 32, 14, 14, generator=torch.Generator().manual_seed(1))
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    forms = [(37, plain(1)), (48, plain(3, pad=1)), (16, plain(5, pad=2))]
    return x, [branch_of(x, outputs, form, bias=outputs != 48, seed=outputs) for outputs, form in forms]


@pytest.mark.parametrize("rectify", [False, True], ids=["", "ReLU"])
def test_several_convolutions_have_the_bits_of_each_alone(rectify: bool) -> None:
    _x, branches = joined()
    y = training_conv.convolve(branches, rectify=rectify)
    alone = [training_conv.convolve([branch], rectify=False) for branch in branches]
    wanted = torch.cat([F.relu(part) for part in alone] if rectify else alone, 1)
    assert torch.equal(y, wanted)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    weights = [t for branch in branches for t in (branch.weight, branch.bias) if t is not None]
    for one, other in zip(torch.autograd.grad(y, weights, dy), torch.autograd.grad(wanted, weights, dy, retain_graph=True), strict=True):
        assert torch.equal(one, other)


def test_the_number_of_threads_changes_no_bit() -> None:
    x, branches = joined()
    threads = torch.get_num_threads()

    def computed(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        try:
            y = training_conv.convolve(branches, rectify=True)
            learned = [t for branch in branches for t in (branch.weight, branch.bias) if t is not None]
            return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *learned])]
        finally:
            torch.set_num_threads(threads)

    for one, other in zip(computed(1), computed(2), strict=True):
        assert torch.equal(one, other)


def test_it_can_be_differentiated_twice() -> None:
    x, branches = joined()

    def second(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad((y**2).sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum((part.square().sum() for part in first), torch.zeros(())), inputs))

    own = [x, *(branch.weight for branch in branches)]
    found = second(training_conv.convolve(branches, rectify=True), own)
    parts = [F.conv2d(x, b.weight, b.bias, b.geometry.stride, b.geometry.pad) for b in branches]
    for one, other in zip(found, second(F.relu(torch.cat(parts, 1)), own), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


# Of few channels, and of other sizes than FORMS for each way in which the sums by vectors are divided.
WEIGHTS = [
    *FORMS,
    (3, 70, plain(3, stride=2)),
    (3, 64, plain(7, stride=2, pad=3)),
    (4, 40, plain(3, pad=3)),
    (5, 7, plain(3, pad=1)),
    (3, 33, plain(4, pad=1, dilation=2)),
    (8, 9, plain(5, stride=3, pad=4)),
    (64, 128, plain(1, stride=2)),
    (33, 47, plain(2)),
    (3, 5, plain(1)),
]


@pytest.mark.parametrize("algorithm", [1, 8], ids=["vectors", "matrix unit"])
@pytest.mark.parametrize(("c", "outputs", "form"), WEIGHTS, ids=[f"{c}-{o}-{f[0]}" for c, o, f in WEIGHTS])
def test_gradient_of_the_weights(c: int, outputs: int, form: tuple[int, Geometry], algorithm: int) -> None:
    """Several bands or chunks of pixels, and convolutions for which it is not the fastest way."""
    x = torch.randn(11, c, 21, 17, generator=torch.Generator().manual_seed(c)).contiguous(memory_format=torch.channels_last)
    branch = branch_of(x, outputs, form, bias=False, seed=outputs)
    wanted, inputs = reference(branch)
    dy = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)).contiguous(memory_format=torch.channels_last)
    g = branch.geometry
    conv = inference.Conv(branch.weight, None, g.stride, g.pad, g.dilation, g.groups)
    found = native_conv.weight_gradient(conv, x, dy, algorithm=algorithm)
    if found is None:
        assert algorithm == 8 and (g.stride != (1, 1) or g.pad[0] >= form[0] or c < 16 or not has_matrix_unit())
        return
    (exact,) = torch.autograd.grad(wanted, inputs[1], dy.double())
    assert bool((found - exact).abs().max() <= 3e-6 * exact.abs().max())


def has_matrix_unit() -> bool:
    form, layout = inference.Conv(torch.zeros(512, 512, 1, 1), None, (1, 1), (0, 0), (1, 1), 1), (16, 512, 28, 28)
    return native_conv.choice(form, native_conv.Layout(layout, layout, 512, 512)) == 8


def test_a_large_inner_product_in_training() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 1030), (1024, 1030), (1024,)))
    assert native_product.takes(x.relu(), weight, gradient=True)
    assert not native_product.takes(x.relu(), weight[:1000], gradient=True)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    y, wanted = native_product.multiply_in_training(x, weight, bias), F.linear(wide[0], wide[1], wide[2])
    dy = torch.randn(y.shape, generator=generator)
    found = [y, *torch.autograd.grad(y, [x, weight, bias], dy)]
    for value, exact in zip(found, [wanted, *torch.autograd.grad(wanted, wide, dy.double())], strict=True):
        assert bool((value - exact).abs().max() <= 3e-6 * exact.abs().max())


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 16 dim: 24 dim: 24 } } }
layer { name: "stem" type: "Convolution" bottom: "data" top: "stem"
  convolution_param { num_output: 32 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "stem" top: "stem" }
layer { name: "one" type: "Convolution" bottom: "stem" top: "one"
  convolution_param { num_output: 48 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "relu1" type: "ReLU" bottom: "one" top: "rectified" }
layer { name: "two" type: "Convolution" bottom: "stem" top: "two"
  convolution_param { num_output: 40 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "relu2" type: "ReLU" bottom: "two" top: "two" }
layer { name: "both" type: "Concat" bottom: "rectified" bottom: "two" top: "both" }
layer { name: "drop" type: "Dropout" bottom: "both" top: "both" dropout_param { dropout_ratio: 0.25 } }
layer { name: "top" type: "Convolution" bottom: "both" top: "top"
  convolution_param { num_output: 32 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "relu3" type: "ReLU" bottom: "top" top: "top" }
layer { name: "pool" type: "Pooling" bottom: "top" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "square" type: "Power" bottom: "pool" top: "square" power_param { power: 2 } }
layer { name: "loss" type: "Reduction" bottom: "square" top: "loss" loss_weight: 1 }
"""


@pytest.mark.parametrize(
    "edit", [("", ""), ("num_output: 48", "num_output: 1"), ('top: "rectified" }', 'top: "rectified" propagate_down: false }')]
)
def test_joined_layers_have_the_bits_of_layers_in_order(edit: tuple[str, str]) -> None:
    """Where each is taken, where one of a concatenation is not, and where one has no gradient."""

    def gradients(keep: tuple[str, ...]) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        torch.manual_seed(3)
        net = Net(parse(NET.replace(*edit) if edit[0] else NET, NetParameter), TRAIN)
        data = torch.randn(4, 16, 24, 24, generator=torch.Generator().manual_seed(1))
        blobs = net({"data": data}, keep=keep)
        net.total_loss(blobs).backward()
        return blobs, [entry.parameter.grad for entry in net.learnable]

    blobs, found = gradients(())
    ordered, wanted = gradients(("one", "two", "top", "stem", "both"))
    assert torch.equal(blobs["loss"], ordered["loss"])
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
    assert float(ordered["stem"].detach().min()) == 0


def test_what_it_leaves_to_torch() -> None:
    x = torch.zeros(4, 16, 24, 24)
    assert training_conv.takes(branch_of(x, 64, plain(3), bias=True, seed=1))
    assert not training_conv.takes(branch_of(x.double(), 64, plain(3), bias=True, seed=1))
    first = torch.zeros(4, 3, 48, 48)
    assert training_conv.takes(branch_of(first, 64, plain(3), bias=True, seed=1))
    assert not training_conv.takes(branch_of(torch.zeros(4, 6, 48, 48), 64, plain(3, groups=2), bias=True, seed=1))
    assert not training_conv.takes(branch_of(x[:1], 2, plain(3), bias=True, seed=1))
    with torch.autocast("cpu"):
        assert not training_conv.takes(branch_of(x, 64, plain(3), bias=True, seed=1))


@pytest.mark.parametrize(("c", "outputs", "form"), FORMS, ids=[f"{c}-{o}-{f[0]}" for c, o, f in FORMS])
def test_passes_that_are_counted_as_native_are(c: int, outputs: int, form: tuple[int, Geometry], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, c, 21, 17).contiguous(memory_format=torch.channels_last).requires_grad_()
    branch = branch_of(x, outputs, form, bias=False, seed=outputs)
    by_torch: list[Tensor] = []
    backward = training_conv._backward

    def counted(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]) -> list[Tensor | None]:
        by_torch.append(dy)
        return backward(dy, x, weight, geometry, wanted)

    monkeypatch.setattr(training_conv, "_backward", counted)
    training_conv.convolve([branch], rectify=True).sum().backward()
    assert training_conv.native_passes(x.shape, branch.weight.shape, branch.geometry, gradient=True) == 3 - len(by_torch)
