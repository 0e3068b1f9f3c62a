"""Files that grow during a training: the log, and the events as JSON lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from caffetools.errors import WriteFailed
from caffetools.events import CheckpointWritten, Event, Finished, Metrics, Progress, Started, Tested
from caffetools.util.files import make_folder


class AppendOnlyFile:
    """A text file to which whole lines are appended; each is passed to the operating system before ``write`` returns.

    Raises:
        WriteFailed: The file cannot be opened or written; names it.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False):
        self.path = Path(path)
        try:
            make_folder(self.path.parent)
            self._stream = self.path.open("a" if append else "w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise WriteFailed(self.path, error.strerror, hint=None) from None

    def write(self, text: str) -> None:
        """Append ``text``, which ends with a line end. Raises :class:`WriteFailed` where that is not possible."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            raise WriteFailed(self.path, error.strerror, hint=None) from None

    def close(self) -> None:
        """Close the file."""
        # ``write`` has already reported what could not be written.
        with suppress(OSError):
            self._stream.close()


class MetricsLog:
    """An event sink that writes training events as JSON lines (``PREFIX_log.jsonl``).

    Every line has ``event`` (start, train, test, snapshot, end), ``phase`` (train or test), ``iteration`` and ``seconds`` since the
    start. Start lines also have ``time`` (Unix time), ``name``, ``type``, ``run`` (identifier) and ``resumed_from``; train lines ``loss`` (smoothed), ``lr`` and ``outputs``;
    test lines ``net``, ``outputs``, and ``loss`` where the solver computes it. ``outputs`` maps a blob to its number, or to a list
    where it has several. A value that is not finite is null.

    Args:
        write: Receives each line, with its line end.
    """

    def __init__(self, write: Callable[[str], object]):
        self._write = write
        self._start: float | None = None
        self._iteration = 0

    def __call__(self, event: Event) -> None:
        """Write the line of an event; events without one are ignored."""
        if isinstance(event, Progress):
            self._iteration = event.done
        elif isinstance(event, Started):
            self._start, self._iteration = event.time, int(event.details.get("iteration", 0))
            facts: dict[str, Any] = {"time": event.time, "name": event.details.get("net", ""), "type": event.details.get("solver", "")}
            facts |= {"run": event.details.get("run", ""), "resumed_from": event.details.get("resumed_from", "")}
            self._line(event, "start", self._iteration, **facts)
        elif isinstance(event, Metrics):
            values: dict[str, Any] = {"loss": _finite(event.loss), "lr": _finite(event.lr), "outputs": _grouped(event.outputs)}
            self._line(event, "train", event.iteration, **values)
        elif isinstance(event, Tested):
            loss = {} if event.loss is None else {"loss": _finite(event.loss)}
            self._line(event, "test", event.iteration, phase="test", net=event.net, **loss, outputs=_grouped(event.outputs))
        elif isinstance(event, CheckpointWritten):
            self._line(event, "snapshot", event.iteration, weights=Path(event.weights).name, state=Path(event.state).name)
        elif isinstance(event, Finished) and event.status != "failed":
            self._line(event, "end", self._iteration, stopped=event.status != "done")

    def _line(self, event: Event, kind: str, iteration: int, *, phase: str = "train", **rest: object) -> None:
        start = event.time if self._start is None else self._start
        line = {"event": kind, "phase": phase, "iteration": iteration, "seconds": round(event.time - start, 6), **rest}
        self._write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _grouped(outputs: Mapping[str, float]) -> dict[str, Any]:
    """Return outputs with the values ``name[0]``, ``name[1]``… of one blob as a list."""
    values: dict[str, Any] = {}
    for key, value in outputs.items():
        name, bracket, index = key.removesuffix("]").rpartition("[")
        if not (bracket and index.isdecimal() and f"{name}[0]" in outputs and f"{name}[1]" in outputs):
            values[key] = _finite(value)
        else:
            values.setdefault(name, []).append(_finite(value))
    return values


def _finite(value: float) -> float | None:
    """Return a float32 in as many digits as it has, or None where JSON has no number for it."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
