"""Activations that forks add: ReLU6, Mish, HSwish, HSigmoid, SELU, ChannelsPReLU; and Axpy, which gates a sum (SENet)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.activation import Elementwise, PReLU
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter

# Klambauer et al. (2017): the fixed point's alpha and scale.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


@register("ReLU6")
class ReLU6(Elementwise):
    """y = min(max(0, x), 6) (MobileNet's forks); a ``negative_slope`` is refused."""

    TRAITS = replace(Elementwise.TRAITS, rectifier=True, half=True)

    def setup(self, bottoms: Shapes) -> Shapes:
        if self.param.relu6_param.negative_slope or self.param.relu_param.negative_slope:
            raise self.error("negative_slope is not defined for it")
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x, inplace=self.overwrites(x))

    def inference_form(self) -> inference.Activation:
        return inference.Activation(inference.CLIP, 0.0, 6.0)

    def to_onnx(self, graph: OnnxGraph) -> None:
        _clip(graph, self.bottoms[0], self.tops[0], 0.0, 6.0)


@register("Mish")
class Mish(Elementwise):
    """y = x · tanh(log(1 + exp(x))). Misra (2019)."""

    TRAITS = replace(Elementwise.TRAITS, in_place=False)
    NEEDS_TOP = False

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)

    def to_onnx(self, graph: OnnxGraph) -> None:
        soft, gate = graph.value("soft"), graph.value("gate")
        graph.node("Softplus", self.bottoms, [soft])
        graph.node("Tanh", [soft], [gate])
        graph.node("Mul", [self.bottoms[0], gate], self.tops)


@register("HSigmoid")
class HSigmoid(Elementwise):
    """y = min(max(0, x + 3), 6) / 6. Howard et al. (2019), MobileNetV3."""

    NEEDS_TOP = False

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("HardSigmoid", self.bottoms, self.tops, alpha=1 / 6, beta=0.5)


@register("HSwish", "HardSwish")
class HSwish(Elementwise):
    """y = x · min(max(0, x + 3), 6) / 6. Howard et al. (2019), MobileNetV3."""

    TRAITS = replace(Elementwise.TRAITS, in_place=False)
    NEEDS_TOP = False

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def to_onnx(self, graph: OnnxGraph) -> None:
        gate = graph.value("gate")
        graph.node("HardSigmoid", self.bottoms, [gate], alpha=1 / 6, beta=0.5)
        graph.node("Mul", [self.bottoms[0], gate], self.tops)


@register("SELU", "SeLu")
class SELU(Elementwise):
    """y = scale · (x where x > 0, else alpha · (exp(x) − 1)) with the paper's two constants. Klambauer et al. (2017)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(x)

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Selu", self.bottoms, self.tops, alpha=SELU_ALPHA, gamma=SELU_SCALE)


@register("Axpy")
class Axpy(Layer):
    """top = a · x + y for bottoms a (N, C, or N x C x 1 x 1), x and y (N, C, H, W): one factor for each map. Hu et al. (2018), SENet."""

    TRAITS = Traits(coordinates="same")
    BOTTOMS = (3, 3)
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        a, x, y = bottoms
        if x != y or len(x) < 2:
            raise self.error(f"'{self.bottoms[1]}' ({format_shape(x)}) and '{self.bottoms[2]}' ({format_shape(y)}) must have one shape")
        if a[:2] != x[:2] or any(n != 1 for n in a[2:]):
            raise self.error(f"'{self.bottoms[0]}' must have one value for each map of {format_shape(x)}, but is {format_shape(a)}")
        self.factor_tail = (1,) * (len(x) - 2)
        return [x]

    def forward(self, a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(y, a.reshape(*x.shape[:2], *self.factor_tail), x)

    def to_onnx(self, graph: OnnxGraph) -> None:
        factor, product = graph.value("factor"), graph.value("product")
        shape = np.array([0, self.bottom_shapes[1][1], *self.factor_tail], np.int64)
        graph.node("Reshape", [self.bottoms[0], graph.constant("shape", shape)], [factor])
        graph.node("Mul", [factor, self.bottoms[1]], [product])
        graph.node("Add", [product, self.bottoms[2]], self.tops)


def _clip(graph: OnnxGraph, source: str, target: str, low: float, high: float) -> None:
    bounds = [graph.constant(name, np.array(value, np.float32)) for name, value in (("min", low), ("max", high))]
    graph.node("Clip", [source, *bounds], [target])


@register("ChannelsPReLU")
class ChannelsPReLU(PReLU):
    """y = max(0, x) + slope · min(0, x) with a learned slope for each channel of (N, C, …); ``channel_shared`` is refused.

    Blobs: slope (C), which starts at 0.25.
    """

    TRAITS = replace(PReLU.TRAITS, fork="OpenCV")

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return cls.TRAITS

    def setup(self, bottoms: Shapes) -> Shapes:
        if self.param.prelu_param.channel_shared:
            raise self.error("has one slope for each channel; channel_shared is PReLU's")
        return super().setup(bottoms)
