"""Elementwise activations: ReLU, PReLU, ELU, Sigmoid, TanH, AbsVal, BNLL, Swish, Clip, Threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference, native_training
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import FillerParameter, LayerParameter


class Elementwise(Layer):
    """A layer whose top has its bottom's shape; most may work in place."""

    TRAITS = Traits(role="activation", channels="kept", in_place=True, coordinates="same")

    def setup(self, bottoms: Shapes) -> Shapes:
        return [bottoms[0]]

    def spatial_windows(self) -> Windows:
        return POINTWISE

    def overwrites(self, x: Tensor) -> bool:
        """Return whether ``x`` (any shape) itself may take the result: the net allows it, and autograd does not watch ``x`` as a leaf."""
        return self.inplace_ok and not (x.is_leaf and x.requires_grad)


@register("ReLU")
class ReLU(Elementwise):
    """y = max(0, x) + negative_slope · min(0, x), any shape; at 0 the gradient takes the negative slope (relu_layer.cpp)."""

    BACKWARD_READS_RESULT = True
    TRAITS = replace(Elementwise.TRAITS, rectifier=True, half=True)

    def idempotent(self) -> bool:
        return self.param.relu_param.negative_slope >= 0

    def in_place_changes_gradient(self) -> bool:
        return not self.idempotent()

    def forward(self, x: Tensor) -> Tensor:
        slope = self.param.relu_param.negative_slope
        if slope:
            # Overwriting, torch finds the sign of x again in y, which takes a positive slope.
            return F.leaky_relu(x, slope, inplace=slope > 0 and self.overwrites(x))
        if self.training and native_training.takes(x):
            return native_training.rectify(x, in_place=self.overwrites(x))
        return F.relu(x, inplace=self.overwrites(x))

    def native_training(self, gradient: bool) -> tuple[int, float]:
        return 0, 0.0 if self.param.relu_param.negative_slope else 1.0

    def inference_form(self) -> inference.Activation:
        slope = float(self.param.relu_param.negative_slope)
        return inference.Activation(inference.LEAKY if slope else inference.RELU, slope)

    def to_onnx(self, graph: OnnxGraph) -> None:
        slope = self.param.relu_param.negative_slope
        if slope:
            graph.node("LeakyRelu", self.bottoms, self.tops, alpha=slope)
        else:
            graph.node("Relu", self.bottoms, self.tops)


@register("PReLU")
class PReLU(Elementwise):
    """y = max(0, x) + slope · min(0, x) with a learned slope for each channel of (N, C, …), or one for all (``channel_shared``).

    Blobs: slope (C), or a scalar; without a filler they start at 0.25. He et al. (2015); prelu_layer.cpp.
    """

    TRAITS = replace(Elementwise.TRAITS, settings="prelu_param", class_axes=(0,), weight_filler="filler", blobs=("slope",))
    NEEDS_TOP = False

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return replace(cls.TRAITS, class_axes=()) if param.prelu_param.channel_shared else cls.TRAITS

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.prelu_param
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' must have at least 2 axes, not {format_shape(bottoms[0])}")
        shape = () if param.channel_shared else (bottoms[0][1],)
        self.declare_blob(shape, param.filler if param.HasField("filler") else FillerParameter(value=0.25))
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.blobs[0].reshape(-1))

    def inference_form(self) -> inference.Activation:
        slopes = self.blobs[0].detach().reshape(-1)
        return inference.Activation(inference.PRELU, slopes=slopes.expand(self.bottom_shapes[0][1]))

    def to_onnx(self, graph: OnnxGraph) -> None:
        axes = len(self.bottom_shapes[0]) - 2
        slope = self.array(0).reshape(-1, *[1] * axes)  # ONNX broadcasts from the last axis
        graph.node("PRelu", [self.bottoms[0], graph.constant("slope", slope)], self.tops)


