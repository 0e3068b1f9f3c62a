"""L1Loss: the mean absolute difference of two blobs, of NVCaffe (DetectNet) and of FlowNet (l1loss_layer.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.layers.base import SavedTensors, Shapes
from caffetools.layers.loss import Loss
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter


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
