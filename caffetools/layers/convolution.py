"""Convolution and Deconvolution over any number of spatial axes, and Im2col (base_conv_layer.cpp, im2col_layer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.base import SAME_AS_BOTTOMS, Layer, OnnxGraph, Shape, Shapes, count, shown
from caffetools.layers.registry import register


@dataclass(frozen=True)
class Kernel:
    """Kernel size, stride, padding and dilation for each spatial axis."""

    size: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @classmethod
    def from_param(cls, layer: Layer, param: Any, axes: int) -> Kernel:
        """Read ``convolution_param`` for ``axes`` spatial axes: one value for all, one for each, or the _h/_w spelling."""
        kernel = cls(
            _per_axis(layer, param, "kernel_size", "kernel", axes, None),
            _per_axis(layer, param, "stride", "stride", axes, 1),
            _per_axis(layer, param, "pad", "pad", axes, 0),
            _per_axis(layer, param, "dilation", None, axes, 1),
        )
        if any(k < 1 for k in kernel.size) or any(s < 1 for s in kernel.stride):
            raise layer.error(f"kernel {shown(kernel.size)} and stride {shown(kernel.stride)} must be at least 1 everywhere")
        return kernel

    def convolved(self, size: Sequence[int]) -> Shape:
        """The output size of a convolution over ``size``; rounded down, as Caffe's convolutions are."""
        extents = [d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True)]
        return tuple((n + 2 * p - e) // s + 1 for n, p, e, s in zip(size, self.pad, extents, self.stride, strict=True))

    def deconvolved(self, size: Sequence[int]) -> Shape:
        """The output size of a deconvolution over ``size``."""
        extents = [d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True)]
        return tuple(s * (n - 1) + e - 2 * p for n, p, e, s in zip(size, self.pad, extents, self.stride, strict=True))

    def onnx_attributes(self) -> dict[str, Any]:
        """The attributes that Conv and ConvTranspose share."""
        return {
            "kernel_shape": list(self.size),
            "strides": list(self.stride),
            "pads": [*self.pad, *self.pad],  # begins of all axes, then ends of all axes
            "dilations": list(self.dilation),
        }


class _Convolving(Layer):
    """What Convolution and Deconvolution share: (N, C, spatial…) bottoms, one set of weights for all of them."""

    BOTTOMS = (1, None)
    TOPS = SAME_AS_BOTTOMS
    NEEDS_TOP = False
    TRANSPOSED = False

    def setup(self, bottoms: Shapes) -> Shapes:
        conv = self.param.convolution_param
        axis = self.axis(conv.axis, bottoms[0])
        channels, spatial = bottoms[0][axis], bottoms[0][axis + 1 :]
        self.outer_axes, self.spatial_axes = axis, len(spatial)
        self.kernel = Kernel.from_param(self, conv, len(spatial))
        self.group, outputs = conv.group, conv.num_output
        if outputs < 1:
            raise self.error("num_output must be at least 1")
        if self.group < 1 or channels % self.group or outputs % self.group:
            raise self.error(f"group {self.group} must divide both the {channels} input channels and num_output {outputs}")
        for name, shape in zip(self.bottoms, bottoms, strict=True):
            if shape != bottoms[0]:
                raise self.error(f"bottoms must have one shape: '{self.bottoms[0]}' is {shown(bottoms[0])}, '{name}' is {shown(shape)}")
        first, second = (channels, outputs) if self.TRANSPOSED else (outputs, channels)
        self.declare_blob((first, second // self.group, *self.kernel.size), conv.weight_filler)
        if conv.bias_term:
            self.declare_blob((outputs,), conv.bias_filler)
        size = self.kernel.deconvolved(spatial) if self.TRANSPOSED else self.kernel.convolved(spatial)
        if any(n < 1 for n in size):
            raise self.error(
                f"kernel {shown(self.kernel.size)} does not fit its input {shown(bottoms[0])}: the output would be {shown(size)}"
            )
        return [(*bottoms[0][:axis], outputs, *size)] * len(self.tops)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._one(x, shape) for x, shape in zip(bottoms, self.top_shapes, strict=True))

    def macs(self) -> int:
        weight = self.specs[0].shape
        # Every weight meets every position of the smaller-named side once: outputs of a convolution, inputs of a deconvolution.
        positions = self.bottom_shapes if self.TRANSPOSED else self.top_shapes
        return sum(count(shape[: self.outer_axes]) * count(shape[self.outer_axes + 1 :]) * count(weight) for shape in positions)

    def _one(self, x: Tensor, top: Shape) -> Tensor:
        weight = self.blobs[0]
        bias = self.blobs[1] if len(self.blobs) > 1 else None
        spatial = self.spatial_axes
        # Axes before the channel axis all count as the batch; torch convolves over 1 to 3 axes, fewer get one of length 1.
        shape = x.shape[self.outer_axes :] if spatial else (x.shape[self.outer_axes], 1)
        if self.outer_axes != 1 or not spatial:
            x = x.reshape(-1, *shape)
        kernel = self.kernel if spatial else Kernel((1,), (1,), (0,), (1,))
        if not spatial:
            weight = weight.unsqueeze(-1)
        function = self._function(max(spatial, 1))
        y: Tensor = function(x, weight, bias, stride=kernel.stride, padding=kernel.pad, dilation=kernel.dilation, groups=self.group)
        return y if self.outer_axes == 1 and spatial else y.reshape(top)

    def _function(self, axes: int) -> Any:
        if axes > 3:
            raise self.error(f"{axes} spatial axes: at most 3 can be computed")
        return getattr(F, f"conv_transpose{axes}d" if self.TRANSPOSED else f"conv{axes}d")

    def to_onnx(self, graph: OnnxGraph) -> None:
        parameters = [graph.parameter(self, i) for i in range(len(self.blobs))]
        for bottom, top in zip(self.bottoms, self.tops, strict=True):
            op = "ConvTranspose" if self.TRANSPOSED else "Conv"
            graph.node(op, [bottom, *parameters], [top], group=self.group, **self.kernel.onnx_attributes())


@register("Convolution")
class Convolution(_Convolving):
    """Correlates (N, C, H, W) with ``num_output`` kernels of C/group channels, plus a bias; sizes round down.

    Blobs: weights (num_output, C/group, kernel…), bias (num_output). Bottoms and tops come in pairs that share them.
    """


@register("Deconvolution")
class Deconvolution(_Convolving):
    """The transpose of Convolution: each input value adds its weighted kernel to the output, plus a bias.

    Blobs: weights (C, num_output/group, kernel…), bias (num_output).
    """

    TRANSPOSED = True


def _per_axis(layer: Layer, param: Any, field: str, short: str | None, axes: int, default: int | None) -> Shape:
    values = list(getattr(param, field))
    if short and (param.HasField(f"{short}_h") or param.HasField(f"{short}_w")):
        if axes != 2 or values:
            raise layer.error(f"{short}_h and {short}_w are for 2 spatial axes, and not together with {field}")
        return (getattr(param, f"{short}_h"), getattr(param, f"{short}_w"))
    if not values:
        if default is None:
            raise layer.error(f"{field} is missing")
        return (default,) * axes
    if len(values) not in (1, axes):
        raise layer.error(f"{field} is given {len(values)} times; once or {axes} times is possible")
    return tuple(values * axes if len(values) == 1 else values)
