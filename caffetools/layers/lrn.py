"""LRN (lrn_layer.cpp): local response normalization, across channels or within one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from caffetools.errors import ExportError
from caffetools.layers import inference, native
from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.pooling import pads_on_cuda
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, AxisWindow, Windows
from caffetools.proto.schema import enum_name


@register("LRN")
class LRN(Layer):
    """y = x / scale^beta for (N, C, H, W); Krizhevsky et al. (2012), section 3.3.

    ACROSS_CHANNELS: scale = k + alpha / n · (sum of x² over the n channels around x's own, fewer at the ends).
    WITHIN_CHANNEL: scale = 1 + alpha · (mean of x² over the n by n window around x, zeros outside counting); ``k`` is not used.
    ``local_size`` n is odd. Follows lrn_layer.cpp.
    """

    TRAITS = Traits(role="normalization", settings="lrn_param", coordinates="same")
    NEEDS_TOP = False
    BACKWARD_FROM_BLOBS = True

    def setup(self, bottoms: Shapes) -> Shapes:
        self.expect_axes(bottoms[0], 4)
        param = self.param.lrn_param
        self.size, self.alpha, self.beta, self.k = int(param.local_size), float(param.alpha), float(param.beta), float(param.k)
        self.across = self.BACKWARD_IS_UNASKED = enum_name(param, "norm_region") == "ACROSS_CHANNELS"
        if self.size % 2 == 0:
            raise self.error(f"local_size must be odd, not {self.size}")
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        if self.across:
            # Squares overflow half precision, so under autocast this stays float32 inside.
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            y: Tensor = _AcrossChannels.apply(wide, self.size, self.alpha, self.beta, self.k)
            return y.to(x.dtype)
        pad = self.size // 2
        if pads_on_cuda(x, (pad, pad)):
            mean = F.avg_pool2d(F.pad(x * x, (pad,) * 4), self.size, 1)
        else:
            mean = F.avg_pool2d(x * x, self.size, 1, pad)
        return x * (mean * self.alpha + 1.0).pow(-self.beta)

    def with_running_sums(self, x: Tensor) -> Tensor:
        """Return ``forward(x)`` across channels with each window's sum made of the one before, as Caffe's and onnxruntime's loops make it.

        A square that is large next to the others rounds them off, and they stay so when it leaves the window.
        """
        square, reach = x * x * (self.alpha / self.size), self.size // 2
        scale, scales = torch.full_like(x[:, 0], self.k), []
        for entering in square[:, :reach].unbind(1):
            scale = scale + entering
        for channel in range(x.shape[1]):
            if channel + reach < x.shape[1]:
                scale = scale + square[:, channel + reach]
            if channel > reach:
                scale = scale - square[:, channel - reach - 1]
            scales.append(scale)
        return x * torch.stack(scales, 1).pow(-self.beta)

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        (x,), (y,), (dy,) = bottoms, tops, gradients
        if self.across:
            scale = torch.zeros_like(x) if recorded is None else _across_scale(recorded[0], self.size, self.alpha, self.k)
            around = _sum_around((dy * y).div_(scale), self.size)
            return [scale.pow(-self.beta).mul_(dy).addcmul_(x, around, value=-2.0 * self.alpha * self.beta / self.size)]
        if recorded is None:
            return [torch.zeros_like(x)]
        # Caffe's inner layers: x² pooled, the power of it, the product with x.
        pad = self.size // 2
        scale = F.avg_pool2d(recorded[0] * recorded[0], self.size, 1, pad) * self.alpha + 1.0
        power = scale.pow(-self.beta)
        inner = dy * x * power / scale * (-self.beta * self.alpha)
        return [dy * power + F.avg_pool2d(inner, self.size, 1, pad) * x * 2.0]

    def backward_reads_top(self) -> bool:
        return self.across

    def caffe_in_place(self) -> Literal["", "refused", "overwrites"]:
        # On the CPU its blob holds the power of scale before the product with the bottom.
        return "overwrites" if self.across else ""

    def in_place_changes_gradient(self) -> bool:
        return True

    def spatial_windows(self) -> Windows:
        reach = AxisWindow(1, -(self.size // 2), self.size // 2)
        return POINTWISE if self.across else (reach, reach)

    def native_training(self, gradient: bool) -> tuple[int, float]:
        return 0, 1.0 if self.across and self.k >= native.SMALLEST_K and self.alpha >= 0 else 0.0

    def inference_form(self) -> inference.CrossChannelNorm | None:
        if not self.across or self.k < native.SMALLEST_K or self.alpha < 0:
            return None
        return inference.CrossChannelNorm(self.size, self.alpha, self.beta, self.k)

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.across:
            graph.node("LRN", self.bottoms, self.tops, alpha=self.alpha, beta=self.beta, bias=self.k, size=self.size)
            return
        if self.size >= 2**15:
            raise ExportError(f"a window of {self.size} is too large for ONNX", layer=self.name)
        x, pad = self.bottoms[0], self.size // 2
        square, mean, scaled, shifted, power = (graph.value(s) for s in ("square", "mean", "scaled", "shifted", "power"))
        graph.node("Mul", [x, x], [square])
        shape: dict[str, Any] = {"kernel_shape": [self.size] * 2, "strides": [1, 1], "pads": [pad] * 4}
        graph.node("AveragePool", [square], [mean], count_include_pad=1, **shape)
        graph.node("Mul", [mean, graph.constant("alpha", np.array(self.alpha, np.float32))], [scaled])
        graph.node("Add", [scaled, graph.constant("one", np.array(1, np.float32))], [shifted])
        graph.node("Pow", [shifted, graph.constant("beta", np.array(-self.beta, np.float32))], [power])
        graph.node("Mul", [x, power], self.tops)


class _AcrossChannels(torch.autograd.Function):
    """By the native kernel where it takes x, else in torch.

    The kernel keeps x alone for the gradient; the formula in torch keeps x and scale (plain autograd would keep five tensors of
    that size).
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.options = (size, alpha, beta, k)
        ctx.native = native.lrn_takes(x, alpha, k)
        if ctx.native:
            ctx.save_for_backward(x)
            return native.lrn_forward(x, size, alpha, beta, k)
        scale = _across_scale(x, size, alpha, k)
        ctx.save_for_backward(x, scale)
        return scale.pow(-beta).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        size, alpha, beta, k = ctx.options
        (dy,) = grads
        if ctx.native:
            (x,) = ctx.saved_tensors
            return native.lrn_backward(x, dy, size, alpha, beta, k), None, None, None, None
        x, scale = ctx.saved_tensors
        return _across_gradient(x, scale, dy, size, alpha, beta), None, None, None, None


def _across_scale(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    """scale = k + alpha / size · (sum of x² over the channels around), in x's layout."""
    return _sum_around(x * x, size).mul_(alpha / size).add_(k)


def _across_gradient(x: Tensor, scale: Tensor, dy: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """dx = dy · scale^−beta − 2 · alpha · beta / size · x · (sum of dy · y / scale over the channels around)."""
    # The power, not products of roots: one pass over memory in place of three, and rounded as Caffe's is.
    direct = scale.pow(-beta).mul_(dy)
    around = _sum_around((direct * x).div_(scale), size)
    return direct.addcmul_(x, around, value=-2.0 * alpha * beta / size)


def _sum_around(x: Tensor, size: int) -> Tensor:
    """For each channel the sum of ``x`` over the ``size`` channels around it; (N, C, H, W) in any layout, which is kept."""
    if x.device.type == "cuda":
        return banded_sum(x, size)
    total = x.clone(memory_format=torch.preserve_format)
    channels = x.shape[1]
    for step in range(1, min(size // 2, channels - 1) + 1):
        rest = channels - step
        total.narrow(1, 0, rest).add_(x.narrow(1, step, rest))
        total.narrow(1, step, rest).add_(x.narrow(1, 0, rest))
    return total


def banded_sum(x: Tensor, size: int) -> Tensor:
    """Return what :func:`_sum_around` does, (N, C, H, W), by one matrix product with a band of ones, which reads ``x`` once."""
    place = torch.arange(x.shape[1], device=x.device)
    band = ((place[:, None] - place).abs() <= size // 2).to(x.dtype)
    if x.is_contiguous():
        return torch.matmul(band, x.flatten(2)).reshape(x.shape)
    return torch.matmul(x.permute(0, 2, 3, 1), band).permute(0, 3, 1, 2)
