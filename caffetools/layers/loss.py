"""What the loss layers share (loss_layer.cpp): normalization, labels as indices, ignored labels, and the axis of the classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffetools.layers.base import Layer, Shape, Shapes, format_shape
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LossParameter, enum_name


def as_index(
    layer: Layer, labels: Tensor, classes: int, *, ignore: int | None = None, what: str = "label", of: str = "classes"
) -> tuple[Tensor, Tensor | None]:
    """Return ``labels`` (float32, any shape) as int64 indices that are safe to gather with; ignored ones become 0.

    Values are truncated to integers, as Caffe's casts do. On the CPU a label outside of 0 … classes − 1 raises. On a GPU that
    would cost a synchronization in every pass, so there the caller gets the places instead, and makes its result NaN.

    Returns:
        The indices, and where they were outside (None on the CPU, where that can't be).

    Raises:
        NetError: names the layer, the value and the number of classes.
    """
    index = labels.detach().to(torch.int64)
    outside = (index < 0) | (index >= classes)
    if ignore is not None:
        outside &= index != ignore
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool(outside.any()):
            value = float(labels.detach()[outside].reshape(-1)[0])
            raise layer.error(
                f"{what} {value:.10g} of bottom '{label_blob(layer)}' is outside of 0 to {classes - 1}: there are {classes} {of}"
            )
        return (index if ignore is None else index.masked_fill(index == ignore, 0)), None
    return index.clamp(0, classes - 1), outside


def label_blob(layer: Layer) -> str:
    """Return the name of the bottom that holds the labels: the second one, or the only one."""
    return layer.bottoms[min(1, len(layer.bottoms) - 1)]


class Loss(Layer):
    """A layer with a scalar top of loss weight 1; two bottoms, the second usually labels."""

    BACKWARD_READS_BOTTOMS = False
    # Whether the gradient is made of inner blobs alone, which hold zeros before the first forward pass.
    ZERO_BEFORE_FORWARD: ClassVar[bool] = False
    TRAITS = Traits(role="loss")
    BOTTOMS = (2, 2)
    IS_LOSS = True

    NO_ONNX = "a loss, which training needs and a deploy net does not (`caffetools deploy` writes one)"

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        return [torch.zeros_like(x) for x in bottoms] if recorded is None and self.ZERO_BEFORE_FORWARD else None

    def expect_same_batch(self, bottoms: Shapes) -> None:
        """Raises :class:`NetError` unless the first two bottoms have the same first dimension."""
        if bottoms[0][:1] != bottoms[1][:1]:
            raise self.error(f"bottoms must have the same first dimension, but {self.described(bottoms)}")

    def expect_same_count(self, bottoms: Shapes) -> None:
        """Raises :class:`NetError` unless the first two bottoms have as many values."""
        if math.prod(bottoms[0]) != math.prod(bottoms[1]):
            raise self.error(f"bottoms must have as many values, but {self.described(bottoms)}")

    def described(self, bottoms: Shapes) -> str:
        """Return the bottoms' names and shapes, for error messages."""
        return ", ".join(f"'{name}' is {format_shape(shape)}" for name, shape in zip(self.bottoms, bottoms, strict=True))


class NormalizedLoss(Loss):
    """A loss over outer · inner items, divided by the normalizer in ``loss_param``; items with ``ignore_label`` count nothing.

    FULL divides by all items, VALID by those not ignored, BATCH_SIZE by the outer ones, NONE by 1; never by less than 1.
    """

    # How many items an outer one has; the number of outer ones is a run's, since a Filter may let fewer through.
    inner: int

    @property
    def ignore_label(self) -> int | None:
        """The label that does not count, if there is one."""
        return int(self.param.loss_param.ignore_label) if self.param.loss_param.HasField("ignore_label") else None

    @property
    def normalization(self) -> str:
        """The mode by name; the old field ``normalize`` counts only where ``normalization`` is not given."""
        return normalization_mode(self.param.loss_param, "VALID")

    def normalized(self, losses: Tensor, labels: Tensor, outside: Tensor | None = None) -> Tensor:
        """Return the sum (a scalar) of the ``losses`` (any shape) of items that are not ignored, over the normalizer; NaN where labels were ``outside``."""
        valid, items = None, losses.numel()
        if self.ignore_label is not None:
            valid = labels.detach().reshape(-1).to(torch.int64) != self.ignore_label
            losses = losses.masked_fill(~valid, 0.0)
        loss: Tensor = losses.sum() / self.divisor(items, valid)
        return loss if outside is None else loss.masked_fill(outside.any(), float("nan"))

    def divisor(self, items: int, valid: Tensor | None) -> Any:
        """Return the normalizer of ``items``; a scalar tensor only where it depends on which are ``valid`` (bool, any shape; None: all)."""
        mode = self.normalization
        if mode == "VALID" and valid is not None:
            return valid.sum().clamp(min=1).to(torch.float32)
        return max(1, {"FULL": items, "VALID": items, "BATCH_SIZE": items // self.inner, "NONE": 1}[mode])


class ClassLoss(NormalizedLoss):
    """A normalized loss of scores (outer…, C, inner…) and outer · inner labels in 0 … C − 1."""

    NO_GRADIENT = frozenset({1})
    REFUSES_GRADIENT = True

    def set_class_axis(self, axis: int, bottoms: Shapes) -> None:
        """Take the axis of the classes, and hold the number of labels against the scores. Raises :class:`NetError`."""
        self.class_axis = self.axis(axis, bottoms[0])
        self.classes = bottoms[0][self.class_axis]
        self.inner = split_at(bottoms[0], self.class_axis)[1]
        expect_labels(self, bottoms, self.class_axis)


def split_at(shape: Shape, axis: int) -> tuple[int, int]:
    """Return how many items lie before and after ``axis``."""
    return math.prod(shape[:axis]), math.prod(shape[axis + 1 :])


def expect_labels(layer: Layer, bottoms: Shapes, axis: int) -> None:
    """Raises :class:`NetError` unless bottom 1 has one label for each item of bottom 0, whose classes lie along ``axis``."""
    outer, inner = split_at(bottoms[0], axis)
    if math.prod(bottoms[1]) != outer * inner:
        raise layer.error(
            f"needs {outer * inner} labels for its bottom '{layer.bottoms[0]}' ({format_shape(bottoms[0])}, classes along axis {axis}), "
            f"but '{label_blob(layer)}' is {format_shape(bottoms[1])}"
        )


def normalization_mode(param: LossParameter, default: str) -> str:
    """Return the normalization of a ``LossParameter`` by name; ``default`` where it has none."""
    if param.HasField("normalization"):
        return enum_name(param, "normalization")
    if param.HasField("normalize"):
        return "VALID" if param.normalize else "BATCH_SIZE"
    return default
