"""ReLU and max pooling of training passes by the native library (``native/training.cpp``): what they keep takes little memory.

A ReLU keeps one bit a value rather than its top, max pooling one byte an output rather than its bottom and 64-bit indices. The values and
gradients have the bits of torch's.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from caffetools.layers import buffers, native
from caffetools.layers.autograd import Context

# A place in a window is one byte, of which one value is kept for a maximum without a gradient.
MOST_PLACES = 255

_Sizes = ctypes.c_int64 * 13
Pair = tuple[int, int]


@cache
def _library() -> ctypes.CDLL | None:
    loaded = native.kernels()
    if loaded is None or not hasattr(loaded, "caffetools_add"):
        return None
    pointer, whole, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    loaded.caffetools_relu_forward.argtypes = [pointer, pointer, pointer, whole, whole, threads]
    loaded.caffetools_relu_backward.argtypes = [pointer, pointer, pointer, whole, whole, whole, threads]
    for function in (loaded.caffetools_training_pool_forward, loaded.caffetools_training_pool_backward):
        function.argtypes = [pointer, pointer, pointer, pointer, threads]
    loaded.caffetools_add.argtypes = [pointer, pointer, pointer, whole, threads]
    loaded.caffetools_output_gradient_parts.restype, loaded.caffetools_output_gradient_parts.argtypes = whole, [whole]
    loaded.caffetools_output_gradient.argtypes = [pointer, whole, pointer, whole, pointer, pointer, pointer, whole, whole, threads]
    for function in (
        loaded.caffetools_add,
        loaded.caffetools_output_gradient,
        loaded.caffetools_relu_forward,
        loaded.caffetools_relu_backward,
        loaded.caffetools_training_pool_forward,
        loaded.caffetools_training_pool_backward,
    ):
        function.restype = None
    return loaded


def takes(x: Tensor) -> bool:
    """Return whether :func:`rectify` and :func:`max_pool` compute ``x``: a float32 tensor on the CPU, of which a gradient is wanted."""
    return (
        x.requires_grad
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and native.enabled()
        and _library() is not None
    )


def rectify(x: Tensor, *, in_place: bool) -> Tensor:
    """Compute max(0, x).

    Args:
        x: Any shape, float32 that :func:`takes` accepts; one block of memory, contiguous or channels-last, is read as it is.
        in_place: Overwrite ``x`` where it is one block and no view of another tensor.

    Returns:
        The same shape, in x's layout.
    """
    result: Tensor = _Rectify.apply(x, in_place and not x._is_view() and _rows(x) is not None)
    return result


def max_pool(x: Tensor, kernel: Pair, stride: Pair, pad: Pair, output: Pair, *, rectify: bool = False) -> Tensor:
    """Take the largest value of each window; padding never wins, and the gradient is that of the first maximum.

    Args:
        x: (N, C, H, W) float32 that :func:`takes` accepts, channels-last; no window lies outside of the map.
        kernel: (height, width), at most 255 values.
        stride: (height, width).
        pad: (height, width), smaller than the kernel.
        output: (H', W').
        rectify: Take max(0, y) of the results.

    Returns:
        (N, C, H', W'), channels-last.
    """
    result: Tensor = _MaxPool.apply(x, (*x.shape, *output, *kernel, *stride, *pad, int(rectify)))
    return result


def adds(a: Tensor, b: Tensor) -> bool:
    """Return whether :func:`add` takes these: two tensors that :func:`takes`, of one shape and layout, each one block of memory."""
    return takes(a) and takes(b) and a.shape == b.shape and a.stride() == b.stride() and _rows(a) is not None


def add(a: Tensor, b: Tensor) -> Tensor:
    """Compute a + b, of any one shape, in their layout."""
    y: Tensor = _Add.apply(a, b)
    return y


def output_gradient(dy: Tensor, y: Tensor | None, *, sums: bool) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of a convolution's output before its ReLU.

    Args:
        dy: The gradient after it, (N, C, H, W) float32 on the CPU.
        y: The output after it, channels-last or a slice of channels of such memory; None without a ReLU.
        sums: Whether the sums over all but the channels are wanted, the bias's gradient.

    Returns:
        (N, C, H, W), channels-last, and (C) or None.
    """
    if (pitch := _pitch(dy)) is None:
        dy = dy.contiguous(memory_format=torch.channels_last)
        pitch = dy.shape[1]
    dense = y is None and pitch == dy.shape[1]
    if dense and not sums:
        return dy, None
    if y is not None and _pitch(y) is None:
        y = y.contiguous(memory_format=torch.channels_last)
    n, c, h, w = dy.shape
    to = None if dense else buffers.empty(*dy.shape, channels_last=True)
    library = _library()
    assert library is not None  # noqa: S101 (training_conv.takes checked it)
    total, partial = torch.empty(c), torch.empty(library.caffetools_output_gradient_parts(n * h * w), c)
    pointers = (dy.data_ptr(), pitch, None if y is None else y.data_ptr(), 0 if y is None else _pitch(y))
    with native.between_torch() as threads:
        library.caffetools_output_gradient(
            *(*pointers, None if to is None else to.data_ptr(), total.data_ptr(), partial.data_ptr(), n * h * w, c, threads)
        )
    return dy if to is None else to, total if sums else None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
        y = buffers.empty_like(a)
        library = _library()
        assert library is not None  # noqa: S101 (adds checked it)
        with native.between_torch() as threads:
            library.caffetools_add(a.data_ptr(), b.data_ptr(), y.data_ptr(), a.numel(), threads)
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, in_place: bool) -> Tensor:
        if (shape := _rows(x)) is None:
            x = x.contiguous()
            shape = (1, x.numel())
        rows, columns = shape
        y = x if in_place else buffers.empty_like(x)
        bits = torch.empty(rows, -(-columns // 8), dtype=torch.uint8)
        library = _library()
        assert library is not None  # noqa: S101 (takes checked it)
        with native.between_torch() as threads:
            library.caffetools_relu_forward(x.data_ptr(), y.data_ptr(), bits.data_ptr(), rows, columns, threads)
        ctx.channels_last = rows > 1
        ctx.save_for_backward(bits)
        if in_place:
            ctx.mark_dirty(x)
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        dx: Tensor = _Masked.apply(grads[0], ctx.saved_tensors[0], ctx.channels_last)
        return dx, None


class _Masked(torch.autograd.Function):
    """A gradient where the bits are set, else 0: linear in the gradient, so that it can be differentiated again."""

    @staticmethod
    def forward(ctx: Context, dy: Tensor, bits: Tensor, channels_last: bool) -> Tensor:
        ctx.save_for_backward(bits)
        ctx.channels_last = channels_last
        pitch = _pitch(dy) if channels_last else None
        if pitch is None:
            dy = dy.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        rows = bits.shape[0]
        columns = dy.shape[1] if channels_last else dy.numel()
        dx = buffers.empty(*dy.shape, channels_last=channels_last)
        library = _library()
        assert library is not None  # noqa: S101 (takes checked it)
        with native.between_torch() as threads:
            library.caffetools_relu_backward(dy.data_ptr(), bits.data_ptr(), dx.data_ptr(), rows, columns, pitch or columns, threads)
        return dx

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        dx: Tensor = _Masked.apply(grads[0], ctx.saved_tensors[0], ctx.channels_last)
        return dx, None, None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        n, c, _, _, oh, ow = sizes[:6]
        x = x.contiguous(memory_format=torch.channels_last)
        y = buffers.empty(n, c, oh, ow, channels_last=True)
        places = buffers.empty(n, c, oh, ow, channels_last=True, dtype=torch.uint8)
        _pool("caffetools_training_pool_forward", (x, y, places), sizes)
        ctx.sizes = sizes
        ctx.save_for_backward(places)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx = buffers.empty(*ctx.sizes[:4], channels_last=True)
        _pool("caffetools_training_pool_backward", (dy, ctx.saved_tensors[0], dx), ctx.sizes)
        return dx, None


def _pool(name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    with native.between_torch() as threads:
        getattr(_library(), name)(*(tensor.data_ptr() for tensor in tensors), _Sizes(*sizes), threads)


def _rows(x: Tensor) -> tuple[int, int] | None:
    """Return how ``x`` is rows of values: one row if it is contiguous, one for each pixel if channels-last; None for other memory."""
    if x.is_contiguous():
        return 1, x.numel()
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.numel() // x.shape[1], x.shape[1]
    return None


def _pitch(x: Tensor) -> int | None:
    """Return the distance between the pixels of ``x`` (N, C, H, W), channels-last or a slice of channels of such memory; else None."""
    _, c, h, w = x.shape
    n_step, c_step, h_step, pitch = x.stride()
    if (c == 1 or c_step == 1) and pitch >= c and h_step == w * pitch and n_step == h * h_step:
        return pitch
    return None
