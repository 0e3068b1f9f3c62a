"""ReLU and max pooling in training: the native kernels have the bits of torch's, on every layout and instruction set, and keep little."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from caffetools.layers import native, native_training
from caffetools.layers.base import Layer
from caffetools.layers.pooling import Window
from caffetools.net.net import Net
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.proto.text import parse

LAYOUTS = ["NCHW", "channels-last", "slice of channels", "stepped", "expanded"]


@pytest.fixture(params=range(3), ids=["baseline", "AVX2", "AVX-512"])
def variant(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    """The library with the kernels of one instruction set."""
    library = native.kernels()
    if library is None or not native.enabled():
        pytest.skip(native.status())
    if not library.caffetools_native_use(request.param):
        library.caffetools_native_use(3)
        pytest.skip("this processor does not have the instruction set")
    yield library
    library.caffetools_native_use(3)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """Return ``values`` (N, C, H, W) in a memory layout."""
    n, c, h, w = values.shape
    if layout == "NCHW":
        return values.contiguous()
    last = values.contiguous(memory_format=torch.channels_last)
    if layout == "channels-last":
        return last
    if layout == "slice of channels":
        return torch.cat([last, last, last], 1)[:, c : 2 * c]
    if layout == "stepped":
        return torch.stack([values, values], -1)[..., 0]
    return values[:, :, :1].expand(n, c, h, w)


@st.composite
def blobs(draw: Any) -> tuple[Tensor, Tensor]:
    """x and dy of a shape in some layouts: few distinct values, with zeros of both signs, infinities and NaN."""
    shape = tuple(draw(st.integers(1, most)) for most in (3, 70, 9, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    pool = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, float("inf"), -float("inf"), float("nan")])
    distinct = draw(st.sampled_from([3, 6, 8, 9]))
    x = pool[torch.randint(0, distinct, shape, generator=generator)]
    if draw(st.booleans()):
        x = torch.randn(shape, generator=generator)
    dy = torch.randn(shape, generator=generator)
    return laid_out(x, draw(st.sampled_from(LAYOUTS))), laid_out(dy, draw(st.sampled_from(LAYOUTS)))


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@given(blobs(), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_relu_has_the_bits_of_torch(variant: ctypes.CDLL, pair: tuple[Tensor, Tensor], in_place: bool) -> None:
    x, dy = pair
    mine, theirs = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.clone().requires_grad_()
    held = mine * 1.0 if in_place else mine
    y, wanted = native_training.rectify(held, in_place=in_place), F.relu(theirs)
    same(y, wanted)
    same(torch.autograd.grad(y, mine, dy)[0], torch.autograd.grad(wanted, theirs, dy)[0])


@st.composite
def poolings(draw: Any) -> tuple[Tensor, Tensor, Window]:
    """x, dy and a window that torch's pooling has, too."""
    x, _ = draw(blobs())
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    kernel = tuple(min(draw(st.integers(1, 4)), size) for size in x.shape[2:])
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    pad = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    window = Window.over(tuple(x.shape[2:]), kernel, stride, pad)
    dy = torch.randn(*x.shape[:2], *window.output, generator=torch.Generator().manual_seed(1))
    return x, laid_out(dy, draw(st.sampled_from(LAYOUTS))), window


