"""Blobs of a net, batch by batch, into databases: what Caffe's extract_features does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.data.databases import LmdbWriter, new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.data.leveldb import LevelDbWriter, new_leveldb
from caffetools.errors import CaffeToolsError
from caffetools.layers.base import format_shape
from caffetools.net.net import Net
from caffetools.util.folders import new_folder

if TYPE_CHECKING:
    import h5py

PathLike = str | os.PathLike[str]

BACKENDS = ("lmdb", "leveldb", "hdf5")
# Values in one HDF5 file at most; HDF5Data reads whole files, and Caffe refuses blobs of 2^31 values.
_VALUES_PER_FILE = 1 << 26
_LIST = "list.txt"


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
    digits. The databases appear when all are complete. In HDF5 a blob becomes a folder of files with a dataset of its name (N, …) float32,
    and list.txt, from which an HDF5Data layer reads them.

    Args:
        net: In the TEST phase, with its weights.
        blobs: The names of the blobs to store.
        databases: The path of one database for each blob.
        batches: The number of batches to run.
        backend: ``lmdb``, ``leveldb`` or ``hdf5``.
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
    counts = [0] * len(blobs)
    shape = [(1, 1, 1)] * len(blobs)
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(name, path, backend, force)) for name, path in zip(blobs, databases, strict=True)]
        for batch in range(batches):
            with torch.inference_mode():
                values = net(keep=blobs)
            for index, (name, writer) in enumerate(zip(blobs, writers, strict=True)):
                blob = np.ascontiguousarray(values[name].float().cpu().numpy(), np.float32)
                # Caffe takes axes that are missing at the end for 1.
                shape[index] = (*blob.shape, 1, 1, 1)[1:4]
                writer(blob, counts[index])
                counts[index] += len(blob)
            if progress is not None:
                progress(batch + 1, batches)
    return list(zip(counts, shape, strict=True))


# Stores a batch of a blob (N, …), of which so many items are stored already.
_Writer = Callable[[NDArray[np.float32], int], None]


@contextmanager
def _writer(name: str, path: PathLike, backend: str, force: bool) -> Iterator[_Writer]:
    if backend == "hdf5":
        with new_folder(path, force=force, replaceable=lambda old: (old / _LIST).is_file()) as work:
            file = _Hdf5Folder(name, work, Path(path))
            yield file.put
            file.close()
        return
    make: Callable[..., AbstractContextManager[LmdbWriter | LevelDbWriter]] = new_lmdb if backend == "lmdb" else new_leveldb
    with make(path, force=force) as database:

        def put(blob: NDArray[np.float32], begin: int) -> None:
            for number, item in enumerate(blob.reshape((*blob.shape, 1, 1, 1)[:4]), begin):
                database.put(b"%010d" % number, array_to_datum(item).SerializeToString())

        yield put


class _Hdf5Folder:
    """HDF5 files of a dataset that grows, and their list.

    Args:
        name: Name of the dataset.
        work: The folder to write into.
        final: The folder's later path, for the list.
    """

    def __init__(self, name: str, work: Path, final: Path):
        self._name, self._work, self._final = name, work, final
        self._files: list[str] = []
        self._file: h5py.File | None = None

    def put(self, blob: NDArray[np.float32], begin: int) -> None:
        """Append the items of ``blob`` (N, …)."""
        import h5py

        if self._file is not None and self._file[self._name].size + blob.size > _VALUES_PER_FILE:
            self._file.close()
            self._file = None
        if self._file is None:
            self._files.append(f"data_{len(self._files):04d}.h5")
            self._file = h5py.File(self._work / self._files[-1], "w")
            chunk = (max(1, min(len(blob), _VALUES_PER_FILE // 1024 // max(1, blob[0].size))), *blob.shape[1:])
            self._file.create_dataset(self._name, (0, *blob.shape[1:]), "f4", maxshape=(None, *blob.shape[1:]), chunks=chunk)
        rows = self._file[self._name]
        rows.resize(len(rows) + len(blob), axis=0)
        rows[-len(blob) :] = blob

    def close(self) -> None:
        """Close the last file and write the list."""
        if self._file is not None:
            self._file.close()
        (self._work / _LIST).write_text("".join(f"{self._final / name}\n" for name in self._files), "utf-8")


def _check(net: Net, blobs: Sequence[str], databases: Sequence[PathLike], batches: int, backend: str) -> None:
    if len(blobs) != len(databases) or not blobs:
        raise CaffeToolsError(f"{len(blobs)} blob(s) are named for {len(databases)} database(s); give one for each")
    if len({os.path.realpath(path) for path in databases}) != len(databases):
        raise CaffeToolsError("two blobs cannot be written to one database; give each its own")
    if batches < 1:
        raise CaffeToolsError(f"the number of batches must be at least 1, not {batches}")
    if backend not in BACKENDS:
        raise CaffeToolsError(f"the database type '{backend}' is unknown; it can be {', '.join(BACKENDS)} or parquet")
    for name in blobs:
        if name not in net.blob_shapes:
            raise CaffeToolsError(f"the net '{net.name}' has no blob '{name}'; it has {', '.join(net.blob_shapes)}")
        axes = len(net.blob_shapes[name])
        if not 1 <= axes <= 4:
            raise CaffeToolsError(f"blob '{name}' is {format_shape(net.blob_shapes[name])}, and a Datum holds items of one to three axes")
