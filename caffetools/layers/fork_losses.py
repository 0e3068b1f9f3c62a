"""Losses of forks: SmoothL1Loss (Fast R-CNN, SSD), L1Loss (NVCaffe, FlowNet), TripletLoss, CenterLoss (faces)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caffetools.layers.autograd import Context
from caffetools.layers.base import SavedTensors, Shapes, format_shape
from caffetools.layers.loss import Loss
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter, enum_name


@register("SmoothL1Loss")
class SmoothL1Loss(Loss):
    """loss = sum of outside · f(inside · (x − t)) / N, with f(d) = s² d² / 2 where |d| < 1 / s², else |d| − 1 / (2 s²).

    Bottoms: x, t (N, …) and, in Fast R-CNN, weights "inside" and "outside" of the same shape; SSD gives at most the first. s is
    ``sigma``, 1 by default. Both x and t get a gradient. Girshick (2015).
    The form of R-FCN's Caffe, recognized by a second top or by ``loss_param``'s normalization, has no "outside" and divides by what normalization says
    (VALID and FULL: N · H · W); the second top (N, 1, H, W) is the sum over the channels at each place, without a gradient.
    """

    TRAITS = Traits(role="loss", compares="values")
    BOTTOMS = (2, 4)
    TOPS = (1, 2)
    NO_GRADIENT = frozenset({2, 3})

    def setup(self, bottoms: Shapes) -> Shapes:
        for index, shape in enumerate(bottoms):
            if math.prod(shape) != math.prod(bottoms[0]):
                raise self.error(f"'{self.bottoms[index]}' ({format_shape(shape)}) must have as many values as '{self.bottoms[0]}'")
        self.square = self.param.smooth_l1_loss_param.sigma**2
        if self.square == 0:
            raise self.error("sigma must not be 0")
        n, _, h, w = self.legacy_axes(bottoms[0])
        param = self.param.loss_param
        theirs = len(self.tops) > 1 or param.HasField("normalization") or param.HasField("normalize")
        self.divisor = self._divisor(n, h * w) if theirs else n
        self.places = (n, -1, h, w)
        return [(), (n, 1, h, w)][: len(self.tops)]

    def _divisor(self, items: int, places: int) -> int:
        """Return what R-FCN's Caffe divides the sum by."""
        if len(self.bottoms) > 3:
            raise self.error("a second top and a normalization are R-FCN's, which has no fourth bottom")
        param = self.param.loss_param
        if not param.HasField("normalization") and param.HasField("normalize"):
            mode = "VALID" if param.normalize else "BATCH_SIZE"
        else:
            mode = enum_name(param, "normalization")
        return {"VALID": items * places, "FULL": items * places, "BATCH_SIZE": items}.get(mode, 1)

    def forward(
        self, x: Tensor, target: Tensor, inside: Tensor | None = None, outside: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        difference = x - target.reshape(x.shape)
        if inside is not None:
            difference = difference * inside.detach().reshape(x.shape)
        size = difference.abs()
        losses = torch.where(size < 1 / self.square, 0.5 * self.square * difference * difference, size - 0.5 / self.square)
        if outside is not None:
            losses = losses * outside.detach().reshape(x.shape)
        loss = losses.sum() / self.divisor
        return loss if len(self.tops) == 1 else (loss, losses.detach().reshape(self.places).sum(1, keepdim=True))


@register("TripletLoss")
class TripletLoss(Loss):
    """loss = sum of max(0, margin + |a − p|² − |a − n|²) / (2 N) for an anchor, a positive and a negative item each (N, …).

    ``margin`` is 1 by default. Schroff et al. (2015); the factor of a half is that of the common Caffe layer.
    """

    TRAITS = Traits(role="loss", compares="embeddings")
    BOTTOMS = (3, 3)

    def setup(self, bottoms: Shapes) -> Shapes:
        if not bottoms[0] or any(shape[0] != bottoms[0][0] or math.prod(shape) != math.prod(bottoms[0]) for shape in bottoms):
            raise self.error(f"anchor, positive and negative must have one shape, but {self.described(bottoms)}")
        return [()]

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        a, p, n = (x.reshape(x.shape[0], -1) for x in (anchor, positive, negative))
        gap = self.param.triplet_loss_param.margin + ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1)
        loss: Tensor = gap.clamp(min=0).sum() / (2 * a.shape[0])
        return loss


