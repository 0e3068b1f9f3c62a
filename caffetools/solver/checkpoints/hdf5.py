"""Snapshots in HDF5, as Caffe's snapshot_format HDF5 lays them out."""

from __future__ import annotations

import os

import h5py
import numpy as np

from caffetools.errors import ModelFileError
from caffetools.net.weights import file_in_memory, write_arrays, write_file
from caffetools.proto.hdf5 import read_dataset
from caffetools.proto.model import SolverState
from caffetools.proto.sniff import Kind, guard

PathLike = str | os.PathLike[str]


def read_state_hdf5(path: PathLike) -> SolverState:
    """Read a .solverstate.h5.

    Raises:
        ModelFileError: The file is missing, damaged or of another kind.
    """
    with guard(ModelFileError, path, "an HDF5 .solverstate", allowed=(Kind.HDF5,)), h5py.File(path, "r") as file:
        group = file.get("history")
        if not isinstance(group, h5py.Group) or "iter" not in file:
            weights = isinstance(file.get("data"), h5py.Group)
            hint = "it holds weights: give it as weights, or the .solverstate.h5 of the same iteration" if weights else None
            raise ModelFileError("an HDF5 file without the history of a solver state", path=path, hint=hint)
        history = [read_dataset(group[str(index)]) for index in range(len(group))]
        iteration, step = (int(read_dataset(file[name]).reshape(-1)[0]) for name in ("iter", "current_step"))
        minimum = float(read_dataset(file["minimum_loss"]).reshape(-1)[0]) if "minimum_loss" in file else None
        event = int(read_dataset(file["iter_last_event"]).reshape(-1)[0]) if "iter_last_event" in file else None
        name = file["learned_net"][()] if "learned_net" in file else b""
    learned = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return SolverState(iteration, learned.rstrip("\0"), history, step, minimum, event)


def write_state_hdf5(path: PathLike, state: SolverState) -> None:
    """Write a .solverstate.h5 atomically: iter, learned_net, current_step and the group history. Raises :class:`RunFailed`."""
    with file_in_memory() as file:
        file.create_dataset("iter", data=np.array([state.iter], np.int32))
        _write_string(file, "learned_net", state.learned_net)
        file.create_dataset("current_step", data=np.array([state.current_step], np.int32))
        if state.minimum_loss is not None:
            file.create_dataset("iter_last_event", data=np.array([state.iter_last_event], np.int32))
            file.create_dataset("minimum_loss", data=np.array([state.minimum_loss], np.float32))
        write_arrays(file.create_group("history"), list(enumerate(state.history)))
        write_file(file, path)


def _write_string(file: h5py.File, name: str, value: str) -> None:
    # With a closing zero, which h5py's own strings do not have and Caffe reads up to.
    raw = value.encode()
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(raw) + 1)
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    # The same content gives the same bytes, at any time.
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR), settings)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(raw, f"S{len(raw) + 1}"))
