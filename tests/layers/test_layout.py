"""Memory layout changes nothing but speed: the same numbers from channels-last maps, and channels-last maps out of hot layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caffetools.layers.lrn import _sum_around, banded_sum
from caffetools.proto.schema import TRAIN
from tests.layers.helpers import one_layer

X = (2, 6, 9, 8)
HOT = {
    "max": 'type: "Pooling" pooling_param { kernel_size: 3 stride: 2 }',
    "max_pad": 'type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 1 }',
    "ave": 'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 }',
    "global": 'type: "Pooling" pooling_param { pool: AVE global_pooling: true }',
    "lrn": 'type: "LRN" lrn_param { local_size: 5 alpha: 0.5 }',
    "lrn_within": 'type: "LRN" lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }',
    "relu": 'type: "ReLU"',
    "leaky": 'type: "ReLU" relu_param { negative_slope: 0.1 }',
    "prelu": 'type: "PReLU"',
    "softmax": 'type: "Softmax"',
    "batch_norm": 'type: "BatchNorm"',
    "scale": 'type: "Scale" scale_param { bias_term: true }',
    "bias": 'type: "Bias"',
    "power": 'type: "Power" power_param { power: 2 scale: 0.5 shift: 1 }',
    "conv": 'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }',
}
COLD = {
    "inner_product": 'type: "InnerProduct" inner_product_param { num_output: 4 weight_filler { type: "xavier" } }',
    "flatten": 'type: "Flatten"',
    "reshape": 'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 4 } }',
    "mask_overhang": 'type: "Pooling" pooling_param { kernel_size: 4 stride: 3 pad: 3 }',
    "stochastic": 'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }',
    "spp": 'type: "SPP" spp_param { pyramid_height: 2 }',
    "mvn": 'type: "MVN"',
    "argmax": 'type: "ArgMax" argmax_param { axis: 1 top_k: 2 }',
    "reduction": 'type: "Reduction" reduction_param { axis: 1 operation: SUMSQ }',
    "im2col": 'type: "Im2col" convolution_param { kernel_size: 3 }',
    "tile": 'type: "Tile" tile_param { tiles: 2 }',
}
COLD_WITHOUT_GRADIENT = {"argmax"}


def data(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape)


def run(text: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
    layer = one_layer(text, tuple(x.shape))
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    if not y.requires_grad:
        return y, None
    torch.manual_seed(2)
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("name", [*HOT, *COLD])
def test_the_numbers_do_not_depend_on_the_layout(name: str) -> None:
    text, x = {**HOT, **COLD}[name], data(*X)
    y, gradient = run(text, x)
    other, other_gradient = run(text, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, y, rtol=1e-5, atol=1e-6)
    assert (gradient is None) == (other_gradient is None) == (name in COLD_WITHOUT_GRADIENT)
    if gradient is not None:
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HOT)
def test_hot_layers_keep_channels_last(name: str) -> None:
    y, gradient = run(HOT[name], data(*X).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient is not None
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("text", ['type: "Concat"', 'type: "Eltwise"', 'type: "Eltwise" eltwise_param { operation: MAX }'])
def test_layers_of_several_bottoms_keep_channels_last(text: str) -> None:
    layer = one_layer(text, X, X)
    y = layer(*(data(*X).contiguous(memory_format=torch.channels_last) for _ in range(2)))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_dropout_keeps_channels_last_in_training() -> None:
    layer = one_layer('type: "Dropout"', X, phase=TRAIN)
    y = layer(data(*X).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


MORE = {
    "cudnn_batch_norm": 'type: "CuDNNBatchNorm"',
    "bn": 'type: "BN" bn_param { frozen: true }',
    "bn_learn": 'type: "BN" bn_param { bn_mode: LEARN }',
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [*HOT, *MORE, *sorted(set(COLD) - COLD_WITHOUT_GRADIENT - {"stochastic"})])
def test_the_gradient_of_one_picture_may_have_any_strides(name: str, layout: torch.memory_format) -> None:
    """A view of a channels-last gradient of one picture has strides such as (C, 1, W·C, C), which torch's batch_norm misread."""
    x = data(1, *X[1:])
    layer = one_layer({**HOT, **MORE, **COLD}[name], tuple(x.shape))
    x = x.contiguous(memory_format=layout).requires_grad_()
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    torch.manual_seed(2)
    gradient = torch.randn(y.shape)
    (expected,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
    if y.dim() != 4:
        strange = torch.empty_strided(y.shape, (y.shape[-1], *gradient.stride()[1:])).copy_(gradient)
    else:
        _, channels, _, width = y.shape
        strange = torch.empty_strided(y.shape, (channels, 1, width * channels, channels)).copy_(gradient)
    (got,) = torch.autograd.grad(y, x, strange)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_sum_over_channels_that_gpus_compute_is_that_of_the_cpu(channels: int, layout: torch.memory_format) -> None:
    x = torch.randn(3, channels, 4, 5, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    sums = banded_sum(x, 5)
    torch.testing.assert_close(sums, _sum_around(x, 5))
    assert sums.stride() == x.stride() or channels == 1
