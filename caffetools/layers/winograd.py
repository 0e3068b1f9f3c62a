"""3 x 3 convolutions of stride 1 in training by Winograd's algorithm, in the native library: four multiplications in place of nine.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). Forward pass and both gradients use tiles of 4 x 4 outputs,
interpolated at 0, ±1/√2, ±√2 and infinity, whose rounding error stays near that of the plain sums.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caffetools.layers import buffers, inference, native, native_conv
from caffetools.layers.autograd import Context

_M = 4
_LEAST_TILES = 48
# Transforming a value of the input, and of the output, in multiplications; and the share of the plain sums' multiplications that
# Winograd's algorithm may take in all, so that its passes over memory are paid for: a convolution, and the gradient of its weights alone.
# Fitted to whole iterations (benchmarks/train.py).
_INPUT_COST, _OUTPUT_COST = 24, 20
_MOST_COST, _MOST_GRADIENT_COST = 0.44, 0.7
_LEAST_CHANNELS, _LEAST_GRADIENT_CHANNELS = 32, 16


def takes(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    *,
    gradient: bool = False,
) -> bool:
    """Return whether :func:`convolve` computes this convolution, and faster than torch.

    Args:
        x: (N, C, H, W).
        weight: (outputs, C, 3, 3).
        stride: (height, width).
        pad: (height, width).
        dilation: (height, width).
        groups: Number of groups.
        gradient: Ask that of :func:`weight_gradient` instead.
    """
    most, channels = (_MOST_GRADIENT_COST, _LEAST_GRADIENT_CHANNELS) if gradient else (_MOST_COST, _LEAST_CHANNELS)
    if (
        tuple(weight.shape[2:]) != (3, 3)
        or groups != 1
        or set(stride) != {1}
        or set(dilation) != {1}
        or pad not in ((0, 0), (1, 1), (2, 2))
    ):
        return False
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if type(x) is not Tensor or min(weight.shape[:2]) < channels or torch.is_autocast_enabled("cpu"):
        return False
    n, c, h, w = x.shape
    outputs, (oh, ow) = weight.shape[0], (h + 2 * pad[0] - 2, w + 2 * pad[1] - 2)
    down, across = _tiles(oh, ow)
    cost = down * across * (_M + 2) ** 2 * (c * outputs + _INPUT_COST * c + _OUTPUT_COST * outputs)
    return cost <= most * 9 * oh * ow * c * outputs and n * down * across >= _LEAST_TILES and native_conv.available()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    """Convolve with a 3 x 3 kernel of stride 1, differentiable once.

    Args:
        x: (N, C, H, W) float32 that :func:`takes` accepts.
        weight: (outputs, C, 3, 3).
        bias: (outputs), or None.
        pad: Zeros on each side, 0 to 2.

    Returns:
        (N, outputs, H + 2 · pad − 2, W + 2 · pad − 2), channels-last.
    """
    y: Tensor = _Convolve.apply(x, weight, bias, pad)
    return y


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.pad, ctx.biased = pad, bias is not None
        return _run(x, weight, bias, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            # The gradient is the convolution with the kernels turned by half a circle, inputs and outputs exchanged.
            dx = _run(dy, weight.flip(2, 3).transpose(0, 1), None, 2 - ctx.pad)
        if ctx.needs_input_grad[1]:
            dw = weight_gradient(x, dy, ctx.pad)
        if ctx.biased and ctx.needs_input_grad[2]:
            db = dy.sum((0, 2, 3))
        return dx, dw, db, None


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    n, c, h, w = x.shape
    outputs = weight.shape[0]
    shape = (n, outputs, h + 2 * pad - 2, w + 2 * pad - 2)
    form = inference.Conv(weight, bias, (1, 1), (pad, pad), (1, 1), 1)
    y = buffers.empty(*shape, channels_last=True)
    with native.between_torch():
        conv = native_conv.NativeConv(form, None, native_conv.Layout((n, c, h, w), shape, c, outputs), algorithm=_M)
        native_conv.run_conv(conv, x, y)
    return y


def weight_gradient(x: Tensor, dy: Tensor, pad: int) -> Tensor:
    """Return the gradient of the weights.

    Args:
        x: The convolution's input (N, C, H, W), channels-last, that :func:`takes` accepts.
        dy: The gradient of its output (N, C', H', W'), channels-last.
        pad: Zeros on each side of ``x``.

    Returns:
        (C', C, 3, 3), channels-last.
    """
    (n, c, h, w), (_, outputs, oh, ow) = x.shape, dy.shape
    sizes = (ctypes.c_int64 * 8)(n, c, h, w, outputs, oh, ow, pad)
    library = native_conv.kernels()
    made = buffers.empty(outputs, c, 3, 3, channels_last=True)
    scratch = buffers.empty(int(library.caffetools_winograd_gradient_scratch(sizes)))
    pointers = (t.data_ptr() for t in (x, dy, made, scratch))
    with native.between_torch() as threads:
        library.caffetools_winograd_gradient(sizes, *pointers, threads)
    return made


def _tiles(h: int, w: int) -> tuple[int, int]:
    return -(-h // _M), -(-w // _M)
