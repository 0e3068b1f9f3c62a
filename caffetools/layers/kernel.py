"""Kernel sizes, strides, paddings and dilations as ``convolution_param`` gives them, for any number of spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.proto.schema import ConvolutionParameter


@dataclass(frozen=True)
class Kernel:
    """Kernel size, stride, padding and dilation for each spatial axis."""

    size: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @classmethod
    def from_param(cls, layer: Layer, param: ConvolutionParameter, axes: int) -> Kernel:
        """Read ``convolution_param`` for ``axes`` spatial axes: one value for all, one for each, or the _h/_w spelling."""
        kernel = cls(
            _per_axis(layer, param, "kernel_size", "kernel", axes, None),
            _per_axis(layer, param, "stride", "stride", axes, 1),
            _per_axis(layer, param, "pad", "pad", axes, 0),
            _per_axis(layer, param, "dilation", None, axes, 1),
        )
        if any(k < 1 for k in kernel.size) or any(s < 1 for s in kernel.stride):
            raise layer.error(f"kernel {format_shape(kernel.size)} and stride {format_shape(kernel.stride)} must be at least 1 everywhere")
        return kernel

    def convolved(self, size: Sequence[int]) -> Shape:
        """Return the output size of a convolution over ``size``; rounded down, as Caffe's convolutions are."""
        extents = [d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True)]
        return tuple((n + 2 * p - e) // s + 1 for n, p, e, s in zip(size, self.pad, extents, self.stride, strict=True))

    def deconvolved(self, size: Sequence[int]) -> Shape:
        """Return the output size of a deconvolution over ``size``."""
        extents = [d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True)]
        return tuple(s * (n - 1) + e - 2 * p for n, p, e, s in zip(size, self.pad, extents, self.stride, strict=True))

    def onnx_attributes(self) -> dict[str, Any]:
        """Return the attributes that Conv and ConvTranspose share."""
        return {
            "kernel_shape": list(self.size),
            "strides": list(self.stride),
            "pads": [*self.pad, *self.pad],  # begins of all axes, then ends of all axes
            "dilations": list(self.dilation),
        }


def _per_axis(layer: Layer, param: ConvolutionParameter, field: str, short: str | None, axes: int, default: int | None) -> Shape:
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
