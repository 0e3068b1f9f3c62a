"""A solver's snapshot taken, and a solver put where a snapshot was taken."""

from __future__ import annotations

import glob
import math
import os
from pathlib import Path

from caffetools.errors import CaffeToolsError, ModelFileError
from caffetools.net.weights import load_weights
from caffetools.proto.model import SolverState
from caffetools.solver.checkpoints.run_state import RunState, apply, check_files, read_run_state, run_state_path
from caffetools.solver.checkpoints.snapshots import Steps, find_weights, read_state, write_snapshot
from caffetools.solver.control import Snapshot, TrainingRun
from caffetools.solver.errors import SolverError

PathLike = str | os.PathLike[str]

_HDF5 = 0


def save(solver: TrainingRun, run: RunState, diffs: Steps | None) -> Snapshot:
    """Write ``solver``'s snapshot under its prefix, with ``run`` as the run's state.

    Raises:
        CaffeToolsError: there is no snapshot_prefix.
        RunFailed: a weight is not finite, or a file cannot be written.
    """
    if not solver.prefix:
        raise SolverError("snapshot_prefix is missing; a snapshot needs a name", field="snapshot_prefix")
    history = [blob.detach().cpu().numpy() for blob in solver.rule.history]
    rate = solver.learning_rate
    state = SolverState(solver.iteration, "", history, rate.current_step)
    if solver.param.lr_policy == "plateau" and rate.minimum_loss < math.inf:
        state.minimum_loss, state.iter_last_event = rate.minimum_loss, rate.last_event
    hdf5 = solver.param.snapshot_format == _HDF5
    return write_snapshot(solver.net, state, solver.prefix, solver.log, hdf5=hdf5, run=run, diffs=diffs)


def restore(solver: TrainingRun, path: PathLike) -> bool:
    """Put ``solver`` where the snapshot of the .solverstate ``path`` was taken.

    Returns:
        Whether all of the run is resumed; where False, data and random states start over, since the snapshot does not hold them.

    Raises:
        ModelFileError: a file is missing, damaged, or of another net or type of solver.
        NetError: the weights do not fit.
    """
    state = read_state(path)
    solver.log("caffe.cpp:235", f"Resuming from {os.fspath(path)}")
    try:
        solver.rule.check_history(state.history)
    except CaffeToolsError as error:
        raise ModelFileError(f"{os.fspath(path)}: {error}") from None
    weights = None
    if state.learned_net:
        try:
            weights = find_weights(path, state.learned_net)
            report = load_weights(solver.net, weights, in_order=True)
        except CaffeToolsError:
            _refuse_damaged(path)
            raise
        if not report.loaded and any(len(layer.blobs) for layer in solver.net.layers):
            raise ModelFileError(f"{weights}: has no layer of the net '{solver.net.name}', so the run cannot be resumed from it")
    solver.log("sgd_solver.cpp:336", "SGDSolver: restoring history")
    solver.rule.load_history(state.history)
    solver.iteration = state.iter
    solver.learning_rate.current_step = state.current_step
    if state.minimum_loss is not None and state.iter_last_event is not None:
        solver.learning_rate.minimum_loss, solver.learning_rate.last_event = state.minimum_loss, state.iter_last_event
    elif solver.param.lr_policy == "plateau":
        solver.learning_rate.last_event = state.iter
        solver.log("caffe.cpp:235", "The snapshot has no smallest loss; the window of lr_policy plateau starts over", "W")
    return _restore_run(solver, path, weights)


def _refuse_damaged(state: PathLike) -> None:
    """Raise :class:`ModelFileError` where a file of a snapshot differs from its checksum: what is wrong with its content follows from that."""
    side = run_state_path(state)
    weights = next((file for file in side.parent.glob(f"{glob.escape(side.name.removesuffix('.runstate.json'))}.caffemodel*")), None)
    if weights is None:
        return
    try:
        read_run_state(side)
    except ModelFileError:
        return
    check_files(side, state, weights)


def _restore_run(solver: TrainingRun, state: PathLike, weights: Path | None) -> bool:
    side = run_state_path(state)
    if not side.exists():
        solver.log("caffe.cpp:235", "The snapshot has no data and random states, as real Caffe's; they start over")
        return False
    try:
        run = read_run_state(side)
    except ModelFileError as error:
        # The weights and their history are there, which is what counts.
        solver.log("caffe.cpp:235", f"{error}; data and random states start over", "W")
        return False
    if weights is None or check_files(side, state, weights) is None or run["iteration"] != solver.iteration:
        solver.log("caffe.cpp:235", f"{side} belongs to other files; data and random states start over", "W")
        return False
    solver.losses.clear()
    apply(run, solver, lambda text: solver.log("caffe.cpp:235", text, "W"))
    return True
