"""Memory of large arrays that is used again: the system hands out new memory as pages of zeros, which costs more than filling them."""

from __future__ import annotations

import math
import sys
from collections import deque

import numpy as np
from numpy.typing import NDArray

# Below this many bytes, memory comes from the process's own heap.
_LARGE = 1 << 20
# Arrays that are kept at most.
_MOST = 8


class ArrayPool:
    """Return arrays of float32 whose memory is that of an earlier one to which nothing refers any more. Safe to use from several threads."""

    def __init__(self) -> None:
        self._owners: deque[NDArray[np.float32]] = deque(maxlen=_MOST)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array of ``shape`` whose values are undefined."""
        size = math.prod(shape)
        if size * 4 < _LARGE or not _counts_references():
            return np.empty(shape, np.float32)
        for _ in range(len(self._owners)):
            try:
                owner = self._owners.popleft()  # no other thread has it from now on
            except IndexError:
                break
            if owner.size != size:
                continue
            # This name and the argument; each view of the memory, a tensor's too, is one more.
            free = sys.getrefcount(owner) <= 2
            view = owner.reshape(shape)
            self._owners.append(owner)
            if free:
                return view
        owner = np.empty(size, np.float32)
        self._owners.append(owner)
        return owner.reshape(shape)


def _counts_references() -> bool:
    """Return whether the number of references is exact: not in PyPy, nor in a Python without the global lock."""
    enabled = getattr(sys, "_is_gil_enabled", None)
    return sys.implementation.name == "cpython" and (enabled is None or bool(enabled()))
