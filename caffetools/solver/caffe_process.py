"""Training by real Caffe: its process is run, its log is kept and followed, and observers are told as of a solver of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from caffetools.engines.caffe import RealCaffe
from caffetools.engines.folders import needed_folders
from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.proto.binary import write_solverstate
from caffetools.proto.text import read_net, read_solver
from caffetools.solver.callbacks import History, Observer, Output, Snapshot, TestResult, TrainStats
from caffetools.solver.checkpoints.lock import prefix_lock
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.checkpoints.snapshots import find_weights, prefix_for, read_state
from caffetools.solver.logs.files import AppendOnlyFile
from caffetools.solver.logs.training_log import GlogReader, LogRow

PathLike = str | os.PathLike[str]

_CPU = 0
_WEIGHTS = re.compile(r"Snapshotting to (?:binary proto|HDF5) file (.+)")
_STATE = re.compile(r"Snapshotting solver state to (?:binary proto|HDF5) file (.+)")
_FATAL = re.compile(r"^F\d{4,8} .*?\] ?(.*)")


@dataclass
class Followed:
    """What came of a run of real Caffe: what it displayed, tested and saved, its log file, and whether it was stopped early."""

    log: Path
    history: History = field(default_factory=History)
    iteration: int = 0
    stopped: bool = False

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot of this run, if it took one."""
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
    observers: Iterable[Observer] = (),
) -> Followed:
    """Train as the solver at ``path`` says, with the real ``caffe`` of this machine, or of the docker image ``image``.

    Args:
        arguments: Further flags for ``caffe train``. The rest as for :func:`caffetools.solver.run.train`.

    Raises:
        EngineError: there is no such Caffe.
        RunFailed: Caffe ended with an error; says its last words. KeyboardInterrupt: a second SIGINT.
    """
    if weights and snapshot is not None:
        raise CaffeToolsError("give either a snapshot to go on from or weights to start from, not both")
    param = read_solver(path)
    prefix = prefix_for(param.snapshot_prefix, Path(path))
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
        follower = Follower(param, Followed(file.path), observers)
        _run(engine, words, follower, [file.write, *([echo] if echo is not None else [])])
    return follower.run


class Follower:
    """Reads what Caffe prints, line by line, and tells observers what a solver of ours would tell them.

    Attributes:
        run: what is known so far. last_words: Caffe's fatal error, once it has printed one.
    """

    def __init__(self, param: Any, run: Followed, observers: Iterable[Observer]):
        self.run = run
        self.last_words = ""
        self._observers = [run.history, *observers]
        self._solver: Any = SimpleNamespace(param=param, net=SimpleNamespace(name=_net_name(param)), iteration=0)
        self._reader = GlogReader()
        self._told = 0
        self._weights = Path()

    def feed(self, line: str) -> None:
        """Take the next line."""
        if "] Solving " in line:
            self._tell("started")
        self._reader.feed(line)
        self._move()
        if "net output #" not in line:
            self._tell_tests()
        if "lr = " in line and self._reader.log.train:
            self._tell_displayed(self._reader.log.train[-1])
        if weights := _WEIGHTS.search(line):
            self._weights = Path(weights[1].strip())
        elif state := _STATE.search(line):
            digits = re.search(r"_iter_(\d+)\.", state[1])
            self._tell("snapshotted", Snapshot(int(digits[1]) if digits else 0, self._weights, Path(state[1].strip())))
        elif fatal := _FATAL.match(line):
            self.last_words = self.last_words or fatal[1].strip()
        elif "Optimization stopped early" in line:
            self.run.stopped = True

    def ended(self) -> None:
        """Tell what the last lines completed, and that this is the end."""
        self._tell_tests()
        self._tell("finished", self.run.stopped)

    def _tell(self, hook: str, *what: Any) -> None:
        for observer in self._observers:
            getattr(observer, hook)(self._solver, *what)

    def _move(self) -> None:
        iteration = self._reader.iteration
        if iteration is not None and iteration != self._solver.iteration:
            self.run.iteration = self._solver.iteration = iteration
            self._tell("after_update")

    def _tell_displayed(self, row: LogRow) -> None:
        loss = row.loss if row.loss is not None else next(iter(row.outputs.values()))
        self._tell("displayed", TrainStats(row.iteration, loss, _outputs(row), row.lr))

    def _tell_tests(self) -> None:
        rows = self._reader.log.test
        # A resumed or repeated test replaces rows, so there may be fewer than were told.
        for row in rows[min(self._told, len(rows)) :]:
            self._tell("tested", TestResult(row.net, row.iteration, _outputs(row), row.loss))
        self._told = len(rows)


def _run(engine: RealCaffe, words: list[str], follower: Follower, sinks: list[Callable[[str], object]]) -> None:
    def on_line(line: str) -> None:
        sinks[0](line)
        # A terminal that is gone must not end the run.
        with suppress(OSError):
            for sink in sinks[1:]:
                sink(line)
        follower.feed(line)

    code = engine.run(words, on_line)
    follower.ended()
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        why = f": {follower.last_words}" if follower.last_words else ""
        raise RunFailed(f"{' '.join(engine.command[:1])} {how}{why}; the log is {follower.run.log}")


@contextmanager
def _readable_by_caffe(state: Path) -> Iterator[Path]:
    """``state``, or a copy for the time being that names its weights as Caffe finds them: from the working directory."""
    content = read_state(state)
    weights = find_weights(state, content.learned_net)
    if state.suffix == ".h5" or Path(content.learned_net).exists():
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


def _net_name(param: Any) -> str:
    if param.HasField("net_param"):
        return str(param.net_param.name)
    try:
        return str(read_net(param.net or param.train_net).name)
    except CaffeToolsError:
        return ""
