"""Log lines as the ``caffe`` command prints them (glog's format), so that the tools that read its logs also read ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from caffetools.proto.schema import SolverParameter
from caffetools.solver.callbacks import Callback
from caffetools.solver.control import Log, Output, RunControl, TestResult, TrainStats, no_log
from caffetools.solver.logs.training_log import LogRow, TrainingLog, read_log
from caffetools.solver.policies import LearningRate

if TYPE_CHECKING:
    from caffetools.net.net import Net
    from caffetools.net.weights import LoadReport

__all__ = ["CaffeLog", "GlogWriter", "Log", "LogRow", "TrainingLog", "log_loaded", "log_net", "no_log", "number", "output_text", "read_log"]


class GlogWriter:
    """Format lines as glog does, ``I1124 03:22:05.190337 14691 solver.cpp:239] text``, and pass each to all of ``sinks``."""

    def __init__(self, *sinks: Callable[[str], object], clock: Callable[[], datetime] = datetime.now):
        self.sinks = list(sinks)
        self._clock = clock

    def __call__(self, source: str, text: str, severity: str = "I") -> None:
        """Write one line, or a text of several lines under one prefix."""
        head = f"{severity}{self._clock():%m%d %H:%M:%S.%f} {threading.get_native_id() or os.getpid():5d} {source}] "
        for sink in self.sinks:
            sink(f"{head}{text}\n")


def number(value: float) -> str:
    """Format a number as a C++ stream does: six significant digits."""
    return f"{value:.6g}"


def output_text(output: Output) -> str:
    """Format an output as ``loss = 0.0123 (* 1 = 0.0123 loss)``; the parenthesis only where the blob has a loss weight."""
    text = f"{output.name} = {number(output.value)}"
    if output.weight:
        weight = np.float32(output.weight)
        text += f" (* {number(float(weight))} = {number(float(weight * np.float32(output.value)))} loss)"
    return text


class CaffeLog(Callback):
    """Write the progress of a solver as Caffe's solver.cpp does.

    Args:
        log: Receives the lines.
        param: The ``SolverParameter``.
        learning_rate: The solver's learning rate policy.
    """

    def __init__(self, log: Log, param: SolverParameter, learning_rate: LearningRate):
        self.log, self._param, self._learning_rate = log, param, learning_rate
        self._rate_line: str | None = None
        self._step = 0

    def on_train_begin(self, run: RunControl) -> None:
        """Log the net and the policy."""
        self.log("solver.cpp:289", f"Solving {run.net_name}")
        self.log("solver.cpp:290", f"Learning Rate Policy: {self._param.lr_policy}")

    def on_step_begin(self, run: RunControl) -> None:
        """Keep the step of the policy."""
        self._step = self._learning_rate.current_step

    def on_log(self, run: RunControl, stats: TrainStats) -> None:
        """Log the loss and the outputs; the learning rate follows before the update."""
        if stats.last:
            self.log("solver.cpp:327", f"Iteration {stats.iteration}, loss = {number(stats.loss)}")
            return
        speed = f"{number(stats.per_second)} iter/s, {number(stats.seconds)}s/{self._param.display} iters"
        self.log("solver.cpp:239", f"Iteration {stats.iteration} ({speed}), loss = {number(stats.loss)}")
        for index, output in enumerate(stats.outputs):
            self.log("solver.cpp:258", f"    Train net output #{index}: {output_text(output)}")
        self._rate_line = f"Iteration {stats.iteration}, lr = {number(stats.rate)}"

    def on_before_update(self, run: RunControl) -> None:
        """Log the step that the policy takes at this iteration, and the learning rate of a displayed one."""
        step = self._learning_rate.current_step
        if step != self._step and self._param.lr_policy == "multistep":
            self.log("sgd_solver.cpp:50", f"MultiStep Status: Iteration {run.iteration}, step = {step}")
        elif step != self._step and self._param.lr_policy == "plateau":
            self.log("sgd_solver.cpp:50", f"Plateau Status: Iteration {run.iteration}, step = {step}")
        self._step = step
        display, rate = self._param.display, self._learning_rate
        if self._param.lr_policy == "plateau" and display and run.iteration % display == 0 and rate.last_event > run.iteration - display:
            minimum = number(rate.minimum_loss)
            self.log("sgd_solver.cpp:112", f"Plateau Status: Iteration {run.iteration}, current minimum_loss = {minimum}")
        if self._rate_line is not None:
            self.log("sgd_solver.cpp:112", self._rate_line)
            self._rate_line = None

    def on_test_begin(self, run: RunControl, net: int) -> None:
        """Log which net is tested."""
        self.log("solver.cpp:347", f"Iteration {run.iteration}, Testing net (#{net})")

    def on_test_end(self, run: RunControl, result: TestResult) -> None:
        """Log the mean outputs."""
        if result.loss is not None:
            self.log("solver.cpp:393", f"Test loss: {number(result.loss)}")
        for index, output in enumerate(result.outputs):
            self.log("solver.cpp:414", f"    Test net output #{index}: {output_text(output)}")

    def on_train_end(self, run: RunControl, stopped: bool) -> None:
        """Log how it ended."""
        if stopped:
            self.log("solver.cpp:316", "Optimization stopped early.")
        else:
            self.log("solver.cpp:332", "Optimization Done.")


def log_net(log: Log, net: Net, text: str) -> None:
    """Log how ``net`` was built; ``text`` is its prototxt."""
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


def log_loaded(log: Log, path: str, report: LoadReport) -> None:
    """Log which layers a weights file filled (a ``LoadReport``), which start fresh and which are unused; warn if none matched."""
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
