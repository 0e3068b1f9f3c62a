"""Which snapshot to resume from: the newest whole one of the run that was started last."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caffetools.errors import CaffeToolsError
from caffetools.net.weights import read_weights
from caffetools.solver.checkpoints.run_state import check_files, read_run_state, run_state_path
from caffetools.solver.checkpoints.snapshots import find_weights, read_state
from caffetools.solver.control import Snapshot

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Candidate:
    """A snapshot: its .solverstate, its iteration, which run wrote it ("" for real Caffe) and when (Unix time)."""

    state: Path
    iteration: int
    run: str
    time: float


@dataclass(frozen=True)
class _LastRun:
    """The run that was started last under a prefix, from PREFIX_log.jsonl.

    Attributes:
        run: Its identifier, "" for real Caffe; None if its first line was never written.
        start: When it began from the beginning (Unix time).
        resumed_from: Names of the .solverstate files that it resumed.
    """

    run: str | None
    start: float
    resumed_from: frozenset[str]

    def wrote(self, candidate: _Candidate) -> bool:
        """Return whether a snapshot is of this run, or one that it resumed."""
        if candidate.run:
            return candidate.run == self.run
        return self.run is not None and (candidate.time >= self.start or candidate.state.name in self.resumed_from)


def newest_snapshot(prefix: PathLike, note: Callable[[str], None] = lambda text: None) -> Snapshot | None:
    """Return the snapshot to resume from under ``prefix``, or None.

    It is the one of the highest iteration, of those of the run that was started last, whose solverstate and weights can both be read
    and are as they were written. PREFIX_log.jsonl names that run: what an older run left under the same prefix is never taken for it.
    Without that file it is the run that wrote a snapshot last.

    Args:
        prefix: The snapshot_prefix.
        note: Receives a text about each snapshot that is passed over.
    """
    found = _candidates(Path(prefix))
    current = _last_run(Path(f"{os.fspath(prefix)}_log.jsonl"))
    if current is not None:
        if older := [candidate for candidate in found if not current.wrote(candidate)]:
            note(f"{len(older)} snapshot(s) under {os.fspath(prefix)} are of an older run and are passed over")
        found = [candidate for candidate in found if current.wrote(candidate)]
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
    """Return the snapshot of the .solverstate ``state``, whose files can be read and are as they were written.

    Checksums in the run's state say so; the weights are taken apart only where there are none, as for a snapshot of real Caffe.

    Raises:
        ModelFileError: A file is missing, truncated, damaged, or not as it was written; names it.
    """
    content = read_state(state)
    weights = find_weights(state, content.learned_net)
    side = run_state_path(state)
    checked = False
    # A running training may replace its files meanwhile.
    with suppress(FileNotFoundError):
        checked = side.exists() and check_files(side, state, weights) is not None
    if not checked:
        read_weights(weights)
    return Snapshot(content.iter, weights, Path(state))


def _last_run(log: Path) -> _LastRun | None:
    """Return the run that ``log`` (PREFIX_log.jsonl) names; None if there is no such file, or it is of an earlier version."""
    try:
        with log.open(encoding="utf-8", errors="replace") as stream:
            lines = [line for line in stream if '"event": "start"' in line]
    except OSError:
        return None
    starts = []
    for line in lines:
        with suppress(ValueError):
            starts.append(json.loads(line))
    if not starts:
        # The file is emptied when a run starts: this one ended before its first line.
        return _LastRun(None, 0.0, frozenset())
    try:
        names = frozenset(Path(str(start.get("resumed_from", ""))).name for start in starts)
        return _LastRun(str(starts[-1]["run"]), float(starts[0]["time"]), names)
    except (KeyError, TypeError, ValueError):
        return None


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
