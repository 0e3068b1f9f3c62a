"""Weights in HDF5, as Caffe's snapshot_format HDF5 lays them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from caffetools.errors import NetError
from caffetools.util.files import atomic_write

if TYPE_CHECKING:
    from caffetools.net.net import Net

PathLike = str | os.PathLike[str]


def write_weights_hdf5(path: PathLike, net: Net, *, diffs: Sequence[Sequence[Any]] | None = None) -> None:
    """Write a .caffemodel.h5 atomically: the group data/LAYER for every layer, with its blobs by number.

    As in Caffe, a parameter that layers share is stored once, under the first of them.

    Args:
        path: Where to.
        net: The net.
        diffs: For each layer of the net one float32 array a blob, for the groups diff/LAYER, under every owner's name.

    Raises:
        NetError: Several layers have one name; HDF5 cannot hold both.
        RunFailed: The file cannot be written.
    """
    owned: set[int] = set()
    check_names_for_hdf5(net)
    with file_in_memory() as file:
        data = file.create_group("data")
        for position, layer in enumerate(net.layers):
            mine = [(index, blob) for index, blob in enumerate(layer.blobs) if id(blob) not in owned]
            owned.update(id(blob) for _, blob in mine)
            arrays = [(i, np.asarray(blob.detach().cpu().numpy(), np.float32, order="C")) for i, blob in mine]
            write_arrays(data.require_group(layer.name), arrays)
            if diffs is not None:
                write_arrays(file.require_group(f"diff/{layer.name}"), list(enumerate(diffs[position])))
        write_file(file, path)


def check_names_for_hdf5(net: Net) -> None:
    """Raise :class:`NetError` where two layers of ``net`` have one name: HDF5 groups are named after layers (Caffe aborts there)."""
    seen: set[str] = set()
    for layer in net.layers:
        if layer.name in seen:
            raise NetError(
                "two layers of this name cannot be stored in an HDF5 file; rename one, or use snapshot_format: BINARYPROTO",
                layer=layer.name,
            )
        seen.add(layer.name)


def file_in_memory() -> h5py.File:
    """Return an empty HDF5 file in memory; :func:`write_file` gives it a place."""
    # Written to memory first: the library would otherwise write to the final name piece by piece.
    return h5py.File("snapshot", "w", driver="core", backing_store=False)


def write_file(file: h5py.File, path: PathLike) -> None:
    """Write an HDF5 file that is in memory to ``path``, atomically. Raises :class:`RunFailed` where that is not possible."""
    file.flush()
    with atomic_write(path) as stream:
        stream.write(file.id.get_file_image())


def write_arrays(group: h5py.Group, arrays: Sequence[tuple[int, object]]) -> None:
    """Store arrays in a group under their numbers."""
    for index, array in arrays:
        group.create_dataset(str(index), data=array)
