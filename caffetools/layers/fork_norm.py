"""Normalization layers of forks: BN (SegNet, PSPNet), Normalize (SSD), L2Normalization and GRN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.autograd import is_recomputing, with_dense_gradient
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.normalization import batch_norm_to_onnx
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import FillerParameter, LayerParameter, enum_name

# SegNet's layer has no field for it.
_SEGNET_EPS = 1e-9


@register("BN")
class BN(Layer):
    """Batch normalization with slope and bias, y = slope · (x − mean) / sqrt(variance + eps) + bias, in its two forms.

    PSPNet's (and temporal segment networks'): blobs slope, bias, running mean and variance, each 1 x C x 1 x 1. In TRAIN the batch's
    own mean and variance (divided by the number of values), and running = momentum · running + (1 − momentum) · batch; in TEST, or
    ``frozen``, the running ones.
    SegNet's, recognized by scale_filler, shift_filler or bn_mode: blobs scale and shift; ``bn_mode: LEARN`` always takes the batch's own, with
    eps 1e-9, and ``INFERENCE`` is y = scale · x + shift, mean and variance having been worked into them.
    Without fillers slope and scale start at 1.
    """

    BACKWARD_READS_BOTTOMS = False
    TRAITS = Traits(
        role="normalization",
        settings="bn_param",
        class_axes=(1, 1, 1, 1),
        channels="kept",
        coordinates="same",
        statistics_switch="bn_param.frozen",
    )
    NEEDS_TOP = False

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        # SegNet's form has no running statistics that could be used.
        return replace(cls.TRAITS, statistics_switch="") if param.bn_param.HasField("bn_mode") else cls.TRAITS

    def setup(self, bottoms: Shapes) -> Shapes:
        _, c, _, _ = self.legacy_axes(bottoms[0])
        param, shape, one = self.param.bn_param, (1, c, 1, 1), FillerParameter(value=1.0)
        self.segnet = any(param.HasField(field) for field in ("scale_filler", "shift_filler", "bn_mode"))
        slope, bias = ("scale_filler", "shift_filler") if self.segnet else ("slope_filler", "bias_filler")
        self.declare_blob(shape, getattr(param, slope) if param.HasField(slope) else one)
        self.declare_blob(shape, getattr(param, bias))
        if not self.segnet:
            self.declare_blob(shape, learnable=False)
            self.declare_blob(shape, one, learnable=False)
        return [bottoms[0]]

    @property
    def batch_stats(self) -> bool:
        """Whether the batch's own mean and variance are taken."""
        param = self.param.bn_param
        return enum_name(param, "bn_mode") == "LEARN" if self.segnet else self.training and not param.frozen

    def forward(self, x: Tensor) -> Tensor:
        return self._normalized(x) if x.dim() == 4 else self._normalized(x.reshape(self.legacy_axes(tuple(x.shape)))).reshape(x.shape)

    def _normalized(self, x: Tensor) -> Tensor:
        slope, bias = self.blobs[0].reshape(-1), self.blobs[1].reshape(-1)
        if self.segnet and not self.batch_stats:
            return torch.addcmul(self.blobs[1], x, self.blobs[0])
        eps = _SEGNET_EPS if self.segnet else self.param.bn_param.eps
        if not self.batch_stats:
            mean, variance = self.blobs[2].reshape(-1), self.blobs[3].reshape(-1)
            return with_dense_gradient(torch.batch_norm(x, slope, bias, mean, variance, False, 0.0, eps, False))
        if not self.segnet and not is_recomputing():
            self._renew(x.detach())
        if x.numel() == x.shape[1]:  # one value a channel is its own mean; torch refuses this
            return torch.addcmul(self.blobs[1], x - x, self.blobs[0])
        return with_dense_gradient(torch.batch_norm(x, slope, bias, None, None, True, 0.0, eps, False))

    def _renew(self, x: Tensor) -> None:
        momentum = self.param.bn_param.momentum
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        with torch.no_grad():
            self.blobs[2].mul_(momentum).add_(mean, alpha=1 - momentum)
            self.blobs[3].mul_(momentum).add_(variance, alpha=1 - momentum)

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if not self.batch_stats else None

    def inference_form(self) -> inference.Affine | None:
        if self.batch_stats:
            return None
        slope, bias, *running = (blob.detach().reshape(-1) for blob in self.blobs)
        if self.segnet:
            return inference.Affine(slope, bias)
        return inference.batch_norm_affine(running[0], running[1], self.param.bn_param.eps, slope, bias)

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.batch_stats:
            graph.note(f"layer '{self.name}' has bn_mode: LEARN, so it normalizes with the mean and variance of each batch")
            batch_norm_to_onnx(graph, self, _SEGNET_EPS, [self.array(0), self.array(1)])
            return
        if self.segnet:
            product = graph.value("product")
            # ONNX broadcasts from the last axis; the blobs have four.
            fewer = [-1] + [1] * (len(self.bottom_shapes[0]) - 2)
            four = len(self.bottom_shapes[0]) == 4
            scale, shift = (
                graph.parameter(self, i) if four else graph.constant(hint, self.array(i).reshape(fewer))
                for i, hint in enumerate(("scale", "shift"))
            )
            graph.node("Mul", [self.bottoms[0], scale], [product])
            graph.node("Add", [product, shift], self.tops)
            return
        hints = ("scale", "shift", "mean", "variance")
        names = [graph.constant(hint, self.array(index).reshape(-1)) for index, hint in enumerate(hints)]
        graph.node("BatchNormalization", [self.bottoms[0], *names], self.tops, epsilon=self.param.bn_param.eps)


