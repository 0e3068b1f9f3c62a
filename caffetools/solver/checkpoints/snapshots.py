"""Snapshots: a caffemodel, a solverstate and the run's state under one prefix, which appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError, ModelFileError, RunFailed, WriteFailed
from caffetools.net.net import Net
from caffetools.net.weights import to_caffemodel, write_weights_hdf5
from caffetools.proto.binary import read_solverstate, write_caffemodel, write_solverstate
from caffetools.proto.model import SolverState
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.solver.checkpoints.hdf5 import read_state_hdf5, write_state_hdf5
from caffetools.solver.checkpoints.run_state import RunState, run_state_path, write_run_state
from caffetools.solver.control import Log, Snapshot
from caffetools.util.files import sync_folder
from caffetools.util.locks import Busy, file_lock, lock_path

PathLike = str | os.PathLike[str]
# The steps of the last update by the id of their parameter, for snapshot_diff.
Steps = Mapping[int, Tensor]


def write_snapshot(
    net: Net, state: SolverState, prefix: str, log: Log, *, hdf5: bool = False, run: RunState | None = None, diffs: Steps | None = None
) -> Snapshot:
    """Write ``PREFIX_iter_N.caffemodel``, ``.runstate.json`` and ``.solverstate``; with ``hdf5`` the first and the last in HDF5 (``.h5``).

    All are written in a hidden folder next to their place first, then renamed; the solverstate last, so that what it needs is there
    when it is. It names the caffemodel by its path from the working directory, as Caffe does.

    Args:
        net: The net whose weights are stored.
        state: Iteration and history.
        prefix: The start of the files' paths (``snapshot_prefix``).
        log: Called with Caffe's source line and the text.
        hdf5: Write HDF5 files.
        run: The run's state (data positions, random states); None writes no such file.
        diffs: The diffs to store with the weights.

    Raises:
        RunFailed: A weight is not finite, or a file cannot be written. Earlier snapshots are unchanged.
    """
    check_finite(net, state.iter)
    kind, tail = ("HDF5", ".h5") if hdf5 else ("binary proto", "")
    weights = Path(f"{prefix}_iter_{state.iter}.caffemodel{tail}")
    path = Path(f"{prefix}_iter_{state.iter}.solverstate{tail}")
    side = run_state_path(path)
    # As Caffe: the path as it was given, relative to the working directory.
    state.learned_net = str(weights)
    with _staged(path) as stage:
        log("solver.cpp:464", f"Snapshotting to {kind} file {weights}")
        _write_weights(stage / weights.name, net, hdf5, diffs)
        log("sgd_solver.cpp:284", f"Snapshotting solver state to {kind} file {path}")
        (write_state_hdf5 if hdf5 else write_solverstate)(stage / path.name, state)
        if run is not None:
            write_run_state(stage / side.name, run, stage / path.name, stage / weights.name)
        # Files of an earlier run under these names are removed first: a state that exists belongs to the files next to it.
        for old in (path, side):
            old.unlink(missing_ok=True)
        for new in (weights, *([side] if run is not None else []), path):
            (stage / new.name).replace(new)
        sync_folder(path.parent)
    return Snapshot(state.iter, weights, path)


def read_state(path: PathLike) -> SolverState:
    """Read a .solverstate or .solverstate.h5. Raises :class:`ModelFileError`."""
    if Path(path).suffix in (".caffemodel", ".prototxt"):
        other = wrong_kind(ModelFileError, path, "a .solverstate", allowed=(Kind.SOLVER_STATE, Kind.FOLDER))
        if other is not None and Path(path).suffix == ".prototxt":
            raise other
        raise ModelFileError("a .solverstate is needed to resume a run; a .caffemodel is where a new run starts (weights)", path=path)
    if not Path(path).exists():
        name, _, _ = Path(path).name.partition("_iter_")
        numbers = {
            p.name.rpartition("_iter_")[2].partition(".")[0] for p in Path(path).parent.glob(f"{glob.escape(name)}_iter_*.solverstate*")
        }
        there = ", ".join(map(str, sorted(int(number) for number in numbers if number.isdecimal())))
        hint = f"there are iterations {there}; --resume auto takes the newest" if there else None
        raise ModelFileError("cannot read: No such file or directory", path=path, hint=hint)
    return read_state_hdf5(path) if Path(path).suffix == ".h5" else read_solverstate(path)


def find_weights(state_path: PathLike, learned_net: str) -> Path:
    """Return the path of the caffemodel that a solverstate names.

    Caffe writes it relative to the directory it ran in, in the folder of the state. So a file of that name in the state's folder
    comes first (both files may have been moved, and others may have their old names), then the name as written, then the name from
    the state's folder.

    Raises:
        ModelFileError: None of them exists; names the places.
    """
    folder = Path(state_path).parent
    name = Path(learned_net)
    sibling = folder / name.name
    places = [sibling, name, folder / name]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise ModelFileError(
        f"{os.fspath(state_path)}: its weights '{learned_net}' are missing (looked for {looked}); put them into the same folder"
    )


def check_finite(net: Net, iteration: int) -> None:
    """Raise :class:`RunFailed` naming the first layer of which a parameter is NaN or infinite; nothing otherwise."""
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
    folder, name = Path(prefix).parent, glob.escape(Path(prefix).name)
    for part in folder.glob(f".{name}_iter_*.part"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _write_weights(path: Path, net: Net, hdf5: bool, diffs: Steps | None) -> None:
    arrays = None
    if diffs is not None:
        arrays = [[_diff(blob, diffs) for blob in layer.blobs] for layer in net.layers]
    if hdf5:
        write_weights_hdf5(path, net, diffs=arrays)
        return
    model = to_caffemodel(net)
    model.diffs = {layer.name: own for layer, own in zip(net.layers, arrays or [], strict=False) if own}
    model.repeated_diffs = {index: arrays[index] for index in model.repeated} if arrays is not None else {}
    write_caffemodel(path, model)


def _diff(blob: Tensor, diffs: Steps) -> Any:
    step = diffs.get(id(blob))
    return np.zeros(tuple(blob.shape), np.float32) if step is None else np.asarray(step.detach().cpu().numpy(), np.float32, order="C")


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A hidden folder next to ``target`` for the files of one snapshot; it is removed afterwards. Raises :class:`RunFailed`."""
    stage: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name.partition('.solverstate')[0]}.", suffix=".part", dir=target.parent))
        yield stage
    except OSError as error:
        raise WriteFailed(target, error.strerror or error) from error
    except CaffeToolsError as error:
        if stage is None or error.path is None or not Path(error.path).is_relative_to(stage):
            raise
        # Users know nothing of the hidden folder.
        raise error.located(target.parent / Path(error.path).relative_to(stage)) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def prefix_lock(prefix: str | os.PathLike[str], *, what: str | None = None, hint: str = "use another snapshot_prefix") -> Iterator[None]:
    """Hold the lock of a snapshot prefix while a run writes files that begin with it.

    A file system without locks is used without one; see :func:`~caffetools.util.locks.file_lock`.

    Args:
        prefix: The snapshot prefix.
        what: What the run does, for the error of another run; by default that it writes snapshots.
        hint: What the other run can do.

    Raises:
        CaffeToolsError: Another run, or another thread, holds the lock; the message names its process.
        WriteFailed: The folder cannot be written to.
    """
    path = Path(prefix).absolute()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, required=False))
        except Busy as busy:
            who = f" (process {busy.holder[0]} on {busy.holder[1]})" if busy.holder else ""
            what = what or f"writing snapshots named {os.fspath(prefix)}_iter_…"
            raise CaffeToolsError(f"another run{who} is {what}", hint=f"wait for it, stop it, or {hint}") from None
        except OSError as error:
            raise WriteFailed(lock_path(path), error.strerror, hint="snapshots need a folder that can be written to") from None
        yield
