"""Layers of optical flow nets: ChannelNorm and FlowWarp (FlowNet 2). Ilg et al. (2017); channel_norm_layer.cpp, flow_warp_layer.cpp."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, SavedTensors, Shapes, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter, enum_name


@register("ChannelNorm")
class ChannelNorm(Layer):
    """The length of each pixel's vector of channels: (N, C, H, W) to (N, 1, H, W), sqrt(sum of x² over C).

    The gradient is that of the length y with 1e-9 added to it: x / (y + 1e-9), so 0 where all channels are 0.
    """

    TRAITS = Traits(coordinates="same")

    def setup(self, bottoms: Shapes) -> Shapes:
        n, _, h, w = self.legacy_axes(bottoms[0])
        return [(n, 1, h, w)]

    def forward(self, x: Tensor) -> Tensor:
        length: Tensor = _Length.apply(x.reshape(self.legacy_axes(tuple(x.shape))))
        return length

    def to_onnx(self, graph: OnnxGraph) -> None:
        if len(self.bottom_shapes[0]) != 4:
            raise self.no_onnx_form("its bottom has fewer than 4 axes")
        n = Nodes(graph)
        total = n("ReduceSum", n("Mul", self.bottoms[0], self.bottoms[0]), axes=[1], keepdims=1)
        graph.node("Sqrt", [total], self.tops)


class _Length(torch.autograd.Function):
    @staticmethod
    def forward(ctx: SavedTensors, x: Tensor) -> Tensor:
        length = (x * x).sum(1, keepdim=True).sqrt()
        ctx.save_for_backward(x, length)
        return length

    @staticmethod
    def backward(ctx: SavedTensors, *grads: Tensor) -> Tensor:
        x, length = ctx.saved_tensors
        slope: Tensor = grads[0] * x / (length + 1e-9)
        return slope


@register("FlowWarp")
class FlowWarp(Layer):
    """An image (N, C, H, W) read where a flow (N, 2, H, W) points: pixel (x, y) takes the bilinear value at (x, y) + flow.

    Channel 0 of the flow is horizontal, in pixels. Places from 0 to below W (H) are inside of the image, those behind the last pixel
    have its value; others give 0, or NaN with ``fill_value: NOT_A_NUMBER``, and no gradient.
    """

    TRAITS = Traits(role="sampling", settings="flow_warp_param", channels="kept")
    BOTTOMS = (2, 2)
    NEEDS_TOP = False

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 8, 64, 64), (2, 2, 64, 64)]

    def setup(self, bottoms: Shapes) -> Shapes:
        n, _, h, w = self.expect_axes(bottoms[0], 4)
        if tuple(bottoms[1]) != (n, 2, h, w):
            raise self.error(f"the flow '{self.bottoms[1]}' must be {format_shape((n, 2, h, w))}, not {format_shape(bottoms[1])}")
        self.fill = 0.0 if enum_name(self.param.flow_warp_param, "fill_value") == "ZERO" else math.nan
        return [bottoms[0]]

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        height, width = image.shape[2:]
        x = torch.arange(width, device=image.device, dtype=image.dtype) + flow[:, 0]
        y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None] + flow[:, 1]
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        # Places outside are read at 0, so that they have no gradient and NaNs in the flow are no index.
        x, y = torch.where(inside, x, 0.0), torch.where(inside, y, 0.0)
        left, top = x.detach().floor().long(), y.detach().floor().long()
        right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
        alpha, beta = (x - left)[:, None], (y - top)[:, None]
        flat = image.flatten(2)

        def at(row: Tensor, column: Tensor) -> Tensor:
            index = (row * width + column).flatten(1)[:, None].expand(-1, image.shape[1], -1)
            return flat.gather(2, index).reshape(image.shape)

        upper = (1 - alpha) * at(top, left) + alpha * at(top, right)
        lower = (1 - alpha) * at(bottom, left) + alpha * at(bottom, right)
        return torch.where(inside[:, None], (1 - beta) * upper + beta * lower, self.fill)

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if graph.is_free(self.bottoms[0], 1, 2, 3) or graph.is_free(self.bottoms[1], 2, 3):
            raise self.no_onnx_form("maps of any size")
        n, (_, c, h, w) = Nodes(graph), self.bottom_shapes[0]
        columns, rows = graph.constant("columns", np.arange(w, dtype=np.float32)), np.arange(h, dtype=np.float32)[:, None]
        x = n("Add", n.part(self.bottoms[1], 0, 1, 1), columns)  # (N, 1, H, W)
        y = n("Add", n.part(self.bottoms[1], 1, 2, 1), graph.constant("rows", rows))
        bounds = [(value, size) for value, size in ((x, w), (y, h))]
        # Comparisons with NaN are false, as in Caffe. GreaterOrEqual is newer than opset 11.
        tests = [n("Or", n("Greater", v, n.number(0)), n("Equal", v, n.number(0))) for v, _ in bounds]
        tests += [n("Less", value, n.number(size)) for value, size in bounds]
        inside = n("And", n("And", tests[0], tests[1]), n("And", tests[2], tests[3]))
        x, y = (n("Where", inside, value, n.number(0)) for value in (x, y))
        left, top = n("Floor", x), n("Floor", y)
        right = n("Min", n("Add", left, n.number(1)), n.number(w - 1))
        bottom = n("Min", n("Add", top, n.number(1)), n.number(h - 1))
        alpha, beta = n("Sub", x, left), n("Sub", y, top)
        flat = n.reshape(self.bottoms[0], 0, c, h * w)

        def at(row: str, column: str) -> str:
            index = n("Cast", n("Add", n("Mul", row, n.number(w)), column), to=7)
            wide = n("Expand", n.reshape(index, 0, 1, h * w), n.ints(1, c, 1))
            return n.reshape(n("GatherElements", flat, wide, axis=2), 0, c, h, w)

        def between(share: str, first: str, second: str) -> str:
            return n("Add", n("Mul", n("Sub", n.number(1), share), first), n("Mul", share, second))

        upper = between(alpha, at(top, left), at(top, right))
        lower = between(alpha, at(bottom, left), at(bottom, right))
        graph.node("Where", [inside, between(beta, upper, lower), n.number(self.fill)], self.tops)
