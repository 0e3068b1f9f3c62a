"""BatchNorm (batch_norm_layer.cpp) and MVN (mvn_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers import inference, native_batch_norm
from caffetools.layers.autograd import Context, is_recomputing, with_dense_gradient
from caffetools.layers.base import BlobSpec, Layer, OnnxGraph, Shapes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import BatchNormParameter, FillerParameter, NetParameter


def has_scale_bias(param: BatchNormParameter) -> bool:
    """Return whether a ``BatchNormParameter`` is of NVCaffe's layer with a scale and a bias of its own."""
    return bool(param.scale_bias or param.HasField("scale_filler") or param.HasField("bias_filler"))


def split_statistics(net: NetParameter) -> None:
    """Give every BatchNorm layer the net's ``bn_stats_batch_size``, in place, as Intel's Caffe does when it builds a net."""
    if net.HasField("bn_stats_batch_size"):
        for layer in net.layer:
            if layer.type == BatchNorm.TYPE:
                layer.batch_norm_param.stats_batch_size = net.bn_stats_batch_size


@register("BatchNorm")
class BatchNorm(Layer):
    """y = (x − mean) / sqrt(variance + eps) for each channel of (N, C, …), without scale and shift (those are a Scale layer's).

    In TEST, or with ``use_global_stats``, mean and variance are the running sums in the blobs, divided by the third; else the
    batch's own, and the sums are renewed: sum = fraction · sum + new, the variance corrected by m / (m − 1).
    Blobs: sum of means (C), sum of variances (C), their weight (1): never learned. Ioffe & Szegedy (2015); batch_norm_layer.cpp.
    NVCaffe's ``scale_bias`` (or its scale_filler or bias_filler) adds two that are: y · scale + bias, each (C), starting at 1 and 0.
    Its statistics are no sums but averages, mean = fraction · mean + (1 − fraction) · new, the variance not corrected, and their weight
    stays 1; the first batch's are taken as they are; they are not learned, also where the file gives them learning rates.
    Intel's ``stats_batch_size`` takes the batch's own statistics of so many items at a time, and renews the sums with each of them.
    """

    BACKWARD_READS_BOTTOMS, BACKWARD_FROM_BLOBS, BACKWARD_IS_UNASKED = False, True, True
    TRAITS = Traits(
        role="normalization",
        settings="batch_norm_param",
        class_axes=(0, 0, None, 0, 0),
        channels="kept",
        in_place=True,
        coordinates="same",
        statistics_switch="batch_norm_param.use_global_stats",
        blobs=("sum of means", "sum of variances", "weight of the sums", "scale", "bias"),
    )
    NEEDS_TOP = False
    FORK_FIELDS = frozenset({"scale_bias", "scale_filler", "bias_filler", "stats_batch_size"})

    @classmethod
    def values_for_new_classes(cls, specs: Sequence[BlobSpec], old: Sequence[NDArray[Any]], generator: torch.Generator) -> list[Tensor]:
        values = super().values_for_new_classes(specs, old, generator)
        # A variance of 1: the sums are divided by the factor in the third blob.
        values[1].fill_(float(np.asarray(old[2]).reshape(-1)[0]))
        return values

    def setup(self, bottoms: Shapes) -> Shapes:
        self.channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
        for shape in ((self.channels,), (self.channels,)):
            self.declare_blob(shape, learnable=False)
        self.declare_blob((1,), FillerParameter(value=1.0) if self.scale_bias else None, learnable=False)
        if self.scale_bias:
            param = self.param.batch_norm_param
            self.declare_blob((self.channels,), param.scale_filler if param.HasField("scale_filler") else FillerParameter(value=1.0))
            self.declare_blob((self.channels,), param.bias_filler)
        for spec in self.param.param[: 0 if self.scale_bias else 3]:
            if spec.HasField("lr_mult") and spec.lr_mult != 0:
                raise self.error("its running sums are not learned: lr_mult must be 0 or not given")
        if self.stats_batch and (bottoms[0][:1] or (1,))[0] % self.stats_batch:
            raise self.error(f"stats_batch_size {self.stats_batch} does not divide the batch of {bottoms[0][0]}")
        return [bottoms[0]]

    @property
    def stats_batch(self) -> int:
        """The number of items whose own statistics are taken together; 0 where those of the whole batch are."""
        return 0 if self.global_stats else int(self.param.batch_norm_param.stats_batch_size)

    @property
    def scale_bias(self) -> bool:
        """Whether the layer has a scale and a bias of its own, as NVCaffe's may."""
        return has_scale_bias(self.param.batch_norm_param)

    @property
    def eps(self) -> float:
        """What is added to the variance; NVCaffe takes no less than 1e-5."""
        eps = float(self.param.batch_norm_param.eps)
        return max(eps, 1e-5) if self.scale_bias else eps

    @property
    def global_stats(self) -> bool:
        """Whether the running sums are used, rather than the batch's own mean and variance."""
        param = self.param.batch_norm_param
        return bool(param.use_global_stats) if param.HasField("use_global_stats") else not self.training

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if self.global_stats else None

    def forward(self, x: Tensor) -> Tensor:
        if 0 < self.stats_batch < x.shape[0]:
            return torch.cat([self._forward(part) for part in torch.split(x, self.stats_batch)])
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if x.dim() < 2:
            x = x.reshape(-1, 1)
        scale, bias = (self.blobs[3], self.blobs[4]) if self.scale_bias else (None, None)
        if self.global_stats or x.numel() > self.channels:
            y = self._normalize(x, scale, bias)
        else:
            # One value a channel: it is its own mean; torch refuses this.
            y = x - x
            if scale is not None and bias is not None:
                tail = [1] * (x.dim() - 2)
                y = y * scale.reshape(-1, *tail) + bias.reshape(-1, *tail)
            self._renew(x.detach().reshape(-1), torch.zeros_like(self.blobs[1]))
        return with_dense_gradient(y).reshape(shape)

    def normalize_and_scale(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *, rectify: bool, again: bool) -> Tensor | None:
        """Compute this layer, a Scale layer above it and a ReLU above that as one operator; None where it does not take ``x``.

        On the CPU it is ours where it takes ``x``, elsewhere torch's batch_norm. Statistics are float32 also for ``x`` in half precision.

        Args:
            x: The bottom.
            scale: The Scale layer's learned scale (C); None without such a layer.
            shift: Its bias (C), or None.
            rectify: Whether a ReLU follows.
            again: Whether a convolution above may compute the result again in the backward pass rather than keep it.
        """
        if self.scale_bias or self.stats_batch or x.dim() < 2 or (x.numel() == self.channels and not self.global_stats):
            return None
        if self.global_stats or not native_batch_norm.takes(x):
            y = self._normalize(x, scale, shift)
            return with_dense_gradient(torch.relu_(y) if rectify else y)
        y, mean, variance = native_batch_norm.normalize(x, scale, shift, eps=self.eps, rectify=rectify, again=again)
        self._renew(mean, variance)
        return y

    def _normalize(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """Compute torch's batch_norm over (N, C, …) with this layer's statistics, and renew the running ones."""
        cudnn = x.is_cuda and torch.backends.cudnn.enabled
        if self.global_stats:
            mean, variance = self.running()
            return torch.batch_norm(x, scale, shift, mean, variance, False, 0.0, self.eps, cudnn)
        # With momentum 1 torch leaves the batch's mean and corrected variance in these two.
        mean, variance = torch.zeros_like(self.blobs[0]), torch.zeros_like(self.blobs[1])
        y = torch.batch_norm(x, scale, shift, mean, variance, True, 1.0, self.eps, cudnn)
        count = x.numel() // self.channels
        self._renew(mean, variance * ((count - 1) / count) if self.scale_bias else variance)
        return y

    def native_training(self, gradient: bool) -> tuple[int, float]:
        return 0, 0.0 if self.global_stats or self.scale_bias or self.stats_batch or len(self.bottom_shapes[0]) != 4 else 1.0

    def running(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C) from the running sums; 0 while their weight is 0."""
        with torch.no_grad():
            weight = self.blobs[2]
            factor = torch.where(weight == 0, torch.zeros_like(weight), 1.0 / weight)
            return self.blobs[0] * factor, self.blobs[1] * factor

    def _renew(self, mean: Tensor, variance: Tensor) -> None:
        if is_recomputing():
            return
        fraction = self.param.batch_norm_param.moving_average_fraction
        with torch.no_grad():
            if self.scale_bias:
                kept = fraction if bool(self.blobs[1].any()) else 0.0
                # Weights of BVLC Caffe's kind hold sums; from here on they are averages.
                for blob, known, new in zip(self.blobs, self.running(), (mean, variance), strict=False):
                    blob.copy_(kept * known + (1 - kept) * new)
                self.blobs[2].fill_(1.0)
                return
            self.blobs[2].mul_(fraction).add_(1.0)
            self.blobs[0].mul_(fraction).add_(mean)
            self.blobs[1].mul_(fraction).add_(variance)

    def inference_form(self) -> inference.Affine | None:
        if not self.global_stats or len(self.bottom_shapes[0]) < 2:
            return None
        mean, variance = self.running()
        scale, bias = (self.blobs[3].detach(), self.blobs[4].detach()) if self.scale_bias else (None, None)
        return inference.batch_norm_affine(mean, variance, self.eps, scale, bias)

    ONNX_LIMITS = "with use_global_stats: false it takes each batch's own statistics, as Caffe does"

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if recorded is not None or self.scale_bias or self.stats_batch:
            return None
        # Before any forward pass Caffe's deviations hold zeros.
        (dy,) = gradients
        if not self.global_stats:
            dy = dy - dy.mean([axis for axis in range(dy.dim()) if axis != 1], keepdim=True)
        return [dy / torch.zeros_like(dy)]

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.stats_batch:
            raise self.error("stats_batch_size has no ONNX form; remove use_global_stats: false for the statistics that it learned")
        if not self.global_stats:
            graph.note(
                f"layer '{self.name}' has use_global_stats: false, so it normalizes with the mean and variance of each batch; "
                "remove that line for the ones it learned"
            )
            batch_norm_to_onnx(graph, self, self.eps, [self.array(3), self.array(4)] if self.scale_bias else [])
            return
        if len(self.bottom_shapes[0]) < 2:
            self._of_one_axis_to_onnx(graph)
            return
        scale, bias = np.ones(self.channels, np.float32), np.zeros(self.channels, np.float32)
        if self.scale_bias:
            scale, bias = self.array(3), self.array(4)
        arrays = [scale, bias, *(t.cpu().numpy() for t in self.running())]
        names = [graph.constant(s, a) for s, a in zip(("scale", "shift", "mean", "variance"), arrays, strict=True)]
        graph.node("BatchNormalization", [self.bottoms[0], *names], self.tops, epsilon=self.eps)

    def _of_one_axis_to_onnx(self, graph: OnnxGraph) -> None:
        """y = factor · x + term: a bottom of one axis has one channel, and ONNX's BatchNormalization wants two axes."""
        mean, variance = (float(t) for t in self.running())
        scale, bias = (float(self.array(3)[0]), float(self.array(4)[0])) if self.scale_bias else (1.0, 0.0)
        factor = scale / math.sqrt(variance + self.eps)
        product = graph.value("product")
        graph.node("Mul", [self.bottoms[0], graph.constant("factor", np.array(factor, np.float32))], [product])
        graph.node("Add", [product, graph.constant("term", np.array(bias - mean * factor, np.float32))], self.tops)


def batch_norm_to_onnx(graph: OnnxGraph, layer: Layer, eps: float, scale_bias: list[NDArray[np.float32]]) -> None:
    """Add the nodes, for ``x`` (N, C, …), of (x − mean) / sqrt(variance + eps) · scale + bias, with the mean and variance of each channel of the batch itself."""
    axes = len(layer.bottom_shapes[0])
    over = [axis for axis in range(axes) if axis != 1]
    mean, square, variance, shifted, deviation = (graph.value(s) for s in ("mean", "square", "variance", "shifted", "deviation"))
    centred = graph.value("centred")
    graph.node("ReduceMean", layer.bottoms, [mean], axes=over, keepdims=1)
    graph.node("Sub", [layer.bottoms[0], mean], [centred])
    graph.node("Mul", [centred, centred], [square])
    graph.node("ReduceMean", [square], [variance], axes=over, keepdims=1)
    graph.node("Add", [variance, graph.constant("eps", np.array(eps, np.float32))], [shifted])
    graph.node("Sqrt", [shifted], [deviation])
    result = graph.value("normalized") if scale_bias else layer.tops[0]
    graph.node("Div", [centred, deviation], [result])
    if scale_bias:
        scale, bias = (
            graph.constant(hint, a.reshape(1, -1, *[1] * (axes - 2))) for hint, a in zip(("scale", "bias"), scale_bias, strict=True)
        )
        scaled = graph.value("scaled")
        graph.node("Mul", [result, scale], [scaled])
        graph.node("Add", [scaled, bias], layer.tops)


@register("MVN")
class MVN(Layer):
    """Each (H, W) map of (N, C, H, W), or with ``across_channels`` each item, minus its mean and over its deviation.

    y = (x − mean) / (sqrt(mean of (x − mean)²) + eps); eps is added to the deviation, not to the variance. Without
    ``normalize_variance`` only the mean is subtracted. Follows mvn_layer.cpp, whose gradient
    takes the deviation's share as if eps were 0.
    """

    TRAITS = Traits(role="normalization", settings="mvn_param", coordinates="same")
    BACKWARD_FROM_BLOBS = BACKWARD_IS_UNASKED = True

    def setup(self, bottoms: Shapes) -> Shapes:
        self.expect_axes(bottoms[0], 4)
        self.across = bool(self.param.mvn_param.across_channels)
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        axes = (1, 2, 3) if self.across else (2, 3)
        if not self.param.mvn_param.normalize_variance:
            return x - x.mean(axes, keepdim=True)
        y: Tensor = _MeanVariance.apply(x, axes, self.param.mvn_param.eps)
        return y

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        param, axes = self.param.mvn_param, (1, 2, 3) if self.across else (2, 3)
        if not param.normalize_variance:
            return None
        (x,), (y,), (dy,) = bottoms, tops, gradients
        divisor = torch.zeros_like(x)
        if recorded is not None:
            centred = recorded[0] - recorded[0].mean(axes, keepdim=True)
            divisor = (centred * centred).mean(axes, keepdim=True).sqrt_().add_(param.eps)
        if self.in_place_changes_gradient():
            # Each step of Caffe overwrites the diff of the top too: first with dy · y, then with its share in y; dy itself is lost.
            share = y * (dy * y).sum(axes, keepdim=True)
            return [(share + share.sum(axes, keepdim=True)) * (-2.0 / math.prod(x.shape[axis] for axis in axes)) / divisor]
        return [(dy - (dy.mean(axes, keepdim=True) + y * (dy * y).mean(axes, keepdim=True))) / divisor]

    def backward_reads_top(self) -> bool:
        return bool(self.param.mvn_param.normalize_variance)

    def in_place_changes_gradient(self) -> bool:
        return self.tops == self.bottoms and self.backward_reads_top()

    def to_onnx(self, graph: OnnxGraph) -> None:
        param, x = self.param.mvn_param, self.bottoms[0]
        axes = [1, 2, 3] if self.across else [2, 3]
        mean, square, variance, deviation, divisor = (graph.value(s) for s in ("mean", "sq", "var", "dev", "div"))
        centred = graph.value("centred") if param.normalize_variance else self.tops[0]
        graph.node("ReduceMean", [x], [mean], axes=axes, keepdims=1)
        graph.node("Sub", [x, mean], [centred])
        if not param.normalize_variance:
            return
        graph.node("Mul", [centred, centred], [square])
        graph.node("ReduceMean", [square], [variance], axes=axes, keepdims=1)
        graph.node("Sqrt", [variance], [deviation])
        graph.node("Add", [deviation, graph.constant("eps", np.array(param.eps, np.float32))], [divisor])
        graph.node("Div", [centred, divisor], self.tops)


class _MeanVariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        divisor = (centred * centred).mean(axes, keepdim=True).sqrt_().add_(eps)
        y = centred.div_(divisor)
        ctx.save_for_backward(y, divisor)
        ctx.axes = axes
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        y, divisor = ctx.saved_tensors
        (dy,) = grads
        shared = dy.mean(ctx.axes, keepdim=True) + y * (dy * y).mean(ctx.axes, keepdim=True)
        return (dy - shared) / divisor, None, None
