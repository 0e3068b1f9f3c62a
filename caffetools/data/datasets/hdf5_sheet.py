"""A sheet of the pictures in HDF5 files, a row for each label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffetools.data.datasets.hdf5 import Hdf5Summary
from caffetools.data.datasets.sheet import Tiles
from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, guard

if TYPE_CHECKING:
    import h5py

PathLike = str | os.PathLike[str]
# Labels that are read at a time.
_CHUNK = 1 << 16


def write_hdf5_sheet(path: PathLike, summary: Hdf5Summary, names: Sequence[str] | None = None) -> None:
    """Write an image with the first pictures of each label.

    The pictures are the dataset ``data``, or else the first one of rows (C, H, W). The labels are the dataset ``label``, or else the first
    one of whole numbers with as many rows; without one, all pictures are in one row.

    Args:
        path: The image file to write, ``.png`` or ``.jpg``.
        summary: What :func:`~caffetools.data.datasets.hdf5.inspect_hdf5` found.
        names: Class names; label i at place i.

    Raises:
        DataError: There is no dataset of pictures.
        RunFailed: ``path`` cannot be written.
    """
    import h5py

    data, label = _pictures(summary), None
    rows = summary.datasets[data].rows
    for name, dataset in sorted(summary.datasets.items(), key=lambda item: item[0] != "label"):
        if dataset.labels and dataset.rows == rows:
            label = name
            break
    tiles = Tiles()
    for file in summary.files:
        with guard(DataError, file, "an HDF5 file", allowed=(Kind.HDF5,)), h5py.File(file, "r") as opened:
            if data in opened:
                _add(tiles, opened[data], opened[label] if label is not None and label in opened else None)
    tiles.write(path, summary.datasets[label].labels if label is not None else {}, names, unlabelled=rows)


def _pictures(summary: Hdf5Summary) -> str:
    for name, dataset in sorted(summary.datasets.items(), key=lambda item: item[0] != "data"):
        if len(dataset.row_shape) == 3 and dataset.rows:
            return name
    shapes = ", ".join(f"'{name}' is {dataset.shape}" for name, dataset in summary.datasets.items())
    raise DataError(f"there is no dataset of pictures (N x C x H x W) to draw a sheet of: {shapes}", path=summary.path)


def _add(tiles: Tiles, data: h5py.Dataset, label: h5py.Dataset | None) -> None:
    for start in range(0, data.shape[0], _CHUNK):
        count = min(_CHUNK, data.shape[0] - start)
        values = [None] * count if label is None else [int(value) for value in np.asarray(label[start : start + count]).reshape(-1)[:count]]
        for row, value in enumerate(values, start):
            if tiles.wants(value):
                tiles.add(value, np.asarray(data[row]))
