"""The pages of an LMDB file: copies of them, the format's constants, and the snapshot that the meta pages describe."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np

from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, wrong_kind

_MAGIC, _DATA_VERSION = 0xBEEFC0DE, 1
# Page flags. The others are set only in memory, or are not used by a plain database.
BRANCH, LEAF, OVERFLOW, _META, _LEAF2, _SUBPAGE = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
KIND = BRANCH | LEAF | OVERFLOW | _META | _LEAF2 | _SUBPAGE
# Flags of a database.
_DUPSORT, _OTHER_ORDER = 0x04, 0x02 | 0x08
_MAX_DEPTH = 32
# Linux 5.14: map pages now, with an error where an access would end the process (a truncated file, a failing disk).
_POPULATE_READ, _DONT_NEED = 22, 4
# Bytes that are mapped before their pages are released again; they stay in the system's cache.
MAPPED_BYTES = 1 << 25
# Snapshots taken in a row without reading a record in between, before the reader gives up.
MAX_RESTARTS = 1000
REBUILD = "copy or build it again"


class Overtaken(Exception):
    """A writer may have reused pages of the snapshot."""


class Damaged(Exception):
    """A page or value contradicts the file format; the text states how."""


class Layout:
    """Byte order (``<`` or ``>``) and word size (8 or 4 bytes) of the machine that wrote a file, as formats of :mod:`struct`."""

    def __init__(self, order: str, word: int):
        self.order, self.word = order, word
        letter = "Q" if word == 8 else "I"
        # Page header: page number, padding, flags, then the bounds of the free space (or the number of overflow pages).
        self.header = struct.Struct(f"{order}{letter}HHHH")
        self.overflow = struct.Struct(f"{order}{letter}HHI")
        self.number = struct.Struct(f"{order}{letter}")
        # Node header: size of the value or low part of a page number, flags or high part of it, size of the key.
        self.node = struct.Struct(f"{order}IHH")
        database = f"IHH5{letter}"
        self.meta = struct.Struct(f"{order}II{letter}{letter}{database}{database}{letter}{letter}")


_LAYOUTS = [Layout(order, word) for order in "<>" for word in (8, 4)]


@dataclass(frozen=True)
class Snapshot:
    """The state of a file after one transaction.

    Attributes:
        transaction: Number of the transaction.
        entries: Number of records.
        depth: Levels of the tree, leaves included; 0 for an empty database.
        root: Page number of the root.
        last_page: Highest page number in use.
        leaf_pages: Number of leaf pages.
        overflow_pages: Number of pages that hold large values.
    """

    transaction: int
    entries: int
    depth: int
    root: int
    last_page: int
    leaf_pages: int
    overflow_pages: int


# A buffer, and the offset in the file at which it begins.
Window = tuple[mmap.mmap | bytes, int]


class _Map:
    """A file mapped for reading, and its address in memory."""

    def __init__(self, descriptor: int, size: int):
        self.buffer = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        self.address = int(np.frombuffer(self.buffer, np.uint8).ctypes.data)


@cache
def _libc_madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    return cast("Callable[[int, int, int], int]", function)


class PagedFile:
    """Copies pages of the file and reads its two meta pages.

    Pages are copied from a memory map where the system can report a missing page as an error (Linux), else with ``pread``.
    """

    def __init__(self, path: str, file: str):
        self.path, self.file = path, file
        self._descriptor = -1
        try:
            self._descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise DataError(f"cannot be opened as an LMDB: {error.strerror}", path=path) from None
        self._map: _Map | None = None
        self._mapped = 0
        try:
            self._remap()
            self.layout, self.page_size = self._detect_layout()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; once is enough, and again does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def descriptor(self) -> int:
        """The open file's descriptor; -1 once it is closed."""
        return self._descriptor

    @property
    def map(self) -> _Map | None:
        """The file mapped for reading, as long as it was at the time; None where the system cannot report a missing page."""
        return self._map

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._descriptor).st_size

    def window(self, offset: int, size: int) -> Window:
        """Return a buffer to copy from that covers ``size`` bytes from ``offset`` on, and the offset at which the buffer begins.

        At the end of the file the buffer is shorter. Other threads run while the disk is waited for.

        Raises:
            DataError: The file cannot be read.
        """
        memory = self._map
        if memory is not None and offset + size > len(memory.buffer):
            memory = self._remap()
        if memory is not None and offset + size <= len(memory.buffer):
            self._mapped += size
            if self._mapped > MAPPED_BYTES:
                # Otherwise a pass over a large file would count as memory of this process.
                self._mapped = size
                _libc_madvise()(memory.address, len(memory.buffer), _DONT_NEED)
            begin = offset & -mmap.PAGESIZE
            if not _libc_madvise()(memory.address + begin, offset + size - begin, _POPULATE_READ):
                return memory.buffer, 0
            # The file was truncated meanwhile, or the disk fails.
        try:
            return os.pread(self._descriptor, size, offset), offset
        except OSError as error:
            raise DataError(f"cannot read the LMDB at byte {offset}: {error.strerror}", path=self.path) from None

    def copy(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on; fewer at the end of the file."""
        buffer, begin = self.window(offset, size)
        return buffer[offset - begin : offset - begin + size]

    def newest(self) -> Snapshot:
        """Return the snapshot of the newest committed transaction."""
        size = self.layout.header.size + self.layout.meta.size
        metas: tuple[bytes, ...] = ()
        for _ in range(MAX_RESTARTS):
            seen, metas = metas, tuple(self.copy(page * self.page_size, size) for page in (0, 1))
            # A writer may be in the middle of a meta page: what is read twice alike is whole.
            if metas == seen:
                break
        return max((self._parse_meta(page, data) for page, data in enumerate(metas)), key=lambda snapshot: snapshot.transaction)

    def check_current(self, snapshot: Snapshot, *, truncated: bool = False) -> None:
        """Raise :class:`Overtaken` if pages of ``snapshot`` may have been reused before now.

        Args:
            snapshot: The snapshot.
            truncated: Whether the file may be too short for its meta pages; otherwise pages after them were just mapped.
        """
        layout = self.layout
        offset = layout.header.size + layout.meta.size - layout.word
        memory = None if truncated else self._map
        buffer, begin = (memory.buffer, 0) if memory is not None else self.window(offset, self.page_size + layout.word)
        if len(buffer) < offset - begin + self.page_size + layout.word:
            raise Damaged("the file is truncated: its first two pages are missing")
        unpack, offset = layout.number.unpack_from, offset - begin
        if max(unpack(buffer, offset)[0], unpack(buffer, offset + self.page_size)[0]) > snapshot.transaction + 1:
            raise Overtaken

    def _remap(self) -> _Map | None:
        """Map the file, as long as it is now; None where that is not possible."""
        self._map = None
        if sys.platform == "linux" and (size := self.size):
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory = _Map(self._descriptor, size)
                if not _libc_madvise()(memory.address, 1, _POPULATE_READ):
                    self._map = memory
        return self._map

    def _detect_layout(self) -> tuple[Layout, int]:
        head = self.copy(0, 256)
        if len(head) < 256:
            self._refuse_other_kinds()
            raise DataError(f"the file has {len(head)} bytes, too few for an LMDB", path=self.path, hint=REBUILD)
        for layout in _LAYOUTS:
            offset = layout.header.size
            magic, version, _, _, page_size, *_ = layout.meta.unpack_from(head, offset)
            if magic != _MAGIC:
                continue
            if version != _DATA_VERSION:
                raise DataError(f"an LMDB of format version {version}; caffetools reads version 1 (LMDB 0.9)", path=self.path)
            if not 256 <= page_size <= 1 << 15 or page_size & (page_size - 1):
                raise DataError(f"the LMDB is damaged: its page size is {page_size}", path=self.path, hint=REBUILD)
            return layout, page_size
        self._refuse_other_kinds()
        raise DataError("cannot be opened as an LMDB: its first page is not one of an LMDB", path=self.path)

    def _refuse_other_kinds(self) -> None:
        if other := wrong_kind(DataError, self.file, "a database (the folder of an LMDB or LevelDB)", allowed=(Kind.LMDB,)):
            raise other

    def _parse_meta(self, page: int, data: bytes) -> Snapshot:
        layout = self.layout
        if len(data) < layout.header.size + layout.meta.size:
            raise DataError("the LMDB is truncated: it ends within its first two pages", path=self.path, hint=REBUILD)
        number, _, page_flags, _, _ = layout.header.unpack_from(data)
        magic, version, _, _, *fields = layout.meta.unpack_from(data, layout.header.size)
        if number != page or not page_flags & _META or (magic, version, fields[0]) != (_MAGIC, _DATA_VERSION, self.page_size):
            raise DataError(f"the LMDB is damaged: page {page} is not a meta page of it", path=self.path, hint=REBUILD)
        # Fields of the main database, which follow those of the list of free pages.
        _, flags, depth, _, leaves, overflow, entries, root = fields[8:16]
        last_page, transaction = fields[16:]
        if flags & (_DUPSORT | _OTHER_ORDER):
            kind = "several values a key (DUPSORT)" if flags & _DUPSORT else "another order of keys"
            raise DataError(f"an LMDB with {kind}, which Caffe does not write", path=self.path)
        empty = root == (1 << 8 * layout.word) - 1
        if depth > _MAX_DEPTH or (empty and entries) or (not empty and not (entries and depth and 2 <= root <= last_page)):
            raise DataError(f"the LMDB is damaged: meta page {page} describes an impossible tree", path=self.path, hint=REBUILD)
        return Snapshot(transaction, entries, 0 if empty else depth, root, last_page, leaves, overflow)
