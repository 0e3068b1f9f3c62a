"""Where layers draw random numbers from: the generator of the training that they belong to, or torch's global state.

A solver builds its nets within :func:`drawing_from`, and their layers keep its generator: what other threads draw, build or seed does
not reach them, and what they draw changes no other run. A net that is built outside of a solver draws from torch's global state, as
modules of torch do; so do layers on a GPU, and layers that are not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

_generator: ContextVar[torch.Generator | None] = ContextVar("generator", default=None)


def current_generator() -> torch.Generator | None:
    """Return the generator that layers built here draw from on the CPU; None is torch's global state."""
    return _generator.get()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let the layers that this thread builds during the block keep ``generator``, and draw from it on the CPU."""
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return values drawn evenly from [0, 1), of the shape, dtype and device of ``x``.

    Args:
        x: Any shape.
        generator: A generator on the CPU; torch's global state is taken where it is None, on other devices, and in compiled code.
    """
    if generator is None or x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.rand_like(x)
    return torch.empty_like(x).uniform_(generator=generator)


class Drawing(Protocol):
    """What draws: a layer."""

    generator: torch.Generator | None

    def draws_globally(self) -> bool:
        """Return whether it may draw from the global states."""


@contextmanager
def drawing_ahead(layer: Drawing, device: torch.device) -> Iterator[None]:
    """Let a layer draw what comes next without its random stream moving on: the next draw after the block gives the same values.

    Args:
        layer: The layer.
        device: Where it computes.
    """
    before = layer.generator
    copy = torch.Generator()
    copy.set_state(before.get_state() if before is not None else torch.get_rng_state())
    layer.generator = copy
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices, enabled=bool(devices) or layer.draws_globally()):
            yield
    finally:
        layer.generator = before
