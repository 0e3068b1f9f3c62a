"""Forks' layers that only move values: Permute (SSD), ShuffleChannel (ShuffleNet), Reorg (YOLO)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.registry import register


@register("Permute")
class Permute(Layer):
    """The axes of x in the order of ``permute_param``; those that it does not name follow in theirs (SSD)."""

    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        shape = bottoms[0]
        order = [self.axis(axis, shape, what="order") for axis in self.param.permute_param.order]
        if len(set(order)) != len(order):
            raise self.error("an axis stands twice in order")
        self.order = order + [axis for axis in range(len(shape)) if axis not in order]
        return [tuple(shape[axis] for axis in self.order)]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order).contiguous()

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Transpose", self.bottoms, self.tops, perm=self.order)


@register("ShuffleChannel")
class ShuffleChannel(Layer):
    """(N, C, …): the channels, taken as ``group`` rows of C / group, read column by column. Zhang et al. (2018), ShuffleNet."""

    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        self.group = int(self.param.shuffle_channel_param.group)
        if len(bottoms[0]) < 2 or self.group < 1 or bottoms[0][1] % self.group:
            raise self.error(f"group {self.group} does not divide the channels of bottom '{self.bottoms[0]}'")
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], self.group, x.shape[1] // self.group, *x.shape[2:])
        return rows.transpose(1, 2).reshape(x.shape)

    def to_onnx(self, graph: OnnxGraph) -> None:
        _, c, *rest = self.bottom_shapes[0]
        rows, columns = graph.value("rows"), graph.value("columns")
        split = graph.constant("split", np.array([0, self.group, c // self.group, *rest], np.int64))
        graph.node("Reshape", [self.bottoms[0], split], [rows])
        graph.node("Transpose", [rows], [columns], perm=[0, 2, 1, *range(3, 3 + len(rest))])
        graph.node("Reshape", [columns, graph.constant("joined", np.array([0, c, *rest], np.int64))], self.tops)


@register("Reorg")
class Reorg(Layer):
    """Blocks of ``stride`` × ``stride`` pixels become channels: (N, C, H, W) to (N, C s², H/s, W/s); ``reverse`` the other way.

    The order is Darknet's (YOLO v2), whose function takes the bottom's values for maps of (C/s², H s, W s) when it goes forward. So C
    must be divisible by s² both ways.
    """

    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        param = self.param.reorg_param
        s = int(param.stride)
        if s < 1 or c % (s * s):
            raise self.error(f"stride {s}: its square must divide the {c} channels")
        self.large = (n, c // (s * s), h, s, w, s)
        self.small = (n, s, s, c // (s * s), h, w)
        if param.reverse:
            return [(n, c // (s * s), h * s, w * s)]
        if h % s or w % s:
            raise self.error(f"stride {s} must divide the maps of {h} x {w}")
        return [(n, c * s * s, h // s, w // s)]

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], *self.top_shapes[0][1:])
        if self.param.reorg_param.reverse:
            return x.reshape(x.shape[0], *self.small[1:]).permute(0, 3, 4, 1, 5, 2).reshape(shape)
        return x.reshape(x.shape[0], *self.large[1:]).permute(0, 3, 5, 1, 2, 4).reshape(shape)

    def to_onnx(self, graph: OnnxGraph) -> None:
        reverse = self.param.reorg_param.reverse
        blocks, moved = graph.value("blocks"), graph.value("moved")
        split = graph.constant("split", np.array([0, *(self.small if reverse else self.large)[1:]], np.int64))
        graph.node("Reshape", [self.bottoms[0], split], [blocks])
        graph.node("Transpose", [blocks], [moved], perm=[0, 3, 4, 1, 5, 2] if reverse else [0, 3, 5, 1, 2, 4])
        graph.node("Reshape", [moved, graph.constant("joined", np.array([0, *self.top_shapes[0][1:]], np.int64))], self.tops)
