"""C3D's layers against plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.layers.registry import traits
from caffetools.net.net import Net
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse
from caffetools.proto.upgrades.v1 import upgrade_net
from tests.layers.helpers import input_layer, one_layer
from tests.layers.test_forks import Array, agree, distinct, exported, numbers


def convolved(x: Array, weights: Array, bias: Array, stride: tuple[int, int], pad: tuple[int, int]) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2, (pad[1],) * 2])
    kernel, steps = weights.shape[2:], (stride[0], stride[1], stride[1])
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, steps, strict=True)]
    y = np.zeros((len(x), len(weights), *size))
    for place in np.ndindex(*size):
        i, j, k = (slice(p * s, p * s + n) for p, s, n in zip(place, steps, kernel, strict=True))
        window = x[:, :, i, j, k]
        y[:, :, place[0], place[1], place[2]] = np.einsum("ncijk,ocijk->no", window, weights) + bias.ravel()
    return y


CONVOLUTION = 'type: "Convolution3D" convolution3d_param {{ num_output: 2 kernel_size: 3 kernel_depth: 2 {} }}'


@pytest.mark.parametrize(
    ("fields", "stride", "pad"),
    [("", (1, 1), (0, 0)), ("stride: 2 temporal_stride: 1 pad: 1 temporal_pad: 1", (1, 2), (1, 1)), ("filter_group: 2", (1, 1), (0, 0))],
)
def test_convolution_over_time_and_maps(fields: str, stride: tuple[int, int], pad: tuple[int, int]) -> None:
    params = [numbers(2, 2, 2, 3, 3, seed=1), numbers(1, 1, 1, 1, 2, seed=2)]
    text = CONVOLUTION.format(fields)
    agree(text, lambda x, w, b: convolved(x, w, b, stride, pad), numbers(1, 2, 3, 4, 5), params=params, tolerance=1e-4)
    exported(text, (1, 2, 3, 4, 5), opset=17, params=params)


def test_the_settings_of_version_1_0() -> None:
    text = """layers { name: "c" type: CONVOLUTION3D bottom: "x" top: "c" convolution_param {
        num_output: 2 kernel_size: 3 kernel_depth: 2 pad: 1 temporal_pad: 1 temporal_stride: 2 weight_filler { type: "xavier" } } }
        layers { name: "p" type: POOLING3D bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1 } }"""
    net = Net(parse(input_layer("x", 1, 2, 3, 4, 5) + upgraded(text), NetParameter))
    x = numbers(1, 2, 3, 4, 5)
    top = net({"x": torch.tensor(x, dtype=torch.float32)})["p"].detach()
    weights, bias = (blob.detach().double().numpy() for blob in net.layer("c").blobs)
    np.testing.assert_allclose(top, pooled(convolved(x, weights, bias, (2, 1), (1, 1)), "MAX", (1, 2), (1, 2)), rtol=1e-4, atol=1e-5)
    assert traits(net.layer("c").param).num_output(net.layer("c").param) == 2


def upgraded(text: str) -> str:
    return str(format_text(upgrade_net(parse(text, NetParameter))))


def test_a_picture_is_one_time_step() -> None:
    layer = one_layer('type: "Convolution3D" convolution3d_param { num_output: 2 kernel_size: 3 kernel_depth: 1 }', (1, 2, 4, 5))
    assert layer.top_shapes == [(1, 2, 1, 2, 3)]
    assert layer(torch.zeros(1, 2, 4, 5)).shape == (1, 2, 1, 2, 3)


def pooled(x: Array, method: str, kernel: tuple[int, int], stride: tuple[int, int], pad: int = 0) -> Array:
    sizes, kernels, steps, pads = x.shape[2:], (kernel[0], kernel[1], kernel[1]), (stride[0], stride[1], stride[1]), (0, pad, pad)
    size = [math.ceil((n + 2 * p - k) / s) + 1 for n, k, s, p in zip(sizes, kernels, steps, pads, strict=True)]
    y = np.zeros((*x.shape[:2], *size))
    for place in np.ndindex(*size):
        starts = [i * s - p for i, s, p in zip(place, steps, pads, strict=True)]
        ends = [min(a + k, n + p) for a, k, n, p in zip(starts, kernels, sizes, pads, strict=True)]
        area = math.prod(b - a for a, b in zip(starts, ends, strict=True))
        i, j, k = (slice(max(a, 0), min(b, n)) for a, b, n in zip(starts, ends, sizes, strict=True))
        part = x[:, :, i, j, k]
        y[:, :, place[0], place[1], place[2]] = part.max((2, 3, 4)) if method == "MAX" else part.sum((2, 3, 4)) / area
    return y


@pytest.mark.parametrize(
    ("method", "kernel", "stride", "pad"),
    [("MAX", (1, 2), (1, 2), 0), ("MAX", (2, 3), (2, 2), 0), ("AVE", (2, 2), (2, 2), 0), ("AVE", (2, 3), (1, 2), 1)],
)
def test_pooling_over_time_and_maps(method: str, kernel: tuple[int, int], stride: tuple[int, int], pad: int) -> None:
    fields = (
        f"pool: {method} kernel_depth: {kernel[0]} kernel_size: {kernel[1]} temporal_stride: {stride[0]} stride: {stride[1]} pad: {pad}"
    )
    text = f'type: "Pooling3D" pooling3d_param {{ {fields} }}'
    agree(text, lambda x: pooled(x, method, kernel, stride, pad), distinct(1, 2, 3, 5, 6), tolerance=1e-4)
    exported(text, (1, 2, 3, 5, 6), opset=17)


def test_every_largest_value_gets_the_gradient() -> None:
    layer = one_layer('type: "Pooling3D" pooling3d_param { kernel_size: 2 kernel_depth: 1 stride: 2 }', (1, 1, 1, 2, 2))
    x = torch.tensor([[[[[1.0, 3.0], [3.0, 2.0]]]]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONVOLUTION.format("group: 2"), "group above 1 has no effect"),
        ('type: "Convolution3D"', "needs num_output, kernel_size and kernel_depth"),
        ('type: "Pooling3D" pooling3d_param { pool: STOCHASTIC kernel_size: 2 kernel_depth: 1 }', "STOCHASTIC is not implemented"),
        ('type: "Pooling3D" pooling3d_param { kernel_size: 2 kernel_depth: 1 pad: 1 }', "pad is for AVE"),
        ('type: "Pooling3D" pooling3d_param { kernel_size: 2 kernel_depth: 1 stride: 9 }', "would be outside"),
    ],
)
def test_what_c3d_does_not_compute_is_refused(text: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        one_layer(text, (1, 2, 3, 4, 5))
