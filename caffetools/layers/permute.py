"""Permute (SSD), ShuffleChannel (ShuffleNet) and Reorg (YOLO): layers of forks that only move values."""

from __future__ import annotations

from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, Size
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import Windows, repeated


@register("Permute")
class Permute(Layer):
    """The axes of x in the order of ``permute_param``; those that it does not name follow in theirs (SSD)."""

    TRAITS = Traits(role="permute", settings="permute_param")
    BACKWARD_IS_UNASKED = True

    def setup(self, bottoms: Shapes) -> Shapes:
        shape = bottoms[0]
        order = [self.axis(axis, shape, what="order") for axis in self.param.permute_param.order]
        if len(set(order)) != len(order):
            raise self.error("order names an axis twice")
        self.order = order + [axis for axis in range(len(shape)) if axis not in order]
        return [tuple(shape[axis] for axis in self.order)]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order).contiguous()

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Transpose", self.bottoms, self.tops, perm=self.order)


@register("ShuffleChannel")
class ShuffleChannel(Layer):
    """(N, C, …): the channels, taken as ``group`` rows of C / group, read column by column. Zhang et al. (2018), ShuffleNet."""

    TRAITS = Traits(role="rearrange")

    def setup(self, bottoms: Shapes) -> Shapes:
        self.group = int(self.param.shuffle_channel_param.group)
        if len(bottoms[0]) < 2 or self.group < 1 or bottoms[0][1] % self.group:
            raise self.error(f"group {self.group} does not divide the channels of bottom '{self.bottoms[0]}'")
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], self.group, x.shape[1] // self.group, *x.shape[2:])
        return rows.transpose(1, 2).reshape(x.shape)

    def to_onnx(self, graph: OnnxGraph) -> None:
        c = self.bottom_shapes[0][1]
        rest = [graph.size(self.bottoms[0], axis) for axis in range(2, len(self.bottom_shapes[0]))]
        rows, columns = graph.value("rows"), graph.value("columns")
        graph.reshape(self.bottoms[0], rows, [0, self.group, c // self.group, *rest], "split")
        graph.node("Transpose", [rows], [columns], perm=[0, 2, 1, *range(3, 3 + len(rest))])
        graph.reshape(columns, self.tops[0], [0, c, *rest], "joined")


@register("Reorg")
class Reorg(Layer):
    """Blocks of ``stride`` × ``stride`` pixels become channels: (N, C, H, W) to (N, C s², H/s, W/s); ``reverse`` the other way.

    The order is Darknet's (YOLO v2), whose function takes the bottom's values for maps of (C/s², H s, W s) in its forward direction. So C
    must be divisible by s² both ways.
    """

    TRAITS = Traits(role="rearrange")

    def settings(self) -> tuple[int, bool]:
        """Return the stride, and whether the layer is reversed."""
        return int(self.param.reorg_param.stride), bool(self.param.reorg_param.reverse)

    def setup(self, bottoms: Shapes) -> Shapes:
        n, c, h, w = self.legacy_axes(bottoms[0])
        s, self.reverse = self.settings()
        if s < 1 or c % (s * s):
            raise self.error(f"stride {s}: its square must divide the {c} channels")
        self.large = (n, c // (s * s), h, s, w, s)
        self.small = (n, s, s, c // (s * s), h, w)
        if self.reverse:
            return [(n, c // (s * s), h * s, w * s)]
        if h % s or w % s:
            raise self.error(f"stride {s} must divide the maps of {h} x {w}")
        return [(n, c * s * s, h // s, w // s)]

    def spatial_windows(self) -> Windows | None:
        # Forwards, Darknet takes the values for maps of another size: where a value comes from depends on the whole map's.
        stride, reverse = self.settings()
        return repeated(stride) if reverse else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], *self.top_shapes[0][1:])
        if self.reverse:
            return x.reshape(x.shape[0], *self.small[1:]).permute(0, 3, 4, 1, 5, 2).reshape(shape)
        return x.reshape(x.shape[0], *self.large[1:]).permute(0, 3, 5, 1, 2, 4).reshape(shape)

    def to_onnx(self, graph: OnnxGraph) -> None:
        (s, reverse), c = self.settings(), self.bottom_shapes[0][1]
        blocks, moved = graph.value("blocks"), graph.value("moved")
        h, w = (graph.size(self.bottoms[0], axis) for axis in (2, 3))
        split: list[Size] = [0, s, s, c // (s * s), h, w] if reverse else [0, c // (s * s), h, s, w, s]
        graph.reshape(self.bottoms[0], blocks, split, "split")
        graph.node("Transpose", [blocks], [moved], perm=[0, 3, 4, 1, 5, 2] if reverse else [0, 3, 5, 1, 2, 4])
        maps = [graph.arithmetic("Mul" if reverse else "Div", size, s) for size in (h, w)]
        graph.reshape(moved, self.tops[0], [0, self.top_shapes[0][1], *maps], "joined")


@register("ReorgYolo")
class ReorgYolo(Reorg):
    """Reorg under the name and with the settings that OpenVINO reads: ``reorg_yolo_param`` with a stride; it has no reverse."""

    def settings(self) -> tuple[int, bool]:
        return int(self.param.reorg_yolo_param.stride), False
