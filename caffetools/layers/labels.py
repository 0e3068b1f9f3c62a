"""Class labels: float32 blobs, as all of Caffe's, turned into indices and held against the number of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from caffetools.layers.base import Layer


def as_index(
    layer: Layer, labels: Tensor, classes: int, *, ignore: int | None = None, what: str = "label", of: str = "classes"
) -> tuple[Tensor, Tensor | None]:
    """Return ``labels`` (float32, any shape) as int64 indices that are safe to gather with; ignored ones become 0.

    Values are truncated to integers, as Caffe's casts do. On the CPU a label outside of 0 … classes − 1 raises. On a GPU that
    would cost a synchronisation in every pass, so there the caller gets the places instead, and makes its result NaN.

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
            value = int(index[outside].reshape(-1)[0])
            raise layer.error(f"{what} {value} of bottom '{label_blob(layer)}' is outside of 0 to {classes - 1}: there are {classes} {of}")
        return (index if ignore is None else index.masked_fill(index == ignore, 0)), None
    return index.clamp(0, classes - 1), outside


def label_blob(layer: Layer) -> str:
    """Return the name of the bottom that holds the labels: the second one, or the only one."""
    return layer.bottoms[min(1, len(layer.bottoms) - 1)]
