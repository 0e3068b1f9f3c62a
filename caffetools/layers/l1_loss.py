"""L1Loss of NVCaffe (DetectNet): the mean absolute difference of two blobs."""

from __future__ import annotations

from torch import Tensor

from caffetools.layers.base import Shapes
from caffetools.layers.loss import Loss
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("L1Loss")
class L1Loss(Loss):
    """loss = sum(|a − b|) / N for two bottoms of N items each; both get a gradient, 0 where the values are equal."""

    TRAITS = Traits(role="loss", compares="values", activation="")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        self.expect_same_batch(bottoms)
        self.expect_same_count(bottoms)
        return [()]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b.reshape(a.shape)).abs().sum() / (a.shape[0] if a.dim() else 1)