@given(poolings(), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_max_pooling_has_the_bits_of_torch(variant: ctypes.CDLL, problem: tuple[Tensor, Tensor, Window], rectify: bool) -> None:
    x, dy, window = problem
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = native_training.max_pool(mine, window.kernel, window.stride, window.pad, window.output, rectify=rectify)
    ceil_mode = window.ceil_mode
    assert ceil_mode is not None
    # A ReLU before the pooling, of which the pooling applies one after it.
    wanted = F.max_pool2d(F.relu(theirs) if rectify else theirs, window.kernel, window.stride, window.pad, ceil_mode=ceil_mode)
    same(y, wanted)
    same(torch.autograd.grad(y, mine, dy)[0], torch.autograd.grad(wanted, theirs, dy)[0])


def test_relu_can_be_differentiated_twice() -> None:
    if not native_training.takes(torch.ones(1, requires_grad=True)):
        pytest.skip(native.status())
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def second(relu: Any) -> Tensor:
        (first,) = torch.autograd.grad((relu(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    same(second(lambda value: native_training.rectify(value, in_place=False)), second(F.relu))


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 32 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "one" type: "Convolution" bottom: "pool" top: "one" convolution_param { num_output: 16 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "relu1" type: "ReLU" bottom: "one" top: "one" }
layer { name: "two" type: "Convolution" bottom: "pool" top: "two" convolution_param { num_output: 16 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "relu2" type: "ReLU" bottom: "two" top: "two" }
layer { name: "both" type: "Concat" bottom: "one" bottom: "two" top: "both" }
layer { name: "loss" type: "Reduction" bottom: "both" top: "loss" loss_weight: 1 }
"""


def test_a_net_keeps_neither_tops_of_relu_nor_bottoms_of_pooling() -> None:
    if not native_training.takes(torch.ones(1, requires_grad=True)):
        pytest.skip(native.status())
    net = Net(parse(NET, NetParameter), TRAIN)
    data = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    kept: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.total_loss(net({"data": data}))
    shapes = {name: net.blob_shapes[name] for name in ("conv", "pool", "one", "two")}
    floats = [shape for dtype, shape in kept if dtype == torch.float32]
    assert shapes["conv"] not in floats and shapes["one"] not in floats
    assert shapes["pool"] in floats, "the convolutions above need it"
    assert not any(dtype == torch.int64 for dtype, _ in kept)
    assert (torch.uint8, shapes["pool"]) in kept


# A ReLU right below a pooling, and two below a concatenation below one.
LATE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 15 dim: 15 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "one" type: "Convolution" bottom: "pool" top: "one" convolution_param { num_output: 16 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "relu1" type: "ReLU" bottom: "one" top: "rectified" }
layer { name: "two" type: "Convolution" bottom: "pool" top: "two" convolution_param { num_output: 9 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "relu2" type: "ReLU" bottom: "two" top: "two" }
layer { name: "both" type: "Concat" bottom: "rectified" bottom: "two" top: "both" }
layer { name: "pool2" type: "Pooling" bottom: "both" top: "pool2" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "square" type: "Power" bottom: "pool2" top: "square" power_param { power: 2 } }
layer { name: "loss" type: "Reduction" bottom: "square" top: "loss" loss_weight: 1 }
"""


def late(edit: tuple[str, str] = ("", "")) -> tuple[Net, dict[str, int]]:
    """Return a net, and how often each of its ReLU layers runs in the passes that follow."""
    torch.manual_seed(3)
    net = Net(parse(LATE.replace(*edit) if edit[0] else LATE, NetParameter), TRAIN)
    runs = {layer.name: 0 for layer in net.layers if layer.type_name == "ReLU"}

    def counting(layer: Layer) -> None:
        forward = layer.forward

        def counted(x: Tensor) -> Tensor:
            runs[layer.name] += 1
            result: Tensor = forward(x)
            return result

        layer.forward = counted

    for layer in net.layers:
        if layer.type_name == "ReLU":
            counting(layer)
    return net, runs


def gradients_of(net: Net, keep: tuple[str, ...] = ()) -> list[Tensor]:
    data = torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    net.total_loss(net({"data": data}, keep=keep)).backward()
    return [gradient for entry in net.learnable if (gradient := entry.parameter.grad) is not None]


def test_a_relu_below_a_pooling_runs_after_it_with_the_same_bits() -> None:
    net, runs = late()
    found = gradients_of(net)
    assert runs == {"relu": 0, "relu1": 0, "relu2": 0}
    ordered, counts = late()
    wanted = gradients_of(ordered, keep=("conv", "both"))
    assert counts == {"relu": 1, "relu1": 1, "relu2": 1}
    assert len(found) == len(wanted) == 6
    for one, other in zip(found, wanted, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    "edit",
    [
        ('bottom: "conv" top: "pool"', 'bottom: "conv" top: "pool" top: "mask"'),
        ('name: "relu" type: "ReLU"', 'name: "relu" type: "ReLU" relu_param { negative_slope: 0.1 }'),
        ('name: "relu" type: "ReLU"', 'name: "relu" type: "ReLU" propagate_down: false'),
        ("kernel_size: 3 stride: 2", "kernel_size: 3 stride: 2 pool: AVE"),
    ],
    ids=["mask", "slope", "no gradient", "mean"],
)
def test_a_relu_that_cannot_run_later_runs_in_its_place(edit: tuple[str, str]) -> None:
    net, runs = late(edit)
    gradients_of(net)
    assert runs == {"relu": 1, "relu1": 0, "relu2": 0}


def test_hooks_see_what_a_relu_made() -> None:
    net, runs = late()
    seen: list[Tensor] = []
    net.layer("relu").register_forward_hook(lambda layer, bottoms, top: seen.append(top))
    gradients_of(net)
    assert runs == {"relu": 1, "relu1": 0, "relu2": 0}
    assert float(seen[0].detach().min()) == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sum_has_torchs_bits_and_passes_its_gradient_to_both(channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    a, b = (torch.randn(2, 5, 41, 43).contiguous(memory_format=form).requires_grad_() for _ in range(2))
    assert native_training.adds(a, b)
    y = native_training.add(a, b)
    assert y.stride() == a.stride()
    assert torch.equal(y, a + b)
    dy = torch.randn_like(y)
    assert all(torch.equal(gradient, dy) for gradient in torch.autograd.grad(y, (a, b), dy))
    assert not native_training.adds(a, b.permute(0, 1, 3, 2))
