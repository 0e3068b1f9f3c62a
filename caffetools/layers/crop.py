"""Crop (crop_layer.cpp) and Tile (tile_layer.cpp): a part of a blob, and repeats of one."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import AxisWindow, Windows


@register("Crop")
class Crop(Layer):
    """The first bottom cut, from ``axis`` on, to the second one's size; ``offset`` once for all axes or once for each.

    Only the shape of the second bottom counts. Follows crop_layer.cpp.
    """

    TRAITS = Traits(role="sampling", settings="crop_param", channels="kept", half=True, coordinates="crop")
    IN_PLACE = "overwrites"
    BOTTOMS = (2, 2)
    NO_GRADIENT = SIZE_BOTTOMS = frozenset({1})

    def setup(self, bottoms: Shapes) -> Shapes:
        (shape, reference), param = bottoms, self.param.crop_param
        self.first = self.axis(param.axis, shape)
        axes, offsets = len(shape) - self.first, [int(n) for n in param.offset]
        if len(offsets) not in (0, 1, axes):
            raise self.error(f"offset is given {len(offsets)} times; once or {axes} times is possible")
        if len(reference) != len(shape):
            raise self.error(
                f"'{self.bottoms[1]}' ({format_shape(reference)}) must have as many axes as '{self.bottoms[0]}' ({format_shape(shape)})"
            )
        self.offsets = offsets * axes if len(offsets) == 1 else offsets or [0] * axes
        self.sizes = list(reference[self.first :])
        for axis, offset, size in zip(range(self.first, len(shape)), self.offsets, self.sizes, strict=True):
            if offset + size > shape[axis]:
                raise self.error(
                    f"cannot crop axis {axis} of '{self.bottoms[0]}' ({format_shape(shape)}) to {size} from {offset} on, as '{self.bottoms[1]}' "
                    f"({format_shape(reference)}) asks"
                )
        return [(*shape[: self.first], *self.sizes)]

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        for axis, offset, size in zip(range(self.first, x.dim()), self.offsets, reference.shape[self.first :], strict=True):
            x = x.narrow(axis, offset, size)
        return x

    def spatial_windows(self) -> Windows | None:
        if len(self.bottom_shapes[0]) != 4 or self.first > 2:
            return None
        rows, columns = (AxisWindow(1, offset, offset) for offset in self.offsets[-2:])
        return rows, columns

    def to_onnx(self, graph: OnnxGraph) -> None:
        axes = range(self.first, len(self.bottom_shapes[0]))
        sizes = [graph.size(self.bottoms[1], axis) for axis in axes]
        ends = [graph.arithmetic("Add", offset, size) for offset, size in zip(self.offsets, sizes, strict=True)]
        bounds = [graph.sizes(hint, values) for hint, values in (("from", self.offsets), ("to", ends), ("axes", list(axes)))]
        graph.node("Slice", [self.bottoms[0], *bounds], self.tops)


@register("Tile")
class Tile(Layer):
    """The bottom ``tiles`` times one after the other along ``axis`` (tile_layer.cpp)."""

    def setup(self, bottoms: Shapes) -> Shapes:
        param, shape = self.param.tile_param, bottoms[0]
        axis = self.axis(param.axis, shape)
        if param.tiles < 1:
            raise self.error("tiles must be at least 1")
        self.repeats = [1] * axis + [int(param.tiles)] + [1] * (len(shape) - axis - 1)
        return [tuple(n * r for n, r in zip(shape, self.repeats, strict=True))]

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self.repeats)

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Tile", [self.bottoms[0], graph.constant("repeats", np.array(self.repeats, np.int64))], self.tops)
