"""Training, testing and timing by real Caffe: its process is run, its log is kept and followed, and callbacks and events come as from our solver."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from caffetools.cancel import CancelToken
from caffetools.engines.caffe import CaffeProcess, RealCaffe
from caffetools.engines.folders import check_sources, needed_folders
from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.events import EventSink, fan_out, ignore
from caffetools.proto.binary import write_solverstate
from caffetools.proto.schema import SolverParameter
from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.solver.callbacks import Callback, Events, History
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.checkpoints.snapshots import find_weights, prefix_lock, read_state
from caffetools.solver.control import Output, Snapshot, TestResult, TrainStats
from caffetools.solver.logs.files import AppendOnlyFile, MetricsLog
from caffetools.solver.logs.training_log import GlogReader, LogRow
from caffetools.solver.paths import snapshot_prefix
from caffetools.solver.testing import TestScores
from caffetools.solver.timing import LayerTime, Timings

PathLike = str | os.PathLike[str]

_CPU = 0
_WEIGHTS = re.compile(r"Snapshotting to (?:binary proto|HDF5) file (.+)")
_STATE = re.compile(r"Snapshotting solver state to (?:binary proto|HDF5) file (.+)")
_FATAL = re.compile(r"^F\d{4,8} .*?\] ?(.*)")


@dataclass(frozen=True)
class CaffeTrainResult:
    """Result of a training by real Caffe.

    Attributes:
        log: Path of the log.
        history: What was displayed, tested and saved.
        iteration: The last iteration that the log names.
        stopped: Whether the run was stopped early.
    """

    log: Path
    history: History
    iteration: int
    stopped: bool

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot of this run, or None."""
        return self.history.snapshots[-1] if self.history.snapshots else None


