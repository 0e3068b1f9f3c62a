"""The update rules by the native library (``native/update.cpp``): one pass over weights, gradients and histories on all threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from caffetools.layers import native

# As native/update.h numbers them.
RULES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")


class Constants(ctypes.Structure):
    """``UpdateRule`` of native/update.h: the gradients' factor, weight decay (by signs where ``absolute``), rate, decays and delta."""

    _fields_ = [(name, ctypes.c_float) for name in ("scale", "decay", "absolute", "rate", "momentum", "second", "delta")]


class _Parameter(ctypes.Structure):
    """``CaffetoolsParameter`` of native/update.cpp."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("weights", "gradients", "first", "second")), ("count", ctypes.c_int64)]


@cache
def _function() -> Any:
    loaded = native.kernels()
    if loaded is None or not hasattr(loaded, "caffetools_update"):
        return None
    loaded.caffetools_update.restype = None
    loaded.caffetools_update.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    return loaded.caffetools_update


def takes(weights: Sequence[Tensor], histories: Sequence[Sequence[Tensor]]) -> bool:
    """Return whether :func:`update` computes these: float32 tensors on the CPU, each one block of memory, its histories laid out as it is."""
    return (
        native.enabled()
        and _function() is not None
        and all(type(w.data) is Tensor and w.device.type == "cpu" and w.dtype == torch.float32 and _is_one_block(w) for w in weights)
        and all(h.stride() == w.stride() and h.dtype == w.dtype for known in histories for w, h in zip(weights, known, strict=True))
    )


def update(
    rule: str, constants: Constants, weights: Sequence[Tensor], gradients: Sequence[Tensor], histories: Sequence[Sequence[Tensor]]
) -> None:
    """Update weights and histories in place.

    Args:
        rule: One of :data:`RULES`.
        constants: What the rule's formula needs.
        weights: Float32, any shapes, that :func:`takes`.
        gradients: One for each, of its shape and layout; they are only read.
        histories: For each history of the rule, one blob for each weight.
    """
    pointers = [[t.data_ptr() for t in tensors] for tensors in (weights, gradients, *histories)]
    if len(histories) == 1:
        pointers.append([0] * len(weights))
    given = (_Parameter * len(weights))(*(_Parameter(*of, w.numel()) for w, *of in zip(weights, *pointers, strict=True)))
    with native.between_torch() as threads:
        _function()(RULES.index(rule), ctypes.addressof(constants), given, len(weights), threads)


def _is_one_block(t: Tensor) -> bool:
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))
