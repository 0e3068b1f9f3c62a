"""Large blocks of memory whose pages are used again for blocks of any other size (Linux).

A heap that keeps freed memory leaves gaps that fit no later block, and the system's own pages come zeroed, which takes a sixth of a
training's time. Here the pages of a freed block are moved (``mremap``) to the address of the next block that needs them, of any size:
the process never holds more than the blocks that were alive at once, and no page is zeroed twice.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Linux's page tables are moved as a whole where both addresses and the size are multiples of this.
UNIT = 1 << 21
_NONE, _READ_WRITE = 0, 1 | 2
_PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 0x02, 0x10, 0x20, 0x4000
_MAYMOVE_FIXED = 1 | 2
_FAILED = ctypes.c_void_p(-1).value


@dataclass
class _Pages:
    """A range of addresses, and the sizes in bytes of the pieces, in order, that were moved or mapped there one by one."""

    address: int
    pieces: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(self.pieces)


class Block:
    """Memory of a :class:`PagePool`, by NumPy's array interface; its pages go back to the pool when nothing refers to it."""

    def __init__(self, pages: _Pages, size: int, returned: deque[_Pages]):
        self._pages, self._returned = pages, returned
        self.__array_interface__: dict[str, Any] = {"data": (pages.address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        # A deque takes it without a lock: an object may die in any thread, between any two instructions.
        self._returned.append(self._pages)


class PagePool:
    """Blocks of memory that share pages over time; for use from any thread."""

    def __init__(self) -> None:
        self._system = _System()
        self._lock = threading.Lock()
        self._returned: deque[_Pages] = deque()
        self._free: list[_Pages] = []

    @staticmethod
    def is_available() -> bool:
        """Return whether the system can move pages."""
        return sys.platform == "linux"

    def take(self, size: int) -> Block | None:
        """Return a block of ``size`` bytes, of any contents; None where the system gives no memory."""
        rounded = -(-size // UNIT) * UNIT
        with self._lock:
            self._collect()
            pages = self._same_size(rounded) or self._assembled(rounded)
        return None if pages is None else Block(pages, size, self._returned)

    def release(self) -> None:
        """Give all pages that no block has back to the system."""
        with self._lock:
            self._collect()
            for pages in self._free:
                self._system.unmap(pages.address, pages.size)
            self._free.clear()

    @property
    def kept(self) -> int:
        """The bytes that no block has."""
        with self._lock:
            self._collect()
            return sum(pages.size for pages in self._free)

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())

    def _same_size(self, size: int) -> _Pages | None:
        for index in reversed(range(len(self._free))):
            if self._free[index].size == size:
                return self._free.pop(index)
        return None

    def _assembled(self, size: int) -> _Pages | None:
        """Return ``size`` bytes of the pages that have been free for longest, and of new ones where those do not suffice."""
        start = self._system.reserve(size)
        if start is None:
            return None
        pages = _Pages(start)
        for source, length in self._longest_free(size):
            if not self._system.move(source, length, start + pages.size):
                self._system.unmap(source, length)
                break
            pages.pieces.append(length)
        if missing := size - pages.size:
            if not self._system.map(start + pages.size, missing):
                self._system.unmap(start, size)
                return None
            pages.pieces.append(missing)
        return pages

    def _longest_free(self, size: int) -> Iterator[tuple[int, int]]:
        """Take pieces of ``size`` bytes at most out of the free pages: address and size of each."""
        while size and self._free:
            pages = self._free[0]
            length = min(pages.pieces[-1], size)
            pages.pieces[-1] -= length
            if not pages.pieces[-1]:
                pages.pieces.pop()
            if not pages.pieces:
                # Before the piece is given away: who takes it may stop here.
                self._free.pop(0)
            yield pages.address + pages.size, length
            size -= length


class _System:
    """The calls of the C library; addresses are integers."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._mmap, self._mremap, self._munmap = library.mmap, library.mremap, library.munmap
        self._mmap.restype = self._mremap.restype = ctypes.c_void_p
        self._mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        self._mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        self._munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def reserve(self, size: int) -> int | None:
        """Return the first of ``size`` addresses that nothing else will use, a multiple of :data:`UNIT`; None without any."""
        found = self._mmap(None, size + UNIT, _NONE, _PRIVATE | _ANONYMOUS | _NORESERVE, -1, 0)
        if found == _FAILED:
            return None
        start: int = -(-found // UNIT) * UNIT
        if start > found:
            self.unmap(found, start - found)
        if found + UNIT > start:
            self.unmap(start + size, found + UNIT - start)
        return start

    def map(self, address: int, size: int) -> bool:
        """Put new pages at ``address``."""
        flags = _PRIVATE | _ANONYMOUS | _FIXED
        return bool(self._mmap(address, size, _READ_WRITE, flags, -1, 0) == address)

    def move(self, source: int, size: int, target: int) -> bool:
        """Move the pages at ``source`` to ``target``."""
        return bool(self._mremap(source, size, size, _MAYMOVE_FIXED, target) == target)

    def unmap(self, address: int, size: int) -> None:
        self._munmap(address, size)
