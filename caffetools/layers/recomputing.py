"""Whether a layer's forward pass is being run a second time, to have its activations for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
