"""The native operators of the inference plan give torch's numbers: convolutions, with and without a matrix unit, and inner products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from caffetools.layers import inference, native, native_conv
from caffetools.layers.native_conv import Layout, NativeConv
from caffetools.layers.native_product import NativeProduct, run_product

pytestmark = pytest.mark.skipif(not native_conv.available(), reason=native.status())

# N, C, H, W, outputs, kernel, stride, pad, dilation, groups
CONVOLUTIONS = [
    (1, 3, 23, 21, 13, 7, 2, 3, 1, 1),
    (2, 16, 14, 15, 40, 3, 1, 1, 1, 1),
    (2, 8, 13, 13, 16, 5, 1, 2, 1, 2),
    (1, 64, 14, 14, 48, 1, 1, 0, 1, 1),
    (2, 24, 10, 11, 24, 3, 2, 1, 1, 24),
    (1, 20, 10, 12, 20, 3, 1, 1, 1, 20),
    (1, 16, 12, 12, 32, 3, 1, 2, 2, 1),
    (1, 33, 8, 9, 17, 3, 1, 0, 1, 1),
    (1, 33, 7, 5, 70, 3, 1, 1, 1, 1),
    (3, 12, 9, 9, 6, 3, 1, 1, 1, 3),
    (1, 320, 7, 7, 70, 1, 1, 0, 1, 1),
    (1, 96, 7, 7, 100, 3, 1, 1, 1, 1),
    # Winograd's tiles inside of the picture and at its edges, whole vectors of channels.
    (1, 32, 14, 13, 48, 3, 1, 1, 1, 1),
    # Depthwise 3 x 3: odd numbers of rows, columns that the blocks do not divide, few columns, one picture after the other, wide borders.
    (2, 40, 7, 7, 40, 3, 1, 1, 1, 40),
    (1, 37, 9, 14, 37, 3, 2, 1, 1, 37),
    (2, 16, 5, 4, 16, 3, 1, 1, 1, 16),
    (1, 20, 8, 3, 20, 3, 1, 1, 1, 20),
    (1, 32, 6, 11, 32, 3, 1, 0, 1, 32),
    (1, 18, 6, 5, 18, 3, 2, 2, 1, 18),
    (1, 18, 4, 5, 18, 3, 1, 3, 1, 18),
]
ACTIVATIONS = [
    None,
    inference.Activation(inference.RELU),
    inference.Activation(inference.LEAKY, 0.1),
    inference.Activation(inference.CLIP, 0.0, 6.0),
]


@pytest.fixture(params=[0, 1, 2, 3], ids=["baseline", "avx2", "avx512", "amx"])
def variant(request: pytest.FixtureRequest) -> Iterator[int]:
    library = native.kernels()
    assert library is not None
    if not library.caffetools_native_use(request.param):
        library.caffetools_native_use(3)
        pytest.skip("this processor has no such instructions")
    yield request.param
    library.caffetools_native_use(3)


def run_conv(conv: NativeConv, x: torch.Tensor, y: torch.Tensor, residual: torch.Tensor | None, threads: int) -> None:
    scratch = torch.empty(max(conv.scratch_floats, 1))
    pointer = None if residual is None else residual.data_ptr()
    native_conv.conv_run()(conv.handle, x.data_ptr(), y.data_ptr(), pointer, scratch.data_ptr(), threads)


def activated(y: torch.Tensor, activation: inference.Activation | None) -> torch.Tensor:
    if activation is None:
        return y
    if activation.kind == inference.CLIP:
        return y.clamp(activation.low, activation.high)
    if activation.kind == inference.PRELU:
        assert activation.slopes is not None
        return F.prelu(y, activation.slopes.to(y.dtype))
    return F.leaky_relu(y, activation.low)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: "x".join(map(str, case)))
def test_native_convolution_gives_torchs_numbers(variant: int, case: tuple[int, ...]) -> None:
    n, c, h, w, oc, k, stride, pad, dilation, groups = case
    generator = torch.Generator().manual_seed(sum(case))
    x = torch.randn(n, c, h, w, generator=generator)
    weight, bias = torch.randn(oc, c // groups, k, k, generator=generator), torch.randn(oc, generator=generator)
    plain = F.conv2d(x.double(), weight.double(), bias.double(), stride, pad, dilation, groups)
    residual = torch.randn(plain.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    form = inference.Conv(weight, bias, (stride, stride), (pad, pad), (dilation, dilation), groups)
    depthwise = groups == c == oc
    activations = [*ACTIVATIONS, inference.Activation(inference.PRELU, slopes=torch.randn(oc, generator=generator))]
    for algorithm in (0, 1, 2, 4, 8) if k == 3 and stride == dilation == groups == 1 else (0, 8):
        for planar in (False, True) if algorithm < 2 and not depthwise else (False,):
            for index, activation in enumerate(activations):
                added = residual if index % 2 and not depthwise else None
                layout = Layout(tuple(x.shape), tuple(plain.shape), c, oc, oc, planar)
                conv = NativeConv(form, activation, layout, algorithm=algorithm)
                y = torch.full(tuple(plain.shape), np.nan).contiguous(memory_format=torch.channels_last)
                run_conv(conv, x if planar else x.contiguous(memory_format=torch.channels_last), y, added, 1 + index % 2)
                expected = activated(plain if added is None else plain + added.double(), activation)
                # Of the sums: an activation may leave only small ones of them.
                assert bool((y - expected).abs().max() <= 2e-6 * plain.abs().max()), (algorithm, planar, activation)


@pytest.fixture
def matrix_unit() -> Iterator[None]:
    """The best kernels, on a processor with AMX."""
    library = native.kernels()
    assert library is not None
    if not library.caffetools_native_use(3):
        pytest.skip("this processor has no AMX")
    yield


# As CONVOLUTIONS, of stride 1: several images at once, more than 1 MB of weights, strips that end within a row, few columns.
MATRIX_UNIT = [
    (3, 40, 23, 31, 48, 3, 1, 1, 1, 1),
    (2, 320, 9, 7, 350, 3, 1, 1, 1, 1),
    (2, 64, 30, 30, 16, 5, 1, 2, 1, 2),
    (4, 96, 20, 20, 72, 1, 1, 0, 1, 1),
    (2, 16, 15, 15, 33, 3, 1, 2, 2, 1),
    (1, 32, 12, 12, 64, 3, 1, 2, 1, 1),
]


@pytest.mark.parametrize("case", MATRIX_UNIT, ids=lambda case: "x".join(map(str, case)))
def test_matrix_unit_is_as_exact_as_float32(matrix_unit: None, case: tuple[int, ...]) -> None:
    n, c, h, w, oc, k, stride, pad, dilation, groups = case
    generator = torch.Generator().manual_seed(sum(case))
    # Slices of wider memory, and values of very different sizes.
    wide = torch.randn(n, c + 3, h, w, generator=generator).contiguous(memory_format=torch.channels_last)
    x = wide[:, :c].mul_(torch.logspace(-12, 12, c)[:, None, None])
    weight = torch.randn(oc, c // groups, k, k, generator=generator)
    weight.mul_(torch.logspace(12, -12, c).view(groups, 1, c // groups, 1, 1).expand(-1, oc // groups, -1, 1, 1).reshape(oc, -1, 1, 1))
    expected = F.conv2d(x.double(), weight.double(), None, stride, pad, dilation, groups)
    size = F.conv2d(x.double().abs(), weight.double().abs(), None, stride, pad, dilation, groups)
    y = torch.full((n, oc + 5, *expected.shape[2:]), 7.0).contiguous(memory_format=torch.channels_last)
    layout = Layout(tuple(x.shape), tuple(expected.shape), c + 3, oc + 5)
    conv = NativeConv(inference.Conv(weight, None, (1, 1), (pad, pad), (dilation, dilation), groups), None, layout, algorithm=8)
    assert conv.algorithm == 8
    run_conv(conv, x, y, None, 2)
    # A float32 product and its addition round by up to 2^-24 of the sizes that are added.
    assert bool(((y[:, :oc] - expected).abs() <= 2.0**-21 * size).all())
    assert bool((y[:, oc:] == 7).all())


def test_matrix_unit_keeps_a_picture_that_is_not_a_number_to_itself(matrix_unit: None) -> None:
    x = torch.ones(3, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    x[1, 5, 4, 4] = float("nan")
    form = inference.Conv(torch.ones(32, 32, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    conv = NativeConv(form, inference.Activation(), Layout((3, 32, 9, 9), (3, 32, 9, 9), 32, 32), algorithm=8)
    y = torch.empty_like(x)
    run_conv(conv, x, y, None, 2)
    expected = F.conv2d(x, form.weight, padding=1)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(0), expected.nan_to_num(0))


# N, C, points, outputs
PRODUCTS = [
    (1, 7, 1, 3),
    (1, 256, 36, 70),
    (2, 33, 9, 41),
    (3, 130, 1, 64),
    (4, 16, 25, 8),
    (7, 50, 4, 129),
    (32, 64, 1, 10),
    (1, 1, 784, 17),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: "x".join(map(str, case)))
def test_native_inner_product_gives_torchs_numbers(variant: int, case: tuple[int, ...]) -> None:
    n, c, points, outputs = case
    generator = torch.Generator().manual_seed(sum(case))
    x = torch.randn(n, c, points, 1, generator=generator)
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((outputs, c * points), (outputs,)))
    activations = [*ACTIVATIONS, inference.Activation(inference.PRELU, slopes=torch.randn(outputs, generator=generator))]
    for index, activation in enumerate(activations):
        form = inference.Product(weight, bias if index != 1 else None)
        plain = F.linear(x.flatten(1).double(), weight.double(), None if form.bias is None else bias.double())
        for planar in (False, True):
            # Channels-last pixels among others, as in a concatenation.
            wide = torch.full((n, c + 5, points, 1), np.nan).contiguous(memory_format=torch.channels_last)
            wide[:, :c] = x
            product = NativeProduct(form, activation, Layout((n, c, points, 1), (n, outputs, 1, 1), c + 5, outputs + 3, 0, planar))
            y = torch.full((n, outputs + 3), np.nan)
            run_product(product, x if planar else wide, y)
            expected = activated(plain[:, :, None], activation)[:, :, 0]
            assert bool((y[:, :outputs] - expected).abs().max() <= 2e-6 * plain.abs().max()), (planar, activation)
            assert bool(y[:, outputs:].isnan().all())


def test_an_image_has_the_same_bits_in_any_batch_of_a_native_product() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(9, 203, generator=generator), torch.randn(37, 203, generator=generator)

    def run(rows: torch.Tensor) -> torch.Tensor:
        shapes = (rows.shape[0], 203, 1, 1), (rows.shape[0], 37, 1, 1)
        y = torch.empty(rows.shape[0], 37)
        run_product(NativeProduct(inference.Product(weight, None), None, Layout(*shapes, 203, 37)), rows, y)
        return y

    together = run(x)
    for first in range(9):
        for last in range(first + 1, 10):
            assert torch.equal(run(x[first:last].contiguous()), together[first:last])


def test_what_is_not_a_number_remains_so() -> None:
    x = torch.zeros(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    x[0, 3, 2, 2] = np.nan
    form = inference.Conv(torch.ones(16, 8, 1, 1), None, (1, 1), (0, 0), (1, 1), 1)
    conv = NativeConv(form, inference.Activation(inference.RELU), Layout((1, 8, 6, 6), (1, 16, 6, 6), 8, 16))
    y = torch.empty(1, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    run_conv(conv, x, y, None, 1)
    assert y[0, :, 2, 2].isnan().all() and int(y.isnan().sum()) == 16
