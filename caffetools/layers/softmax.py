"""Softmax (softmax_layer.cpp) and SoftmaxWithLoss (softmax_loss_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.loss import ClassLoss, as_index
from caffetools.layers.pooling import FLT_MIN
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows


def softmax(x: Tensor, axis: int, *, log: bool = False) -> Tensor:
    """Compute the softmax of ``x`` (any shape) along ``axis``, or its logarithm, in x's memory layout; torch's own would copy channels-last maps."""
    function = F.log_softmax if log else F.softmax
    if x.dim() == 4 and axis == 1 and x.is_contiguous(memory_format=torch.channels_last):
        return function(x.permute(0, 2, 3, 1), dim=-1).permute(0, 3, 1, 2)
    return function(x, dim=axis)


@register("Softmax")
class Softmax(Layer):
    """y = exp(x) / sum(exp(x)) along ``axis``, of any shape, without overflow (softmax_layer.cpp)."""

    BACKWARD_READS_BOTTOMS, BACKWARD_READS_TOP, BACKWARD_IS_UNASKED = False, True, True
    TRAITS = Traits(
        role="probability", channels="kept", class_axis="softmax_param.axis", in_place=True, coordinates="same", loss="SoftmaxWithLoss"
    )

    def setup(self, bottoms: Shapes) -> Shapes:
        self.softmax_axis = self.axis(self.param.softmax_param.axis, bottoms[0])
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x, self.softmax_axis)

    def inference_form(self) -> inference.ChannelSoftmax | None:
        return inference.ChannelSoftmax() if self.softmax_axis == 1 else None

    def gradient_from_top(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        return y * (gradient - (gradient * y).sum(self.softmax_axis, keepdim=True))

    def spatial_windows(self) -> Windows | None:
        return POINTWISE if self.softmax_axis == 1 else None

    def to_onnx(self, graph: OnnxGraph) -> None:
        axis, shape = self.softmax_axis, graph.shape(self.bottoms[0])
        if graph.opset >= 13 or math.prod(shape[axis + 1 :]) == 1:
            graph.node("Softmax", self.bottoms, self.tops, axis=axis)
            return
        # Before opset 13 all axes from `axis` on were normalized together.
        order = [i for i in range(len(shape)) if i != axis] + [axis]
        turned, result = graph.value("turned"), graph.value("softmax")
        graph.node("Transpose", self.bottoms, [turned], perm=order)
        graph.node("Softmax", [turned], [result], axis=len(shape) - 1)
        graph.node("Transpose", [result], self.tops, perm=[order.index(i) for i in range(len(shape))])


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(ClassLoss):
    """loss = −sum(log p[label]) / normalizer over the items that are not ignored, p the softmax of scores (outer…, C, inner…).

    Labels: outer · inner of them. A second top is p itself, a third one (R-FCN's fork) the loss of each item, in the shape of the
    labels and 0 where it is ignored; neither has a gradient. As in softmax_loss_layer.cpp a probability below
    FLT_MIN counts as FLT_MIN, so an item's loss tops out at 87.3365, while its gradient stays p − 1.
    SegNet's ``weight_by_label_freqs`` multiplies each item's loss by the ``class_weighting`` of its label; the normalizer is the same.
    """

    BACKWARD_READS_LABELS = frozenset({1})
    BACKWARD_FROM_BLOBS = True
    TRAITS = Traits(
        role="loss",
        settings="softmax_param",
        label_bottoms=(1,),
        compares="classes",
        scaled_gradient=True,
        activation="Softmax",
        class_axis="softmax_param.axis",
    )
    TOPS = (1, 3)
    FORK_FIELDS = frozenset({"class_weighting", "weight_by_label_freqs"})

    def setup(self, bottoms: Shapes) -> Shapes:
        self.set_class_axis(self.param.softmax_param.axis, bottoms)
        how = self.param.loss_param
        self.weights = list(how.class_weighting) if how.weight_by_label_freqs else None
        if self.weights is not None and len(self.weights) != self.classes:
            raise self.error(f"class_weighting has {len(self.weights)} weights for {self.classes} classes")
        return [(), bottoms[0], bottoms[1]][: len(self.tops)]

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        index, outside = as_index(self, labels, self.classes, ignore=self.ignore_label)
        logarithms = softmax(scores, self.class_axis, log=True)
        shape = [1 if i == self.class_axis else n for i, n in enumerate(scores.shape)]
        picked = logarithms.gather(self.class_axis, index.reshape(shape))
        # Only the value is held at FLT_MIN: the gradient is that of the unbounded logarithm. The difference is exactly 0.
        picked = (picked - picked.detach()) + picked.detach().clamp(min=math.log(FLT_MIN))
        picked = self._weighted(-picked.reshape(-1), index)
        loss = self.normalized(picked, labels, outside)
        if len(self.tops) == 1:
            return loss
        items = picked.detach().reshape(labels.shape)
        if self.ignore_label is not None:
            items = items.masked_fill(labels.to(torch.int64) == self.ignore_label, 0.0)
        return (loss, logarithms.detach().exp(), items)[: len(self.tops)]

    def _weighted(self, losses: Tensor, index: Tensor) -> Tensor:
        """Return the loss of each item times the weight of its class."""
        return losses if self.weights is None else losses * losses.new_tensor(self.weights)[index.reshape(-1)]

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if recorded is not None:
            return None
        # Before any forward pass p is 0: the gradient is -1 at each label, over the normalizer.
        scores, labels = bottoms
        index, outside = as_index(self, labels, self.classes, ignore=self.ignore_label)
        with torch.enable_grad():
            picked = torch.zeros(labels.numel(), requires_grad=True, device=labels.device)
            loss = self.normalized(self._weighted(picked, index), labels, outside)
            (share,) = torch.autograd.grad(loss, picked, gradients[0].reshape(()))
        shape = [1 if i == self.class_axis else n for i, n in enumerate(scores.shape)]
        return [torch.zeros_like(scores).scatter_(self.class_axis, index.reshape(shape), -share.reshape(shape)), torch.zeros_like(labels)]
