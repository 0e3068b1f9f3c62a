"""A random stream for each training: several in one process, and other code that draws there, do not change each other's numbers.

Our layers draw from a generator of their own (:mod:`caffetools.layers.draws`). Layers on a GPU, compiled ones, Python layers and those of
plugins draw from the global states of torch, NumPy and Python: a training with such layers holds a lock while it computes and has its
own states in place of the global ones. Switching costs nothing as long as the same training computes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from caffetools.layers.draws import drawing_from
from caffetools.layers.registry import described
from caffetools.proto.schema import NetParameter

RandomStates = dict[str, Any]

_lock = threading.RLock()
_owner: RandomStream | None = None
_outside: RandomStates | None = None


class RandomStream:
    """The random stream of one training.

    Args:
        device: Where the training computes; a CUDA device has a state of its own.
        seed: Where the stream begins; below 0 torch's global state gives a seed, as it would give the next random number.
        uses_globals: Whether something besides the nets' layers draws from the global states, such as compiled code.

    Attributes:
        generator: What our layers draw from on the CPU.
        uses_globals: Whether the training draws from the global states too.
        stored: The global states of this training while another one computes.
        depth: How many blocks of :meth:`active` are open.
    """

    def __init__(self, device: torch.device, seed: int = -1, *, uses_globals: bool = False):
        self.device = device
        self.uses_globals = uses_globals or device.type != "cpu"
        self._seed: int | None = seed if seed >= 0 else None
        self.generator = torch.Generator()
        self.generator.manual_seed(seed if seed >= 0 else int(torch.empty((), dtype=torch.int64).random_()))
        self.stored: RandomStates | None = None
        self.depth = 0

    @contextmanager
    def building(self, net: NetParameter) -> Iterator[None]:
        """Let the layers of ``net`` that are built during the block draw from this stream."""
        classes = [described(layer.type) for layer in net.layer]
        self.uses_globals |= any(layer_class is not None and layer_class.draws_globally() for layer_class in classes)
        with drawing_from(self.generator), self.active():
            yield

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute during the block. With layers that draw from the global states, this stream is there, and others that do wait for its end."""
        if not self.uses_globals:
            yield
            return
        with _lock:
            before = _owner
            _switch(self)
            if self._seed is not None:
                torch.manual_seed(self._seed)
                self._seed = None
            self.depth += 1
            try:
                yield
            finally:
                self.depth -= 1
                if before is not None and before is not self and before.depth:
                    # A training within a callback of another one.
                    _switch(before)

    def reseed(self, seed: int) -> None:
        """Begin again from ``seed``, at least 0."""
        self.generator.manual_seed(seed)
        if self.uses_globals:
            self._seed = seed

    def release(self) -> None:
        """Give the global states back as they were before the first training computed, if this one computed last."""
        with _lock:
            if _owner is self:
                _switch(None)

    def get_states(self) -> RandomStates:
        """Return the stream's states as numbers and arrays: ``torch`` (the generator), ``numpy``, ``python`` and, where they are used,
        ``torch_global`` and ``cuda``."""
        with self.active():
            states = _global_states(self.device)
        if self.uses_globals:
            states["torch_global"] = states["torch"]
        return {**states, "torch": self.generator.get_state().numpy()}

    def set_states(self, states: RandomStates) -> None:
        """Set what :meth:`get_states` returned; the global states only where this training uses them."""
        self.generator.set_state(torch.from_numpy(states["torch"]))
        if self.uses_globals:
            with self.active():
                _set_global_states({**states, "torch": states.get("torch_global", states["torch"])}, self.device)


def _switch(stream: RandomStream | None) -> None:
    global _owner, _outside
    before = _owner
    if stream is before:
        return
    device = before.device if before is not None else stream.device if stream is not None else torch.device("cpu")
    states = _global_states(device)
    if before is not None:
        before.stored = states
    else:
        _outside = states
    wanted = stream.stored if stream is not None else _outside
    if wanted is not None:
        _set_global_states(wanted, stream.device if stream is not None else device)
    _owner = stream


def _global_states(device: torch.device) -> RandomStates:
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


def _set_global_states(states: RandomStates, device: torch.device) -> None:
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]), device)
    np.random.set_state(states["numpy"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))


def check_random_states(states: RandomStates) -> None:
    """Check that :meth:`RandomStream.set_states` can set ``states``, without setting them.

    Raises:
        ValueError: A state is missing, or not one of this version of torch, NumPy or Python.
    """
    try:
        for name in ("torch", "torch_global"):
            if name == "torch" or name in states:
                torch.Generator().set_state(torch.from_numpy(states[name]))
        if "cuda" in states and states["cuda"].dtype != np.uint8:
            raise ValueError("the CUDA state is not bytes")
        np.random.RandomState().set_state(states["numpy"])
        version, numbers, gauss = states["python"]
        random.Random().setstate((version, tuple(numbers), gauss))  # noqa: S311
    except Exception as error:
        # Each library refuses a state of another form with an exception of its own choice.
        raise ValueError(f"the random states are damaged or of another version: {error}") from None
