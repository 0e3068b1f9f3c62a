"""Log lines as the ``caffe`` command prints them (glog's format), so that the tools that read its logs also read ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from caffetools.solver.callbacks import Observer, Output, TestResult, TrainStats
from caffetools.solver.logs.training_log import LogRow, TrainingLog, read_log

if TYPE_CHECKING:
    from caffetools.net.net import Net
    from caffetools.solver.solver import Solver

__all__ = ["CaffeLog", "GlogWriter", "Log", "LogRow", "TrainingLog", "log_loaded", "log_net", "no_log", "number", "output_text", "read_log"]

# (where in Caffe's sources the line comes from, its text, severity: I, W or E)
Log = Callable[..., None]


def no_log(source: str, text: str, severity: str = "I") -> None:
    """A log that nobody reads."""


class GlogWriter:
    """Formats lines as glog does, ``I1124 03:22:05.190337 14691 solver.cpp:239] text``, and hands each to every one of ``sinks``."""

    def __init__(self, *sinks: Callable[[str], object], clock: Callable[[], datetime] = datetime.now):
        self.sinks = list(sinks)
        self._clock = clock

    def __call__(self, source: str, text: str, severity: str = "I") -> None:
        """Write one line (or a text of several, under one head)."""
        head = f"{severity}{self._clock():%m%d %H:%M:%S.%f} {threading.get_native_id() or os.getpid():5d} {source}] "
        for sink in self.sinks:
            sink(f"{head}{text}\n")


def number(value: float) -> str:
    """A number as a C++ stream prints it: six significant digits."""
    return f"{value:.6g}"


def output_text(output: Output) -> str:
    """``loss = 0.0123 (* 1 = 0.0123 loss)``; the parenthesis only where the blob has a loss weight."""
    text = f"{output.name} = {number(output.value)}"
    if output.weight:
        weight = np.float32(output.weight)
        text += f" (* {number(float(weight))} = {number(float(weight * np.float32(output.value)))} loss)"
    return text


class CaffeLog(Observer):
    """Writes a solver's progress as Caffe's solver.cpp does."""

    def __init__(self, log: Log):
        self.log = log
        self._rate_line: str | None = None
        self._step = 0

    def started(self, solver: Solver) -> None:
        """Name the net and the policy."""
        self.log("solver.cpp:289", f"Solving {solver.net.name}")
        self.log("solver.cpp:290", f"Learning Rate Policy: {solver.param.lr_policy}")

    def stepping(self, solver: Solver) -> None:
        """Remember where multistep stands."""
        self._step = solver.learning_rate.current_step

    def displayed(self, solver: Solver, what: TrainStats) -> None:
        """The loss, the outputs, and the learning rate once it is certain which line comes between."""
        if what.last:
            self.log("solver.cpp:327", f"Iteration {what.iteration}, loss = {number(what.loss)}")
            return
        speed = f"{number(what.per_second)} iter/s, {number(what.seconds)}s/{solver.param.display} iters"
        self.log("solver.cpp:239", f"Iteration {what.iteration} ({speed}), loss = {number(what.loss)}")
        for index, output in enumerate(what.outputs):
            self.log("solver.cpp:258", f"    Train net output #{index}: {output_text(output)}")
        self._rate_line = f"Iteration {what.iteration}, lr = {number(what.rate)}"

    def before_update(self, solver: Solver) -> None:
        """The step that multistep takes at this iteration, and the learning rate of a displayed one."""
        step = solver.learning_rate.current_step
        if step != self._step and solver.param.lr_policy == "multistep":
            self.log("sgd_solver.cpp:50", f"MultiStep Status: Iteration {solver.iteration}, step = {step}")
        self._step = step
        if self._rate_line is not None:
            self.log("sgd_solver.cpp:112", self._rate_line)
            self._rate_line = None

    def testing(self, solver: Solver, net: int) -> None:
        """Which net is tested."""
        self.log("solver.cpp:347", f"Iteration {solver.iteration}, Testing net (#{net})")

    def tested(self, solver: Solver, what: TestResult) -> None:
        """The mean outputs."""
        if what.loss is not None:
            self.log("solver.cpp:393", f"Test loss: {number(what.loss)}")
        for index, output in enumerate(what.outputs):
            self.log("solver.cpp:414", f"    Test net output #{index}: {output_text(output)}")

    def finished(self, solver: Solver, stopped: bool) -> None:
        """How it ended."""
        if stopped:
            self.log("solver.cpp:316", "Optimization stopped early.")
        else:
            self.log("solver.cpp:332", "Optimization Done.")


def log_net(log: Log, net: Net, text: str) -> None:
    """The lines that tell how ``net`` was built; ``text`` is its prototxt."""
    log("net.cpp:53", f"Initializing net from parameters: \n{text.rstrip()}")
    for layer in net.layers:
        log("net.cpp:124", f"Setting up {layer.name}")
        for top, shape in zip(layer.tops, layer.top_shapes, strict=False):
            log("net.cpp:131", f"Top shape: {_shape(shape)}")
            if top in net.loss_weights:
                log("net.cpp:134", f"    with loss weight {number(net.loss_weights[top])}")
    for name in net.outputs:
        log("net.cpp:244", f"This network produces output {name}")
    log("net.cpp:257", "Network initialization done.")


def log_loaded(log: Log, path: str, report: Any) -> None:
    """What became of a weights file (a ``LoadReport``): layers loaded, fresh and unused; a warning where nothing fitted."""
    log("solver.cpp:72", f"Finetuning from {path}")
    for name in report.unused:
        log("net.cpp:740", f"Ignoring source layer {name}")
    if report.loaded:
        log("net.cpp:750", f"Layers loaded from {path}: {_listed(report.loaded)}")
    else:
        log(
            "net.cpp:750",
            f"No layer was loaded from {path}: it has no layer of the net's names, so training starts from scratch",
            "W",
        )
    if report.fresh:
        log("net.cpp:750", f"Layers that start fresh: {_listed(report.fresh)}")


def _shape(shape: Sequence[int]) -> str:
    dims = " ".join(str(n) for n in shape)
    return f"{dims} ({int(np.prod(shape, dtype=np.int64))})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
