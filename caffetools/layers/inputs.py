"""Input, DummyData and Parameter: layers whose tops come from outside, from fillers, or are learned."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes
from caffetools.layers.fillers import fill
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import FillerParameter


@register("Input")
class Input(Layer):
    """Names blobs that are given from outside; a run that gets none sees zeros. Shapes: one ``shape`` for all tops, or one each."""

    TRAITS = Traits(role="input", settings="input_param")
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


@register("DummyData")
class DummyData(Layer):
    """Tops drawn from fillers in every pass: one ``shape`` and one ``data_filler`` for all tops, or one each; zeros without any.

    The old num, channels, height and width make shapes of four axes. Follows dummy_data_layer.cpp.
    """

    TRAITS = Traits(role="constant", settings="dummy_data_param")
    BOTTOMS = (0, 0)
    TOPS = (1, None)
    IS_DATA = True

    def setup(self, bottoms: Shapes) -> Shapes:
        param, tops = self.param.dummy_data_param, len(self.tops)
        if len(param.data_filler) not in (0, 1, tops):
            raise self.error(f"needs no data_filler, one, or one for each of its {tops} tops; {len(param.data_filler)} are given")
        fillers: list[FillerParameter | None] = list(param.data_filler) or [None]
        self.fillers = fillers * tops if len(fillers) == 1 else fillers
        shapes = self._legacy_shapes() or [tuple(shape.dim) for shape in param.shape]
        if len(shapes) not in (1, tops):
            raise self.error(f"needs one shape, or one for each of its {tops} tops; {len(shapes)} are given")
        return shapes * tops if len(shapes) == 1 else shapes

    def _legacy_shapes(self) -> list[Shape]:
        param, tops = self.param.dummy_data_param, len(self.tops)
        given = [list(getattr(param, field)) for field in ("num", "channels", "height", "width")]
        if not any(given):
            return []
        if param.shape:
            raise self.error("give either shape or num, channels, height and width, not both")
        if any(len(values) not in (1, tops) for values in given):
            raise self.error(f"num, channels, height and width are needed once each, or once for each of its {tops} tops")
        columns = [values * tops if len(values) == 1 else values for values in given]
        return list(zip(*columns, strict=True))

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        made = []
        with torch.no_grad():
            for shape, filler in zip(self.top_shapes, self.fillers, strict=True):
                top = torch.empty(shape)
                fill(top, filler, self.generator)
                made.append(top)
        return tuple(made)

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Nothing: the exporter makes the net's inputs the graph's."""


@register("Parameter")
class Parameter(Layer):
    """A learned blob as a top; it starts at zero. Blobs: the parameter, of ``parameter_param.shape`` (parameter_layer.hpp)."""

    TRAITS = Traits(role="parameter", settings="parameter_param")
    BOTTOMS = (0, 0)

    def setup(self, bottoms: Shapes) -> Shapes:
        shape = tuple(self.param.parameter_param.shape.dim)
        self.declare_blob(shape)
        return [shape]

    def forward(self, *bottoms: Tensor) -> Tensor:
        learned: Tensor = self.blobs[0]
        return learned.view_as(learned)

    def replaced_gradients(self) -> frozenset[int]:
        return frozenset({0})  # its top has the parameter's own diff

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Identity", [graph.parameter(self, 0)], self.tops)
