"""Snapshots: a caffemodel and a solverstate under one prefix, each written whole or not at all."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import torch

from caffetools.errors import CaffeToolsError, ModelFileError, RunFailed
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.binary import SolverState, read_solverstate, write_solverstate
from caffetools.solver.caffe_log import Log
from caffetools.solver.hdf5 import read_state_hdf5, write_state_hdf5, write_weights_hdf5
from caffetools.solver.observers import Snapshot

PathLike = str | os.PathLike[str]


def write_snapshot(net: Net, state: SolverState, prefix: str, log: Log, *, hdf5: bool = False) -> Snapshot:
    """Write ``PREFIX_iter_N.caffemodel`` and then ``PREFIX_iter_N.solverstate``; with ``hdf5``, both with ``.h5`` added.

    The state names the caffemodel by its file name alone, so the pair can be moved together; real Caffe finds it when run
    from their folder.

    Raises:
        RunFailed: a weight is not finite, or a file cannot be written. Earlier snapshots stay as they are.
    """
    check_finite(net, state.iter)
    kind, tail = ("HDF5", ".h5") if hdf5 else ("binary proto", "")
    weights = Path(f"{prefix}_iter_{state.iter}.caffemodel{tail}")
    path = Path(f"{prefix}_iter_{state.iter}.solverstate{tail}")
    log("solver.cpp:464", f"Snapshotting to {kind} file {weights}")
    if hdf5:
        write_weights_hdf5(weights, net)
    else:
        save_weights(net, weights)
    state.learned_net = weights.name
    log("sgd_solver.cpp:284", f"Snapshotting solver state to {kind} file {path}")
    if hdf5:
        write_state_hdf5(path, state)
    else:
        write_solverstate(path, state)
    return Snapshot(state.iter, weights, path)


def read_state(path: PathLike) -> SolverState:
    """Read a .solverstate or .solverstate.h5. Raises :class:`ModelFileError`."""
    if Path(path).suffix in (".caffemodel", ".prototxt"):
        raise ModelFileError(f"{os.fspath(path)}: a .solverstate is needed to go on with a run; weights alone are given as weights")
    return read_state_hdf5(path) if Path(path).suffix == ".h5" else read_solverstate(path)


def find_weights(state_path: PathLike, learned_net: str) -> Path:
    """The caffemodel that a solverstate names.

    Caffe writes it relative to the directory it ran in. A bare file name is looked for beside the state first, so that a
    file of the same name in the working directory is not taken for it; then the name counts as written, then from the
    state's folder, then its last part beside the state.

    Raises:
        ModelFileError: it is nowhere to be found; names the places.
    """
    folder = Path(state_path).parent
    name = Path(learned_net)
    beside = folder / name.name
    places = [beside, name] if name.parent == Path() else [name, folder / name, beside]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise ModelFileError(f"{os.fspath(state_path)}: its weights '{learned_net}' are missing (looked for {looked}); put them beside it")


def check_finite(net: Net, iteration: int) -> None:
    """Raise :class:`RunFailed` naming the first layer of which a parameter is NaN or infinite; nothing is said otherwise."""
    parameters = [parameter.detach() for parameter in net.parameters()]
    if not parameters:
        return
    # One number a parameter, so a device is waited for once.
    largest = torch.stack(torch._foreach_norm(parameters, float("inf")))
    if bool(torch.isfinite(largest).all()):
        return
    for layer in net.layers:
        for index, blob in enumerate(layer.blobs):
            if not bool(torch.isfinite(blob).all()):
                raise RunFailed(
                    f"iteration {iteration}: parameter blob {index} of layer '{layer.name}' is no longer finite, so training has "
                    "diverged; no snapshot was written. Lower base_lr or set clip_gradients, and start from an earlier snapshot"
                )


def clean_up(prefix: str) -> None:
    """Remove the unfinished files that a killed run with this prefix has left; only for the holder of its lock."""
    folder = Path(prefix).parent
    name = Path(prefix).name
    for suffix in (".caffemodel", ".solverstate", ".caffemodel.h5", ".solverstate.h5"):
        for part in folder.glob(f".{_literal(name)}_iter_*{suffix}.*.part"):
            part.unlink(missing_ok=True)


def prefix_for(solver_prefix: str, path: Path | None) -> str:
    """The snapshot prefix: where none is given, the solver file's name without its ending; where a folder is given, that name in it.

    Raises:
        CaffeToolsError: a folder is given, and there is no file to name the snapshots after.
    """
    prefix = solver_prefix or (str(path.with_suffix("")) if path is not None else "")
    if not prefix or not Path(prefix).is_dir():
        return prefix
    if path is None:
        raise CaffeToolsError(f"solver: snapshot_prefix '{prefix}' is a folder; add the beginning of a file name")
    return str(Path(prefix) / path.stem)


def _literal(name: str) -> str:
    import glob

    return glob.escape(name)


def newest_snapshot(prefix: str) -> Snapshot | None:
    """The snapshot of the highest iteration under ``prefix`` of which both files are there; None where there is none.

    Files are renamed into place when they are whole, the state last, so that a pair that is there is complete.
    """
    folder, name = Path(prefix).parent, Path(prefix).name
    found: list[Snapshot] = []
    for state in folder.glob(f"{glob.escape(name)}_iter_*.solverstate"):
        iteration = state.stem.rpartition("_iter_")[2]
        weights = state.with_suffix(".caffemodel")
        if iteration.isdecimal() and weights.is_file():
            found.append(Snapshot(int(iteration), weights, state))
    return max(found, key=lambda snapshot: snapshot.iteration, default=None)