@register("CenterLoss")
class CenterLoss(Loss):
    """loss = sum of |x − c(y)|² / (2 N): the distance of features x from the learned centre of their class y. Wen et al. (2016).

    Bottoms: features (from ``axis`` on, K values each), labels (N). Blobs: centres (num_output, K). A centre's gradient is not that of
    the loss: it is the sum of (c − x) over its class's items, over 1 + their number, for any loss weight.
    """

    TRAITS = Traits(
        role="loss",
        settings="center_loss_param",
        outputs="num_output",
        class_axes=(0,),
        label_bottoms=(1,),
        compares="embeddings",
        weight_filler="center_filler",
    )
    NO_GRADIENT = frozenset({1})

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 8), (2,)]

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.center_loss_param
        axis = self.axis(param.axis, bottoms[0])
        items = math.prod(bottoms[0][:axis])
        if param.num_output < 1:
            raise self.error("center_loss_param needs num_output, the number of classes")
        if math.prod(bottoms[1]) != items:
            raise self.error(f"needs one label for each of {items} items, but {self.described(bottoms)}")
        self.features = math.prod(bottoms[0][axis:])
        self.declare_blob((param.num_output, self.features), param.center_filler)
        return [()]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        index = labels.detach().reshape(-1).long()
        classes = int(self.param.center_loss_param.num_output)
        outside = labels.detach().reshape(-1)[(index < 0) | (index >= classes)]
        if outside.numel():
            raise self.error(f"label {float(outside[0]):.10g} of bottom '{self.bottoms[1]}' is outside of 0 to {classes - 1}")
        loss: Tensor = _Centres.apply(x.reshape(-1, self.features), self.blobs[0], index)
        return loss


class _Centres(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, centres: Tensor, index: Tensor) -> Tensor:
        distance = x - centres[index]
        ctx.save_for_backward(distance, index, centres)
        return (distance * distance).sum() / (2 * x.shape[0])

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        distance, index, centres = ctx.saved_tensors
        sums = torch.zeros_like(centres).index_add_(0, index, -distance)
        numbers = torch.bincount(index, minlength=centres.shape[0]).to(sums)
        return distance * (grads[0] / distance.shape[0]), sums / (1 + numbers)[:, None], None


@register("L1Loss")
class L1Loss(Loss):
    """loss = sum(|a − b|) / N for two bottoms of N items each; both get a gradient, 0 where the values are equal.

    With ``l1_loss_param`` (FlowNet) b may be left out, differences that are NaN or below ``plateau`` count nothing, and of equal values a's
    gradient is negative. ``l2_per_location`` takes sqrt(sum of squares over the channels + ``epsilon``) of each pixel of (N, C, H, W) in place
    of the absolute values, the sum over C with ``l2_prescale_by_channels``; ``normalize_by_num_entries`` divides by the number of
    differences that are not NaN, over C, in place of N.
    """

    TRAITS = Traits(role="loss", compares="values", activation="")
    BOTTOMS = (1, 2)
    NEEDS_TOP = False

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 8, 64, 64)] * len(param.bottom)

    def setup(self, bottoms: Shapes) -> Shapes:
        self.flow = self.param.HasField("l1_loss_param")
        if len(bottoms) == 1 and not self.flow:
            raise self.error("takes two bottoms; one is for FlowNet's, with l1_loss_param")
        if len(bottoms) == 2:
            self.expect_same_batch(bottoms)
            self.expect_same_count(bottoms)
        if self.flow:
            self.shape = self.legacy_axes(bottoms[0])
        return [()]

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        difference = a if b is None else a - b.reshape(a.shape)
        if self.flow:
            return self._of_flow(difference.reshape(-1, *self.shape[1:]))
        return difference.abs().sum() / (a.shape[0] if a.dim() else 1)

    def _of_flow(self, difference: Tensor) -> Tensor:
        param, known = self.param.l1_loss_param, ~difference.isnan()
        items, channels = difference.shape[:2]
        divisor = known.sum() / channels if param.normalize_by_num_entries else items
        difference = torch.where(known, difference, 0.0)
        if not param.l2_per_location:
            # Without the comparison nothing would be below a plateau of 0.
            counted = known & (difference.abs() >= param.plateau) if param.plateau > 0 else known
            distance: Tensor = _Absolute.apply(torch.where(counted, difference, 0.0), counted)
            return distance.sum() / divisor
        squares = (difference * difference).sum(1) / (channels if param.l2_prescale_by_channels else 1)
        if param.plateau > 0:
            squares = torch.where(squares.abs() >= param.plateau**2, squares, 0.0)
        return (squares + param.epsilon).sqrt().sum() / divisor


class _Absolute(torch.autograd.Function):
    """|x|, whose gradient at 0 is −1 where ``counted``, else 0."""

    @staticmethod
    def forward(ctx: SavedTensors, x: Tensor, counted: Tensor) -> Tensor:
        ctx.save_for_backward(x, counted)
        return x.abs()

    @staticmethod
    def backward(ctx: SavedTensors, *grads: Tensor) -> tuple[Tensor, None]:
        x, counted = ctx.saved_tensors
        return grads[0] * torch.where(x > 0, 1.0, -1.0) * counted, None