@register("Normalize")
class Normalize(Layer):
    """y = scale · x / sqrt(sum of x² + eps), the sum over the whole item or, without ``across_spatial``, over the channels of a pixel.

    Blobs: scale, one value or (with ``channel_shared: false``) one for each channel; starts at 1. Liu et al. (2016), SSD.
    """

    TRAITS = Traits(role="normalization", settings="norm_param", coordinates="same")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' must have at least 2 axes, not {format_shape(bottoms[0])}")
        param = self.param.norm_param
        shape = () if param.channel_shared else (bottoms[0][1],)
        self.declare_blob(shape, param.scale_filler if param.HasField("scale_filler") else FillerParameter(value=1.0))
        self.axes = list(range(1, len(bottoms[0]))) if param.across_spatial else [1]
        self.scale_shape = (1, -1, *[1] * (len(bottoms[0]) - 2))
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        norm = ((x * x).sum(self.axes, keepdim=True) + self.param.norm_param.eps).sqrt()
        y: Tensor = x / norm * self.blobs[0].reshape(self.scale_shape)
        return y

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if self.axes == [1] else None

    def to_onnx(self, graph: OnnxGraph) -> None:
        unit = graph.value("unit")
        _unit_in_onnx(graph, self.bottoms[0], unit, self.axes, self.param.norm_param.eps)
        graph.node("Mul", [unit, graph.constant("scale", self.array(0).reshape(self.scale_shape))], self.tops)


@register("L2Normalization")
class L2Normalization(Layer):
    """y = x / sqrt(sum of x²) for each item of (N, …); an item of zeros is unchanged. For embeddings of faces."""

    TRAITS = Traits(role="normalization", coordinates="same")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' must have at least 2 axes, not {format_shape(bottoms[0])}")
        self.axes = list(range(1, len(bottoms[0])))
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        square = (x * x).sum(self.axes, keepdim=True)
        return x / torch.where(square == 0, torch.ones_like(square), square).sqrt()

    def to_onnx(self, graph: OnnxGraph) -> None:
        # The smallest normal number keeps zeros from dividing by zero, and is below the precision of any other sum.
        _unit_in_onnx(graph, self.bottoms[0], self.tops[0], self.axes, float(np.finfo(np.float32).tiny))


def _unit_in_onnx(graph: OnnxGraph, source: str, target: str, axes: list[int], eps: float) -> None:
    square, total, sure, norm = (graph.value(hint) for hint in ("square", "total", "sure", "norm"))
    graph.node("Mul", [source, source], [square])
    graph.node("ReduceSum", [square], [total], axes=axes, keepdims=1)
    graph.node("Add", [total, graph.constant("eps", np.array(eps, np.float32))], [sure])
    graph.node("Sqrt", [sure], [norm])
    graph.node("Div", [source, norm], [target])


@register("GRN")
class GRN(Layer):
    """y = x / sqrt(sum of x² over the channels + bias) for (N, C, H, W); ``dummy_backward`` passes the top's gradient as it is.

    ``bias`` is 1e-7 where the prototxt gives none, as in the toolbox that trains such nets; OpenVINO's importer takes 1 then.
    """

    TRAITS = Traits(role="normalization", settings="grn_param", coordinates="same")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        self.legacy_axes(bottoms[0])
        if self.param.grn_param.bias < 0:
            raise self.error(f"bias must be at least 0, not {self.param.grn_param.bias}")
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' needs an axis of channels")
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        y = x / ((x * x).sum(1, keepdim=True) + self.param.grn_param.bias).sqrt()
        if not self.param.grn_param.dummy_backward:
            return y
        # The value of y with the gradient of x.
        passed: Tensor = y.detach() + (x - x.detach())
        return passed

    def to_onnx(self, graph: OnnxGraph) -> None:
        n = Nodes(graph)
        total = n("ReduceSum", n("Mul", self.bottoms[0], self.bottoms[0]), axes=[1], keepdims=1)
        bias = graph.constant("bias", np.array(self.param.grn_param.bias, np.float32))
        graph.node("Div", [self.bottoms[0], n("Sqrt", n("Add", total, bias))], self.tops)
