"""Im2col (im2col_layer.cpp), the kernels of convolution_param, and convolution by columns for more spatial axes than torch convolves over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.base import SAME_AS_BOTTOMS, Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
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


def im2col(x: Tensor, kernel: Kernel, output: Shape) -> Tensor:
    """Return each window of (N, C, spatial…) as a column: (N, C, kernel values, output…), the kernel in row order."""
    padded = F.pad(x, [n for p in reversed(kernel.pad) for n in (p, p)])
    return torch.stack([padded[place] for place in _places(kernel, output)], 2)


def col2im(columns: Tensor, kernel: Kernel, output: Shape, size: Shape) -> Tensor:
    """Return the transpose of :func:`im2col`: columns (N, C, kernel values, output…) added up into (N, C, size…)."""
    padded = columns.new_zeros(*columns.shape[:2], *(n + 2 * p for n, p in zip(size, kernel.pad, strict=True)))
    for index, place in enumerate(_places(kernel, output)):
        padded[place] += columns[:, :, index]
    for axis, (n, p) in enumerate(zip(size, kernel.pad, strict=True), 2):
        padded = padded.narrow(axis, p, n)
    return padded


def _places(kernel: Kernel, output: Shape) -> Iterator[tuple[slice, ...]]:
    """For each value of the kernel in row order, what it meets of a padded map, as indices."""
    batch = (slice(None), slice(None))
    for offsets in itertools.product(*(range(k) for k in kernel.size)):
        starts = [offset * d for offset, d in zip(offsets, kernel.dilation, strict=True)]
        yield (*batch, *(slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, kernel.stride, output, strict=True)))


def convolve(x: Tensor, weight: Tensor, kernel: Kernel, group: int, output: Shape) -> Tensor:
    """Return a convolution of (N, C, spatial…) over any number of axes, without bias: (N, num_output, output…)."""
    columns = im2col(x, kernel, output).reshape(x.shape[0], group, -1, math.prod(output))
    y = weight.reshape(group, weight.shape[0] // group, -1) @ columns
    return y.reshape(x.shape[0], weight.shape[0], *output)


def deconvolve(x: Tensor, weight: Tensor, kernel: Kernel, group: int, output: Shape) -> Tensor:
    """Return the transpose of :func:`convolve`: (N, C, spatial…) to (N, num_output, output…), without bias."""
    rows = x.reshape(x.shape[0], group, x.shape[1] // group, -1)
    columns = weight.reshape(group, weight.shape[0] // group, -1).transpose(1, 2) @ rows
    shape = (x.shape[0], weight.shape[1] * group, math.prod(kernel.size), *x.shape[2:])
    return col2im(columns.reshape(shape), kernel, tuple(x.shape[2:]), output)


def columns_to_onnx(graph: OnnxGraph, source: str, size: Shape, kernel: Kernel, output: Shape) -> str:
    """Nodes for :func:`im2col` of (N, C, size…), static sizes: the name of (N, C, kernel values, output…)."""
    axes = list(range(2, 2 + len(size)))
    if any(kernel.pad):
        amounts = [0, 0, *kernel.pad, 0, 0, *kernel.pad]
        padded = graph.value("padded")
        graph.node("Pad", [source, graph.constant("pads", np.array(amounts, np.int64))], [padded], mode="constant")
        source = padded
    on, steps = (graph.constant(hint, np.array(values, np.int64)) for hint, values in (("axes", axes), ("steps", kernel.stride)))
    rows = []
    for place in _places(kernel, output):
        bounds = [[getattr(part, end) for part in place[2:]] for end in ("start", "stop")]
        names = [graph.constant(hint, np.array(values, np.int64)) for hint, values in zip(("from", "to"), bounds, strict=True)]
        part, row = graph.value("part"), graph.value("row")
        graph.node("Slice", [source, *names, on, steps], [part])
        graph.node("Unsqueeze", [part], [row], axes=[2])
        rows.append(row)
    columns = graph.value("columns")
    graph.node("Concat", rows, [columns], axis=2)
    return columns


@register("Im2col")
class Im2col(Layer):
    """Each window of (N, C, spatial…) as a column of its C · kernel values: (N, C · kernel, output…); axes before ``axis`` stay.

    Sizes, padding and dilation as for a convolution. Follows im2col_layer.cpp.
    """

    TRAITS = Traits(role="sampling", settings="convolution_param", coordinates="window")
    IN_PLACE = "overwrites"
    TOPS = SAME_AS_BOTTOMS
    NEEDS_TOP = False
    BACKWARD_IS_UNASKED = True

    def setup(self, bottoms: Shapes) -> Shapes:
        shape, param = bottoms[0], self.param.convolution_param
        self.outer_axes = self.axis(param.axis, shape)
        channels, spatial = shape[self.outer_axes], shape[self.outer_axes + 1 :]
        if not spatial:
            raise self.error(f"bottom '{self.bottoms[0]}' ({format_shape(shape)}) has no axes after the channels")
        self.kernel = Kernel.from_param(self, param, len(spatial))
        self.output = self.kernel.convolved(spatial)
        if min(self.output) < 1:
            raise self.error(f"kernel {format_shape(self.kernel.size)} does not fit its bottom '{self.bottoms[0]}' ({format_shape(shape)})")
        return [(*shape[: self.outer_axes], channels * math.prod(self.kernel.size), *self.output)]

    def forward(self, x: Tensor) -> Tensor:
        columns = im2col(x.reshape(-1, *x.shape[self.outer_axes :]), self.kernel, self.output)
        return columns.reshape(*x.shape[: self.outer_axes], *self.top_shapes[0][self.outer_axes :])

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        outer = self.outer_axes
        shape = self.bottom_shapes[0]
        for bottom, top in zip(self.bottoms, self.tops, strict=True):
            if graph.is_free(bottom, *range(outer, len(shape))):
                raise self.no_onnx_form("maps of any size")
            source = bottom
            if outer != 1:
                source = graph.value("flat_batch")
                graph.reshape(bottom, source, [-1, *shape[outer:]])
            columns = columns_to_onnx(graph, source, shape[outer + 1 :], self.kernel, self.output)
            graph.reshape(columns, top, [*(graph.size(bottom, axis) for axis in range(outer)), *self.top_shapes[0][outer:]])
