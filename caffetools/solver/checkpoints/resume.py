"""Which snapshot to go on from: the newest one that is whole."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caffetools.errors import CaffeToolsError
from caffetools.net.weights import read_weights
from caffetools.solver.checkpoints.run_state import read_run_state, run_state_path
from caffetools.solver.checkpoints.snapshots import find_weights, read_state
from caffetools.solver.control import Snapshot

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Candidate:
    state: Path
    iteration: int
    # Which run wrote it and when; snapshots that real Caffe wrote count as one run.
    run: str
    time: float


def newest_snapshot(prefix: PathLike, note: Callable[[str], None] = lambda text: None) -> Snapshot | None:
    """The snapshot to go on from under ``prefix``, or None.

    Of the snapshots of the run that wrote last, it is the one of the highest iteration whose solverstate and weights can both be
    read. ``note`` is told of each that is passed over, and why.
    """
    found = _candidates(Path(prefix))
    last: dict[str, float] = {}
    for candidate in found:
        last[candidate.run] = max(last.get(candidate.run, 0.0), candidate.time)
    for candidate in sorted(found, key=lambda c: (last[c.run], c.iteration, c.time), reverse=True):
        try:
            return check_whole(candidate.state)
        except CaffeToolsError as error:
            note(f"The snapshot {candidate.state} is not whole and is passed over: {error}")
    return None


def check_whole(state: PathLike) -> Snapshot:
    """The snapshot of the .solverstate ``state``, which must be readable to its end, as must its weights.

    Raises:
        ModelFileError: a file is missing, truncated or damaged; names it.
    """
    content = read_state(state)
    weights = find_weights(state, content.learned_net)
    read_weights(weights)
    return Snapshot(content.iter, weights, Path(state))


def _candidates(prefix: Path) -> list[_Candidate]:
    found = []
    name = glob.escape(prefix.name)
    for tail in ("", ".h5"):
        for state in prefix.parent.glob(f"{name}_iter_*.solverstate{tail}"):
            iteration = state.name.removesuffix(tail).removesuffix(".solverstate").rpartition("_iter_")[2]
            if iteration.isdecimal():
                found.append(_Candidate(state, int(iteration), *_origin(state)))
    return found


def _origin(state: Path) -> tuple[str, float]:
    try:
        run = read_run_state(run_state_path(state))
        return str(run["run"]), float(run["time"])
    except (CaffeToolsError, TypeError, ValueError):
        return "", state.stat().st_mtime
