"""Convolution3D and Pooling3D of C3D: over time and maps. Tran et al. (2015); convolution3d_layer.cpp, pool3d_layer.cpp of C3D v1.1."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter, enum_name
from caffetools.proto.unknown import unknown_fields, unknown_names

_FLT_MAX = float(np.finfo(np.float32).max)
Triple = tuple[int, int, int]


@register("Convolution3D")
class Convolution3D(Layer):
    """Correlates (N, C, L, H, W) with ``num_output`` kernels of C channels, ``kernel_depth`` steps and ``kernel_size``² pixels; sizes round down.

    ``temporal_stride`` and ``temporal_pad`` are for L, ``stride`` and ``pad`` for H and W. ``filter_group`` only bounds C3D's memory. The
    settings are ``convolution3d_param`` (C3D v1.1) or ``convolution_param`` (v1.0). A bottom of 4 axes is one time step.
    Blobs: weights (num_output, C, kernel_depth, kernel_size, kernel_size), bias (1, 1, 1, 1, num_output).
    """

    TRAITS = Traits(
        role="classifier",
        settings="convolution3d_param",
        outputs="num_output",
        class_axes=(0, 4),
        weight_filler="weight_filler",
    )
    NEEDS_TOP = False
    READS_UNKNOWN = True

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return cls.TRAITS if param.HasField("convolution3d_param") or not param.HasField("convolution_param") else _OF_V10

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        values = _settings(param, "convolution")
        return [(2, 3, values["kernel_depth"] + 2, values["kernel_size"] + 2, values["kernel_size"] + 2)]

    def unsupported(self) -> str:
        strange = [name for name in unknown_names(self.param) if name not in _TEMPORAL]
        return f"has fields that are not known here ({', '.join(strange)})" if strange else super().unsupported()

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.traits(self.param).settings_of(self.param)
        n, c, *sizes = self._with_time(bottoms[0])
        outputs, values = int(param.num_output), _settings(self.param, "convolution")
        side = values["kernel_size"], values["stride"], values["pad"]
        self.kernel: Triple = (values["kernel_depth"], side[0], side[0])
        self.stride: Triple = (values["temporal_stride"], side[1], side[1])
        self.pad: Triple = (values["temporal_pad"], side[2], side[2])
        if outputs < 1 or min(*self.kernel, *self.stride) < 1:
            raise self.error("needs num_output, kernel_size and kernel_depth, and strides of at least 1")
        if param.group > 1:
            raise self.error("group above 1 has no effect in C3D's layer; leave it out, or use Convolution")
        self.declare_blob((outputs, c, *self.kernel), param.weight_filler)
        if param.bias_term:
            self.declare_blob((1, 1, 1, 1, outputs), param.bias_filler)
        size = [(m + 2 * p - k) // s + 1 for m, p, k, s in zip(sizes, self.pad, self.kernel, self.stride, strict=True)]
        if min(size) < 1:
            raise self.error(f"kernel {format_shape(self.kernel)} does not fit its input {format_shape(bottoms[0])}")
        return [(n, outputs, *size)]

    def _with_time(self, shape: Shape) -> Shape:
        return (*shape[:2], 1, *shape[2:]) if len(shape) == 4 else self.expect_axes(shape, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.blobs[1].reshape(-1) if len(self.blobs) > 1 else None
        return F.conv3d(x if x.dim() == 5 else x.unsqueeze(2), self.blobs[0], bias, self.stride, self.pad)

    def macs(self) -> int:
        return math.prod(self.top_shapes[0]) * math.prod(self.specs[0].shape[1:])

    def to_onnx(self, graph: OnnxGraph) -> None:
        maps = self.bottoms[0]
        if len(self.bottom_shapes[0]) == 4:
            maps = graph.value("steps")
            graph.node("Unsqueeze", [self.bottoms[0]], [maps], axes=[2])
        inputs = [maps, graph.parameter(self, 0)]
        if len(self.blobs) > 1:
            inputs.append(graph.constant("bias", self.array(1).reshape(-1)))
        graph.node("Conv", inputs, self.tops, kernel_shape=list(self.kernel), strides=list(self.stride), pads=[*self.pad, *self.pad])


_OF_V10 = replace(Convolution3D.TRAITS, settings="convolution_param")
# Fields that C3D v1.0 added to Caffe's own convolution_param and pooling_param, and their defaults.
_TEMPORAL = {"kernel_depth": 0, "temporal_stride": 1, "temporal_pad": 0, "filter_group": 1}


def _settings(layer: LayerParameter, kind: str) -> dict[str, int]:
    """Return kernel, strides and paddings of a layer whose ``kind`` is convolution or pooling, in either version's form."""
    sides = ("kernel_size", "stride", "pad")
    if layer.HasField(f"{kind}3d_param") or not layer.HasField(f"{kind}_param"):
        param = getattr(layer, f"{kind}3d_param")
        known = param.DESCRIPTOR.fields_by_name
        return {name: int(getattr(param, name)) for name in (*_TEMPORAL, *sides) if name in known}
    param = getattr(layer, f"{kind}_param")
    given = unknown_fields(param)
    values = {name: found if type(found := given.get(name, [default])[-1]) is int else 0 for name, default in _TEMPORAL.items()}
    for name, default in zip(sides, (0, 1, 0), strict=True):
        value = getattr(param, name)
        # convolution_param gives one for each axis.
        values[name] = int(value if kind == "pooling" else [*value, default][0])
    return values


