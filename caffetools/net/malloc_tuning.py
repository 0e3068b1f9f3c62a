"""Freed memory: kept in the process for the next iteration of a training, or returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_PAD = 1 << 26
_LARGE = 1 << 20


def disable_malloc_trim(device: str | torch.device = "cpu") -> bool:
    """Ask the C library not to give freed memory back to the system; for a process that trains on the CPU.

    By default every large block comes from the system as zeroed pages, and goes back when it is freed. An iteration frees and takes
    the same blocks over and over, so that a sixth of its time went into those pages. The largest tensors of a pass share their pages
    (:mod:`caffetools.util.page_pool`). Holds for the whole process, whose memory then stays at its peak.

    Returns:
        Whether it does so now: not on other devices, nor where the C library has no such setting (glibc has).
    """
    if str(device).partition(":")[0] != "cpu":
        return False
    from caffetools.layers.buffers import recycle_pages

    recycle_pages()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, _PAD))
    return False


def tune_for_training(*, little_memory: bool) -> bool:
    """Prepare a process that trains on the CPU: see :func:`disable_malloc_trim`, or for ``little_memory`` :func:`return_large_blocks`, with the pool of pages."""
    if not little_memory:
        return disable_malloc_trim()
    from caffetools.layers.buffers import recycle_pages

    recycle_pages()
    return return_large_blocks()


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library has a call for it (glibc)."""
    from caffetools.layers.buffers import release_pages

    release_pages()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> bool:
    """Ask the C library to give every large block back to the system when it is freed; for a process that trains or exports in little memory.

    By default blocks up to 32 MB come to lie in one heap, whose gaps fit no other block: ResNet-50 with recomputed activations then took
    as much memory as without, and an export of GoogLeNet 8 MB more. Costs the time that :func:`disable_malloc_trim` saves. Holds for the whole process.

    Returns:
        Whether it does so now (glibc does).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE))
    return False