@register("ELU")
class ELU(Elementwise):
    """y = x where x > 0, else alpha · (exp(x) − 1). Clevert et al. (2015); elu_layer.cpp."""

    BACKWARD_READS_TOP = True

    def in_place_changes_gradient(self) -> bool:
        return self.param.elu_param.alpha < 0

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.param.elu_param.alpha)

    def gradient_from_top(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        return torch.where(x > 0, gradient, gradient * (y + self.param.elu_param.alpha))

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Elu", self.bottoms, self.tops, alpha=self.param.elu_param.alpha)


@register("Sigmoid")
class Sigmoid(Elementwise):
    """y = 1 / (1 + exp(−x)) (sigmoid_layer.cpp)."""

    BACKWARD_READS_BOTTOMS, BACKWARD_READS_TOP = False, True
    TRAITS = replace(Elementwise.TRAITS, loss="SigmoidCrossEntropyLoss")

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def gradient_from_top(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        return gradient * y * (1 - y)

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Sigmoid", self.bottoms, self.tops)


@register("TanH")
class TanH(Elementwise):
    """y = tanh(x) (tanh_layer.cpp)."""

    BACKWARD_READS_BOTTOMS, BACKWARD_READS_TOP = False, True

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def gradient_from_top(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        return gradient * (1 - y * y)

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Tanh", self.bottoms, self.tops)


@register("AbsVal")
class AbsVal(Elementwise):
    """y = |x|; the gradient at 0 is 0 (absval_layer.cpp)."""

    TRAITS = replace(Elementwise.TRAITS, in_place=False)
    IN_PLACE = "refused"

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Abs", self.bottoms, self.tops)


@register("BNLL")
class BNLL(Elementwise):
    """y = log(1 + exp(x)), computed without overflow (bnll_layer.cpp)."""

    BACKWARD_READS_RESULT = True
    TRAITS = replace(Elementwise.TRAITS, in_place=False)

    def in_place_changes_gradient(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        # From 20 on torch takes y = x by default; log(1 + exp(x)) - x is below float32's precision only from 17 on, so it is the same.
        return F.softplus(x)

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Softplus", self.bottoms, self.tops)


@register("Swish")
class Swish(Elementwise):
    """y = x · sigmoid(beta · x) (swish_layer.cpp)."""

    BACKWARD_READS_BOTTOMS, BACKWARD_FROM_BLOBS = False, True

    TRAITS = replace(Elementwise.TRAITS, in_place=False)

    def backward_reads_top(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        beta = self.param.swish_param.beta
        return F.silu(x) if beta == 1 else x * torch.sigmoid(x * beta)

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        beta = float(self.param.swish_param.beta)
        gate = torch.sigmoid(recorded[0] * beta) if recorded else torch.zeros_like(bottoms[0])
        scaled = tops[0] * beta
        return [gradients[0] * (scaled + gate * (1.0 - scaled))]

    def to_onnx(self, graph: OnnxGraph) -> None:
        beta, source = self.param.swish_param.beta, self.bottoms[0]
        scaled = source
        if beta != 1:
            scaled = graph.value("scaled")
            graph.node("Mul", [source, graph.constant("beta", np.array(beta, np.float32))], [scaled])
        gate = graph.value("gate")
        graph.node("Sigmoid", [scaled], [gate])
        graph.node("Mul", [source, gate], self.tops)


@register("Clip")
class Clip(Elementwise):
    """y = x held between ``min`` and ``max``; the gradient passes where x lies between them or on them (clip_layer.cpp)."""

    BACKWARD_READS_RESULT = True
    TRAITS = replace(Elementwise.TRAITS, in_place=False)

    def in_place_changes_gradient(self) -> bool:
        return True

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.clip_param
        if not (param.HasField("min") and param.HasField("max")):
            raise self.error("clip_param needs min and max")
        self.low, self.high = float(param.min), float(param.max)
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def inference_form(self) -> inference.Activation:
        return inference.Activation(inference.CLIP, self.low, self.high)

    def to_onnx(self, graph: OnnxGraph) -> None:
        bounds = [graph.constant(s, np.array(v, np.float32)) for s, v in (("min", self.low), ("max", self.high))]
        graph.node("Clip", [self.bottoms[0], *bounds], self.tops)


@register("Threshold")
class Threshold(Elementwise):
    """y = 1 where x > ``threshold``, else 0; no gradient (threshold_layer.cpp)."""

    TRAITS = replace(Elementwise.TRAITS, channels="mixed", in_place=False)
    NO_GRADIENT = frozenset({0})
    REFUSES_GRADIENT = True
    REFUSES_FORCED = frozenset({0})

    def forward(self, x: Tensor) -> Tensor:
        above: Tensor = x > self.param.threshold_param.threshold
        return above.to(x.dtype)

    def to_onnx(self, graph: OnnxGraph) -> None:
        above = graph.value("above")
        limit = graph.constant("threshold", np.array(self.param.threshold_param.threshold, np.float32))
        graph.node("Greater", [self.bottoms[0], limit], [above])
        graph.node("Cast", [above], self.tops, to=1)
