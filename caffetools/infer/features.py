"""Blobs of a net, batch by batch, into databases: what Caffe's extract_features does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.data.leveldb import new_leveldb
from caffetools.errors import CaffeToolsError
from caffetools.layers.base import format_shape
from caffetools.net.net import Net

PathLike = str | os.PathLike[str]

BACKENDS = ("lmdb", "leveldb")


def extract_features(
    net: Net,
    blobs: Sequence[str],
    databases: Sequence[PathLike],
    batches: int,
    *,
    backend: str = "lmdb",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, tuple[int, int, int]]]:
    """Run ``net`` over ``batches`` batches of its own data and store each of ``blobs`` in its database.

    An item of a blob (N, …) becomes a Datum of (C, H, W) with ``float_data``, and missing axes are 1; its key is its number in ten
    digits. The databases appear when all are complete.

    Args:
        net: In the TEST phase, with its weights.
        blobs: The names of the blobs to store.
        databases: The path of one database for each blob.
        batches: The number of batches to run.
        backend: ``lmdb`` or ``leveldb``.
        force: Replace databases that exist.
        progress: Called with (done, total) after every batch.

    Returns:
        For each database the number of its records and their shape.

    Raises:
        CaffeToolsError: the numbers of blobs and databases differ, or the net has no such blob, or one of more than four axes.
        DataError: a database is there already.
        RunFailed: it cannot be written.
    """
    _check(net, blobs, databases, batches, backend)
    make: Callable[..., Any] = new_lmdb if backend == "lmdb" else new_leveldb
    counts = [0] * len(blobs)
    shape = [(1, 1, 1)] * len(blobs)
    with ExitStack() as stack:
        writers = [stack.enter_context(make(path, force=force)) for path in databases]
        for batch in range(batches):
            with torch.inference_mode():
                values = net(keep=blobs)
            for index, (name, writer) in enumerate(zip(blobs, writers, strict=True)):
                items = _items(name, values[name])
                shape[index] = items.shape[1:]
                for item in items:
                    writer.put(b"%010d" % counts[index], array_to_datum(item).SerializeToString())
                    counts[index] += 1
            if progress is not None:
                progress(batch + 1, batches)
    return list(zip(counts, shape, strict=True))


def _check(net: Net, blobs: Sequence[str], databases: Sequence[PathLike], batches: int, backend: str) -> None:
    if len(blobs) != len(databases) or not blobs:
        raise CaffeToolsError(f"{len(blobs)} blob(s) are named for {len(databases)} database(s); give one for each")
    if len({os.path.realpath(path) for path in databases}) != len(databases):
        raise CaffeToolsError("two blobs cannot be written to one database; give each its own")
    if batches < 1:
        raise CaffeToolsError(f"the number of batches must be at least 1, not {batches}")
    if backend not in BACKENDS:
        raise CaffeToolsError(f"unknown database type '{backend}'; it is {' or '.join(BACKENDS)}")
    for name in blobs:
        if name not in net.blob_shapes:
            raise CaffeToolsError(f"the net '{net.name}' has no blob '{name}'; it has {', '.join(net.blob_shapes)}")
        axes = len(net.blob_shapes[name])
        if not 1 <= axes <= 4:
            raise CaffeToolsError(f"blob '{name}' is {format_shape(net.blob_shapes[name])}, and a Datum holds items of one to three axes")


def _items(name: str, blob: torch.Tensor) -> NDArray[np.float32]:
    array = np.ascontiguousarray(blob.float().cpu().numpy(), np.float32)
    # Caffe takes axes that are missing at the end for 1.
    return array.reshape((*array.shape, 1, 1, 1)[:4])
