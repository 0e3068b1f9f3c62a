"""A random stream for each solver, although torch, NumPy and Python have one state a process.

Fillers and dropout draw from torch's global state, Python layers often from NumPy's or Python's. A solver that computes holds a lock
and has its own stream in their place, so that two trainings in two threads give each the numbers that it gives alone. Switching
costs nothing as long as the same solver computes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomStates = dict[str, Any]

_lock = threading.RLock()
_owner: RandomStream | None = None
_outside: RandomStates | None = None


class RandomStream:
    """The random stream of one solver; it begins where the global states are when it is first used.

    Args:
        device: Where the solver computes; a CUDA device has a state of its own.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stored: RandomStates | None = None
        self._depth = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this stream the global one during the block; other solvers wait, in other threads, for its end."""
        with _lock:
            before = _owner
            _switch(self)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if before is not None and before is not self and before._depth:
                    # A training within a callback of another one.
                    _switch(before)

    def release(self) -> None:
        """Give the global states back as they were before the first solver computed, if this one computed last."""
        with _lock:
            if _owner is self:
                _switch(None)


def _switch(stream: RandomStream | None) -> None:
    global _owner, _outside
    if stream is _owner:
        return
    device = (_owner or stream or RandomStream(torch.device("cpu"))).device
    states = get_random_states(device)
    if _owner is not None:
        _owner._stored = states
    else:
        _outside = states
    wanted = stream._stored if stream is not None else _outside
    if wanted is not None:
        set_random_states(wanted, stream.device if stream is not None else device)
    _owner = stream


def get_random_states(device: torch.device) -> RandomStates:
    """Return the states of torch, NumPy, Python and, on a GPU, CUDA, as numbers and arrays."""
    legacy = np.random.get_state(legacy=False)
    version, numbers, gauss = random.getstate()
    states: RandomStates = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": {**legacy, "state": dict(legacy["state"])},
        "python": [version, list(numbers), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).cpu().numpy()
    return states


def set_random_states(states: RandomStates, device: torch.device) -> None:
    """Set what :func:`get_random_states` returned."""
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]), device)
    np.random.set_state(states["numpy"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))


def check_random_states(states: RandomStates) -> None:
    """Check that :func:`set_random_states` can set ``states``, without setting them.

    Raises:
        ValueError: A state is missing, or not one of this version of torch, NumPy or Python.
    """
    try:
        torch.Generator().set_state(torch.from_numpy(states["torch"]))
        if "cuda" in states and states["cuda"].dtype != np.uint8:
            raise ValueError("the CUDA state is not bytes")
        np.random.RandomState().set_state(states["numpy"])
        version, numbers, gauss = states["python"]
        random.Random().setstate((version, tuple(numbers), gauss))  # noqa: S311
    except Exception as error:
        # Each library refuses a state of another form with an exception of its own choice.
        raise ValueError(f"the random states are damaged or of another version: {error}") from None
