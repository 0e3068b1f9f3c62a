"""Reduction (reduction_layer.cpp) and ArgMax (argmax_layer.cpp): fewer values from many."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, Size
from caffetools.layers.registry import register
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import enum_name


@register("Reduction")
class Reduction(Layer):
    """coeff times the SUM, ASUM (of |x|), SUMSQ (of x²) or MEAN over ``axis`` and all axes behind it (reduction_layer.cpp).

    (outer…, inner…) to (outer…); a scalar where axis is 0. The gradient of |x| at 0 is 0.
    """

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.reduction_param
        self.outer_axes = self.axis(param.axis, bottoms[0])
        self.operation, self.coeff = enum_name(param, "operation"), float(param.coeff)
        return [bottoms[0][: self.outer_axes]]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(*x.shape[: self.outer_axes], -1)
        if self.operation == "MEAN":
            return rows.mean(-1) * self.coeff
        if self.operation != "SUM":
            rows = rows.abs() if self.operation == "ASUM" else rows * rows
        return rows.sum(-1) * self.coeff

    def to_onnx(self, graph: OnnxGraph) -> None:
        axes = list(range(self.outer_axes, len(self.bottom_shapes[0])))
        result = graph.value("reduced") if self.coeff != 1 else self.tops[0]
        op = {"SUM": "ReduceSum", "MEAN": "ReduceMean", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare"}[self.operation]
        graph.node(op, self.bottoms, [result], axes=axes, keepdims=0)
        if self.coeff != 1:
            graph.node("Mul", [result, graph.constant("coeff", np.array(self.coeff, np.float32))], self.tops)


@register("ArgMax")
class ArgMax(Layer):
    """The places of the ``top_k`` largest values, as float32, largest first; of equal values the last comes first.

    With ``axis``: along it, and with ``out_max_val`` the values themselves. Without: over each item of (N, …), to (N, 1, top_k), or
    (N, 2, top_k) with the values in the second row; further axes of 1 where the bottom has more. Follows argmax_layer.cpp; no gradient.
    """

    NO_GRADIENT = frozenset({0})
    REFUSES_GRADIENT = True
    REFUSES_FORCED = frozenset({0})

    def setup(self, bottoms: Shapes) -> Shapes:
        param, shape = self.param.argmax_param, bottoms[0]
        self.top_k, self.values = int(param.top_k), bool(param.out_max_val)
        self.along = self.axis(param.axis, shape) if param.HasField("axis") else None
        choice = math.prod(shape[1:]) if self.along is None else shape[self.along]
        if not 1 <= self.top_k <= choice:
            raise self.error(f"top_k {self.top_k} must be from 1 to the {choice} values there are")
        if self.along is not None:
            return [(*shape[: self.along], self.top_k, *shape[self.along + 1 :])]
        return [(shape[0], 2 if self.values else 1, self.top_k, *[1] * (len(shape) - 3))]

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach()
        rows = x.reshape(x.shape[0], -1) if self.along is None else x.movedim(self.along, -1)
        # A stable sort of the reversed row puts the last of equal values first.
        values, places = rows.flip(-1).sort(dim=-1, descending=True, stable=True)
        values, places = values[..., : self.top_k], (rows.shape[-1] - 1 - places[..., : self.top_k]).to(x.dtype)
        if self.along is not None:
            return (values if self.values else places).movedim(-1, self.along)
        top = torch.stack([places, values], 1) if self.values else places
        return top.reshape(x.shape[0], *self.top_shapes[0][1:])

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if self.along == 1 and len(self.bottom_shapes[0]) == 4 else None

    def to_onnx(self, graph: OnnxGraph) -> None:
        rows, axis = self.bottoms[0], self.along
        axes = range(1, len(self.bottom_shapes[0])) if axis is None else [axis]
        choice: Size = 1
        for size in (graph.size(self.bottoms[0], i) for i in axes):
            choice = graph.arithmetic("Mul", choice, size)
        if axis is None:
            rows, axis = graph.value("rows"), 1
            graph.node("Flatten", self.bottoms, [rows], axis=1)
        values, places = self._largest(graph, rows, axis, choice)
        if self.along is not None:
            graph.node("Identity", [values if self.values else places], self.tops)
            return
        flat = places
        if self.values:
            flat = graph.value("both")
            graph.node("Concat", [places, values], [flat], axis=1)
        shape = graph.constant("shape", np.array([0, *self.top_shapes[0][1:]], np.int64))
        graph.node("Reshape", [flat, shape], self.tops)

    def _largest(self, graph: OnnxGraph, rows: str, axis: int, choice: Size) -> tuple[str, str]:
        """Return the values and (float) places of the largest; TopK takes the first of equal values, so the rows go in reversed."""
        turned, values, index, straight, places = (graph.value(hint) for hint in ("turned", "values", "index", "straight", "places"))
        ends = (("from", -1), ("to", -(2**31)), ("axis", axis), ("step", -1))
        bounds = [graph.constant(hint, np.array([n], np.int64)) for hint, n in ends]
        graph.node("Slice", [rows, *bounds], [turned])
        graph.node("TopK", [turned, graph.constant("k", np.array([self.top_k], np.int64))], [values, index], axis=axis)
        graph.node("Sub", [graph.sizes("last", [graph.arithmetic("Sub", choice, 1)]), index], [straight])
        graph.node("Cast", [straight], [places], to=1)
        return values, places
