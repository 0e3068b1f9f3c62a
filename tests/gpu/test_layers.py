"""On a GPU: layers in both memory layouts against the CPU, with gradients, over more settings than the golden data has."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from caffetools.net.device import float32_products
from tests.layers.helpers import one_layer
from tests.layers.test_layout import COLD, HOT

LAYERS = {name: text for name, text in {**HOT, **COLD}.items() if name != "stochastic"}
POOLS = [
    f'type: "Pooling" pooling_param {{ pool: {pool} kernel_size: {kernel} stride: {stride} pad: {pad} {rounding} }}'
    for pool, kernel, stride, pad, rounding in product(("MAX", "AVE"), (2, 3, 5), (1, 2, 3), (0, 1, 2), ("", "round_mode: FLOOR"))
    if pad < kernel
]
MORE = [
    'type: "LRN" lrn_param { local_size: 7 norm_region: WITHIN_CHANNEL alpha: 0.5 }',
    'type: "LRN" lrn_param { local_size: 3 alpha: 0.5 k: 2 }',
    'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 3 dilation: 2 pad: 2 weight_filler { type: "xavier" } }',
    'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 6 weight_filler { type: "xavier" } }',
    'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 6 weight_filler { type: "bilinear" } }',
    'type: "Interp" interp_param { height: 17 width: 15 }',
    'type: "ELU"',
    'type: "TanH"',
    'type: "Swish"',
]


def computed(text: str, x: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The top, the bottom's gradient and the parameters' of a layer over ``x`` (N, C, H, W), on the CPU."""
    layer = one_layer(text, tuple(x.shape)).to(x.device)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with float32_products(x.device):
        tops = layer(x)
        y = tops[0] if isinstance(tops, tuple) else tops
        if not y.requires_grad:
            return y.cpu(), None, []
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(x.device)
        (y * weights).sum().backward()
    gradients = [blob.grad.cpu() for blob in layer.blobs if blob.grad is not None]
    assert x.grad is not None
    return y.detach().cpu(), x.grad.cpu(), gradients


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("text", [*LAYERS.values(), *POOLS, *MORE])
def test_a_layer_agrees_with_the_cpu(text: str, layout: torch.memory_format, device: torch.device) -> None:
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    y, gradient, parameters = computed(text, x)
    other, other_gradient, other_parameters = computed(text, x.to(device))
    torch.testing.assert_close(other, y, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(other_parameters, parameters, rtol=1e-4, atol=1e-4)
    assert (gradient is None) == (other_gradient is None)
    if gradient is not None:
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-5)
