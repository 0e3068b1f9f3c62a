"""Input, DummyData and Parameter: layers whose tops come from outside, from fillers, or are learned."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.registry import register


@register("Input")
class Input(Layer):
    """Names blobs that are given from outside; a run that gets none sees zeros. Shapes: one ``shape`` for all tops, or one each."""

    BOTTOMS = (0, 0)
    TOPS = (1, None)
    IS_DATA = True

    def setup(self, bottoms: Shapes) -> Shapes:
        shapes = [tuple(shape.dim) for shape in self.param.input_param.shape]
        if len(shapes) not in (1, len(self.tops)):
            raise self.error(f"needs one input_param shape, or one for each of its {len(self.tops)} tops; {len(shapes)} are given")
        return shapes * len(self.tops) if len(shapes) == 1 else shapes

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(shape) for shape in self.top_shapes)

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Nothing: the exporter makes the net's inputs the graph's."""
