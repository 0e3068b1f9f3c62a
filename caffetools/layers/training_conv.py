"""Convolutions in training by the native library: one or several whose outputs are one blob, each followed by a ReLU or none.

The forward pass and the gradient of the input use the algorithms of the inference plan, Winograd's and the matrix unit among them; the
gradient of the weights is by Winograd's algorithm, the matrix unit or vectors. A ReLU costs no pass of its own, a concatenation no copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffetools.layers import buffers, inference, native, native_batch_norm, native_conv, native_training, winograd
from caffetools.layers.autograd import Context

Pair = tuple[int, int]

# A convolution of fewer multiply-adds is left to torch, and so is one of fewer channels in a group, but for a net's first one: there
# no gradient of the input is wanted.
_LEAST_MACS, _LEAST_CHANNELS = 4_000_000, 8
_RELU = inference.Activation(inference.RELU)


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's windows are; each attribute but ``groups`` is (height, width)."""

    stride: Pair
    pad: Pair
    dilation: Pair
    groups: int

    def output(self, x: Sequence[int], weight: Sequence[int]) -> tuple[int, int, int, int]:
        """Return the shape of the output for shapes of an input (N, C, H, W) and of weights (C', C / groups, kh, kw)."""
        h, w = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x[2:], weight[2:], self.stride, self.pad, self.dilation, strict=True)
        )
        return x[0], weight[0], h, w


