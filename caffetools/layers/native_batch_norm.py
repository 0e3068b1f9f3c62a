"""Batch normalization in training by the native library (``native/batch_norm.cpp``): with scale, shift and ReLU one operator.

It keeps its input alone, one tensor where layers one by one keep three. Nor does a convolution that reads the result keep that: it is
computed again in the backward pass, by the same instructions, so with the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from caffetools.layers import buffers, native, native_conv
from caffetools.layers.autograd import Context

# Where a result refers to how it was made.
_MADE_BY = "_caffetools_made_by"


@dataclass(frozen=True)
class _Forward:
    """How a result is computed from ``x``; all tensors but x are (C). Once it has another version, it was changed in place."""

    x: Tensor
    mean: Tensor
    inverse: Tensor
    scale: Tensor | None
    shift: Tensor | None
    rectify: bool
    version: int = 0

    def run(self) -> Tensor:
        y = buffers.empty_like(self.x)
        arrays = (self.x, y, self.mean, self.inverse, self.scale, self.shift)
        with native.between_torch() as threads:
            native_conv.kernels().caffetools_batch_norm_forward(*map(_pointer, arrays), *_rows(self.x), int(self.rectify), threads)
        return y


def takes(x: Tensor) -> bool:
    """Return whether :func:`normalize` computes ``x``: (N, C, H, W) float32 on the CPU, more than one value a channel, wide vectors."""
    return (
        type(x) is Tensor
        and x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > x.shape[1] > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and native_conv.available()
        and native_conv.has_wide_vectors()
    )


def normalize(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, *, eps: float, rectify: bool, again: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the batch's own mean and variance: (x − mean) / sqrt(variance + eps) · scale + shift for each channel.

    Args:
        x: (N, C, H, W) that :func:`takes`.
        scale: (C) float32, or None for 1.
        shift: (C), or None for 0.
        eps: Added to the variance.
        rectify: Take max(0, y) of the results.
        again: Let :func:`results_are_computed_again` apply to the result.

    Returns:
        (N, C, H, W), channels-last, differentiable any number of times; and, without a gradient, the mean (C) and the variance (C)
        times m / (m − 1) for m values a channel.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    y, mean, inverse, variance = _Normalize.apply(x, scale, shift, eps, rectify)
    if not again:
        return y, mean, variance
    own_scale, own_shift = (None if t is None else t.detach().clone() for t in (scale, shift))
    setattr(y, _MADE_BY, _Forward(x.detach(), mean, inverse, own_scale, own_shift, rectify, y._version))
    return y, mean, variance


@contextmanager
def results_are_computed_again(bottoms: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, autograd keeps how a result of :func:`normalize` was made in place of the result, where one is among ``bottoms``.

    Elsewhere hooks that others have set, as activation checkpointing does, are left in force.
    """
    if not any(hasattr(bottom, _MADE_BY) for bottom in bottoms):
        yield
        return
    with saved_tensors_hooks(_packed, _unpacked):
        yield


def _packed(tensor: Tensor) -> Tensor | _Forward:
    made: _Forward | None = getattr(tensor, _MADE_BY, None)
    return made if made is not None and made.version == tensor._version else tensor


def _unpacked(kept: Tensor | _Forward) -> Tensor:
    return kept.run() if isinstance(kept, _Forward) else kept


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, rectify: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, channels = _rows(x)
        library = native_conv.kernels()
        mean, inverse, variance = torch.empty(3, channels).unbind()
        scratch = torch.empty(library.caffetools_batch_norm_scratch(rows, channels))
        with native.between_torch() as threads:
            library.caffetools_batch_norm_moments(
                *map(_pointer, (x, mean, inverse, variance, scratch)), rows, channels, float(eps), threads
            )
        flat_scale, flat_shift = (None if t is None else t.detach().contiguous() for t in (scale, shift))
        y = _Forward(x, mean, inverse, flat_scale, flat_shift, rectify).run()
        ctx.save_for_backward(x, mean, inverse, *(t for t in (scale, shift) if t is not None))
        ctx.has_scale, ctx.has_shift = scale is not None, shift is not None
        ctx.eps, ctx.rectify = eps, rectify
        ctx.mark_non_differentiable(mean, inverse, variance)
        return y, mean, inverse, variance

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, *learned = ctx.saved_tensors
        scale = learned.pop(0) if ctx.has_scale else None
        shift = learned.pop(0) if ctx.has_shift else None
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            return (*_differentiable(x, scale, shift, ctx.eps, ctx.rectify, grads[0], wanted), None, None)
        rows, channels = _rows(x)
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        library = native_conv.kernels()
        dx = buffers.empty_like(x) if wanted[0] else None
        dscale, dshift = torch.empty(2, channels).unbind()
        scratch = torch.empty(library.caffetools_batch_norm_scratch(rows, channels))
        arrays = (x, dy, mean, inverse, *(None if t is None else t.contiguous() for t in (scale, shift)), dx, dscale, dshift, scratch)
        with native.between_torch() as threads:
            library.caffetools_batch_norm_backward(*map(_pointer, arrays), rows, channels, int(ctx.rectify), threads)
        return dx, dscale if wanted[1] else None, dshift if wanted[2] else None, None, None


def _differentiable(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, rectify: bool, dy: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return the gradients by operators of torch that can be differentiated again."""
    axes = (0, 2, 3)
    centred = x - x.mean(axes, keepdim=True)
    y = centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()
    if scale is not None:
        y = y * scale.reshape(1, -1, 1, 1)
    if shift is not None:
        y = y + shift.reshape(1, -1, 1, 1)
    if rectify:
        y = y * (~(y <= 0)).to(y.dtype)
    inputs = [t for t, want in zip((x, scale, shift), wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return [next(found) if want else None for want in wanted]


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _pointer(array: Tensor | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.data_ptr())
