"""Types under other names: what importers of Caffe models (OpenCV, MNN, Tengine) read as a layer that is known by another name."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.autograd import with_dense_gradient
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.convolution import Convolution, Deconvolution, DepthwiseConvolution
from caffetools.layers.fork_norm import Normalize
from caffetools.layers.inner_product import Embed
from caffetools.layers.lrn import LRN
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import FillerParameter


@register("Identity")
class Identity(Layer):
    """y = x, for a bottom of any shape (OpenCV)."""

    TRAITS = Traits(fork="OpenCV", channels="kept", half=True, coordinates="same", in_place=True)

    def setup(self, bottoms: Shapes) -> Shapes:
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)

    def spatial_windows(self) -> Windows:
        return POINTWISE

    def inference_form(self) -> inference.Identity:
        return inference.Identity()

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Identity", self.bottoms, self.tops)


@register("DeConvolution")
class DeConvolution(Deconvolution):
    """Deconvolution under the name by which Tengine reads it, too."""

    TRAITS = replace(Deconvolution.TRAITS, fork="Tengine")


@register("DepthwiseConv")
class DepthwiseConv(DepthwiseConvolution):
    """DepthwiseConvolution under the name by which MNN reads it, too: one group for each channel."""

    TRAITS = replace(DepthwiseConvolution.TRAITS, fork="MNN")


@register("CuDNNGroupedConvolutionForward")
class CuDNNGroupedConvolutionForward(Convolution):
    """Convolution under the name by which MNN reads it, too."""

    TRAITS = replace(Convolution.TRAITS, fork="MNN")


@register("Embedding")
class Embedding(Embed):
    """Embed under the name by which Tengine reads it, too."""

    TRAITS = replace(Embed.TRAITS, fork="Tengine")


@register("NormalizeBBox")
class NormalizeBBox(Normalize):
    """SSD's Normalize under the name that it has in OpenCV; its settings are ``norm_param``."""

    TRAITS = replace(Normalize.TRAITS, fork="OpenCV")


@register("CuDNNLRNCrossChannel")
class CuDNNLRNCrossChannel(LRN):
    """LRN across channels under the name by which MNN reads it, too; WITHIN_CHANNEL is refused."""

    TRAITS = replace(LRN.TRAITS, fork="MNN")

    def setup(self, bottoms: Shapes) -> Shapes:
        shapes = super().setup(bottoms)
        if not self.across:
            raise self.error("is across channels; norm_region WITHIN_CHANNEL is LRN's")
        return shapes


@register("CuDNNBatchNorm")
class CuDNNBatchNorm(Layer):
    """y = scale · (x − mean) / sqrt(variance + eps) + shift for (N, C, …), in the TEST phase only; ``batch_norm_param`` gives eps (MNN).

    Blobs: mean (C), variance (C), scale (C), shift (C), as MNN's converter reads them; how a fork trains them is not published.
    """

    TRAITS = Traits(role="normalization", settings="batch_norm_param", fork="MNN", channels="kept", coordinates="same")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' must have at least 2 axes, not {format_shape(bottoms[0])}")
        if self.training:
            raise self.error("is known for the TEST phase only; use BatchNorm and Scale to train")
        one = FillerParameter(value=1)
        for filler in (None, one, one, None):
            self.declare_blob((bottoms[0][1],), filler, learnable=False)
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        mean, variance, scale, shift = self.blobs
        y = torch.batch_norm(x, scale, shift, mean, variance, False, 0.0, self.param.batch_norm_param.eps, False)
        return with_dense_gradient(y)

    def inference_form(self) -> inference.Affine:
        mean, variance, scale, shift = (blob.detach() for blob in self.blobs)
        return inference.batch_norm_affine(mean, variance, self.param.batch_norm_param.eps, scale, shift)

    def to_onnx(self, graph: OnnxGraph) -> None:
        names = [graph.parameter(self, index) for index in (2, 3, 0, 1)]
        graph.node("BatchNormalization", [self.bottoms[0], *names], self.tops, epsilon=self.param.batch_norm_param.eps)


@register("Shift")
class Shift(Layer):
    """y = x + shift for each channel of (N, C, …); OpenCV's layer of this name, which has no settings.

    Blobs: shift (C). Layers of this name that move channels (ShiftNet) are others: they have settings, and are refused.
    """

    TRAITS = Traits(role="scale", fork="OpenCV", channels="kept", class_axes=(0,), coordinates="same")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' must have at least 2 axes, not {format_shape(bottoms[0])}")
        self.declare_blob((bottoms[0][1],))
        self.wide = (-1, *[1] * (len(bottoms[0]) - 2))
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.blobs[0].reshape(self.wide)
        return y

    def to_onnx(self, graph: OnnxGraph) -> None:
        graph.node("Add", [self.bottoms[0], graph.constant("shift", self.array(0).reshape(self.wide))], self.tops)
