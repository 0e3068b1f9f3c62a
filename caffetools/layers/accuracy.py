"""Accuracy (accuracy_layer.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.layers.base import Layer, Shapes
from caffetools.layers.loss import as_index, expect_labels
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("Accuracy")
class Accuracy(Layer):
    """The share of items whose true class is among the ``top_k`` best of scores (outer…, C, inner…); a scalar.

    An item is right where fewer than top_k other classes have a score at least as high: ties count against it. Labels: outer · inner
    of them; those equal to ``ignore_label`` do not count. A second top (C) is the share of each class, 0 for a class without
    items. Follows accuracy_layer.cpp; has no gradient.
    """

    TRAITS = Traits(role="metric", settings="accuracy_param", label_bottoms=(1,), compares="classes", class_axis="accuracy_param.axis")
    BOTTOMS = (2, 2)
    TOPS = (1, 2)
    NO_GRADIENT = frozenset({0, 1})
    REFUSES_GRADIENT = True
    REFUSES_FORCED = frozenset({0})

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.accuracy_param
        self.class_axis = self.axis(param.axis, bottoms[0])
        self.classes, self.top_k = bottoms[0][self.class_axis], int(param.top_k)
        if not 1 <= self.top_k <= self.classes:
            raise self.error(f"top_k {self.top_k} must be from 1 to the number of classes {self.classes}")
        self.ignore_label = int(param.ignore_label) if param.HasField("ignore_label") else None
        expect_labels(self, bottoms, self.class_axis)
        return [(), (self.classes,)][: len(self.tops)]

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        index, outside = as_index(self, labels, self.classes, ignore=self.ignore_label)
        rows = scores.detach().movedim(self.class_axis, -1).reshape(-1, self.classes)
        index = index.reshape(-1)
        own = rows.gather(1, index[:, None])
        right = (rows >= own).sum(1) <= self.top_k  # the true class itself is one of them
        valid = torch.ones_like(right)
        if self.ignore_label is not None:
            valid = labels.detach().reshape(-1).to(torch.int64) != self.ignore_label
        share = _share((right & valid).sum(), valid.sum())
        if outside is not None:
            share = share.masked_fill(outside.any(), float("nan"))
        if len(self.tops) == 1:
            return share
        items = torch.bincount(index[valid], minlength=self.classes)
        return share, _share(torch.bincount(index[right & valid], minlength=self.classes), items)

    NO_ONNX = "it compares with labels, which a deploy net does not have (`caffetools deploy` writes one)"


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.float() / whole.clamp(min=1).float()
