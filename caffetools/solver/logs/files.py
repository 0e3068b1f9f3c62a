"""Files that grow while a solver runs: the log, and the same as JSON lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffetools.errors import WriteFailed
from caffetools.solver.callbacks import Observer, Output, Snapshot, TestResult, TrainStats
from caffetools.util.files import make_folder

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver


class AppendOnlyFile:
    """A text file that whole lines are appended to; each is on its way to the disk when ``write`` returns.

    Raises:
        WriteFailed: the file cannot be opened or written; names it.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False):
        self.path = Path(path)
        try:
            make_folder(self.path.parent)
            self._stream = self.path.open("a" if append else "w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise WriteFailed(self.path, error.strerror, hint=None) from None

    def write(self, text: str) -> None:
        """Append ``text``, which ends with a line's end."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            raise WriteFailed(self.path, error.strerror, hint=None) from None

    def close(self) -> None:
        """Close the file."""
        # What could not be written has been told of by ``write``.
        with suppress(OSError):
            self._stream.close()


class Metrics(Observer):
    """One JSON object per event, handed to ``write`` as a line.

    Every object has ``event`` (start, train, test, snapshot, end), ``phase`` (train or test), ``iteration`` and ``seconds`` since the
    start. Train events have ``loss`` (smoothed), ``lr`` and ``outputs``; test events ``net`` and ``outputs``, and ``loss`` where the
    solver computes it. ``outputs`` maps a blob to its number, or to a list where it has several. What is not finite is null.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.time):
        self._write, self._clock = write, clock
        self._start: float | None = None

    def started(self, solver: Solver) -> None:
        """Write the start event, which also has the wall-clock ``time`` (seconds since 1970), net and solver type."""
        self._start = self._clock()
        self._emit("start", solver.iteration, time=self._start, name=solver.net.name, type=type(solver.rule).__name__)

    def displayed(self, solver: Solver, what: TrainStats) -> None:
        """Write a train event."""
        self._emit("train", what.iteration, loss=_number(what.loss), lr=_number(what.rate), outputs=_named(what.outputs))

    def tested(self, solver: Solver, what: TestResult) -> None:
        """Write a test event."""
        loss = {} if what.loss is None else {"loss": _number(what.loss)}
        self._emit("test", what.iteration, phase="test", net=what.net, **loss, outputs=_named(what.outputs))

    def snapshotted(self, solver: Solver, what: Snapshot) -> None:
        """Write a snapshot event with both files' names."""
        self._emit("snapshot", what.iteration, weights=what.weights.name, state=what.state.name)

    def finished(self, solver: Solver, stopped: bool) -> None:
        """Write the end event."""
        self._emit("end", solver.iteration, stopped=stopped)

    def _emit(self, event: str, iteration: int, *, phase: str = "train", **rest: Any) -> None:
        now = self._clock()
        if self._start is None:
            self._start = now
        seconds = round(now - self._start, 6)
        line = {"event": event, "phase": phase, "iteration": iteration, "seconds": seconds, **rest}
        self._write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _named(outputs: list[Output]) -> dict[str, Any]:
    values: dict[str, list[float | None]] = {}
    for output in outputs:
        values.setdefault(output.name, []).append(_number(output.value))
    return {name: many[0] if len(many) == 1 else many for name, many in values.items()}


def _number(value: float) -> float | None:
    """A float32 in as many digits as it has, and null for what JSON has no number for."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
