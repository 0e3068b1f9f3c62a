"""The native half of the LMDB reader (``native/lmdb.cpp``): sound pages into records, several at a time.

It returns None wherever something is not as it should be, and the reader in Python then finds out what, so that errors are made in one
place. It is not used where the library was not built, where ``CAFFETOOLS_NATIVE`` is 0, and for files of 32-bit or big-endian machines.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from caffetools.data.lmdb_pages import MAPPED_BYTES, PagedFile, Snapshot
from caffetools.util.native_library import switched_off

Record = tuple[bytes, bytes]
# Addresses and sizes of values in memory.
Views = tuple[NDArray[np.uint64], NDArray[np.uint64]]
_FILE = Path(__file__).parent.parent / "_lmdb.so"
# Leaf pages that are copied together at most.
MOST_PAGES = 32
# Records whose places are looked up together at most.
_MOST_VIEWS = 1024
# What the library calls, in the order of its structure `Python`.
_FUNCTIONS = (
    *("PyBytes_FromStringAndSize", "PyBytes_AsString", "PyBytes_Size"),
    *("PyList_New", "PyList_GetItem", "PyList_Size", "PyList_SetItem"),
    *("PyTuple_New", "PyTuple_GetItem", "PyTuple_SetItem"),
    *("PyLong_FromUnsignedLongLong", "PyLong_AsUnsignedLongLong"),
    *("Py_IncRef", "Py_DecRef", "PyEval_SaveThread", "PyEval_RestoreThread"),
    *("PyCFunction_NewEx", "PyErr_Occurred", "PyErr_Clear"),
)
# Bytes that are read record by record before the map's pages are released: at random, pages are used again.
_MOST_MAPPED_AT_RANDOM = 1 << 30


class _Leaves(ctypes.Structure):
    """``CaffetoolsLeaves`` of native/lmdb.cpp."""

    _fields_ = [
        ("file", ctypes.c_int64),
        *((name, ctypes.c_uint64) for name in ("page_size", "transaction", "last_page")),
        ("map", ctypes.c_void_p),
        ("map_size", ctypes.c_uint64),
        ("mapped", ctypes.POINTER(ctypes.c_uint64)),
        ("most_mapped", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("leaf_pages", "ends")),
        ("leaf_count", ctypes.c_int64),
        ("ready", ctypes.c_void_p),
        ("copies", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("pages", "page", "node")),
        ("counts", ctypes.c_int64 * MOST_PAGES),
    ]


class NativePages:
    """The pages of a snapshot. Safe to use from several threads.

    Args:
        library: What :func:`lmdb_library` returned.
        file: The file.
        snapshot: The snapshot whose pages are read.

    Attributes:
        item: Returns the record of a number, from 0, after :meth:`index`; None if something is not sound, or there is no such record.
    """

    item: Callable[[int], Record | None]

    def __init__(self, library: ctypes.PyDLL, file: PagedFile, snapshot: Snapshot):
        self.snapshot = snapshot
        self._library = library
        self._map = file.map  # kept as long as its address is used
        address, size = (self._map.address, len(self._map.buffer)) if self._map else (None, 0)
        self._mapped = ctypes.c_uint64()
        self._leaves = _Leaves(file.descriptor, file.page_size, snapshot.transaction, snapshot.last_page, address, size)
        self._leaves.mapped, self._leaves.most_mapped = ctypes.pointer(self._mapped), _MOST_MAPPED_AT_RANDOM
        self._at = ctypes.byref(self._leaves)

    def index(self, pages: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Set what :attr:`item` looks up: all leaf pages in order, and the number of records up to the end of each."""
        ready = np.zeros(self._leaves.map_size // self._leaves.page_size // 8 + 1, np.uint8) if self._map else None
        self._leaves.leaf_pages, self._leaves.ends = pages.ctypes.data, ends.ctypes.data
        self._leaves.leaf_count, self._leaves.ready = len(pages), None if ready is None else ready.ctypes.data
        # A builtin function, which is called in a third of the time that ctypes takes.
        owners = ctypes.addressof(self._leaves), self._leaves, self._mapped, self._map, pages, ends, ready
        self.item = self._library.caffetools_lmdb_item_function(owners)

    def branch(self, page: int) -> tuple[list[bytes], list[int]] | None:
        """Return keys (the first as empty) and child pages of a branch page; None if something is not sound."""
        return cast("tuple[list[bytes], list[int]] | None", self._library.caffetools_lmdb_branch(self._at, page))


class NativeLeaves(NativePages):
    """A buffer of leaf pages, and the position of the next record in it; for one thread. Arguments: see :class:`NativePages`."""

    def __init__(self, library: ctypes.PyDLL, file: PagedFile, snapshot: Snapshot):
        super().__init__(library, file, snapshot)
        self._copies = np.empty(MOST_PAGES * file.page_size, np.uint8)
        self._leaves.copies, self._leaves.most_mapped = self._copies.ctypes.data, MAPPED_BYTES
        self._addresses, self._sizes = np.empty(_MOST_VIEWS, np.uint64), np.empty(_MOST_VIEWS, np.uint64)
        self._places = self._addresses.ctypes.data, self._sizes.ctypes.data

    def load(self, pages: list[int], bounds: list[bytes | None]) -> list[int] | None:
        """Copy and check up to :data:`MOST_PAGES` leaf pages.

        Args:
            pages: Their numbers.
            bounds: The least key that each may hold, and the key that the last one's keys are below (None: no limit).

        Returns:
            The number of records on each; None if something is not sound.
        """
        return self._leaves.counts[: len(pages)] if self._library.caffetools_lmdb_load(self._at, pages, bounds) else None

    def skip(self, count: int) -> None:
        """Leave out the next ``count`` records, fewer than the pages hold."""
        self._leaves.node += count
        while self._leaves.node >= self._leaves.counts[self._leaves.page]:
            self._leaves.node -= self._leaves.counts[self._leaves.page]
            self._leaves.page += 1

    def next(self, limit: int) -> list[Record] | None:
        """Return the next records, whose values take about ``limit`` bytes at most; an empty list at the end, None if one is not sound."""
        return cast("list[Record] | None", self._library.caffetools_lmdb_next(self._at, limit))

    def views(self, limit: int) -> Views | None:
        """Return where the values of the next records lie in memory, about ``limit`` bytes of them; None if one is not sound.

        They may be read until the next call of :meth:`load`, and were the snapshot's if :meth:`is_current` says so afterwards.
        """
        count = self._library.caffetools_lmdb_views(self._at, limit, len(self._addresses), *self._places)
        return None if count < 0 else (self._addresses[:count], self._sizes[:count])

    def is_current(self) -> bool:
        """Return whether no writer can have reused a page of the snapshot before now."""
        return bool(self._library.caffetools_lmdb_current(self._at))


def lmdb_library() -> ctypes.PyDLL | None:
    """Return the library; None if it was not built, is of another version, or is switched off."""
    return None if switched_off() else _library()


@cache
def _library() -> ctypes.PyDLL | None:
    if platform.python_implementation() != "CPython" or sys.byteorder != "little" or not _FILE.exists():
        return None
    try:
        library = ctypes.PyDLL(str(_FILE))
        addresses = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _FUNCTIONS]
        addresses.append(ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_Py_NoneStruct")))
        if library.caffetools_lmdb_bind((ctypes.c_void_p * len(addresses))(*addresses), len(addresses)) != len(addresses):
            return None
    except (OSError, AttributeError, ValueError):
        return None
    pointer, value = ctypes.c_void_p, ctypes.py_object
    library.caffetools_lmdb_load.argtypes = [pointer, value, value]
    for name in ("next", "branch"):
        function = getattr(library, f"caffetools_lmdb_{name}")
        function.argtypes, function.restype = [pointer, ctypes.c_uint64], value
    library.caffetools_lmdb_item_function.argtypes, library.caffetools_lmdb_item_function.restype = [value], value
    library.caffetools_lmdb_views.argtypes = [pointer, ctypes.c_uint64, ctypes.c_int64, pointer, pointer]
    library.caffetools_lmdb_views.restype = ctypes.c_int64
    library.caffetools_lmdb_current.argtypes = [pointer]
    return library
