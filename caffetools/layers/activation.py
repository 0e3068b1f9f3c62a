"""Elementwise activations: ReLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.registry import register


class Elementwise(Layer):
    """A layer whose top has its bottom's shape; most may work in place."""

    def setup(self, bottoms: Shapes) -> Shapes:
        return [bottoms[0]]


@register("ReLU")
class ReLU(Elementwise):
    """y = max(0, x) + negative_slope · min(0, x)."""

    def forward(self, x: Tensor) -> Tensor:
        slope = self.param.relu_param.negative_slope
        if slope:
            return F.leaky_relu(x, slope, inplace=self.may_overwrite)
        return F.relu(x, inplace=self.may_overwrite)

    def to_onnx(self, graph: OnnxGraph) -> None:
        slope = self.param.relu_param.negative_slope
        if slope:
            graph.node("LeakyRelu", self.bottoms, self.tops, alpha=slope)
        else:
            graph.node("Relu", self.bottoms, self.tops)
