"""Correlation: patches of one map compared with displaced patches of another. Dosovitskiy et al. (2015), FlowNet; correlation_layer.cu."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import enum_name


@register("Correlation")
class Correlation(Layer):
    """For each displacement the mean product (MULTIPLY) or absolute difference (SUBTRACT) of two patches: (N, D², H', W').

    Bottoms: two maps (N, C, H, W), padded with zeros by ``pad``. A patch has ``kernel_size``² pixels and all channels. Displacements reach
    from −r to r steps of ``stride_2`` both ways, r = max_displacement / stride_2 rounded down, D = 2 r + 1, x first. Patches of the first
    map begin at (max_displacement, max_displacement) and are ``stride_1`` apart; sizes round up. ``do_abs`` changes nothing, as in FlowNet's
    own layer, and where two values are equal, SUBTRACT's gradient counts their difference as positive.
    """

    TRAITS = Traits(settings="correlation_param")
    BOTTOMS = (2, 2)
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.correlation_param
        n, _, h, w = self.expect_axes(bottoms[0], 4)
        if bottoms[1] != bottoms[0]:
            raise self.error(
                f"bottoms must have one shape: '{self.bottoms[0]}' is {format_shape(bottoms[0])}, '{self.bottoms[1]}' is {format_shape(bottoms[1])}"
            )
        if not (param.HasField("kernel_size") and param.HasField("max_displacement")):
            raise self.error("correlation_param needs kernel_size and max_displacement")
        self.kernel, self.reach, self.pad = int(param.kernel_size), int(param.max_displacement), int(param.pad)
        self.stride, self.step = int(param.stride_1), int(param.stride_2)
        if self.kernel % 2 == 0 or min(self.stride, self.step) < 1:
            raise self.error("kernel_size must be odd, stride_1 and stride_2 at least 1")
        if param.single_direction:
            raise self.error("single_direction is Correlation1D's")
        self.multiply = enum_name(param, "correlation_type") == "MULTIPLY"
        border = 2 * self.reach + self.kernel - 1
        self.size = tuple(math.ceil((n + 2 * self.pad - border) / self.stride) for n in (h, w))
        if min(self.size) < 1:
            raise self.error(f"patches and displacements do not fit maps of {h} x {w}: the output would be {format_shape(self.size)}")
        self.radius = self.reach // self.step
        return [(n, (2 * self.radius + 1) ** 2, *self.size)]

    def _displacements(self) -> Iterator[tuple[int, int]]:
        """(rows, columns) of each output channel."""
        steps = [self.step * i for i in range(-self.radius, self.radius + 1)]
        return ((y, x) for y in steps for x in steps)

    def _extents(self) -> tuple[int, int]:
        """How many rows and columns the patches of one displacement cover."""
        height, width = ((n - 1) * self.stride + self.kernel for n in self.size)
        return height, width

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = self._extents()
        first, second = (F.pad(maps, (self.pad,) * 4) for maps in (first, second))
        own = first[:, :, self.reach : self.reach + height, self.reach : self.reach + width]
        maps = []
        for y, x in self._displacements():
            other = second[:, :, self.reach + y : self.reach + y + height, self.reach + x : self.reach + x + width]
            maps.append((own * other).mean(1) if self.multiply else _distance(own, other).mean(1))
        return F.avg_pool2d(torch.stack(maps, 1), self.kernel, self.stride)

    def macs(self) -> int:
        return math.prod(self.top_shapes[0]) * self.bottom_shapes[0][1] * self.kernel**2

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if any(graph.is_free(bottom, 2, 3) for bottom in self.bottoms):
            raise self.no_onnx_form("maps of any size")
        n, (height, width) = Nodes(graph), self._extents()
        pads = graph.constant("pads", np.array([0, 0, self.pad, self.pad] * 2, np.int64))
        first, second = (n("Pad", name, pads) if self.pad else name for name in self.bottoms)
        axes = n.ints(2, 3)

        def part(maps: str, row: int, column: int) -> str:
            return n("Slice", maps, n.ints(row, column), n.ints(row + height, column + width), axes)

        own = part(first, self.reach, self.reach)
        maps = []
        for y, x in self._displacements():
            other = part(second, self.reach + y, self.reach + x)
            each = n("Mul", own, other) if self.multiply else n("Abs", n("Sub", own, other))
            maps.append(n("ReduceMean", each, axes=[1], keepdims=1))
        joined = n("Concat", *maps, axis=1)
        graph.node("AveragePool", [joined], self.tops, kernel_shape=[self.kernel] * 2, strides=[self.stride] * 2)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """|a − b|, whose gradient is 1 by a and −1 by b where they are equal."""
    difference = a - b
    return torch.where(difference >= 0, difference, -difference)
