"""``time``: how long each layer of a net takes, forward and back, as ``caffe time`` measures it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, Progress, ignore, reported
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.solver.control import Log, no_log
from caffetools.solver.logs.caffe_log import number


@dataclass(frozen=True)
class LayerTime:
    """A layer's mean times over the iterations, in milliseconds."""

    name: str
    type: str
    forward: float
    backward: float


@dataclass(frozen=True)
class Timings:
    """Mean times in milliseconds: of each layer, of the layers together forward and back, and of a whole iteration."""

    layers: list[LayerTime]
    forward: float
    backward: float
    iteration: float
    iterations: int


def time_net(
    net: Net, iterations: int = 50, *, log: Log = no_log, events: EventSink = ignore, cancel: CancelToken | None = None
) -> Timings:
    """Run ``net`` layer by layer, ``iterations`` times forward and back, after one pass that is not counted.

    Layers are waited for one by one, so a run of the whole net, in which a device need not wait, can be faster than their sum.

    Args:
        net: The net.
        iterations: How many times to run it, at least 1.
        log: Receives the lines that ``caffe time`` prints.
        events: Receives ``Started``, ``Progress`` in iterations, and ``Finished``.
        cancel: Checked before every iteration.

    Raises:
        CaffeToolsError: ``iterations`` is below 1.
        DataError: A data layer cannot read its data.
        NetError: A layer cannot run.
        Cancelled: ``cancel`` was cancelled.
    """
    if iterations < 1:
        raise CaffeToolsError(f"iterations must be at least 1, not {iterations}")
    with reported("time", f"Timing {net.name or 'the net'}", events):
        return _measure(net, iterations, log, events, cancel or CancelToken())


def _measure(net: Net, iterations: int, log: Log, events: EventSink, cancel: CancelToken) -> Timings:
    clock = _Clock(net)
    log("caffe.cpp:351", "Performing Forward")
    log("caffe.cpp:356", f"Initial loss: {number(clock.run.forward())}")
    log("caffe.cpp:357", "Performing Backward")
    clock.run.backward()
    log("caffe.cpp:365", "*** Benchmark begins ***")
    log("caffe.cpp:366", f"Testing for {iterations} iterations.")
    clock.start()
    total = 0.0
    for done in range(1, iterations + 1):
        cancel.raise_if_cancelled("the measurement")
        seconds = clock.iterate()
        total += seconds
        log("caffe.cpp:394", f"Iteration: {done} forward-backward time: {clock.milliseconds(seconds)} ms.")
        events(Progress(task="time", done=done, total=iterations, unit="iterations"))
    timings = clock.means(iterations, total)
    _log_means(log, timings, clock.milliseconds(total), iterations)
    return timings


class _Clock:
    """Adds up what each layer takes."""

    def __init__(self, net: Net):
        self.net = net
        self.run = Stepwise(net)
        self._device = net.device
        self._forward = [0.0] * len(net.layers)
        self._backward = [0.0] * len(net.layers)
        self._since = 0.0

    def start(self) -> None:
        """From now on every layer is timed."""
        for before in (self.run.before_forward, self.run.before_backward):
            before.append(self._begin)
        self.run.after_forward.append(lambda index: self._end(self._forward, index))
        self.run.after_backward.append(lambda index: self._end(self._backward, index))

    def iterate(self) -> float:
        """Go forward and back once; the seconds that took."""
        began = self._now()
        self.run.forward()
        self.run.backward()
        self.run.clear_param_diffs()
        return self._now() - began

    def means(self, iterations: int, total: float) -> Timings:
        """Return the means in milliseconds."""
        forward, backward = ([1000 * seconds / iterations for seconds in times] for times in (self._forward, self._backward))
        layers = [LayerTime(item.name, item.type_name, f, b) for item, f, b in zip(self.net.layers, forward, backward, strict=True)]
        return Timings(layers, sum(forward), sum(backward), 1000 * total / iterations, iterations)

    def milliseconds(self, seconds: float) -> str:
        """Milliseconds as Caffe prints them: whole ones on the CPU."""
        return str(int(1000 * seconds)) if self._device.type == "cpu" else number(1000 * seconds)

    def _begin(self, index: int) -> None:
        self._since = self._now()

    def _end(self, times: list[float], index: int) -> None:
        times[index] += self._now() - self._since

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _log_means(log: Log, timings: Timings, total: str, iterations: int) -> None:
    log("caffe.cpp:397", "Average time per layer: ")
    for layer in timings.layers:
        log("caffe.cpp:400", f"{layer.name:>10}\tforward: {number(layer.forward)} ms.")
        log("caffe.cpp:403", f"{layer.name:>10}\tbackward: {number(layer.backward)} ms.")
    log("caffe.cpp:408", f"Average Forward pass: {number(timings.forward)} ms.")
    log("caffe.cpp:410", f"Average Backward pass: {number(timings.backward)} ms.")
    log("caffe.cpp:412", f"Average Forward-Backward: {number(float(total) / iterations)} ms.")
    log("caffe.cpp:414", f"Total Time: {total} ms.")
    log("caffe.cpp:415", "*** Benchmark ends ***")
