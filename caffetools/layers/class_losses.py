"""Losses of classes: MultinomialLogisticLoss, InfogainLoss, HingeLoss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError
from caffetools.layers.base import Shapes, format_shape
from caffetools.layers.loss import ClassLoss, Loss, as_index
from caffetools.layers.registry import register
from caffetools.layers.softmax import softmax
from caffetools.layers.traits import Traits
from caffetools.proto.schema import enum_name

# Probabilities below this count as this (kLOG_THRESHOLD).
THRESHOLD = 1e-20


class _OneLabelAnItem(Loss):
    """A loss of N items with C values each, C · … flattened, and N labels in 0 … C − 1; divided by N."""

    TRAITS = Traits(role="loss", label_bottoms=(1,), compares="classes", activation="")
    NO_GRADIENT = frozenset({1})
    REFUSES_GRADIENT = True

    def setup(self, bottoms: Shapes) -> Shapes:
        if not bottoms[0] or math.prod(bottoms[1]) != bottoms[0][0]:
            raise self.error(f"needs one label for each item, but {self.described(bottoms)}")
        self.classes = math.prod(bottoms[0][1:])
        return [()]

    def flattened(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the values as (N, C), the labels as indices (N, 1), and where they are outside (on GPUs)."""
        index, outside = as_index(self, labels, self.classes)
        return x.reshape(x.shape[0], -1), index.reshape(-1, 1), outside

    @staticmethod
    def marked(loss: Tensor, outside: Tensor | None) -> Tensor:
        """Return ``loss``, or NaN where labels were outside."""
        return loss if outside is None else loss.masked_fill(outside.any(), float("nan"))


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_OneLabelAnItem):
    """loss = −sum(log p[label]) / N for probabilities (N, C, …); below 1e-20 they count as 1e-20.

    As in multinomial_logistic_loss_layer.cpp the gradient is −1 / p of the bounded probability, also where it is bounded.
    """

    BACKWARD_READS_BOTTOMS = True

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        rows, index, outside = self.flattened(probabilities, labels)
        picked = rows.gather(1, index)
        # In this order, so that the difference is exactly 0.
        picked = (picked - picked.detach()) + picked.detach().clamp(min=THRESHOLD)
        return self.marked(-picked.log().sum() / rows.shape[0], outside)


@register("HingeLoss")
class HingeLoss(_OneLabelAnItem):
    """The sum of max(0, 1 − s · x) over all classes, s = 1 for the label's and −1 for the others, divided by N; squared for L2.

    Scores (N, C, …), labels (N). Follows hinge_loss_layer.cpp.
    """

    BACKWARD_READS_LABELS = frozenset({1})
    BACKWARD_FROM_BLOBS = ZERO_BEFORE_FORWARD = KEEPS_IN_DIFF = True

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        margins, _, outside = self._margins(scores, labels)
        if self._squared:
            margins = margins * margins
        return self.marked(margins.sum() / margins.shape[0], outside)

    def kept_in_diff(self, *bottoms: Tensor) -> Tensor:
        return self._margins(*bottoms)[0].reshape(bottoms[0].shape)

    def gradient_from_diff(self, kept: Tensor, bottoms: Sequence[Tensor], gradient: Tensor) -> Tensor:
        slope = kept * self._margins(*bottoms)[1].reshape(kept.shape)
        factor = gradient.reshape(()) / kept.shape[0]
        return slope * (2.0 * factor) if self._squared else slope.sign() * factor

    @property
    def _squared(self) -> bool:
        return enum_name(self.param.hinge_loss_param, "norm") == "L2"

    def _margins(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return max(0, 1 − s · x) and −s, each (N, C), and where labels are outside (on GPUs)."""
        rows, index, outside = self.flattened(scores, labels)
        sign = torch.ones_like(rows).scatter_(1, index, -1.0)
        margins = 1.0 + sign * rows
        # std::max(0, NaN) is 0.
        return torch.where(margins > 0, margins, torch.zeros_like(margins)), sign, outside


@register("InfogainLoss")
class InfogainLoss(ClassLoss):
    """loss = −sum over items and classes of H[label, class] · log p[class] / normalizer; p the softmax of (outer…, C, inner…).

    H (C by C) is the third bottom, or the BlobProto file ``source``; the identity gives SoftmaxWithLoss. A second top is p. As in
    infogain_loss_layer.cpp probabilities below 1e-20 count as 1e-20, while the gradient is that of the unbounded logarithm.
    """

    BACKWARD_READS_LABELS = frozenset({1})
    TRAITS = Traits(
        role="loss",
        label_bottoms=(1,),
        compares="classes",
        activation="Softmax",
        class_axis="infogain_loss_param.axis",
        class_matrix=True,
    )
    BOTTOMS = (2, 3)
    TOPS = (1, 2)
    NO_GRADIENT = frozenset({1, 2})
    REFUSES_GRADIENT = True
    REFUSES_FORCED = frozenset({2})

    def setup(self, bottoms: Shapes) -> Shapes:
        self.set_class_axis(self.param.infogain_loss_param.axis, bottoms)
        shape = bottoms[2] if len(bottoms) > 2 else self._load()
        if math.prod(shape) != self.classes**2 or self.classes not in shape[-1:]:
            raise self.error(
                f"the infogain matrix must be {self.classes} x {self.classes}, as there are classes, not {format_shape(shape)}"
            )
        return [(), bottoms[0]][: len(self.tops)]

    # H from a file; a buffer, so that it follows the net to its device.
    matrix: Tensor

    def _load(self) -> tuple[int, ...]:
        from caffetools.proto.binary import read_binaryproto

        if not self.param.infogain_loss_param.HasField("source"):
            raise self.error("needs the infogain matrix: a third bottom, or infogain_loss_param.source")
        if "matrix" not in self._buffers:
            source = Path(self.param.infogain_loss_param.source)
            try:
                matrix = read_binaryproto(source)
            except CaffeToolsError as error:
                raise self.error(f"cannot read its infogain matrix: {error}") from None
            self.register_buffer("matrix", torch.from_numpy(matrix.copy()), persistent=False)
        return tuple(self.matrix.shape)

    def forward(self, scores: Tensor, labels: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        index, outside = as_index(self, labels, self.classes, ignore=self.ignore_label)
        gains = (self.matrix if matrix is None else matrix).detach().reshape(self.classes, self.classes)
        logarithms = softmax(scores, self.class_axis, log=True)
        rows = logarithms.movedim(self.class_axis, -1).reshape(-1, self.classes)
        bounded = (rows - rows.detach()) + rows.detach().clamp(min=math.log(THRESHOLD))
        loss = self.normalized(-(gains[index.reshape(-1)] * bounded).sum(1), labels, outside)
        return loss if len(self.tops) == 1 else (loss, logarithms.detach().exp())
