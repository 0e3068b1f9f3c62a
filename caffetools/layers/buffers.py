"""Uninitialized tensors of a training pass: small ones from torch, large ones from a pool of pages where the process asked for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from caffetools.util.page_pool import PagePool

# Blocks of a pool are of whole units of 2 MB; below this, too much of them would be unused.
_LEAST_BYTES = 1 << 22
_state: dict[str, PagePool] = {}


def recycle_pages() -> bool:
    """Take the large tensors of training passes from a pool of pages from now on; for a process that trains on the CPU.

    Returns:
        Whether the system can do so (Linux).
    """
    if PagePool.is_available():
        _state.setdefault("pool", PagePool())
    return bool(_state)


def release_pages() -> None:
    """Give the pool's free pages back to the system."""
    if pool := _state.get("pool"):
        pool.release()


def empty(*shape: int, channels_last: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of any contents on the CPU.

    Args:
        shape: Its sizes.
        channels_last: (N, C, H, W) with the channels last in memory.
        dtype: What its values are.
    """
    made = _of_pool(shape, _strides(shape, channels_last), dtype)
    if made is None:
        made = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return made


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of any contents with the shape, the type and the order in memory of ``x``, dense on the CPU."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    made = _of_pool(x.shape, x.stride(), x.dtype) if dense else None
    return torch.empty_like(x) if made is None else made


def _of_pool(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    pool, size = _state.get("pool"), math.prod(shape) * dtype.itemsize
    if pool is None or size < _LEAST_BYTES or torch.compiler.is_compiling():
        return None
    if (block := pool.take(size)) is None:
        return None
    # Not a view of anything: autograd may keep it as a gradient without a copy.
    storage = torch.from_numpy(np.asarray(block)).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape), tuple(strides))


def _strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    if channels_last:
        _, c, h, w = shape
        return c * h * w, 1, w * c, c
    return tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
