"""Shapes of blobs. Nothing here needs torch, so that what only prints or checks shapes starts at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from caffetools.errors import NetError

Shape = tuple[int, ...]
Shapes = Sequence[Shape]

# What Caffe counts values with is a C++ int.
_MOST_VALUES = 2**31 - 1
_MOST_VALUES_OF_A_BATCH = 2**36


def check_size(layer: str, blob: str, shape: Shape) -> None:
    """Check that a blob can exist: no axis is negative, and an item of the batch has at most 2^31 - 1 values.

    BVLC Caffe allows that many in the whole blob; NVIDIA's nets for many GPUs have larger batches in one prototxt.

    Raises:
        NetError: It cannot; names the layer and the blob.
    """
    if any(axis < 0 for axis in shape):
        hint = "a batch of any size is written as 1 in Caffe" if shape[0] < 0 else None
        raise NetError(f"'{blob}' would be {format_shape(shape)}: an axis is below 0", layer=layer, hint=hint)
    if math.prod(shape[1:]) > _MOST_VALUES or math.prod(shape) > _MOST_VALUES_OF_A_BATCH:
        raise NetError(f"'{blob}' would be {format_shape(shape)}: more than 2^31 - 1 values", layer=layer)


def format_shape(shape: Iterable[int]) -> str:
    """Return a shape as people read it: ``2 x 3 x 227 x 227``; ``(scalar)`` where there are no axes."""
    return " x ".join(str(n) for n in shape) or "(scalar)"