@dataclass(frozen=True)
class Branch:
    """A convolution: input (N, C, H, W), weights (C', C / groups, kh, kw), bias (C') or None, and geometry."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry


def takes(branch: Branch) -> bool:
    """Return whether :func:`convolve` computes ``branch``: ordinary float32 on the CPU, wide vectors, and work enough."""
    x, weight = branch.x, branch.weight
    if torch.compiler.is_compiling() or type(x) is not Tensor or torch.is_autocast_enabled("cpu"):
        return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, weight)) or x.dim() != 4:
        return False
    return native_passes(x.shape, weight.shape, branch.geometry, gradient=x.requires_grad) > 0 and (
        native_conv.available() and native_conv.has_wide_vectors()
    )


def native_passes(x: Sequence[int], weight: Sequence[int], geometry: Geometry, *, gradient: bool) -> int:
    """Return how many of a convolution's three products the native library computes: outputs, gradients of the input and of the weights.

    Args:
        x: The shape (N, C, H, W) of the input.
        weight: That of the weights (C', C / groups, kh, kw).
        geometry: Where the windows are.
        gradient: Whether the gradient of the input is wanted; one that is not wanted counts as the library's.
    """
    if weight[1] < _LEAST_CHANNELS and geometry.groups > 1:
        return 0
    n, _, h, w = geometry.output(x, weight)
    if n * h * w * math.prod(weight) < _LEAST_MACS:
        return 0
    return 3 if not gradient or _phases(x, weight, geometry) is not None else 2


def convolve(branches: Sequence[Branch], *, rectify: bool) -> Tensor:
    """Convolve, and concatenate the outputs by channel.

    Args:
        branches: Convolutions that :func:`takes`, with outputs of one size.
        rectify: Take max(0, y) of the outputs.

    Returns:
        (N, sum of C', H', W'), channels-last; differentiable any number of times.
    """
    tensors = [tensor for branch in branches for tensor in (branch.x, branch.weight, branch.bias)]
    with native_batch_norm.results_are_computed_again([branch.x for branch in branches]):
        y: Tensor = _Convolve.apply(rectify, tuple(branch.geometry for branch in branches), *tensors)
    return y


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, rectify: bool, geometries: tuple[Geometry, ...], *tensors: Tensor | None) -> Tensor:
        branches = [
            Branch(x.contiguous(memory_format=torch.channels_last), weight, bias, geometry)
            for (x, weight, bias), geometry in zip(_triples(tensors), geometries, strict=True)
        ]
        shapes = [branch.geometry.output(branch.x.shape, branch.weight.shape) for branch in branches]
        n, _, h, w = shapes[0]
        total = sum(shape[1] for shape in shapes)
        y = buffers.empty(n, total, h, w, channels_last=True)
        start = 0
        with native.between_torch():
            for branch, shape in zip(branches, shapes, strict=True):
                form = _form(branch.weight, branch.bias, branch.geometry)
                layout = native_conv.Layout(_shape(branch.x), shape, branch.x.shape[1], total)
                conv = native_conv.NativeConv(form, _RELU if rectify else None, layout)
                native_conv.run_conv(conv, branch.x, y[:, start : start + shape[1]])
                start += shape[1]
        ctx.geometries, ctx.rectify = geometries, rectify
        saved = [tensor for branch in branches for tensor in (branch.x, branch.weight)]
        ctx.biased = [branch.bias is not None for branch in branches]
        ctx.save_for_backward(*saved, *([y] if rectify else []))
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, (dy,) = ctx.saved_tensors, grads
        y = saved[-1] if ctx.rectify else None
        results: list[Tensor | None] = [None, None]
        start = 0
        for index, geometry in enumerate(ctx.geometries):
            x, weight = saved[2 * index : 2 * index + 2]
            end = start + weight.shape[0]
            wanted = ctx.needs_input_grad[2 + 3 * index : 5 + 3 * index]
            biased = bool(ctx.biased[index])
            gradient, top = dy[:, start:end], None if y is None else y[:, start:end]
            if torch.is_grad_enabled():
                results += _differentiable(x, weight, biased, geometry, gradient, top)
            else:
                results += _gradients(x, weight, (*wanted[:2], biased and wanted[2]), geometry, gradient, top)
            start = end
        return tuple(results)


def _gradients(
    x: Tensor, weight: Tensor, wanted: tuple[bool, ...], geometry: Geometry, dy: Tensor, y: Tensor | None
) -> list[Tensor | None]:
    """Return the gradients of ``x``, ``weight`` and the bias that are ``wanted``, for the gradient ``dy`` of ``y`` (None: without a ReLU)."""
    dy, db = native_training.output_gradient(dy, y, sums=wanted[2])
    dx = dw = None
    if wanted[0]:
        dx = _input_gradient(dy, weight, x, geometry)
        if dx is None:
            dx = _backward(dy, x, weight, geometry, [True, False, False])[0]
    if wanted[1] and winograd.takes(x, weight, geometry.stride, geometry.pad, geometry.dilation, geometry.groups, gradient=True):
        dw = winograd.weight_gradient(x, dy, geometry.pad[0])
    elif wanted[1]:
        dw = native_conv.weight_gradient(_form(weight, None, geometry), x, dy)
    return [dx, dw, db]


def _input_gradient(dy: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor | None:
    """Return the gradient of ``x``: the convolution of ``dy`` with the kernels turned by half a circle; None where torch has to compute it.

    With a stride there is one such convolution for each place of a row and column within a step, by the kernel's values that meet it.
    """
    phases = _phases(x.shape, weight.shape, geometry)
    if phases is None:
        return None
    if set(geometry.stride) == {1}:
        dx = buffers.empty_like(x)
        _transposed(dy, weight, (phases[0][0].pad, phases[1][0].pad), geometry, dx)
        return dx
    (step_down, step_across), (down, across) = geometry.stride, phases
    covered = len(down) == step_down and len(across) == step_across
    dx = buffers.empty_like(x) if covered else buffers.empty_like(x).zero_()
    for row in down:
        for column in across:
            part = buffers.empty(*x.shape[:2], row.count, column.count, channels_last=True)
            _transposed(dy, weight[:, :, row.tap :: step_down, column.tap :: step_across], (row.pad, column.pad), geometry, part)
            dx[:, :, row.first :: step_down, column.first :: step_across] = part
    return dx


def _transposed(dy: Tensor, weight: Tensor, pad: Pair, geometry: Geometry, dx: Tensor) -> None:
    form = _form(weight, None, Geometry((1, 1), pad, geometry.dilation, geometry.groups))
    layout = native_conv.Layout(_shape(dy), _shape(dx), dy.shape[1], dx.shape[1])
    with native.between_torch():
        native_conv.run_conv(native_conv.NativeConv(form, None, layout, transposed=True), dy, dx)


@dataclass(frozen=True)
class _Phase:
    """Places ``first``, first + stride and so on of an axis of the input, ``count`` of them, which meet the kernel's values from ``tap`` on.

    ``pad``: Zeros before the gradient of the output, in the convolution that gives theirs.
    """

    first: int
    count: int
    tap: int
    pad: int


def _phases(x: Sequence[int], weight: Sequence[int], geometry: Geometry) -> tuple[list[_Phase], list[_Phase]] | None:
    """Return the phases of rows and of columns by which the gradient of the input is computed; None where there is no such way."""
    strided = set(geometry.stride) != {1}
    if weight[0] // geometry.groups < _LEAST_CHANNELS or (strided and set(geometry.dilation) != {1}):
        return None
    found: list[list[_Phase]] = []
    for size, kernel, step, pad, dilation in zip(x[2:], weight[2:], geometry.stride, geometry.pad, geometry.dilation, strict=True):
        phases = []
        for tap in range(min(step, kernel)):
            first = (tap - pad) % step
            taps = len(range(tap, kernel, step))
            # Place first + step * j meets the output's place `before` + j - t by the tap t of this phase.
            before = (first + pad - tap) // step
            phases.append(_Phase(first, len(range(first, size, step)), tap, dilation * (taps - 1) - before))
        found.append([phase for phase in phases if phase.count])
    if any(phase.pad < 0 for phases in found for phase in phases):
        return None
    return found[0], found[1]


def _differentiable(x: Tensor, weight: Tensor, biased: bool, geometry: Geometry, dy: Tensor, y: Tensor | None) -> list[Tensor | None]:
    """Return the gradients by operators of torch that can be differentiated again."""
    if y is not None:
        dy = dy * (~(y <= 0)).to(dy.dtype)
    return _backward(dy, x, weight, geometry, [True, True, biased])


def _backward(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]) -> list[Tensor | None]:
    places = (geometry.stride, geometry.pad, geometry.dilation, False, (0, 0), geometry.groups)
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(dy, x, weight, [weight.shape[0]], *places, wanted)
    return list(found)


def _triples(tensors: tuple[Tensor | None, ...]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    triples = []
    for index in range(0, len(tensors), 3):
        x, weight, bias = tensors[index : index + 3]
        assert x is not None and weight is not None  # noqa: S101 (convolve gives them)
        triples.append((x, weight, bias))
    return triples


def _form(weight: Tensor, bias: Tensor | None, geometry: Geometry) -> inference.Conv:
    return inference.Conv(weight, bias, geometry.stride, geometry.pad, geometry.dilation, geometry.groups)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    n, c, h, w = x.shape
    return n, c, h, w
