"""Concat, Slice, Split and Silence: several blobs into one, and one into several or none."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows


@register("Concat")
class Concat(Layer):
    """The bottoms one after the other along ``axis`` (or the old ``concat_dim``); all other axes must agree (concat_layer.cpp)."""

    TRAITS = Traits(role="concat", half=True)
    BOTTOMS = (1, None)
    SHARES = "shapes"

    def shares_memory(self) -> bool:
        return len(self.bottoms) == len(self.tops) == 1

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.concat_param
        if param.HasField("axis") and param.HasField("concat_dim"):
            raise self.error("either axis or concat_dim can be given, not both")
        self.concat_axis = self.axis(param.concat_dim if param.HasField("concat_dim") else param.axis, bottoms[0])
        first, axis = bottoms[0], self.concat_axis
        for name, shape in zip(self.bottoms, bottoms, strict=True):
            if len(shape) != len(first) or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
                raise self.error(
                    f"bottoms must agree in all axes but {axis}: '{self.bottoms[0]}' is {format_shape(first)}, '{name}' is {format_shape(shape)}"
                )
        return [(*first[:axis], sum(shape[axis] for shape in bottoms), *first[axis + 1 :])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0] if len(bottoms) == 1 else torch.cat(bottoms, self.concat_axis)

    def caffe_in_place(self) -> Literal["", "refused", "overwrites"]:
        return "overwrites" if len(self.bottoms) > 1 else ""

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if self.concat_axis < 2 else None

    def inference_form(self) -> inference.ChannelConcat | None:
        return inference.ChannelConcat() if self.concat_axis == 1 and len(self.top_shapes[0]) == 4 else None

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Concat", self.bottoms, self.tops, axis=self.concat_axis)


@register("Slice")
class Slice(Layer):
    """The bottom cut along ``axis`` (or the old ``slice_dim``) at ``slice_point``, or into equal parts (slice_layer.cpp)."""

    TRAITS = Traits(role="slice", settings="slice_param", half=True)
    TOPS = (1, None)
    SHARES = "shapes"

    def shares_memory(self) -> bool:
        return len(self.bottoms) == len(self.tops) == 1

    def setup(self, bottoms: Shapes) -> Shapes:
        param, shape = self.param.slice_param, bottoms[0]
        if param.HasField("axis") and param.HasField("slice_dim"):
            raise self.error("either axis or slice_dim can be given, not both")
        self.slice_axis = axis = self.axis(param.slice_dim if param.HasField("slice_dim") else param.axis, shape)
        points, length = list(param.slice_point), shape[axis]
        if points:
            if len(points) != len(self.tops) - 1:
                raise self.error(f"{len(self.tops)} tops need {len(self.tops) - 1} slice_point values, not {len(points)}")
            self.sizes = [end - start for start, end in zip([0, *points], [*points, length], strict=True)]
            if min(self.sizes) < 1:
                raise self.error(f"slice_point values {points} must increase and be inside of axis {axis} of {format_shape(shape)}")
        else:
            if length % len(self.tops):
                raise self.error(
                    f"axis {axis} of '{self.bottoms[0]}' ({format_shape(shape)}) cannot be cut into {len(self.tops)} equal parts"
                )
            self.sizes = [length // len(self.tops)] * len(self.tops)
        return [(*shape[:axis], size, *shape[axis + 1 :]) for size in self.sizes]

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if self.slice_axis < 2 else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split(x, self.sizes, self.slice_axis))

    def to_onnx(self, graph: OnnxGraph) -> None:
        axis, bottom = self.slice_axis, self.bottoms[0]
        if not graph.is_free(bottom, axis):
            graph.node("Split", self.bottoms, self.tops, axis=axis, split=self.sizes)
            return
        points = [int(point) for point in self.param.slice_param.slice_point]
        if not points:
            graph.node("Split", self.bottoms, self.tops, axis=axis, num_outputs=len(self.tops) if graph.opset >= 18 else None)
            return
        on = graph.constant("axis", np.array([axis], np.int64))
        for top, start, end in zip(self.tops, [0, *points], [*points, 2**63 - 1], strict=True):
            bounds = [graph.constant(hint, np.array([n], np.int64)) for hint, n in (("from", start), ("to", end))]
            graph.node("Slice", [bottom, *bounds, on], [top])


@register("Split")
class Split(Layer):
    """The bottom under several names; its gradient is the sum of theirs (split_layer.cpp)."""

    TRAITS = Traits(role="split", channels="kept", half=True, coordinates="same")
    IN_PLACE = "refused"
    SHARES = "data"
    TOPS = (1, None)

    def shares_memory(self) -> bool:
        return len(self.bottoms) == len(self.tops) == 1

    def setup(self, bottoms: Shapes) -> Shapes:
        return [bottoms[0]] * len(self.tops)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for _ in self.tops)

    def spatial_windows(self) -> Windows:
        return POINTWISE

    def inference_form(self) -> inference.Identity:
        return inference.Identity()

    def to_onnx(self, graph: OnnxGraph) -> None:
        for top in self.tops:
            graph.node("Identity", self.bottoms, [top])


@register("Silence")
class Silence(Layer):
    """Takes blobs so that they are no outputs of the net; gives nothing, and no gradient (silence_layer.cpp)."""

    TRAITS = Traits(role="silence", half=True)
    BOTTOMS = (1, None)
    TOPS = (0, 0)

    def setup(self, bottoms: Shapes) -> Shapes:
        return []

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()

    def inference_form(self) -> inference.Identity:
        return inference.Identity()

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Nothing."""
