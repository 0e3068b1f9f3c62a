"""A bounds-checked, read-only reader of LMDB files (format of LMDB 0.9), independent of liblmdb.

liblmdb trusts its pages: a damaged page ends the process, a misplaced one gives too few or repeated records, and one process may
open a file only once. This reader copies pages and checks each copy (page number, kind, offsets, key order), so a damaged file is an
error that names the record. It takes no lock and writes nothing, so read-only media and network drives work. Where the native library
was built, it reads what is sound; the same checks in Python find the reason where it does not.

A reader keeps the snapshot of the newest transaction. LMDB never overwrites a page of transaction T before transaction T + 2 is
committed, as a page freed by T + 1 is only reused by writers that start after T + 2. So a copied page is valid if the newest
transaction number, read after the copy, is at most T + 1. Otherwise the pass over the records continues with the newest snapshot, at
the key after the last one read: keys still rise, and no record is read twice.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter, lt
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from caffetools.data.lmdb_native import NativeLeaves, NativePages, Views, lmdb_library
from caffetools.data.lmdb_pages import BRANCH, KIND, LEAF, MAX_RESTARTS, OVERFLOW, REBUILD, Damaged, Overtaken, PagedFile, Snapshot, Window
from caffetools.errors import DataError

PathLike = str | os.PathLike[str]
Record = tuple[bytes, bytes]
ErrorHandler = Callable[[DataError], None]

_NODE_HEADER = 8
# Node flags: the value is on overflow pages; the node is a named database or a list of duplicates.
_BIG, _SUBDATABASE, _DUPLICATES = 0x01, 0x02, 0x04
# Leaf pages, and bytes of values on overflow pages, that are copied before they are checked together.
_LEAVES, _BATCH_BYTES = 32, 1 << 20

# Numbers of leaf pages in order; the least key that each may hold, and the key that the last one's keys are below (None: no limit).
_LeafPages = tuple[list[int], list[bytes | None]]
# A node of a leaf page: a record, or the key, first page and size of a value on overflow pages.
_Node = Record | tuple[bytes, int, int]


@dataclass(frozen=True)
class _Index:
    """The leaf pages of a snapshot in order, and the number of records up to the end of each; for records by number."""

    snapshot: Snapshot
    pages: NDArray[np.int64]
    ends: NDArray[np.int64]
    native: NativePages | None


class LmdbFile:
    """An LMDB file opened for reading.

    Safe to use from several threads, and after a fork: it has no position of its own. It may be open elsewhere, be written by
    another process, or have been replaced (then the old content is read to its end).

    Args:
        path: The database's folder (with a ``data.mdb``), or the file itself.

    Raises:
        DataError: The path holds no LMDB, or a truncated or damaged one, or one of a kind that Caffe does not write.
    """

    def __init__(self, path: PathLike):
        self.path = os.fspath(path)
        folder = Path(path)
        self.file = str(folder / "data.mdb") if folder.is_dir() else self.path
        self._pages = PagedFile(self.path, self.file)
        self._layout, self.page_size = self._pages.layout, self._pages.page_size
        self._library = lmdb_library() if (self._layout.order, self._layout.word) == ("<", 8) else None
        self._native: NativePages | None = None
        self._lock = threading.Lock()
        self._index: _Index | None = None
        # The native function of `item`, with its index.
        self._item: Callable[[int], Record | None] | None = None
        self.snapshot = self._pages.newest()
        self._check_length()

    def __len__(self) -> int:
        """Return the number of records in the snapshot taken last."""
        return self.snapshot.entries

    def __reduce__(self) -> tuple[type[LmdbFile], tuple[str]]:
        return type(self), (self.path,)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._index = self._native = self._item = None
        self._pages.close()

    def records(self, start: int = 0, *, on_error: ErrorHandler | None = None) -> Generator[Record, None, None]:
        """Yield (key, value) of the newest snapshot's records, in the order of their keys.

        Args:
            start: Number of the first record to yield, from 0.
            on_error: Called with the error of a record whose value cannot be read; the record is left out. If None, the error is
                raised. Damage to the tree itself is always raised, as what it hides is unknown.

        Raises:
            DataError: A page is damaged or missing, or the number of records differs from the file's header; names the record.
        """
        self.snapshot = snapshot = self._pages.newest()
        last: bytes | None = None
        count, restarts, restarted = start, 0, False
        while start < snapshot.entries:
            try:
                for batch, nodes in self._batches(snapshot, start, last, restarts, on_error):
                    count, restarts = count + nodes, 0
                    yield from batch
                    last = batch[-1][0] if batch else last
                break
            except Overtaken:
                restarts, restarted = restarts + 1, True
                if restarts > MAX_RESTARTS:
                    raise self._too_fast() from None
                snapshot = self._pages.newest()
            except Damaged as error:
                raise self._damaged(str(error), last) from None
        if start < snapshot.entries != count and not restarted:
            raise self._damaged(f"its header counts {snapshot.entries} records, its pages hold {count}")

    def views(self, limit: int) -> Generator[tuple[Views, Callable[[], bool]], None, None]:
        """Yield where the values of the newest snapshot's records lie in memory, in the order of their keys, to be read without a copy.

        Ends early where something is not sound or cannot be read in this way: whoever needs all records, or the reason, reads them with
        :meth:`records`.

        Args:
            limit: Bytes of values at a time, about.

        Yields:
            Addresses and sizes, valid until the next ones are asked for; and a function which returns whether what was read there
            until it is called belonged to the snapshot.
        """
        self.snapshot = snapshot = self._pages.newest()
        native = self._native_leaves(snapshot)
        if native is None:
            return
        with contextlib.suppress(Overtaken, Damaged):
            for pages, bounds in self._leaf_pages(snapshot, _LEAVES):
                if not native.load(pages, bounds):
                    return
                while (found := native.views(limit)) and len(found[0]):
                    yield found, native.is_current
                if found is None:
                    return

    def item(self, number: int) -> Record:
        """Return (key, value) of the record ``number``, from 0, in the order of the keys.

        The first call reads all leaf pages once, to count the records on each.

        Raises:
            IndexError: There is no such record.
            DataError: The page or record is damaged; names it.
        """
        native = self._item
        if native is not None and (record := native(number)) is not None:
            return record
        for _ in range(MAX_RESTARTS):
            try:
                index = self._index or self._leaf_index()
                if not 0 <= number < index.snapshot.entries:
                    raise IndexError(f"record {number} of {index.snapshot.entries}")
                if index.native is not None and (record := index.native.item(number)) is not None:
                    return record
                place = int(np.searchsorted(index.ends, number, "right"))
                page, before = int(index.pages[place]), int(index.ends[place - 1]) if place else 0
                data = self._copy_page(page)
                self._pages.check_current(index.snapshot)
                return self._values(index.snapshot, [self._nodes(page, data)[0][number - before]], None)[0]
            except Overtaken:
                self._index = self._item = None
            except Damaged as error:
                raise self._damaged(str(error)) from None
        raise self._too_fast()

    # Pages

    def _copy_page(self, page: int) -> bytes:
        data = self._pages.copy(page * self.page_size, self.page_size)
        if len(data) < self.page_size:
            raise Damaged(f"the file is truncated: page {page} is missing")
        return data

    def _copy_pages(self, pages: list[int]) -> list[bytes]:
        size, first, last = self.page_size, min(pages), max(pages)
        if last - first >= 2 * len(pages):
            return [self._copy_page(page) for page in pages]
        buffer, start = self._pages.window(first * size, (last - first + 1) * size)
        if len(buffer) < (last + 1) * size - start:
            raise Damaged(f"the file is truncated: page {last} is missing")
        return [buffer[page * size - start : (page + 1) * size - start] for page in pages]

    def _offsets(self, page: int, kind: int, data: bytes) -> tuple[int, ...]:
        """Return the offsets of a page's nodes, after checking its header; ``data`` is a copy of it."""
        number, _, flags, lower, upper = self._layout.header.unpack_from(data)
        head = self._layout.header.size
        count = (lower - head) // 2
        if number != page or flags & KIND != kind:
            raise Damaged(f"page {page} is not the {'leaf' if kind == LEAF else 'branch'} page that belongs there")
        if count < 1 or lower & 1 or not lower <= upper <= self.page_size:
            raise Damaged(f"page {page} has an impossible header")
        offsets: tuple[int, ...] = struct.unpack_from(f"{self._layout.order}{count}H", data, head)
        if min(offsets) < upper or max(offsets) + _NODE_HEADER > self.page_size:
            raise Damaged(f"page {page} has a node outside of the page")
        return offsets

    def _branch(self, snapshot: Snapshot, page: int) -> tuple[list[bytes], list[int]]:
        """Return a branch page's keys and child pages. Its first key stands for all smaller ones and is given as empty."""
        if (native := self._native_pages(snapshot)) and (both := native.branch(page)):
            return both
        data = self._copy_page(page)
        self._pages.check_current(snapshot)
        keys: list[bytes] = []
        children: list[int] = []
        for offset in self._offsets(page, BRANCH, data):
            low, high, length = self._layout.node.unpack_from(data, offset)
            child, begin = low | high << 32 if self._layout.word == 8 else low, offset + _NODE_HEADER
            if begin + length > self.page_size:
                raise Damaged(f"page {page} has a node outside of the page")
            if not 2 <= child <= snapshot.last_page:
                raise Damaged(f"page {page} refers to page {child}, which does not exist")
            keys.append(data[begin : begin + length] if keys else b"")
            children.append(child)
        return keys, children

    def _leaf_pages(self, snapshot: Snapshot, most: int, after: bytes | None = None) -> Iterator[_LeafPages]:
        """Yield the leaf pages in order, up to ``most`` at a time, from the one on that may hold the key ``after``."""
        if not snapshot.depth:
            return
        # Pages of one level, the last one first, with the bounds of their keys.
        stack: list[tuple[int, int, bytes, bytes | None]] = [(snapshot.root, snapshot.depth, b"", None)]
        while stack:
            page, depth, low, high = stack.pop()
            if depth == 1:
                yield [page], [low, high]
                continue
            keys, children = self._branch(snapshot, page)
            keys[0] = low
            self._check_keys(page, keys, low, high)
            first = max(0, bisect_right(keys, after) - 1) if after is not None else 0
            bounds = [*keys, high]
            if depth == 2:
                for begin in range(first, len(children), most):
                    yield children[begin : begin + most], bounds[begin : begin + most + 1]
            else:
                stack += [(children[i], depth - 1, keys[i], bounds[i + 1]) for i in range(len(keys) - 1, first - 1, -1)]

    def _check_keys(self, page: int, keys: list[bytes], low: bytes, high: bytes | None) -> None:
        if keys[0] < low or (high is not None and keys[-1] >= high) or not all(map(lt, keys, keys[1:])):
            raise Damaged(f"the keys of page {page} are out of order or do not belong there")

    def _leaf_index(self) -> _Index:
        with self._lock:
            if self._index is None:
                self.snapshot = snapshot = self._pages.newest()
                native = self._native_leaves(snapshot)
                # A third of the memory of lists, of which a large file needs as many as it has pages.
                pages, counts = array("q"), array("q")
                for group, bounds in self._leaf_pages(snapshot, _LEAVES):
                    loaded = native.load(group, bounds) if native else None
                    pages.extend(group)
                    counts.extend(loaded or [len(self._offsets(page, LEAF, self._copy_page(page))) for page in group])
                self._pages.check_current(snapshot)
                ends = np.cumsum(np.array(counts, np.int64))
                if (found := sum(counts)) != snapshot.entries or len(pages) != snapshot.leaf_pages:
                    raise Damaged(f"its header counts {snapshot.entries} records, its pages hold {found}")
                self._index = _Index(snapshot, np.array(pages, np.int64), ends, self._native_pages(snapshot))
                if self._index.native is not None:
                    self._index.native.index(self._index.pages, ends)
                    self._item = self._index.native.item
            return self._index

    # Records

    def _batches(
        self, snapshot: Snapshot, start: int, after: bytes | None, restarts: int, on_error: ErrorHandler | None
    ) -> Iterator[tuple[list[Record], int]]:
        """Yield lists of records after the key ``after``, or from record ``start`` on; and how many nodes each list stands for.

        The more often a fast writer has overtaken the reader (``restarts``), the less is copied before it is checked.
        """
        skip = start if after is None else 0
        native = self._native_leaves(snapshot) if after is None else None
        for pages, bounds in self._leaf_pages(snapshot, max(1, _LEAVES >> restarts), after):
            counts = native.load(pages, bounds) if native and self._pages.descriptor >= 0 else None
            passed = skip
            if native and counts:
                if skip >= (total := sum(counts)):
                    skip -= total
                    continue
                native.skip(skip)
                while batch := native.next(_BATCH_BYTES >> restarts):
                    yield batch, len(batch)
                    passed += len(batch)
                if batch is not None:
                    skip = 0
                    continue
            nodes, all_inline = self._checked_nodes(snapshot, pages, bounds)
            if after is not None:
                passed = bisect_right(nodes, after, key=itemgetter(0))
            skip = max(0, skip - len(nodes))
            nodes = nodes[passed:]
            if all_inline:
                yield cast("list[Record]", nodes), len(nodes)
            else:
                for part in _split(nodes, _BATCH_BYTES >> restarts):
                    yield self._values(snapshot, part, on_error), len(part)

    def _checked_nodes(self, snapshot: Snapshot, pages: list[int], bounds: list[bytes | None]) -> tuple[list[_Node], bool]:
        """Return the nodes of leaf pages whose keys rise within ``bounds``, and whether all of their values are in the pages."""
        copies = self._copy_pages(pages)
        self._pages.check_current(snapshot)
        nodes: list[_Node] = []
        all_inline = True
        for page, low, high, data in zip(pages, bounds[:-1], bounds[1:], copies, strict=True):
            found, inline = self._nodes(page, data)
            all_inline = all_inline and inline
            if found[0][0] < (low or b"") or (high is not None and found[-1][0] >= high):
                raise Damaged(f"the keys of page {page} do not belong there")
            nodes += found
        keys = [node[0] for node in nodes]
        if not all(map(lt, keys, islice(keys, 1, None))):
            raise Damaged(f"the keys of the pages from {pages[0]} to {pages[-1]} are out of order")
        return nodes, all_inline

    def _native_pages(self, snapshot: Snapshot) -> NativePages | None:
        """Return the native reader of ``snapshot``'s pages; None where it does not read this file."""
        found = self._native
        if self._library and (found is None or found.snapshot is not snapshot):
            found = self._native = NativePages(self._library, self._pages, snapshot)
        return found

    def _native_leaves(self, snapshot: Snapshot) -> NativeLeaves | None:
        return NativeLeaves(self._library, self._pages, snapshot) if self._library else None

    def _nodes(self, page: int, data: bytes) -> tuple[list[_Node], bool]:
        """Return the nodes of a leaf page, of which ``data`` is a copy, and whether all of their values are in the page."""
        unpack, limit, word = self._layout.node.unpack_from, self.page_size, self._layout.word
        nodes: list[_Node] = []
        inline = True
        for offset in self._offsets(page, LEAF, data):
            size, flags, length = unpack(data, offset)
            begin = offset + _NODE_HEADER
            middle = begin + length
            end = middle + (word if flags else size)
            if end > limit:
                raise Damaged(f"page {page} has a node outside of the page")
            if not flags:
                nodes.append((data[begin:middle], data[middle:end]))
            elif flags == _BIG:
                nodes.append((data[begin:middle], self._layout.number.unpack_from(data, middle)[0], size))
                inline = False
            elif flags & ~(_BIG | _SUBDATABASE | _DUPLICATES):
                raise Damaged(f"page {page} has a node with unknown flags")
            else:
                raise DataError("an LMDB with named databases or several values a key, which Caffe does not write", path=self.path)
        return nodes, inline

    def _values(self, snapshot: Snapshot, nodes: list[_Node], on_error: ErrorHandler | None) -> list[Record]:
        """Return (key, value) of ``nodes``, with large values copied from their pages."""
        window = self._common_window(nodes, snapshot.last_page)
        buffer, start = window if window is not None else (b"", 0)
        page_size, head, last_page = self.page_size, self._layout.header.size, snapshot.last_page
        unpack, limit = self._layout.overflow.unpack_from, len(buffer)
        records: list[Record] = []
        errors: list[DataError] = []
        for node in nodes:
            if len(node) == 2:
                records.append(node)
                continue
            key, page, size = node
            begin = page * page_size - start
            end = begin + head + size
            if begin >= 0 and end <= limit:
                number, _, flags, count = unpack(buffer, begin)
                needed = (head - 1 + size) // page_size + 1
                if number == page and flags & KIND == OVERFLOW and needed <= count <= last_page - page + 1:
                    records.append((key, buffer[begin + head : end]))
                    continue
            try:
                records.append((key, self._large_value(snapshot, page, size)))
            except Damaged as error:
                errors.append(self._damaged(str(error), record=key))
        self._pages.check_current(snapshot, truncated=bool(errors))
        for damaged in errors:
            if on_error is None:
                raise damaged
            on_error(damaged)
        return records

    def _common_window(self, nodes: list[_Node], last_page: int) -> Window | None:
        """Return a buffer with the large values of ``nodes``, if they were written one after the other, none of them behind ``last_page``."""
        large = [node for node in nodes if len(node) == 3]
        if not large or max(large[0][1], large[-1][1]) > last_page:
            return None
        begin, end = large[0][1] * self.page_size, large[-1][1] * self.page_size + self._layout.header.size + large[-1][2]
        if 0 < end - begin <= 2 * _BATCH_BYTES or len(large) == 1:
            return self._pages.window(begin, end - begin)
        return None

    def _large_value(self, snapshot: Snapshot, page: int, size: int) -> bytes:
        head, begin = self._layout.header.size, page * self.page_size
        if not 2 <= page <= snapshot.last_page:
            raise Damaged(f"its value should be on page {page}, which does not exist")
        buffer, start = self._pages.window(begin, head + size)
        begin -= start
        if len(buffer) < begin + head + size:
            raise Damaged(f"the file is truncated: its value on page {page} is missing")
        number, _, flags, count = self._layout.overflow.unpack_from(buffer, begin)
        needed = (head - 1 + size) // self.page_size + 1
        if number != page or flags & KIND != OVERFLOW or not needed <= count <= snapshot.last_page - page + 1:
            raise Damaged(f"page {page} does not hold its value")
        return buffer[begin + head : begin + head + size]

    # Checks and errors

    def _check_length(self) -> None:
        """Refuse a truncated file. LMDB may leave unused pages at the end unwritten: then every page in use is looked for."""
        size, wanted = self._pages.size, (self.snapshot.last_page + 1) * self.page_size
        if size >= wanted:
            return
        try:
            index = self._leaf_index()
            for page in map(int, index.pages):
                for node in self._nodes(page, self._copy_page(page))[0]:
                    if len(node) == 3 and node[1] * self.page_size + self._layout.header.size + node[2] > size:
                        self._pages.check_current(index.snapshot)
                        raise Damaged("a value is missing")
        except Overtaken:
            return
        except Damaged as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str, last: bytes | None = None, *, record: bytes | None = None) -> DataError:
        """Return the error of a damaged file: with the record at fault, or the last one before it."""
        key = None if record is None else record.decode("utf-8", "replace")
        size, wanted = self._pages.size, (self.snapshot.last_page + 1) * self.page_size
        if size < wanted:
            text = f"the LMDB is truncated: {Path(self.file).name} has {size} bytes of {wanted}"
            return DataError(text, path=self.path, record=key, hint=REBUILD)
        place = f" (after the record '{last.decode('utf-8', 'replace')}')" if last is not None else ""
        return DataError(f"the LMDB is damaged{place}: {reason}", path=self.path, record=key, hint=REBUILD)

    def _too_fast(self) -> DataError:
        return DataError("another process changes the LMDB faster than it can be read", path=self.path, hint="read a copy of it")


def _split(nodes: list[_Node], limit: int) -> Iterator[list[_Node]]:
    """Split ``nodes`` so that the values of each list take about ``limit`` bytes at most."""
    total = begin = 0
    for index, node in enumerate(nodes):
        size = node[2] if len(node) == 3 else len(node[1])
        total += size
        if total > limit and index > begin:
            yield nodes[begin:index]
            begin, total = index, size
    if begin < len(nodes):
        yield nodes[begin:]
