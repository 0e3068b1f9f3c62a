"""Losses of values: EuclideanLoss, ContrastiveLoss, SigmoidCrossEntropyLoss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.autograd import Context
from caffetools.layers.base import Shapes, format_shape
from caffetools.layers.loss import Loss, NormalizedLoss, normalization_mode
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("EuclideanLoss")
class EuclideanLoss(Loss):
    """loss = sum((a − b)²) / (2 N) for two bottoms of N items each; both get a gradient (euclidean_loss_layer.cpp)."""

    TRAITS = Traits(role="loss", compares="values", activation="")
    BACKWARD_FROM_BLOBS = ZERO_BEFORE_FORWARD = True

    def setup(self, bottoms: Shapes) -> Shapes:
        self.expect_same_batch(bottoms)
        self.expect_same_count(bottoms)
        return [()]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        difference = a - b.reshape(a.shape)
        return (difference * difference).sum() / (2 * (a.shape[0] if a.dim() else 1))


@register("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """loss = (sum of d² over similar pairs + of max(0, margin − d)² over the others) / (2 N), d the distance of two (N, C) bottoms.

    The third bottom (N) marks the similar pairs (not 0). ``legacy_version``: max(0, margin − d²) in place of the square.
    Hadsell et al. (2006); contrastive_loss_layer.cpp, whose gradient of dissimilar pairs divides by d + 1e-4.
    """

    BACKWARD_READS_LABELS = frozenset({2})
    BACKWARD_FROM_BLOBS = ZERO_BEFORE_FORWARD = True
    TRAITS = Traits(role="loss", label_bottoms=(2,), compares="embeddings")
    BOTTOMS = (3, 3)
    NO_GRADIENT = frozenset({2})
    REFUSES_GRADIENT = True

    def setup(self, bottoms: Shapes) -> Shapes:
        self.expect_same_batch(bottoms)
        self.expect_same_count(bottoms)
        if math.prod(bottoms[0][2:]) != 1:
            raise self.error(f"bottom '{self.bottoms[0]}' must be N x C (x 1 x 1), not {format_shape(bottoms[0])}")
        if math.prod(bottoms[2]) != bottoms[0][0]:
            raise self.error(f"needs one value of bottom '{self.bottoms[2]}' for each pair: {self.described(bottoms)}")
        return [()]

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        param = self.param.contrastive_loss_param
        difference = a.reshape(a.shape[0], -1) - b.reshape(a.shape[0], -1)
        alike = similar.detach().reshape(-1).to(torch.int64) != 0
        loss: Tensor = _Contrastive.apply(difference, alike, param.margin, param.legacy_version)
        return loss


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, difference: Tensor, alike: Tensor, margin: float, legacy: bool) -> Tensor:
        square = (difference * difference).sum(1)
        if legacy:
            apart = (margin - square).clamp_(min=0.0)
            pull = -(apart > 0).to(square.dtype)
        else:
            distance = square.sqrt()
            gap = (margin - distance).clamp_(min=0.0)
            apart = gap * gap
            pull = -gap / (distance + 1e-4)
        ctx.save_for_backward(difference * torch.where(alike, torch.ones_like(pull), pull).unsqueeze(1))
        return torch.where(alike, square, apart).sum() / (2 * difference.shape[0])

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (grads[0] / gradient.shape[0]), None, None, None


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(NormalizedLoss):
    """loss = −sum(t · log s(x) + (1 − t) · log(1 − s(x))) / normalizer, s the sigmoid, for scores x and targets t of one size.

    The default normalization is BATCH_SIZE. Targets that, cut to an integer, equal ``ignore_label`` do not count.
    Follows sigmoid_cross_entropy_loss_layer.cpp.
    """

    BACKWARD_READS_LABELS = frozenset({1})
    TRAITS = Traits(role="loss", label_bottoms=(1,), compares="targets", activation="Sigmoid", scaled_gradient=True)
    NO_GRADIENT = frozenset({1})
    REFUSES_GRADIENT = True

    def setup(self, bottoms: Shapes) -> Shapes:
        self.expect_same_count(bottoms)
        self.inner = math.prod(bottoms[0][1:])
        return [()]

    @property
    def normalization(self) -> str:
        return normalization_mode(self.param.loss_param, "BATCH_SIZE")

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        targets = targets.detach().reshape(scores.shape)
        losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        return self.normalized(losses.reshape(-1), targets)
