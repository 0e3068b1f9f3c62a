"""Power, Exp and Log: arithmetic value by value (power_layer.cpp, exp_layer.cpp, log_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.activation import Elementwise
from caffetools.layers.base import OnnxGraph, Shapes
from caffetools.layers.registry import register


class _Affine(Elementwise):
    """y = f(shift + scale · x)."""

    @property
    def in_place(self) -> bool:
        """Whether the top is the bottom's blob."""
        return self.tops == self.bottoms

    def affine_in_onnx(self, graph: OnnxGraph, scale: float, shift: float) -> str:
        """Nodes for shift + scale · x; the name of the value."""
        value = self.bottoms[0]
        for op, number, neutral in (("Mul", scale, 1.0), ("Add", shift, 0.0)):
            if number != neutral:
                value = chained(graph, op, value, number)
        return value


@register("Power")
class Power(_Affine):
    """y = (shift + scale · x)^power, any shape; with power 0 or scale 0 a constant without a gradient (power_layer.cpp)."""

    TRAITS = replace(Elementwise.TRAITS, in_place=False)
    BACKWARD_FROM_BLOBS = True

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.power_param
        self.power, self.scale, self.shift = float(param.power), float(param.scale), float(param.shift)
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        if self.power == 0 or self.scale == 0:
            return torch.full_like(x, self._constant())
        y = x if self.scale == 1 else x * self.scale
        y = y if self.shift == 0 else y + self.shift
        return y if self.power == 1 else y.pow(self.power)

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if not self.in_place and (self.power in (0, 1, 2) or self.scale == 0):
            return None
        slope = self._slope(bottoms[0], tops[0])
        # In place Caffe writes the slope over the top's diff, which is the bottom's too, and multiplies the two.
        return [slope * slope if self.in_place else gradients[0] * slope]

    def backward_reads_top(self) -> bool:
        return self.power not in (0, 1, 2) and self.scale != 0

    def in_place_changes_gradient(self) -> bool:
        return True

    def _slope(self, x: Tensor, y: Tensor) -> Tensor:
        """Return dy / dx from the bottom and the top, of one shape, as power_layer.cpp computes it: power · scale · y / (shift + scale · x)."""
        factor = self.power * self.scale
        if factor == 0 or self.power == 1:
            return torch.full_like(x, factor)
        if self.power == 2:
            return x * (factor * self.scale) + factor * self.shift
        if self.shift == 0:
            return y / x * self.power
        return y / (x * self.scale + self.shift) * factor

    def _constant(self) -> float:
        if self.power == 0:
            return 1.0
        return float(np.power(np.float32(self.shift), np.float32(self.power)))

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.power == 0 or self.scale == 0:
            zero = chained(graph, "Mul", self.bottoms[0], 0.0)
            graph.node("Add", [zero, graph.constant("value", np.array(self._constant(), np.float32))], self.tops)
            return
        value = self.affine_in_onnx(graph, self.scale, self.shift)
        if self.power == 1:
            graph.node("Identity", [value], self.tops)
        else:
            graph.node("Pow", [value, graph.constant("power", np.array(self.power, np.float32))], self.tops)


@register("Exp")
class Exp(_Affine):
    """y = base^(shift + scale · x); base −1 means e (exp_layer.cpp)."""

    BACKWARD_READS_BOTTOMS, BACKWARD_READS_TOP = False, True

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.exp_param
        if param.base <= 0 and param.base != -1:
            raise self.error(f"base must be larger than 0, or -1 for e, not {param.base:g}")
        logarithm = 1.0 if param.base == -1 else math.log(param.base)
        self.inner = logarithm * param.scale
        self.outer = math.exp(param.shift) if param.base == -1 else param.base**param.shift
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(x if self.inner == 1 else x * self.inner)
        return y if self.outer == 1 else y * self.outer

    def gradient_from_top(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        return gradient * y * self.inner

    def to_onnx(self, graph: OnnxGraph) -> None:
        power = graph.value("exp")
        graph.node("Exp", [self.affine_in_onnx(graph, self.inner, 0.0)], [power])
        graph.node("Mul", [power, graph.constant("outer", np.array(self.outer, np.float32))], self.tops)


@register("Log")
class Log(_Affine):
    """y = log(shift + scale · x) to the base ``base``; base −1 means e (log_layer.cpp)."""

    TRAITS = replace(Elementwise.TRAITS, in_place=False)
    BACKWARD_FROM_BLOBS = True

    def in_place_changes_gradient(self) -> bool:
        return True

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if not self.in_place:
            return None
        # As of Power: Caffe writes the slope over the diff.
        slope = (self.factor * self.scale) / (bottoms[0] * self.scale + self.shift)
        return [slope * slope]

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.log_param
        if (param.base <= 0 and param.base != -1) or param.base == 1:
            raise self.error(f"base must be larger than 0 and not 1, or -1 for e, not {param.base:g}")
        self.factor = 1.0 if param.base == -1 else 1.0 / math.log(param.base)
        self.scale, self.shift = float(param.scale), float(param.shift)
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.scale == 1 else x * self.scale
        y = torch.log(y if self.shift == 0 else y + self.shift)
        return y if self.factor == 1 else y * self.factor

    def to_onnx(self, graph: OnnxGraph) -> None:
        logarithm = graph.value("log")
        graph.node("Log", [self.affine_in_onnx(graph, self.scale, self.shift)], [logarithm])
        graph.node("Mul", [logarithm, graph.constant("factor", np.array(self.factor, np.float32))], self.tops)


def chained(graph: OnnxGraph, op: str, value: str, number: float) -> str:
    """Add one node that combines ``value`` with a number; return the name of its result."""
    result = graph.value(op.lower())
    graph.node(op, [value, graph.constant(f"{op.lower()}_by", np.array(number, np.float32))], [result])
    return result
