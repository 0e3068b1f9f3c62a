"""``train``: a whole run from a solver file, with its log, its metrics, its lock and its signals."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from caffetools.cancel import CancelToken
from caffetools.data.layers.batch_source import augment_layers, tolerating_corrupt_records
from caffetools.errors import CaffeToolsError, DataError
from caffetools.events import EventSink, Warned, fan_out, ignore
from caffetools.net.device import find_device
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import format_text, read_solver
from caffetools.solver.callbacks import Callback, Events, History
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.checkpoints.snapshots import clean_up, prefix_lock
from caffetools.solver.compute_options import ComputeOptions
from caffetools.solver.control import Snapshot
from caffetools.solver.errors import SolverError
from caffetools.solver.logs.caffe_log import GlogWriter
from caffetools.solver.logs.files import AppendOnlyFile, MetricsLog
from caffetools.solver.paths import find_base, snapshot_prefix
from caffetools.solver.signals import Signals
from caffetools.solver.solver import Solver

if TYPE_CHECKING:
    from caffetools.solver.strategy import Strategy

PathLike = str | os.PathLike[str]

_CPU = 0


@dataclass(frozen=True)
class TrainResult:
    """Result of a training.

    Attributes:
        solver: The solver, with the trained net.
        history: What was displayed, tested and saved.
        log: Path of the log.
        metrics: Path of the events as JSON lines.
        stopped: Whether the run was stopped early.
    """

    solver: Solver
    history: History
    log: Path
    metrics: Path
    stopped: bool

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot of this run, or None."""
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
    callbacks: Iterable[Callback] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
    strategy: Strategy | None = None,
    compute: ComputeOptions = ComputeOptions(),
    skip_corrupt: int = 0,
) -> TrainResult:
    """Train as the solver at ``path`` describes.

    Args:
        path: The solver's prototxt.
        weights: .caffemodel files to start from, matched by layer name; they replace the solver's own ``weights``.
        snapshot: A .solverstate to resume from.
        resume: Resume from the newest whole snapshot of the last run under the solver's prefix; start if there is none.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where it is available and solver_mode is not CPU.
        max_iter: Replaces the solver's.
        level: Added to its train_state, as by the flag of ``caffe train``.
        stages: Added to its train_state.
        signals: What signals do. Default: SIGINT and SIGTERM stop, SIGHUP writes a snapshot.
        log: Path of the log. Default: ``PREFIX.log``. It is overwritten, but a resumed run appends to it; ``PREFIX_log.jsonl``
            receives the events as JSON lines.
        echo: Also receives every line of the log, with its line end.
        callbacks: Called at each step of the run, after the built-in ones.
        events: Receives typed events: ``Started``, ``Progress`` after each iteration, ``Metrics``, ``Tested``,
            ``CheckpointWritten`` and ``Finished``. An exception that it raises ends the run.
        cancel: When cancelled, the run stops after the current update with a snapshot, and ``stopped`` is true.
        strategy: The processes that train together, each of which calls this function; only the main one writes, logs and emits.
        compute: Precision, compiling, memory and CUDA graphs.
        skip_corrupt: How many damaged records each Data layer leaves out; each is named in the log and by a ``Warned`` event.

    Raises:
        CaffeToolsError: Bad input; nothing was written then.
        RunFailed: Training diverged or a file could not be written; earlier snapshots are kept.
        KeyboardInterrupt: A second SIGINT.
    """
    if weights and snapshot is not None:
        raise CaffeToolsError("give either a snapshot to resume from or weights to start from, not both")
    param = _settings(path, weights, max_iter, level, stages)
    prefix = snapshot_prefix(param, Path(path))
    if find_base(param, Path(path)) is None:
        # As Caffe, so that the log shows it.
        param.snapshot_prefix = prefix
    make, signals, place = _accelerate(strategy, compute, signals or Signals(), choose_device(device, param))
    if strategy is not None and not strategy.is_main:
        with tolerating_corrupt_records(skip_corrupt):
            return _follow(path, param, place, make, signals, Path(log or f"{prefix}.log"), prefix)
    with prefix_lock(prefix):
        clean_up(prefix)
        early: list[str] = []
        writer = GlogWriter(early.append, *([_ignore_broken_pipe(echo)] if echo is not None else []))
        if resume and snapshot is None:
            snapshot = _find_snapshot(param, prefix, writer)
        history = History()
        with tolerating_corrupt_records(skip_corrupt, partial(_warn_of_corrupt, writer, events)):
            solver = _prepare(path, param, place, writer, [signals, history, *callbacks], make)
        _warn_of_names(solver, writer, events)
        if snapshot is not None:
            solver.restore(snapshot)
        solver.updates_early = True
        with _files(log, prefix, append=snapshot is not None) as (text, metrics):
            text.write("".join(early))
            writer.sinks[0] = text.write
            emitter = Events(fan_out([MetricsLog(metrics.write), events]), cancel)
            solver.callbacks.append(emitter)
            try:
                _run(solver, emitter, signals, writer, text)
            finally:
                solver.close()
    return TrainResult(solver, history, text.path, metrics.path, solver.stopping)


def _warn_of_corrupt(writer: GlogWriter, events: EventSink, error: DataError) -> None:
    writer("data_layer.cpp:110", f"Leaving out a damaged record: {error}", "W")
    events(Warned(task="train", message=f"left out: {error}"))


