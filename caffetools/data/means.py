"""The mean picture of a database, as compute_image_mean computes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data.databases import Database, open_database, shown_key
from caffetools.data.datum import datum_to_array, parse_datum
from caffetools.errors import DataError
from caffetools.proto.binary import write_binaryproto
from caffetools.util.threads import ordered_map

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]
Array = NDArray[np.float32]

__all__ = ["channel_means", "compute_mean", "format_mean_values", "write_binaryproto"]


def compute_mean(source: PathLike | Database, *, progress: Progress | None = None) -> Array:
    """The mean of every record of a database (a path, or one that is open).

    Returns:
        (1, C, H, W), float32, in the records' channel order (BGR for pictures). Sums run in float32 in the order of the records,
        as in Caffe, so the values are Caffe's to the last bit. Write it with :func:`write_binaryproto`.

    Raises:
        DataError: the database cannot be read, or a record is damaged or of another size than the first; names it.
    """
    if isinstance(source, (str, os.PathLike)):
        with closing(open_database(source)) as database:
            return compute_mean(database, progress=progress)
    database, total = source, len(source)
    sums: Array = np.zeros(0, np.float32)
    done = 0
    with closing(ordered_map(lambda record: _array(database, *record), database.records())) as arrays:
        for done, (key, array) in enumerate(arrays, 1):
            if done == 1:
                sums = np.zeros(array.shape, np.float32)
            if array.shape != sums.shape:
                raise DataError(
                    f"{shown_key(database.path, key)}: it is {array.shape}, the first record {sums.shape} (channels, height, width); "
                    "a mean file needs records of one size: use mean values, or build the database with a size"
                )
            np.add(sums, array, out=sums)
            if progress:
                progress(done, total)
    # The number of records read, not that at the start: another process may have added some.
    mean: Array = sums[np.newaxis] / np.float32(done)
    return mean


def channel_means(mean: Array) -> list[float]:
    """One value a channel of a mean (1, C, H, W), float32, added up one by one as compute_image_mean does."""
    sums = np.add.accumulate(mean[0].reshape(mean.shape[1], -1), axis=1, dtype=np.float32)[:, -1]
    return [float(value) for value in sums / np.float32(mean[0, 0].size)]


def format_mean_values(values: list[float]) -> list[str]:
    """The lines that compute_image_mean prints."""
    return [f"mean_value channel [{channel}]: {value:.6g}" for channel, value in enumerate(values)]


def _array(database: Database, key: bytes, value: bytes) -> tuple[bytes, NDArray[Any]]:
    what = shown_key(database.path, key)
    return key, datum_to_array(parse_datum(value, what), what=what)
