"""What layers share for their gradients: the context of autograd functions, a guard against an error of torch, and recomputed passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """What ``torch.autograd.Function`` gives its two methods: saved tensors, and attributes that ``forward`` sets for ``backward``."""

    if TYPE_CHECKING:
        saved_tensors: tuple[Tensor, ...]
        needs_input_grad: tuple[bool, ...]

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: object) -> None: ...


def with_dense_gradient(y: Tensor) -> Tensor:
    """Return ``y``, the result of ``torch.batch_norm``, such that its gradient reaches torch's backward pass in C-contiguous memory.

    For one picture (N = 1) the gradient may be channels-last with the stride of a view at the first axis, such as (C, 1, W·C, C). On the
    CPU torch's backward pass of batch normalization then reads the wrong elements where its input is contiguous (seen in torch 2.14).
    """
    if y.requires_grad and y.dim() > 2 and y.shape[0] == 1:
        y.register_hook(_contiguous)  # type: ignore[no-untyped-call]
    return y


def _contiguous(gradient: Tensor) -> Tensor:
    return gradient.contiguous()


_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Return whether a pass is recomputed: layers then leave their running statistics as they are."""
    return _recomputing.get()


@contextmanager
def recomputing() -> Iterator[None]:
    """Let :func:`is_recomputing` be true in this thread during the block."""
    before = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(before)
