"""The mean picture of a database, as compute_image_mean computes it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.databases import CorruptRecords, Database, open_database, shown_key
from caffetools.data.datum import find_pixels, is_encoded, record_to_array
from caffetools.data.lmdb_file import LmdbFile, Record
from caffetools.data.pixels_native import add_pictures, addresses_of
from caffetools.data.shards import ShardedDatabase
from caffetools.errors import DataError
from caffetools.events import EventSink, Warned, ignore, reported, reporter
from caffetools.proto.binary import write_binaryproto
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]
Array = NDArray[np.float32]
# Bytes of records that are added together where they lie, and of pixels between two progress events.
_BATCH_BYTES = 1 << 23

__all__ = ["channel_means", "compute_mean", "format_mean_values", "write_binaryproto"]


def compute_mean(
    source: PathLike | Database,
    *,
    skip_corrupt: int = 0,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Array:
    """Compute the mean of the records of a database.

    Args:
        source: The path of a database, or an open one.
        skip_corrupt: How many damaged records may be left out.
        events: Receives ``Started``, ``Progress`` (unit ``records``), ``Warned`` for each record left out, and ``Finished``.
        cancel: Checked between records.

    Returns:
        (1, C, H, W), float32, in the records' channel order (BGR for pictures). Sums run in float32 in the order of the records,
        as in Caffe, so the values are Caffe's to the last bit. Write it with :func:`write_binaryproto`.

    Raises:
        DataError: The database cannot be read, or more than ``skip_corrupt`` records are damaged, or one has another size than the
            first; names it.
        Cancelled: ``cancel`` was set.
    """
    if isinstance(source, (str, os.PathLike)):
        with reported("mean", f"Computing the mean of {os.fspath(source)}", events), closing(open_database(source)) as database:
            return _mean(database, skip_corrupt, events, cancel)
    with reported("mean", f"Computing the mean of {source.path}", events):
        return _mean(source, skip_corrupt, events, cancel)


def _mean(source: Database, skip_corrupt: int, events: EventSink, cancel: CancelToken | None) -> Array:
    report = reporter(events, "mean", "records", cancel)
    corrupt = CorruptRecords(skip_corrupt, lambda error: events(Warned(task="mean", message=f"left out: {error}")))
    if isinstance(source, LmdbFile | ShardedDatabase) and (found := _sums_of_pages(source, report)):
        return _divided(*found)
    count, total, unreported = 0, len(source), 0
    shape: tuple[int, ...] = ()
    with closing(_Accumulator()) as accumulator, closing(_arrays(source, corrupt)) as arrays:
        for key, array in arrays:
            shape = shape or array.shape
            if array.shape != shape:
                raise DataError(
                    f"{shown_key(source.path, key)}: it is {array.shape}, the first record {shape} (channels, height, width); "
                    "a mean file needs records of one size: use mean values, or build the database with a size"
                )
            accumulator.add(array)
            count += 1
            unreported += array.nbytes
            if unreported >= _BATCH_BYTES:
                report(count, total)
                unreported = 0
            elif cancel is not None:
                cancel.raise_if_cancelled("computing the mean")
        sums = accumulator.result(shape)
    if not count:
        raise DataError("no record can be read", path=source.path)
    if unreported:
        report(count, total)
    # The number of records read, not the one at the start: another process may have added some.
    return _divided(sums, count)


def _divided(sums: Array, count: int) -> Array:
    mean: Array = sums[np.newaxis] / np.float32(count)
    return mean


def _sums_of_pages(source: LmdbFile | ShardedDatabase, report: Callable[[int, int], None]) -> tuple[Array, int] | None:
    """Add up the records of an LMDB, or of LMDBs that are read as one, where they lie in their pages.

    Returns:
        The sums (C, H, W) and the number of records; None if something else than pixels of one size was found, or something damaged.
    """
    sums: Array | None = None
    count = 0
    with closing(source.views(_BATCH_BYTES)) as views:
        for (addresses, sizes), is_current in views:
            places = []
            for address, size in zip(addresses.tolist(), sizes.tolist(), strict=True):
                if (found := find_pixels(address, size)) is None:
                    return None
                place, shape = found
                sums = np.zeros(shape, np.float32) if sums is None else sums
                if sums.shape != shape:
                    return None
                places.append(place)
            if sums is None or not add_pictures(np.array(places, np.uint64), sums, count) or not is_current():
                return None
            count += len(places)
            report(count, len(source))
    return None if sums is None or count != len(source) else (sums, count)


def channel_means(mean: Array) -> list[float]:
    """Return one value a channel of a mean (1, C, H, W), float32, added up one by one as compute_image_mean does."""
    sums = np.add.accumulate(mean[0].reshape(mean.shape[1], -1), axis=1, dtype=np.float32)[:, -1]
    return [float(value) for value in sums / np.float32(mean[0, 0].size)]


def format_mean_values(values: list[float]) -> list[str]:
    """Return the lines that compute_image_mean prints."""
    return [f"mean_value channel [{channel}]: {value:.6g}" for channel, value in enumerate(values)]


def _arrays(database: Database, corrupt: CorruptRecords) -> Generator[tuple[bytes, NDArray[Any]], None, None]:
    """Yield (key, array) of each sound record; pictures are decoded by several threads."""

    def decode(record: Record) -> tuple[bytes, NDArray[Any] | DataError]:
        try:
            return record[0], record_to_array(record[1], what=shown_key(database.path, record[0]))[0]
        except DataError as error:
            return record[0], error

    records = database.records(on_error=corrupt)
    decoded = ordered_map(decode, records) if _starts_encoded(database) else (decode(record) for record in records)
    with closing(decoded):
        for key, array in decoded:
            if isinstance(array, DataError):
                corrupt(array)
            else:
                yield key, array


def _starts_encoded(database: Database) -> bool:
    """Return whether the first record holds a picture file, which is worth several threads; copying pixels is not."""
    with closing(database.records(on_error=lambda _: None)) as records:
        first = next(records, None)
    return first is not None and is_encoded(first[1])


class _Accumulator:
    """Adds arrays (C, H, W) up in float32, in their order, in a thread of its own: reading and adding take equally long."""

    # Bytes that one task adds, and tasks that may wait.
    _TASK, _WAITING = 1 << 20, 3

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._sums: Array | None = None
        self._chunk: list[NDArray[Any]] = []
        self._bytes = 0
        self._pending: deque[Future[None]] = deque()

    def add(self, array: NDArray[Any]) -> None:
        self._chunk.append(array)
        self._bytes += array.nbytes
        if self._bytes >= self._TASK:
            self._submit()

    def result(self, shape: tuple[int, ...]) -> Array:
        """Return the sums, of this shape."""
        self._submit()
        while self._pending:
            self._pending.popleft().result()
        return np.zeros(shape, np.float32) if self._sums is None else self._sums

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        self._pending.append(self._executor.submit(self._add_all, self._chunk))
        self._chunk, self._bytes = [], 0
        while len(self._pending) > self._WAITING:
            self._pending.popleft().result()

    def _add_all(self, arrays: list[NDArray[Any]]) -> None:
        import cv2

        if not arrays:
            return
        if self._sums is None:
            self._sums = np.zeros(arrays[0].shape, np.float32)
        if all(_is_plain(array) for array in arrays) and add_pictures(addresses_of(arrays), self._sums):
            return
        for array in arrays:
            if _is_plain(array):
                # The same additions as NumPy's, several at a time and without a converted copy.
                cv2.accumulate(array.reshape(-1, array.shape[2]), self._sums.reshape(-1, array.shape[2]))
            else:
                np.add(self._sums, array, out=self._sums)


def _is_plain(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.flags.c_contiguous
