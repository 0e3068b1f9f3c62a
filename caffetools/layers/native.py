"""The native kernels: a small C++ library that setup.py builds where there is a compiler, loaded through its C interface.

Everything here has a twin in torch that gives the same numbers, so a machine without the library, and one where the environment
variable ``CAFFETOOLS_NATIVE`` is 0, only computes more slowly.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from caffetools.util.native_library import library_file, load_library, switched_off

if TYPE_CHECKING:
    from torch import Tensor

_FILE = library_file("_kernels")
_VERSION = 12
# Below this the kernel's arithmetic, which relies on scale being a normal positive number, is not used.
SMALLEST_K = 1e-30


def status() -> str:
    """Return one line: whether the native kernels are in use, and if not, why."""
    if switched_off():
        return "native kernels are switched off by CAFFETOOLS_NATIVE=0; torch computes instead"
    if not _FILE.exists():
        return "native kernels are skipped: they were not built (no C++ compiler at installation); torch computes instead"
    return (
        "native kernels are in use"
        if kernels()
        else f"native kernels are skipped: {_FILE} is of another version or machine; reinstall caffetools"
    )


def lrn_takes(x: Tensor, alpha: float, k: float) -> bool:
    """Return whether the native LRN computes ``x``: an ordinary float32 tensor (N, C, H, W) on the CPU, and a scale that is always positive."""
    import torch

    return (
        not torch.compiler.is_compiling()
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and k >= SMALLEST_K
        and alpha >= 0
        and enabled()
    )


def enabled() -> bool:
    """Return whether the library is there and not switched off."""
    return not switched_off() and kernels() is not None


def lrn_forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute y = x · (k + alpha / size · (sum of x² over the ``size`` channels around))^−beta.

    Args:
        x: (N, C, H, W) float32 that :func:`lrn_takes`; contiguous or channels-last memory is read as it is, other memory is copied first.
        size: The number of channels, odd.
        alpha: See the formula.
        beta: See the formula.
        k: See the formula.

    Returns:
        (N, C, H, W) float32 in x's layout.
    """
    from caffetools.layers import buffers

    x, shape = _laid_out(x)
    y = buffers.empty_like(x)
    _call("caffetools_lrn_forward", (x, y), shape, (size, alpha, beta, k))
    return y


def lrn_backward(x: Tensor, dy: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Return the gradient of ``x`` (N, C, H, W) for the gradient ``dy`` of :func:`lrn_forward`'s result, of the same shape, in x's layout."""
    import torch

    from caffetools.layers import buffers

    x, shape = _laid_out(x)
    channels_last = bool(shape[3])
    dy = dy.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    dx = buffers.empty_like(x)
    _call("caffetools_lrn_backward", (x, dy, dx), shape, (size, alpha, beta, k))
    return dx


def _laid_out(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Return ``x`` in one of the two layouts, and (N, C, H · W, whether channels are last)."""
    import torch

    n, c, h, w = x.shape
    if x.is_contiguous():
        return x, (n, c, h * w, 0)
    return x.contiguous(memory_format=torch.channels_last), (n, c, h * w, 1)


def _call(name: str, tensors: tuple[Tensor, ...], shape: tuple[int, int, int, int], options: tuple[int, float, float, float]) -> None:
    loaded = kernels()
    assert loaded is not None  # noqa: S101 (lrn_takes checked it)
    with between_torch() as threads:
        failed = getattr(loaded, name)(*(t.data_ptr() for t in tensors), *shape, *options, threads)
    if failed:
        raise MemoryError("no memory for the few kilobytes that the native LRN works in")


class _Scope(threading.local):
    """Of each thread: the number of threads of the library within :func:`own_threads`; 0 outside."""

    threads = 0


_scope = _Scope()


@contextmanager
def own_threads() -> Iterator[None]:
    """Within the block, the library's operators run on its own threads, and those of torch that this thread calls on one.

    OpenMP's loops, torch's, wait for every thread of a team. Next to another program that computes, one of them may have no processor for
    milliseconds, and an iteration takes a multiple of its time. The library's loops leave the work to those that have one. Threads of both
    kinds do not go together: each looks for work for a while after a loop, on the cores that the other then lacks.
    """
    import torch

    loaded, count = kernels(), torch.get_num_threads()
    if _scope.threads or count == 1 or loaded is None or not loaded.caffetools_limit_openmp(1):
        yield
        return
    _scope.threads = count
    try:
        yield
    finally:
        _scope.threads = 0
        loaded.caffetools_limit_openmp(count)


@contextmanager
def between_torch() -> Iterator[int]:
    """Run the library's loops on torch's own threads but within :func:`own_threads`; the value is :func:`thread_count`."""
    loaded = kernels()
    assert loaded is not None  # noqa: S101 (its operators are called where it is there)
    if _scope.threads:
        yield _scope.threads
        return
    loaded.caffetools_use_openmp(1)
    try:
        yield thread_count()
    finally:
        loaded.caffetools_use_openmp(0)


def thread_count() -> int:
    """Return the number of threads of the library's operators: torch's, which is 1 within :func:`own_threads` for torch alone."""
    import torch

    return _scope.threads or torch.get_num_threads()


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the loaded library; None where it was not built, or is of another version."""
    if not _FILE.exists():
        return None
    # torch first: its OpenMP runtime is then the one that the library finds, and both share one pool of threads.
    import torch  # noqa: F401

    loaded = load_library(_FILE, "caffetools_native_version", _VERSION)
    if loaded is None:
        return None
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    rest: list[type[Any]] = [whole, whole, whole, ctypes.c_int, whole, real, real, real, ctypes.c_int]
    loaded.caffetools_lrn_forward.argtypes = [pointer, pointer, *rest]
    loaded.caffetools_lrn_backward.argtypes = [pointer, pointer, pointer, *rest]
    loaded.caffetools_use_openmp.restype, loaded.caffetools_use_openmp.argtypes = None, [ctypes.c_int]
    loaded.caffetools_limit_openmp.restype, loaded.caffetools_limit_openmp.argtypes = ctypes.c_int, [ctypes.c_int]
    return loaded
