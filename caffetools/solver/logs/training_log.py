"""Reading logs of training: Caffe's own, ours, and our JSON lines."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from caffetools.errors import DataError
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.util.standard_input import open_input

_STAMP = re.compile(r"^.*?[IWEF](\d{4})?(\d{2})(\d{2}) (\d{2}):(\d{2}):(\d{2})\.(\d{1,6})\s+\d+ [\w.]+:\d+\] ?")
# A whole number only: a damaged one ("0..5") must not be read as its beginning. Caffe built by Visual Studio writes 1.#QNAN, -1.#IND, 1.#INF
# and -nan(ind).
_NUMBER = r"([-+]?(?:1\.#(?:[QS]NAN|IND|INF)|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf))(?![\w.#+-])"
_ITERATION = re.compile(r"Iteration (\d{1,10})\b")
# NVCaffe adds the epoch: "Iteration 20 (9.9 iter/s, 2.0s/20 iter), 0.8/90ep, loss = 6.9".
_LOSS = re.compile(r"Iteration \d+(?: \(.*?\))?(?:, [\d.]+/[\d.]+ep)?, loss = " + _NUMBER)
_RATE = re.compile(r"Iteration (\d{1,10}), lr = " + _NUMBER)
_TESTING = re.compile(r"Testing net \(#(\d{1,6})\)")
_OUTPUT = re.compile(r"(Train|Test) net output #\d+: ((?:(?! = ).)+) = " + _NUMBER)
_TEST_LOSS = re.compile(r"Test loss: " + _NUMBER)

# Files of which it is said that they hold nothing of a training; others are named for what they are.
_TEXTS = (Kind.TEXT, Kind.LOG, Kind.JSON, Kind.NET_TEXT, Kind.SOLVER_TEXT, Kind.PYTHON, Kind.EMPTY)


@dataclass
class LogRow:
    """What was logged at one iteration, of training or of one test net.

    Attributes:
        seconds: since the run's start. lr: the rate of this iteration's update (of the last displayed one, for tests); NaN if unknown.
        loss: the smoothed loss, where it was logged. outputs: blob → value; the further values of a blob are ``name[1]``, ….
        net: which test net.
    """

    iteration: int
    seconds: float
    lr: float = math.nan
    loss: float | None = None
    outputs: dict[str, float] = field(default_factory=dict)
    net: int = 0


@dataclass
class TrainingLog:
    """The rows of a log in the order of iterations. Where a run was resumed, repeated iterations replace the earlier ones."""

    train: list[LogRow] = field(default_factory=list)
    test: list[LogRow] = field(default_factory=list)

    def add_train(self, row: LogRow) -> LogRow:
        """Append a row of training."""
        while self.train and self.train[-1].iteration >= row.iteration:
            self.train.pop()
        self.train.append(row)
        return row

    def add_test(self, row: LogRow) -> LogRow:
        """Append a row of a test."""
        while self.test and (self.test[-1].iteration, self.test[-1].net) >= (row.iteration, row.net):
            self.test.pop()
        self.test.append(row)
        return row


def read_log(path: str | os.PathLike[str]) -> TrainingLog:
    """Read a log of ``caffe train`` or ``caffetools train`` (old and new glog dates), or a .jsonl of the latter.

    A line that was cut short by a crash is skipped.

    Raises:
        DataError: the file cannot be read, or holds nothing about training.
    """
    try:
        with open_input(path) as file:
            lines = _text(file.read()).splitlines()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None
    first = next((line for line in lines if line.strip()), "")
    log = _read_json(lines, path) if first.lstrip().startswith("{") else _read_glog(lines)
    if not (log.train or log.test):
        expected = "a log of `caffe train` or `caffetools train`"
        if other := wrong_kind(DataError, path, expected, allowed=_TEXTS):
            raise other
        raise DataError(f"{os.fspath(path)}: holds no lines of a training run; {expected} is expected")
    return log


def _text(data: bytes) -> str:
    """Return a log's text: UTF-8, or UTF-16 with its mark, as PowerShell writes what it redirects."""
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig", errors="replace")