@register("Pooling3D")
class Pooling3D(Layer):
    """The largest (MAX) or mean (AVE) value of each window of (N, C, L, H, W), ``kernel_depth`` steps of ``kernel_size``² pixels; sizes round up.

    The settings are ``pooling3d_param`` (C3D v1.1) or ``pooling_param`` (v1.0). ``temporal_stride`` is for L, ``stride`` for H and W. ``pad``
    (AVE only) is for H and W, and counts in the divisor. MAX's gradient goes to every value that equals the largest, as in C3D.
    """

    TRAITS = Traits(role="pooling", settings="pooling3d_param", channels="kept")
    READS_UNKNOWN = True

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 3, 16, 32, 32)]

    def unsupported(self) -> str:
        strange = [name for name in unknown_names(self.param) if name not in _TEMPORAL]
        return f"has fields that are not known here ({', '.join(strange)})" if strange else super().unsupported()

    def setup(self, bottoms: Shapes) -> Shapes:
        old = self.param.HasField("pooling_param") and not self.param.HasField("pooling3d_param")
        n, c, *sizes = self.expect_axes(bottoms[0], 5)
        values = _settings(self.param, "pooling")
        self.kernel: Triple = (values["kernel_depth"], values["kernel_size"], values["kernel_size"])
        self.stride: Triple = (values["temporal_stride"], values["stride"], values["stride"])
        self.method, pad = enum_name(self.param.pooling_param if old else self.param.pooling3d_param, "pool"), values["pad"]
        if min(*self.kernel, *self.stride) < 1:
            raise self.error("needs kernel_size and kernel_depth, and strides of at least 1")
        if self.method == "STOCHASTIC":
            raise self.error("pool STOCHASTIC is not implemented on C3D's CPU side; MAX and AVE are computed")
        if pad and (self.method != "AVE" or pad >= self.kernel[1]):
            raise self.error("pad is for AVE, and smaller than kernel_size")
        self.pads: Triple = (0, pad, pad)
        size = []
        for m, k, s, p in zip(sizes, self.kernel, self.stride, self.pads, strict=True):
            count = math.ceil((m + 2 * p - k) / s) + 1
            if count < 1 or (count - 1) * s - p >= m:
                raise self.error(f"a window of {format_shape(self.kernel)} would be outside of {format_shape(bottoms[0])}")
            size.append(count)
        self.size = tuple(size)
        return [(n, c, *size)]

    def _reached(self, x: Tensor, value: float) -> Tensor:
        """``x`` with all that the windows reach, filled with ``value``; what no window reaches is cut off."""
        ends = [(o - 1) * s + k - m - p for o, s, k, m, p in zip(self.size, self.stride, self.kernel, x.shape[2:], self.pads, strict=True)]
        return F.pad(x, [n for pair in zip(reversed(self.pads), reversed(ends), strict=True) for n in pair], value=value)

    def divisors(self, sizes: Shape) -> Tensor:
        """Return (L', H', W') float32: the number of places of each window inside of the padded maps."""
        sides = []
        for m, k, s, p, o in zip(sizes, self.kernel, self.stride, self.pads, self.size, strict=True):
            start = torch.arange(o) * s - p
            sides.append((start + k).clamp(max=m + p) - start)
        return (sides[0][:, None, None] * sides[1][:, None] * sides[2]).float()

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "MAX":
            largest: Tensor = _Largest.apply(self._reached(x, -_FLT_MAX), self.kernel, self.stride)
            return largest
        sums = F.avg_pool3d(self._reached(x, 0.0), self.kernel, self.stride, divisor_override=1)
        return sums / self.divisors(tuple(x.shape[2:])).to(x.device)

    ONNX_LIMITS = "needs fixed sizes"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if graph.is_free(self.bottoms[0], 2, 3, 4):
            raise self.no_onnx_form("maps of any size")
        sizes = self.bottom_shapes[0][2:]
        ends = [(o - 1) * s + k - m - p for o, s, k, m, p in zip(self.size, self.stride, self.kernel, sizes, self.pads, strict=True)]
        pads = graph.constant("pads", np.array([0, 0, *self.pads, 0, 0, *ends], np.int64))
        value = graph.constant("value", np.array(-_FLT_MAX if self.method == "MAX" else 0, np.float32))
        reached = graph.value("reached")
        graph.node("Pad", [self.bottoms[0], pads, value], [reached])
        window = {"kernel_shape": list(self.kernel), "strides": list(self.stride)}
        if self.method == "MAX":
            graph.node("MaxPool", [reached], self.tops, **window)
            return
        means = graph.value("means")
        graph.node("AveragePool", [reached], [means], **window)
        shares = (math.prod(self.kernel) / self.divisors(tuple(sizes))).numpy()
        graph.node("Mul", [means, graph.constant("shares", shares)], self.tops)


class _Largest(torch.autograd.Function):
    """The largest value of each window; each value that equals it gets the whole gradient."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
        y = F.max_pool3d(x, kernel, stride)
        ctx.save_for_backward(x, y)
        ctx.kernel, ctx.stride = kernel, stride
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        of_x = torch.zeros_like(x)
        for place in np.ndindex(*ctx.kernel):
            ranges = (slice(p, p + (o - 1) * s + 1, s) for p, o, s in zip(place, y.shape[2:], ctx.stride, strict=True))
            where = (slice(None), slice(None), *ranges)
            of_x[where] += grads[0] * (x[where] == y)
        return of_x, None, None