def _warn_of_names(solver: Solver, writer: GlogWriter, events: EventSink) -> None:
    counts = Counter(layer.name for layer in solver.net.layers if len(layer.blobs))
    for name in [name for name, count in counts.items() if count > 1]:
        message = (
            f"{counts[name]} layers with weights are named {name!r}. Files identify layers by name: from a snapshot the first of them "
            "gets the weights of the last, as in Caffe. Rename them to resume, test or deploy what is trained"
        )
        writer("net.cpp:758", message, "W")
        events(Warned(task="train", message=message))


def _accelerate(
    strategy: Strategy | None, compute: ComputeOptions, signals: Signals, place: torch.device
) -> tuple[Callable[..., Solver], Any, torch.device]:
    """Return how to build the solver, the callback that handles signals, and the device of this process."""
    if strategy is None and compute == ComputeOptions() and place.type == "cpu":
        return Solver, signals, place
    from caffetools.solver.distributed import DistributedSolver

    make = partial(DistributedSolver, strategy=strategy, compute=compute)
    return make, signals, place if strategy is None else strategy.setup(place)


def _follow(
    path: PathLike, param: SolverParameter, place: torch.device, make: Callable[..., Solver], signals: Signals, log: Path, prefix: str
) -> TrainResult:
    """Train in a process that is not the main one: it computes and writes nothing."""
    solver = _prepare(path, param, place, GlogWriter(), [signals], make)
    with signals, solver:
        solver.solve()
    return TrainResult(solver, History(), log, log.with_name(f"{Path(prefix).name}_log.jsonl"), solver.stopping)


@contextmanager
def _files(log: PathLike | None, prefix: str, *, append: bool) -> Iterator[tuple[AppendOnlyFile, AppendOnlyFile]]:
    """Open the log and the metrics; only when a run can begin, so that one that cannot does not overwrite an earlier one's."""
    names = log or f"{prefix}.log", f"{prefix}_log.jsonl"
    with closing(AppendOnlyFile(names[0], append=append)) as text, closing(AppendOnlyFile(names[1], append=append)) as metrics:
        yield text, metrics


def _run(solver: Solver, emitter: Events, signals: Signals, writer: GlogWriter, file: AppendOnlyFile) -> None:
    # Until the end is reported: a signal in between must not leave a tracker with a run that never ends.
    with signals:
        _solve(solver, emitter, writer, file)


def _solve(solver: Solver, emitter: Events, writer: GlogWriter, file: AppendOnlyFile) -> None:
    try:
        writer("caffe.cpp:239", "Starting Optimization")
        solver.solve()
    except CaffeToolsError as raised:
        error = DataError(f"iteration {solver.iteration}: {raised}") if isinstance(raised, DataError) else raised
        # The disk may be the cause; the error itself matters more.
        with suppress(CaffeToolsError):
            GlogWriter(file.write)("caffe.cpp:250", str(error), "E")
        emitter.finish(error=error)
        raise error from None
    except BaseException as error:
        emitter.finish(error=error)
        raise
    writer("caffe.cpp:250", "Optimization Done.")
    emitter.finish(stopped=solver.stopping)


def _find_snapshot(param: SolverParameter, prefix: str, writer: GlogWriter) -> Path | None:
    """Return the snapshot to resume from, if there is one; the solver's weights are not needed then."""
    found = newest_snapshot(prefix, lambda text: writer("caffe.cpp:235", text, "W"))
    if found is None:
        writer("caffe.cpp:235", f"There is no snapshot {prefix}_iter_… to resume from; training starts from the beginning")
        return None
    if param.weights:
        writer("caffe.cpp:235", f"Resuming with the weights {found.weights}, not {', '.join(param.weights)}")
        param.ClearField("weights")
    return found.state


def choose_device(wanted: str, param: SolverParameter | None = None) -> torch.device:
    """Return the device that ``wanted`` names.

    Args:
        wanted: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        param: A ``SolverParameter`` whose solver_mode, where it is set, decides for ``auto``.

    Raises:
        CaffeToolsError: It is none of these, or the device does not exist.
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
        raise CaffeToolsError(f"{os.fspath(path)}: max_iter is missing; set the number of iterations to train")
    return param


def _ignore_broken_pipe(echo: Callable[[str], object]) -> Callable[[str], object]:
    """Return ``echo`` without the errors of a closed terminal or pipe, which must not end the run."""

    def write(text: str) -> None:
        with suppress(OSError):
            echo(text)

    return write


def _prepare(
    path: PathLike, param: SolverParameter, device: torch.device, writer: GlogWriter, callbacks: list[Callback], make: Callable[..., Solver]
) -> Solver:
    writer("caffe.cpp:197", "Use CPU." if device.type == "cpu" else f"Using GPUs {device.index or 0}")
    if device.type == "cpu" and param.HasField("solver_mode") and param.solver_mode != _CPU:
        writer("caffe.cpp:197", "The solver's solver_mode is GPU; this run computes on the CPU", "W")
    if param.random_seed < 0:
        # As in Caffe, every such run differs; the log shows the seed that repeats it.
        param.random_seed = int.from_bytes(os.urandom(4), "little") >> 1
        writer("solver.cpp:44", f"The solver gives no random_seed; this run uses {param.random_seed}")
    writer("solver.cpp:45", f"Initializing solver from parameters: \n{format_text(param).rstrip()}")
    try:
        solver = make(param, path=path, device=device, callbacks=callbacks, log=writer)
    except SolverError as error:
        raise error.in_file(path) from None
    augmentation = Path(path).with_name("augment.yaml")
    if names := augment_layers(solver.net.layers, augmentation):
        writer("caffe.cpp:197", f"Augmenting the pictures of {', '.join(names)} as {augmentation} describes")
    return solver
