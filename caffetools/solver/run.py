"""``train``: a whole run from a solver file, with its log, its metrics, its lock and its signals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from caffetools.errors import CaffeToolsError, DataError
from caffetools.net.device import find_device
from caffetools.proto.text import format_text, read_solver
from caffetools.solver.callbacks import History, Observer, Snapshot
from caffetools.solver.checkpoints.lock import prefix_lock
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.checkpoints.snapshots import clean_up, prefix_for
from caffetools.solver.logs.caffe_log import GlogWriter
from caffetools.solver.logs.files import AppendOnlyFile, Metrics
from caffetools.solver.signals import Signals
from caffetools.solver.solver import Solver

if TYPE_CHECKING:
    from caffetools.solver.distributed import ComputeOptions
    from caffetools.solver.parallel import World

PathLike = str | os.PathLike[str]

_CPU = 0


@dataclass(frozen=True)
class TrainResult:
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
    resume: bool = False,
    device: str = "auto",
    max_iter: int | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    signals: Signals | None = None,
    log: PathLike | None = None,
    echo: Callable[[str], object] | None = None,
    observers: Iterable[Observer] = (),
    world: World | None = None,
    means: ComputeOptions | None = None,
) -> TrainResult:
    """Train as the solver at ``path`` says.

    Args:
        weights: .caffemodel files to start from, layer by layer name; they replace the solver's own ``weights``.
        snapshot: A .solverstate to go on from.
        resume: Go on from the newest whole snapshot under the solver's prefix; where there is none, start as without.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where there is one and solver_mode is not CPU.
        max_iter: In place of the solver's. level, stages: added to its train_state, as by the flags of ``caffe train``.
        signals: What signals do; SIGINT stops and SIGHUP takes a snapshot unless given.
        log: Where the log goes: ``PREFIX.log`` unless given. It begins anew, but a resumed run appends to it; ``PREFIX_log.jsonl``
            takes the same events as JSON lines.
        echo: Also gets every line of the log, with its line's end. observers: Watch the run besides.
        world: The processes that train together, each of which calls this; all but the root write nothing, and have no observers.
        means: Lower precision, compiling; see :class:`~caffetools.solver.distributed.ComputeOptions`.

    Raises:
        CaffeToolsError: bad input; nothing was written then.
        RunFailed: training diverged or a file could not be written; earlier snapshots stay.
        KeyboardInterrupt: a second SIGINT.
    """
    if weights and snapshot is not None:
        raise CaffeToolsError("give either a snapshot to go on from or weights to start from, not both")
    param = _settings(path, weights, max_iter, level, stages)
    make, signals, place = _accelerate(world, means, signals or Signals(), choose_device(device, param))
    if world is not None and not world.root:
        return _follow(path, param, place, make, signals, Path(log or f"{param.snapshot_prefix}.log"))
    with prefix_lock(param.snapshot_prefix):
        clean_up(param.snapshot_prefix)
        early: list[str] = []
        writer = GlogWriter(early.append, *([_ignore_broken_pipe(echo)] if echo is not None else []))
        if resume and snapshot is None:
            snapshot = _find_snapshot(param, writer)
        history = History()
        solver = _prepare(path, param, place, writer, [signals, history, *observers], make)
        if snapshot is not None:
            solver.restore(snapshot)
        with _files(log, param.snapshot_prefix, append=snapshot is not None) as (text, metrics):
            text.write("".join(early))
            writer.sinks[0] = text.write
            solver.observers.append(Metrics(metrics.write))
            _run(solver, signals, writer, text)
    return TrainResult(solver, history, text.path, metrics.path, solver.stopping)


def _accelerate(world: World | None, means: ComputeOptions | None, signals: Signals, place: torch.device) -> tuple[Any, Any, torch.device]:
    """How to make the solver, what heeds the signals, and this process' own device."""
    if world is None and means is None and place.type == "cpu":
        return Solver, signals, place
    from caffetools.solver.distributed import DistributedSolver
    from caffetools.solver.shared_signals import SharedSignals

    make = partial(DistributedSolver, world=world, means=means or ComputeOptions())
    if world is None or world.alone:
        return make, signals, place
    return make, SharedSignals(world, signals), world.place(place)


def _follow(path: PathLike, param: Any, place: torch.device, make: Callable[..., Solver], signals: Any, log: Path) -> TrainResult:
    """The run of a process that is not the root: it computes, and writes nothing."""
    solver = _prepare(path, param, place, GlogWriter(), [signals], make)
    with signals:
        solver.solve()
    return TrainResult(solver, History(), log, log.with_name(f"{Path(param.snapshot_prefix).name}_log.jsonl"), solver.stopping)