def train_with_caffe(
    path: PathLike,
    *,
    image: str | None = None,
    arguments: Sequence[str] = (),
    weights: Sequence[PathLike] = (),
    snapshot: PathLike | None = None,
    resume: bool = False,
    log: PathLike | None = None,
    echo: Callable[[str], object] | None = None,
    callbacks: Iterable[Callback] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> CaffeTrainResult:
    """Train as the solver at ``path`` describes, with the real ``caffe`` of this machine or of a docker image.

    Args:
        path: The solver's prototxt.
        image: The docker image; None for the ``caffe`` of this machine.
        arguments: Further flags for ``caffe train``.
        weights: .caffemodel files to start from.
        snapshot: A .solverstate to resume from.
        resume: Resume from the newest whole snapshot under the solver's prefix; start if there is none.
        log: Path of the log. Default: ``PREFIX.log``.
        echo: Also receives every line of the log, with its line end.
        callbacks: Called with an :class:`ExternalRun` as their run.
        events: Receives the same typed events as those of :func:`caffetools.solver.run.train`.
        cancel: When cancelled, Caffe is asked to stop: it writes a snapshot and ends.

    Raises:
        DataError: A data layer reads a database in shards, which real Caffe cannot.
        EngineError: There is no such Caffe.
        RunFailed: Caffe ended with an error; its last message is the text.
        KeyboardInterrupt: A second SIGINT.
    """
    if weights and snapshot is not None:
        raise CaffeToolsError("give either a snapshot to resume from or weights to start from, not both")
    param = read_solver(path)
    check_sources(param)
    prefix = snapshot_prefix(param, Path(path))
    gpus = any(word.startswith("--gpu") for word in arguments) or not param.HasField("solver_mode") or param.solver_mode != _CPU
    files = [path, *weights, *([snapshot] if snapshot is not None else [])]
    engine = RealCaffe.find() if image is None else RealCaffe.in_docker(image, needed_folders(param, files), gpus=gpus)
    with ExitStack() as stack:
        stack.enter_context(prefix_lock(prefix))
        found = newest_snapshot(prefix) if resume and snapshot is None else None
        snapshot = found.state if found is not None else snapshot
        words = ["train", f"--solver={os.fspath(path)}", *arguments]
        if snapshot is not None:
            words.append(f"--snapshot={stack.enter_context(_readable_by_caffe(Path(snapshot)))}")
        elif weights:
            words.append(f"--weights={','.join(os.fspath(name) for name in weights)}")
        file = AppendOnlyFile(log or f"{prefix}.log", append=snapshot is not None)
        stack.callback(file.close)
        metrics = AppendOnlyFile(f"{prefix}_log.jsonl", append=snapshot is not None)
        stack.callback(metrics.close)
        history = History()
        emitter = Events(fan_out([MetricsLog(metrics.write), events]), cancel)
        run = ExternalRun(param, arguments, os.fspath(snapshot) if snapshot is not None else "")
        follower = CaffeLogFollower(run, [history, *callbacks, emitter])
        try:
            _run(engine, words, follower, [file.write, *([echo] if echo is not None else [])], file.path, cancel)
        except BaseException as error:
            emitter.finish(error=error)
            raise
        emitter.finish(stopped=follower.stopped)
    return CaffeTrainResult(file.path, history, run.iteration, follower.stopped)


_SCORE = re.compile(r"\] (\S.*?) = (\S+)(?: \(\* |$)")
_LOSS = re.compile(r"\] Loss: (\S+)")
_LAYER = re.compile(r"\]\s+(\S.*?)\t(forward|backward): (\S+) ms\.")
_AVERAGE = re.compile(r"\] Average (Forward pass|Backward pass|Forward-Backward): (\S+) ms\.")


def score_with_caffe(
    net: PathLike,
    weights: Sequence[PathLike],
    iterations: int = 50,
    *,
    image: str | None = None,
    arguments: Sequence[str] = (),
    echo: Callable[[str], object] | None = None,
) -> TestScores:
    """Score a net on its own data by ``caffe test`` of a real Caffe.

    Args:
        net: The net's prototxt.
        weights: Its .caffemodel files.
        iterations: Number of batches.
        image: The docker image; None for the ``caffe`` of this machine.
        arguments: Further flags for ``caffe test``.
        echo: Receives every line that Caffe prints, with its line end.

    Raises:
        EngineError: There is no such Caffe.
        RunFailed: Caffe ended with an error; its last message is the text.
    """
    loss: float | None = None
    outputs: list[Output] = []
    for line in _lines("test", net, weights, iterations, image, arguments, echo):
        if found := _LOSS.search(line):
            loss = float(found[1])
        elif loss is not None and (found := _SCORE.search(line.rstrip())):
            outputs.append(Output(found[1], float(found[2])))
    return TestScores(loss or 0.0, outputs, iterations)


def time_with_caffe(
    net: PathLike,
    weights: Sequence[PathLike] = (),
    iterations: int = 50,
    *,
    image: str | None = None,
    arguments: Sequence[str] = (),
    echo: Callable[[str], object] | None = None,
) -> Timings:
    """Measure the layers of a net by ``caffe time`` of a real Caffe; arguments and errors as for :func:`score_with_caffe`."""
    types = {str(layer.name): str(layer.type) for layer in upgrade_net(read_net(net)).layer}
    times: dict[str, dict[str, float]] = {}
    means: dict[str, float] = {}
    for line in _lines("time", net, weights, iterations, image, arguments, echo):
        if found := _LAYER.search(line):
            times.setdefault(found[1], {})[found[2]] = float(found[3])
        elif found := _AVERAGE.search(line):
            means[found[1]] = float(found[2])
    layers = [LayerTime(name, types.get(name, ""), both.get("forward", 0.0), both.get("backward", 0.0)) for name, both in times.items()]
    passes = [means.get(name, 0.0) for name in ("Forward pass", "Backward pass", "Forward-Backward")]
    return Timings(layers, passes[0], passes[1], passes[2], iterations)


def _lines(
    action: str,
    net: PathLike,
    weights: Sequence[PathLike],
    iterations: int,
    image: str | None,
    arguments: Sequence[str],
    echo: Callable[[str], object] | None,
) -> list[str]:
    """Return what ``caffe ACTION`` prints. Raises :class:`RunFailed` where it fails."""
    param = SolverParameter(net=os.fspath(net))
    check_sources(param)
    gpus = any(word.startswith("--gpu") for word in arguments)
    engine = RealCaffe.find() if image is None else RealCaffe.in_docker(image, needed_folders(param, [net, *weights]), gpus=gpus)
    words = [action, f"--model={os.fspath(net)}", f"--iterations={iterations}", *arguments]
    if weights:
        words.append(f"--weights={','.join(os.fspath(name) for name in weights)}")
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if echo is not None:
            echo(line)

    code = engine.run(words, on_line)
    if code:
        fatal = next((found[1].strip() for line in lines if (found := _FATAL.match(line))), lines[-1].strip() if lines else "no message")
        raise RunFailed(f"{engine.command[0]} ended with exit code {code}: {fatal}")
    return lines


class ExternalRun:
    """A training by real Caffe as callbacks see and control it: a :class:`~caffetools.solver.control.RunControl`.

    What it knows comes from Caffe's log, so ``iteration`` moves with the lines that name one. It is controlled by signals: Caffe's
    SIGINT stops with a snapshot and SIGHUP takes one, unless its flags sigint_effect and sighup_effect are set.

    Attributes:
        iteration: The last iteration that the log names.
        rate: The last learning rate that the log names.
        saved: Iteration of the last snapshot.
        stopping: Whether :meth:`stop` was called.
    """

    def __init__(self, param: SolverParameter, flags: Sequence[str] = (), resumed_from: str = ""):
        self.param = param
        self.iteration, self.rate = 0, 0.0
        self.saved: int | None = None
        self.stopping = False
        self.max_iter = int(param.max_iter)
        self.net_name = _net_name(param)
        self.solver_type = str(param.type)
        self.run_id = ""
        self.resumed_from = resumed_from
        self.last_outputs: list[Output] = []
        self._lines: list[str] = []
        self._process: CaffeProcess | None = None
        self._wanted: list[str] = []
        self._ready = self._ended = False
        given = dict(word.lstrip("-").replace("-", "_").split("=", 1) for word in flags if "=" in word)
        self._signals: dict[str, int] = {}
        for number, flag, effect in ((signal.SIGINT, "sigint_effect", "stop"), (signal.SIGHUP, "sighup_effect", "snapshot")):
            self._signals.setdefault(given.get(flag, effect), number)

    def attach(self, process: CaffeProcess | None) -> None:
        """Set the running process, or None once it has ended."""
        self._process, self._ended = process, process is None

    def ready(self) -> None:
        """Send what was asked for before Caffe handled signals."""
        self._ready = True
        wanted, self._wanted = self._wanted, []
        for effect in wanted:
            self._send(effect)

    def log(self, source: str, text: str, severity: str = "I") -> None:
        """Discard a line: the log is Caffe's own."""

    def outputs(self) -> list[Output]:
        """Return the outputs of the training net that Caffe displayed last."""
        return list(self.last_outputs)

    def stop(self) -> None:
        """Ask Caffe to stop after its current iteration, with a snapshot.

        Raises:
            CaffeToolsError: It runs with flags by which no signal stops it, or its process is not known (only its log is read).
        """
        if not self.stopping:
            self._send("stop")
            self.stopping = True

    def snapshot(self) -> None:
        """Ask Caffe for a snapshot after its current iteration.

        Raises:
            CaffeToolsError: It runs with flags by which no signal takes one, or its process is not known.
        """
        self._send("snapshot")

    def _send(self, effect: str) -> None:
        number = self._signals.get(effect)
        if number is None:
            raise CaffeToolsError(
                f"real Caffe cannot be asked for '{effect}': no signal has this effect", hint="set --sigint-effect or --sighup-effect"
            )
        if self._ended:
            return
        if not self._ready:
            # Before Caffe handles signals, one would end it without a snapshot.
            self._wanted.append(effect)
        elif self._process is not None:
            self._process.send_signal(number)
        else:
            raise CaffeToolsError(
                f"this run cannot be asked for '{effect}' from here: its log is followed, its process was not started by caffetools",
                hint=f"send {signal.Signals(number).name} to the process of Caffe",
            )


class CaffeLogFollower:
    """Read what Caffe prints, line by line, and call callbacks as our solver does.

    Attributes:
        last_message: Caffe's fatal error, once it has printed one.
        stopped: Whether Caffe reported that it stopped early.
    """

    def __init__(self, run: ExternalRun, callbacks: Iterable[Callback]):
        self.run = run
        self.last_message = ""
        self.stopped = False
        self._callbacks = list(callbacks)
        self._reader = GlogReader()
        self._num_tests = 0
        self._began = False
        self._weights = Path()

    def feed(self, line: str) -> None:
        """Read the next line."""
        if "] Solving " in line:
            self.run.ready()
            self._began = True
            self._notify("on_train_begin")
        self._reader.feed(line)
        self._move()
        if "net output #" not in line:
            self._notify_tests()
        if "lr = " in line and self._reader.log.train:
            self._notify_display(self._reader.log.train[-1])
        if weights := _WEIGHTS.search(line):
            self._weights = Path(weights[1].strip())
        elif state := _STATE.search(line):
            digits = re.search(r"_iter_(\d+)\.", state[1])
            self.run.saved = int(digits[1]) if digits else 0
            self._notify("on_checkpoint", Snapshot(self.run.saved, self._weights, Path(state[1].strip())))
        elif fatal := _FATAL.match(line):
            self.last_message = self.last_message or fatal[1].strip()
        elif "Optimization stopped early" in line:
            self.stopped = True

    def end(self) -> None:
        """Report what the last lines completed, and the end."""
        self._notify_tests()
        if self._began:
            self._notify("on_train_end", self.stopped)

    def _notify(self, hook: str, *arguments: object) -> None:
        for callback in self._callbacks:
            getattr(callback, hook)(self.run, *arguments)

    def _move(self) -> None:
        iteration = self._reader.iteration
        if iteration is not None and iteration != self.run.iteration:
            self.run.iteration = iteration
            self._notify("on_iteration_end")

    def _notify_display(self, row: LogRow) -> None:
        loss = row.loss if row.loss is not None else next(iter(row.outputs.values()))
        self.run.rate, self.run.last_outputs = row.lr, _outputs(row)
        self._notify("on_log", TrainStats(row.iteration, loss, _outputs(row), row.lr))

    def _notify_tests(self) -> None:
        rows = self._reader.log.test
        # A resumed or repeated test replaces rows, so there may be fewer than were reported.
        for row in rows[min(self._num_tests, len(rows)) :]:
            self._notify("on_test_end", TestResult(row.net, row.iteration, _outputs(row), row.loss))
        self._num_tests = len(rows)


def _run(
    engine: RealCaffe,
    words: list[str],
    follower: CaffeLogFollower,
    sinks: list[Callable[[str], object]],
    log: Path,
    cancel: CancelToken | None,
) -> None:
    def on_line(line: str) -> None:
        sinks[0](line)
        # A closed terminal must not end the run.
        with suppress(OSError):
            for sink in sinks[1:]:
                sink(line)
        follower.feed(line)

    with (cancel or CancelToken()).calling(follower.run.stop):
        code = engine.run(words, on_line, on_start=follower.run.attach)
    follower.end()
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        why = f": {follower.last_message}" if follower.last_message else ""
        raise RunFailed(f"{' '.join(engine.command[:1])} {how}{why}; the log is {log}")


@contextmanager
def _readable_by_caffe(state: Path) -> Iterator[Path]:
    """Yield ``state``, or a temporary copy that names its weights as Caffe finds them: from the working directory."""
    content = read_state(state)
    weights = find_weights(state, content.learned_net)
    named = Path(content.learned_net)
    if state.suffix == ".h5" or (named.exists() and named.samefile(weights)):
        yield state
        return
    copy = state.with_name(f"{state.stem}.caffe{os.getpid()}.solverstate")
    content.learned_net = str(weights)
    write_solverstate(copy, content)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _outputs(row: LogRow) -> list[Output]:
    return [Output(name, value) for name, value in row.outputs.items()]


def _net_name(param: SolverParameter) -> str:
    if param.HasField("net_param"):
        return str(param.net_param.name)
    try:
        return str(read_net(param.net or param.train_net).name)
    except CaffeToolsError:
        return ""
