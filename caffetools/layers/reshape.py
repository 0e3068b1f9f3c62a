"""Reshape (reshape_layer.cpp) and Flatten (flatten_layer.cpp): the same values in the same order under another shape."""

from __future__ import annotations

import math

from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


class Rearranging(Layer):
    """A layer whose top holds the bottom's values in the same order under another shape.

    Attributes:
        plan: The top's shape as ONNX reads it: 0 copies the bottom's axis at that place, one −1 takes what is left. So neither an
            exported graph nor a run fixes the batch where the prototxt does not.
    """

    plan: list[int]
    # How many axes of the bottom, at its end, stay as they are; `plan` holds their sizes.
    kept_axes = 0

    def shares_memory(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(self.plan)])

    def to_onnx(self, graph: OnnxGraph) -> None:
        axes, kept = len(self.bottom_shapes[0]), self.kept_axes
        tail = [graph.size(self.bottoms[0], axis) for axis in range(axes - kept, axes)]
        graph.reshape(self.bottoms[0], self.tops[0], [*self.plan[: len(self.plan) - kept], *tail])


@register("Flatten")
class Flatten(Rearranging):
    """The axes from ``axis`` to ``end_axis`` become one; (N, C, H, W) to (N, C · H · W) by default (flatten_layer.cpp)."""

    TRAITS = Traits(role="reshape", channels="kept", half=True)
    IN_PLACE = "refused"
    BACKWARD_IS_UNASKED = True

    def setup(self, bottoms: Shapes) -> Shapes:
        shape, param = bottoms[0], self.param.flatten_param
        start, end = self.axis(param.axis, shape), self.axis(param.end_axis, shape, what="end_axis")
        if end < start:
            raise self.error(f"end_axis {param.end_axis} is before axis {param.axis} in a bottom of {format_shape(shape)}")
        self.plan = [*[0] * start, -1, *shape[end + 1 :]]
        self.kept_axes = len(shape) - end - 1
        return [(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])]


@register("Reshape")
class Reshape(Rearranging):
    """The axes from ``axis`` on, ``num_axes`` of them (−1: all), become those of ``shape``: 0 copies an axis, −1 takes what is left.

    A negative ``axis`` counts from one behind the last axis, as in reshape_layer.cpp: −1 appends.
    """

    TRAITS = Traits(role="reshape", settings="reshape_param", channels="reshaped", half=True)
    IN_PLACE = "refused"
    SHARES = "shapes"

    def setup(self, bottoms: Shapes) -> Shapes:
        shape, param = bottoms[0], self.param.reshape_param
        start = param.axis if param.axis >= 0 else len(shape) + param.axis + 1
        if not 0 <= start <= len(shape):
            raise self.error(f"axis {param.axis} is outside of a blob of {len(shape)} axes {format_shape(shape)}")
        if param.num_axes < -1 or start + param.num_axes > len(shape):
            raise self.error(f"num_axes {param.num_axes} from axis {start} on does not fit a bottom of {format_shape(shape)}")
        end = len(shape) if param.num_axes == -1 else start + param.num_axes
        asked = [int(n) for n in param.shape.dim]
        if asked.count(-1) > 1 or min(asked, default=0) < -1:
            raise self.error(f"shape {format_shape(asked)} may have one -1, and 0 or more elsewhere")
        new = self._resolve(shape, start, end, asked)
        self.plan = [*[0] * start, *asked, *shape[end:]]
        self.kept_axes = len(shape) - end
        return [(*shape[:start], *new, *shape[end:])]

    def _resolve(self, shape: Shape, start: int, end: int, asked: list[int]) -> list[int]:
        new = []
        for index, n in enumerate(asked):
            if n == 0 and start + index >= len(shape):
                raise self.error(
                    f"shape {format_shape(asked)} copies axis {start + index}, which a bottom of {format_shape(shape)} does not have"
                )
            new.append(shape[start + index] if n == 0 else n)
        available = math.prod(shape[start:end])
        if -1 in new:
            known = math.prod(n for n in new if n != -1)
            if known == 0 or available % known:
                raise self.error(
                    f"shape {format_shape(asked)} does not divide the {available} values of bottom '{self.bottoms[0]}' ({format_shape(shape)})"
                )
            new[new.index(-1)] = available // known
        if math.prod(new) != available:
            raise self.error(
                f"shape {format_shape(asked)} holds {math.prod(new)} values, but bottom '{self.bottoms[0]}' ({format_shape(shape)}) {available}"
            )
        return new
