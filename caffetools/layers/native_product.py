"""Inner products of few vectors with a large matrix of weights by the native library (``native/product.cpp``), for the inference plan."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from caffetools.layers import buffers, inference, native
from caffetools.layers.autograd import Context
from caffetools.layers.native_conv import Layout, Pointer, available, kernels

# Of more rows than these, torch's matrix product is the faster one.
MOST_ROWS = 32
# In training, smaller matrices are left to torch, which reads them from the caches.
_LEAST_WEIGHTS = 1 << 20
# Bytes of the rows of a gradient that are handed over at a time, and the number that these rows are a multiple of: the kernels compute
# several rows at once, and would compute what is left over in another way.
_BLOCK_BYTES, _BLOCK_ROWS = 1 << 24, 64

# Takes some rows of the gradient of a matrix: the rows, and their gradient.
RowTaker = Callable[[slice, torch.Tensor], None]
# The id of a matrix → who takes its gradient.
_takers: dict[int, RowTaker] = {}


class _Shape(ctypes.Structure):
    """``CaffetoolsProduct`` of native/product.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "c", "points", "x_pitch", "outputs", "y_pitch")),
        *((name, Pointer) for name in ("weights", "bias", "slopes")),
        *((name, ctypes.c_int32) for name in ("planar", "activation")),
        *((name, ctypes.c_float) for name in ("low", "high")),
    ]


class NativeProduct:
    """y = activation(x · Wᵀ + b) for each of a few images; reads the weights where they lie.

    Args:
        form: Weights and bias.
        activation: Applied last; None for none.
        layout: Shapes and pitches.

    Attributes:
        handle: Address for ``caffetools_product_run``.
        scratch_floats: What a run needs.
    """

    def __init__(self, form: inference.Product, activation: inference.Activation | None, layout: Layout):
        (n, c, h, w), (_, outputs, _, _) = layout.x_shape, layout.y_shape
        act = activation or inference.Activation(inference.NO_ACTIVATION)
        self._arrays = [None if array is None else array.detach().contiguous() for array in (form.weight, form.bias, act.slopes)]
        pointers = [None if array is None else array.data_ptr() for array in self._arrays]
        sizes = (n, c, h * w, layout.x_pitch, outputs, layout.y_pitch)
        self._shape = _Shape(*sizes, *pointers, layout.planar, act.kind, act.low, act.high)
        self.handle = ctypes.addressof(self._shape)
        self.scratch_floats = int(kernels().caffetools_product_scratch(self.handle))


def takes(x: torch.Tensor, weight: torch.Tensor, *, gradient: bool = False) -> bool:
    """Return whether :func:`multiply` computes x · Wᵀ: few rows of float32 on the CPU, of which no gradient is wanted.

    ``gradient``: Whether :func:`multiply_in_training` computes it, a product by a matrix large enough that reading it takes the time.

    A plan uses the same operator, so that a pass that starts in the middle of a net has the bits of a whole one.
    """
    return (
        (takes_in_training(x.shape[0], weight.numel()) if gradient else x.shape[0] <= MOST_ROWS and not torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and type(x) is torch.Tensor
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 for t in (x, weight))
        and not torch.is_autocast_enabled("cpu")
        and weight.is_contiguous()
        and available()
    )


def takes_in_training(rows: int, weights: int) -> bool:
    """Return whether :func:`multiply_in_training` is the faster one for ``rows`` vectors by a matrix of so many ``weights``."""
    return rows <= MOST_ROWS and weights >= _LEAST_WEIGHTS


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute x · Wᵀ + b.

    Args:
        x: (N, K) that :func:`takes` accepts.
        weight: (M, K).
        bias: (M), or None.

    Returns:
        (N, M).
    """
    x = x.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    layout = Layout((*x.shape, 1, 1), (*y.shape, 1, 1), x.shape[1], y.shape[1])
    run_product(NativeProduct(inference.Product(weight, bias), None, layout), x, y)
    return y


def multiply_in_training(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute x · Wᵀ + b as :func:`multiply` does, with gradients (as an operator that can be differentiated again, too)."""
    y: torch.Tensor = _Multiply.apply(x, weight, bias)
    return y


@contextmanager
def gradient_by_rows(weight: torch.Tensor, take: RowTaker) -> Iterator[None]:
    """Hand the gradient of ``weight`` to ``take`` some rows at a time, within the block; it is in no memory as a whole.

    This is done by :func:`multiply_in_training`, after the gradient of its input is computed; other functions compute the gradient as ever.

    Args:
        weight: A matrix that one product of a pass reads.
        take: Called with all rows in order; may change these rows of ``weight``.
    """
    _takers[id(weight)] = take
    try:
        yield
    finally:
        del _takers[id(weight)]


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        with native.between_torch():
            return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, weight), (dy,) = ctx.saved_tensors, grads
        wanted = ctx.needs_input_grad
        dx = dw = None
        if torch.is_grad_enabled():
            dx, dw = dy @ weight if wanted[0] else None, dy.t() @ x if wanted[1] else None
        else:
            dy, x, sizes = dy.contiguous(), x.contiguous(), (x.shape[0], *weight.shape)
            take = _takers.get(id(weight)) if wanted[1] else None
            dx, dw = buffers.empty_like(x) if wanted[0] else None, buffers.empty_like(weight) if wanted[1] and take is None else None
            with native.between_torch() as threads:
                if dx is not None:
                    kernels().caffetools_product_input_gradient(dy.data_ptr(), weight.data_ptr(), dx.data_ptr(), *sizes, threads)
                if dw is not None:
                    kernels().caffetools_product_weight_gradient(dy.data_ptr(), x.data_ptr(), dw.data_ptr(), *sizes, threads)
            if take is not None:
                _hand_over(dy, x, weight.shape[0], take)
        return dx, dw, dy.sum(0) if wanted[2] else None


def _hand_over(dy: torch.Tensor, x: torch.Tensor, outputs: int, take: RowTaker) -> None:
    """Give the rows of dyᵀ · x, which are ``outputs``, to ``take``."""
    inputs = x.shape[1]
    rows = max(1, _BLOCK_BYTES // (4 * inputs * _BLOCK_ROWS)) * _BLOCK_ROWS
    block = x.new_empty(min(rows, outputs), inputs)
    for begin in range(0, outputs, rows):
        part = dy[:, begin : begin + rows].contiguous()
        gradient = block[: part.shape[1]]
        with native.between_torch() as threads:
            kernels().caffetools_product_weight_gradient(
                part.data_ptr(), x.data_ptr(), gradient.data_ptr(), x.shape[0], part.shape[1], inputs, threads
            )
        take(slice(begin, begin + part.shape[1]), gradient)


def run_product(product: NativeProduct, x: torch.Tensor, y: torch.Tensor) -> None:
    """Run ``product`` from ``x`` to ``y`` (N, M), both float32 in the layout that it was made for, on torch's number of threads."""
    scratch = torch.empty(max(product.scratch_floats, 1))
    kernels().caffetools_product_run(product.handle, x.data_ptr(), y.data_ptr(), scratch.data_ptr(), native.thread_count())