class GlogReader:
    """Reads the lines of a log as they come, in Caffe's words.

    Attributes:
        log: what was read so far. iteration: the last one that a line named; None before the first.
    """

    def __init__(self) -> None:
        self.log = TrainingLog()
        self.iteration: int | None = None
        self._seconds = _Seconds()
        self._row: LogRow | None = None
        self._lr, self._net = math.nan, 0
        self._smoothed: float | None = None
        self._test_loss: float | None = None
        # The smoothed losses: all there is where a net's outputs are not displayed.
        self._losses = TrainingLog()

    def feed(self, line: str) -> None:
        """Take the next line."""
        now = self._seconds.at(line)
        rate = _RATE.search(line)
        if rate:
            self._lr = _number(rate[2])
            for log in (self.log, self._losses):
                if log.train and log.train[-1].iteration == int(rate[1]):
                    log.train[-1].lr = self._lr
            return
        self._head(line, now)
        output = _OUTPUT.search(line)
        if output is None or self.iteration is None:
            return
        if self._row is None and output[1] == "Train":
            self._row = self.log.add_train(LogRow(self.iteration, now, self._lr, self._smoothed))
        elif self._row is None:
            self._row = self.log.add_test(LogRow(self.iteration, now, self._lr, self._test_loss, net=self._net))
        _put(self._row.outputs, output[2], _number(output[3]))

    def finish(self) -> TrainingLog:
        """Return what was read; of a log without outputs in training, as of the first releases of Caffe, the smoothed losses as ``loss``."""
        self.log.train = self.log.train or self._losses.train
        return self.log

    def _head(self, line: str, now: float) -> None:
        """Parse a line that is not an output for the facts on the outputs that follow it."""
        found = _ITERATION.search(line)
        if found:
            self.iteration, self._row = int(found[1]), None
            loss = _LOSS.search(line)
            self._smoothed = _number(loss[1]) if loss else None
            if self._smoothed is not None:
                self._losses.add_train(LogRow(self.iteration, now, self._lr, self._smoothed, {"loss": self._smoothed}))
            testing = _TESTING.search(line)
            self._net, self._test_loss = int(testing[1]) if testing else self._net, None
        loss = _TEST_LOSS.search(line)
        if loss:
            self._test_loss = _number(loss[1])


def _number(text: str) -> float:
    sign, hash_, word = text.partition("#")
    if not hash_:
        return float(text)
    return (-math.inf if sign.startswith("-") else math.inf) if word == "INF" else math.nan


def _read_glog(lines: list[str]) -> TrainingLog:
    reader = GlogReader()
    for line in lines:
        reader.feed(line)
    log = reader.finish()
    _fill_first_rates(log)
    return log


def _fill_first_rates(log: TrainingLog) -> None:
    """A test before the first update ran at the rate that was displayed first."""
    first = next((row.lr for row in log.train if not math.isnan(row.lr)), math.nan)
    for row in (*log.train, *log.test):
        if math.isnan(row.lr):
            row.lr = first


def _put(outputs: dict[str, float], name: str, value: float) -> None:
    copies = sum(1 for known in outputs if known == name or known.startswith(f"{name}["))
    outputs[f"{name}[{copies}]" if copies else name] = value


class _Seconds:
    """Seconds since the run began (the first line with "Solving"), from the lines' dates; classic ones have no year."""

    def __init__(self) -> None:
        self._last: datetime | None = None
        self._years = 0
        self._start: datetime | None = None
        self._solving = False

    def at(self, line: str) -> float:
        time = self._time(line)
        if time is None:
            return math.nan
        if self._start is None or (not self._solving and "] Solving " in line):
            self._start, self._solving = time, "] Solving " in line
        return round((time - self._start).total_seconds(), 6)

    def _time(self, line: str) -> datetime | None:
        stamp = _STAMP.match(line)
        if stamp is None:
            return self._last
        year, month, day, hour, minute, second, fraction = stamp.groups()
        try:
            rolled = not year and self._last is not None and int(month) < self._last.month
            self._years += rolled
            start = datetime(int(year) if year else 2000 + self._years, int(month), 1, int(hour), int(minute), int(second))
            # Days are added, so that a 29 February is not an error in a year that is only guessed.
            time = start + timedelta(days=int(day) - 1, microseconds=int(fraction.ljust(6, "0")))
        except (ValueError, OverflowError):
            return self._last
        self._last = time
        return time


def _read_json(lines: Iterable[str], path: str | os.PathLike[str]) -> TrainingLog:
    log = TrainingLog()
    offset, last, lr = 0.0, 0.0, math.nan
    for number, event in _events(lines):
        if event.get("event") == "start":
            # A resumed run appends to the file: its clock continues where the other stopped.
            offset = last
        try:
            row = _json_row(event, offset)
        except (AttributeError, OverflowError, TypeError, ValueError):
            raise DataError("damaged: not what a training run writes", path=path, line=number) from None
        last = row.seconds
        if event.get("event") == "train":
            lr = row.lr
            log.add_train(row)
        elif event.get("event") == "test":
            row.lr = lr
            log.add_test(row)
    _fill_first_rates(log)
    return log


def _json_row(event: dict[str, Any], offset: float) -> LogRow:
    """Return the row of an event of ``PREFIX_log.jsonl``, its seconds counted from ``offset``."""
    outputs: dict[str, float] = {}
    for name, value in (event.get("outputs") or {}).items():
        for part in value if isinstance(value, list) else [value]:
            _put(outputs, name, math.nan if part is None else float(part))
    lr, loss, iteration = event.get("lr"), event.get("loss"), int(event.get("iteration", 0))
    if not 0 <= iteration < 2**31:
        raise ValueError
    return LogRow(
        iteration,
        round(offset + float(event.get("seconds", 0.0)), 6),
        math.nan if lr is None else float(lr),
        None if loss is None else float(loss),
        outputs,
        int(event.get("net", 0)),
    )


def _events(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line that holds an event, and the event; lines that a crash cut short are left out."""
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and ("iteration" in event or event.get("event") == "start"):
            yield number, event