@contextmanager
def _files(log: PathLike | None, prefix: str, *, append: bool) -> Iterator[tuple[AppendOnlyFile, AppendOnlyFile]]:
    """The log and the metrics; opened only when a run can begin, so that one that cannot does not wipe out an earlier one's."""
    names = log or f"{prefix}.log", f"{prefix}_log.jsonl"
    with closing(AppendOnlyFile(names[0], append=append)) as text, closing(AppendOnlyFile(names[1], append=append)) as metrics:
        yield text, metrics


def _run(solver: Solver, signals: Signals, writer: GlogWriter, file: AppendOnlyFile) -> None:
    try:
        writer("caffe.cpp:239", "Starting Optimization")
        with signals:
            solver.solve()
    except CaffeToolsError as raised:
        error = DataError(f"iteration {solver.iteration}: {raised}") if isinstance(raised, DataError) else raised
        # The disk may be what failed; the error itself is what counts.
        with suppress(CaffeToolsError):
            GlogWriter(file.write)("caffe.cpp:250", str(error), "E")
        raise error from None
    writer("caffe.cpp:250", "Optimization Done.")


def _find_snapshot(param: Any, writer: GlogWriter) -> Path | None:
    """The snapshot to resume from, if there is one; the solver's weights are not needed then."""
    found = newest_snapshot(param.snapshot_prefix, lambda text: writer("caffe.cpp:235", text, "W"))
    if found is None:
        writer("caffe.cpp:235", f"There is no snapshot {param.snapshot_prefix}_iter_… to go on from; training starts from the beginning")
        return None
    if param.weights:
        writer("caffe.cpp:235", f"The weights of {found.weights} are taken, not {', '.join(param.weights)}")
        param.ClearField("weights")
    return found.state


def choose_device(wanted: str, param: Any = None) -> torch.device:
    """The device that ``wanted`` (cpu, cuda, cuda:N, auto) names; ``auto`` asks ``param``'s solver_mode, where it is written.

    Raises:
        CaffeToolsError: it is none of these, or there is no such device here.
    """
    on_cpu = param is not None and param.HasField("solver_mode") and param.solver_mode == _CPU
    return find_device(wanted, on_cpu=on_cpu, index=param.device_id if param is not None else 0)


def _settings(path: PathLike, weights: Sequence[PathLike], max_iter: int | None, level: int, stages: Iterable[str]) -> Any:
    param = read_solver(path)
    if level:
        param.train_state.level = level
    param.train_state.stage.extend(stages)
    if weights:
        param.ClearField("weights")
        param.weights.extend(os.fspath(name) for name in weights)
    if max_iter is not None:
        if not 0 <= max_iter < 2**31:
            raise CaffeToolsError(f"max_iter must be from 0 to {2**31 - 1}, not {max_iter}")
        param.max_iter = max_iter
    if param.max_iter < 0:
        raise CaffeToolsError(f"{os.fspath(path)}: max_iter must be at least 0, not {param.max_iter}")
    if not param.HasField("max_iter"):
        raise CaffeToolsError(f"{os.fspath(path)}: max_iter is missing; say how many iterations to train")
    param.snapshot_prefix = prefix_for(param.snapshot_prefix, Path(path))
    return param


def _ignore_broken_pipe(echo: Callable[[str], object]) -> Callable[[str], object]:
    """``echo``, but a reader that has gone (a closed terminal, a dead pipe) does not end the run."""

    def write(text: str) -> None:
        with suppress(OSError):
            echo(text)

    return write


def _prepare(
    path: PathLike, param: Any, device: torch.device, writer: GlogWriter, observers: list[Observer], make: Callable[..., Solver]
) -> Solver:
    writer("caffe.cpp:197", "Use CPU." if device.type == "cpu" else f"Using GPUs {device.index or 0}")
    if device.type == "cpu" and param.HasField("solver_mode") and param.solver_mode != _CPU:
        writer("caffe.cpp:197", "The solver's solver_mode is GPU; this run computes on the CPU", "W")
    if param.random_seed < 0:
        # As in Caffe every such run is another one; the log tells how to repeat it.
        param.random_seed = int.from_bytes(os.urandom(4), "little") >> 1
        writer("solver.cpp:44", f"The solver gives no random_seed; this run uses {param.random_seed}")
    writer("solver.cpp:45", f"Initializing solver from parameters: \n{format_text(param).rstrip()}")
    try:
        return make(param, path=path, device=device, observers=observers, log=writer)
    except CaffeToolsError as error:
        # Said of the message, which has no name of its own.
        if not str(error).startswith("solver: "):
            raise
        raise CaffeToolsError(f"{os.fspath(path)}: {str(error).removeprefix('solver: ')}") from None
