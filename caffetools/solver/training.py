"""``train``: a whole run from a solver file, with its log, its metrics, its lock and its signals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from caffetools.errors import CaffeToolsError
from caffetools.proto.text import format_text, read_solver
from caffetools.solver.caffe_log import GlogWriter
from caffetools.solver.lock import prefix_lock
from caffetools.solver.metrics import GrowingFile, Metrics
from caffetools.solver.observers import History, Observer, Snapshot
from caffetools.solver.signals import Signals
from caffetools.solver.snapshots import clean_up, prefix_for
from caffetools.solver.solver import Solver

PathLike = str | os.PathLike[str]

_CPU = 0


@dataclass(frozen=True)
class Trained:
    """What came of a run: its solver (with the net), what was displayed, tested and saved, its files, and whether it was stopped."""

    solver: Solver
    history: History
    log: Path
    metrics: Path
    stopped: bool

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot of this run, if it took one."""
        return self.history.snapshots[-1] if self.history.snapshots else None


def train(
    path: PathLike,
    *,
    weights: Sequence[PathLike] = (),
    snapshot: PathLike | None = None,
    device: str = "auto",
    max_iter: int | None = None,
    log: PathLike | None = None,
    echo: Callable[[str], object] | None = None,
    observers: Iterable[Observer] = (),
) -> Trained:
    """Train as the solver at ``path`` says.

    Args:
        weights: .caffemodel files to start from, layer by layer name; they replace the solver's own ``weights``.
        snapshot: A .solverstate to go on from.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where there is one and solver_mode is not CPU.
        max_iter: In place of the solver's.
        log: Where the log goes: ``PREFIX.log`` unless given. It begins anew, but a resumed run appends to it; ``PREFIX_log.jsonl``
            takes the same events as JSON lines.
        echo: Also gets every line of the log, with its line's end.
        observers: Watch the run besides.

    Raises:
        CaffeToolsError: bad input; nothing was written then.
        RunFailed: training diverged or a file could not be written; earlier snapshots stay.
        KeyboardInterrupt: a second SIGINT.
    """
    if weights and snapshot is not None:
        raise CaffeToolsError("give either a snapshot to go on from or weights to start from, not both")
    param = _settings(path, weights, max_iter)
    place = choose_device(device, param)
    prefix = param.snapshot_prefix
    with ExitStack() as stack:
        stack.enter_context(prefix_lock(prefix))
        clean_up(prefix)
        early: list[str] = []
        writer = GlogWriter(early.append, *([_patient(echo)] if echo is not None else []))
        history, signals = History(), Signals()
        solver = _prepare(path, param, place, writer, [signals, history, *observers])
        if snapshot is not None:
            solver.restore(snapshot)
        # Only now: a run that cannot begin must not wipe out the log of an earlier one.
        files = [GrowingFile(name, append=snapshot is not None) for name in (log or f"{prefix}.log", f"{prefix}_log.jsonl")]
        for file in files:
            stack.callback(file.close)
        files[0].write("".join(early))
        writer.sinks[0] = files[0].write
        solver.observers.append(Metrics(files[1].write))
        try:
            writer("caffe.cpp:239", "Starting Optimization")
            with signals:
                solver.solve()
        except CaffeToolsError as error:
            # The disk may be what failed; the error itself is what counts.
            with suppress(CaffeToolsError):
                GlogWriter(files[0].write)("caffe.cpp:250", str(error), "E")
            raise
        writer("caffe.cpp:250", "Optimization Done.")
    return Trained(solver, history, files[0].path, files[1].path, solver.stopping)


def choose_device(wanted: str, param: Any = None) -> torch.device:
    """The device that ``wanted`` (cpu, cuda, cuda:N, auto) names; ``auto`` asks ``param``'s solver_mode, where it is written.

    Raises:
        CaffeToolsError: it is none of these, or there is no such device here.
    """
    name = wanted
    if wanted == "auto":
        on_cpu = param is not None and param.HasField("solver_mode") and param.solver_mode == _CPU
        name = "cpu" if on_cpu or not torch.cuda.is_available() else f"cuda:{param.device_id if param is not None else 0}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CaffeToolsError(f"unknown device '{wanted}'; it is one of cpu, cuda, cuda:N, auto") from None
    if device.type not in ("cpu", "cuda"):
        raise CaffeToolsError(f"device '{wanted}' is not supported; use cpu, cuda or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CaffeToolsError(f"there is no device {wanted} here (CUDA devices: {torch.cuda.device_count()}); use cpu")
    return device


def _settings(path: PathLike, weights: Sequence[PathLike], max_iter: int | None) -> Any:
    param = read_solver(path)
    if weights:
        param.ClearField("weights")
        param.weights.extend(os.fspath(name) for name in weights)
    if max_iter is not None:
        if max_iter < 0:
            raise CaffeToolsError(f"max_iter must be at least 0, not {max_iter}")
        param.max_iter = max_iter
    if not param.HasField("max_iter"):
        raise CaffeToolsError(f"{os.fspath(path)}: max_iter is missing; say how many iterations to train")
    param.snapshot_prefix = prefix_for(param.snapshot_prefix, Path(path))
    return param


def _patient(echo: Callable[[str], object]) -> Callable[[str], object]:
    """``echo``, but a reader that has gone (a closed terminal, a dead pipe) does not end the run."""

    def write(text: str) -> None:
        with suppress(OSError):
            echo(text)

    return write


def _prepare(path: PathLike, param: Any, device: torch.device, writer: GlogWriter, observers: list[Observer]) -> Solver:
    writer("caffe.cpp:197", "Use CPU." if device.type == "cpu" else f"Using GPUs {device.index or 0}")
    if device.type == "cpu" and param.HasField("solver_mode") and param.solver_mode != _CPU:
        writer("caffe.cpp:197", "The solver's solver_mode is GPU; this run computes on the CPU", "W")
    if param.random_seed < 0:
        # As in Caffe every such run is another one; the log tells how to repeat it.
        param.random_seed = int.from_bytes(os.urandom(4), "little") >> 1
        writer("solver.cpp:44", f"The solver gives no random_seed; this run uses {param.random_seed}")
    writer("solver.cpp:45", f"Initializing solver from parameters: \n{format_text(param).rstrip()}")
    return Solver(param, path=path, device=device, observers=observers, log=writer)
