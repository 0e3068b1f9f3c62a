"""Train, test and time by the ``caffe`` module of another Python as the ``caffe`` binary does: same flags, log lines, signals and snapshots.

Started by :mod:`caffetools.engines.caffe`; Python 3.8 and later, needs nothing of ours. A signal acts after the current iteration.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from types import FrameType, ModuleType
from typing import Protocol

_KNOWN = {
    "train": ("solver", "weights", "snapshot", "gpu", "level", "stage", "sigint_effect", "sighup_effect"),
    "test": ("model", "weights", "iterations", "gpu", "level", "stage"),
    "time": ("model", "weights", "iterations", "phase", "gpu", "level", "stage"),
}


class _Solver(Protocol):
    """The part of a solver of caffe's Python module that is used between iterations."""

    def snapshot(self) -> None:
        """Write a snapshot."""


class _Array(Protocol):
    flat: Iterable[float]


class _Blob(Protocol):
    data: _Array


class _Net(Protocol):
    """The part of a net of caffe's Python module that is used."""

    blobs: dict[str, _Blob]
    blob_loss_weights: dict[str, float]
    outputs: list[str]
    _layer_names: Iterable[str]

    def forward(self) -> object:
        """Run all layers."""

    def backward(self) -> object:
        """Compute all gradients."""

    def _forward(self, start: int, end: int) -> object: ...

    def _backward(self, start: int, end: int) -> object: ...


class _Stopped(Exception):
    """Ends the training after a snapshot."""


def main(words: list[str]) -> None:
    # This folder holds a caffe.py of ours.
    sys.path.pop(0)
    # As the binary ends where nobody reads its log any more; Python would ignore the signal and compute on.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    action = next((word for word in words if word in _KNOWN), "train")
    flags = {name.replace("-", "_"): value for name, _, value in (word.lstrip("-").partition("=") for word in words if word != action)}
    unknown = [name for name in flags if name not in _KNOWN[action]]
    if unknown:
        _fatal("the flag --" + unknown[0] + " is not known to caffe's Python module")
    caffe = importlib.import_module("caffe")
    if action == "train":
        _train(caffe, flags)
    else:
        gpu = flags.get("gpu", "")
        _set_mode(caffe, gpu)
        testing = action == "test" or flags.get("phase") == "TEST"
        stages = list(filter(None, flags.get("stage", "").split(",")))
        net = caffe.Net(flags["model"], caffe.TEST if testing else caffe.TRAIN, level=int(flags.get("level", "0")), stages=stages or None)
        for weights in filter(None, flags.get("weights", "").split(",")):
            net.copy_from(weights)
        (_test if action == "test" else _time)(net, int(flags.get("iterations", "50")))


def _train(caffe: ModuleType, flags: dict[str, str]) -> None:
    wanted: list[str] = []
    for number, flag, usual in ((signal.SIGINT, "sigint_effect", "stop"), (signal.SIGHUP, "sighup_effect", "snapshot")):
        effect = flags.get(flag, usual)
        signal.signal(number, signal.SIG_IGN if effect == "none" else _wish(effect, wanted))
    with tempfile.TemporaryDirectory() as folder:
        solver = caffe.get_solver(_solver_file(caffe, flags, folder))
    for weights in filter(None, flags.get("weights", "").split(",")):
        _log("caffe.cpp:128", "Finetuning from " + weights)
        for net in [solver.net, *solver.test_nets]:
            net.copy_from(weights)
    if flags.get("snapshot"):
        _log("caffe.cpp:235", "Resuming from " + flags["snapshot"])
        solver.restore(flags["snapshot"])
    _log("caffe.cpp:239", "Starting Optimization")
    parent = os.getppid()
    solver.add_callback(lambda: _act(solver, wanted, parent), lambda: None)
    try:
        solver.solve()
    except _Stopped:
        _log("solver.cpp:316", "Optimization stopped early.")
    _log("caffe.cpp:250", "Optimization Done.")


def _test(net: _Net, iterations: int) -> None:
    """Log the scores of every batch and their means."""
    _log("caffe.cpp:281", "Running for " + str(iterations) + " iterations.")
    totals: dict[str, list[float]] = {}
    for batch in range(iterations):
        net.forward()
        for name in net.outputs:
            values = [float(value) for value in net.blobs[name].data.flat]
            for value in values:
                _log("caffe.cpp:304", f"Batch {batch}, {name} = {value:.6g}")
            totals[name] = [a + b for a, b in zip(totals.get(name, [0.0] * len(values)), values)]  # noqa: B905 (Python 3.8)
    losses = [weight * sum(totals[name]) for name, weight in net.blob_loss_weights.items() if weight and name in totals]
    _log("caffe.cpp:309", f"Loss: {sum(losses) / iterations:.6g}")
    for name, values in totals.items():
        weight = net.blob_loss_weights.get(name, 0)
        for value in (total / iterations for total in values):
            more = f" (* {weight:.6g} = {weight * value:.6g} loss)" if weight else ""
            _log("caffe.cpp:321", f"{name} = {value:.6g}{more}")


def _time(net: _Net, iterations: int) -> None:
    """Log the mean milliseconds of every layer and of whole passes."""
    _log("caffe.cpp:351", "Performing Forward")
    net.forward()
    _log("caffe.cpp:357", "Performing Backward")
    net.backward()
    _log("caffe.cpp:365", "*** Benchmark begins ***")
    _log("caffe.cpp:366", "Testing for " + str(iterations) + " iterations.")
    names = list(net._layer_names)
    forward, backward, began = [0.0] * len(names), [0.0] * len(names), time.perf_counter()
    for _ in range(iterations):
        for index in range(len(names)):
            start = time.perf_counter()
            net._forward(index, index)
            forward[index] += (time.perf_counter() - start) * 1000 / iterations
        for index in reversed(range(len(names))):
            start = time.perf_counter()
            net._backward(index, index)
            backward[index] += (time.perf_counter() - start) * 1000 / iterations
    total = (time.perf_counter() - began) * 1000
    _log("caffe.cpp:397", "Average time per layer: ")
    for name, there, back in zip(names, forward, backward):  # noqa: B905 (Python 3.8)
        _log("caffe.cpp:400", f"{name:>10}\tforward: {there:.6g} ms.")
        _log("caffe.cpp:403", f"{name:>10}\tbackward: {back:.6g} ms.")
    _log("caffe.cpp:408", f"Average Forward pass: {sum(forward):.6g} ms.")
    _log("caffe.cpp:410", f"Average Backward pass: {sum(backward):.6g} ms.")
    _log("caffe.cpp:412", f"Average Forward-Backward: {total / iterations:.6g} ms.")
    _log("caffe.cpp:414", f"Total Time: {total:.6g} ms.")
    _log("caffe.cpp:415", "*** Benchmark ends ***")


def _wish(effect: str, wanted: list[str]) -> Callable[[int, FrameType | None], None]:
    """Return a signal handler that notes what is wanted."""

    def handle(number: int, frame: FrameType | None) -> None:
        wanted.append(effect)

    return handle


def _act(solver: _Solver, wanted: list[str], parent: int) -> None:
    """Do what the signals since the last iteration asked for; end where the process that reads the log has."""
    if os.getppid() != parent:
        sys.exit(1)
    while wanted:
        effect = wanted.pop(0)
        solver.snapshot()
        if effect == "stop":
            raise _Stopped


def _solver_file(caffe: ModuleType, flags: dict[str, str], folder: str) -> str:
    """Return the solver's file, with --level and --stage in a copy, after the mode was set that it asks for."""
    proto, text_format = importlib.import_module("caffe.proto.caffe_pb2"), importlib.import_module("google.protobuf.text_format")
    path = flags["solver"]
    with open(path, encoding="utf-8") as stream:  # noqa: PTH123 (as the rest: for any Python 3)
        param = text_format.Parse(stream.read(), proto.SolverParameter())
    gpu = flags.get("gpu", "")
    if "," in gpu or gpu == "all":
        _fatal("caffe's Python module trains on one GPU; give --gpu one number")
    asked = gpu or param.solver_mode == proto.SolverParameter.GPU
    if asked and not gpu and not _has_device(caffe, param.device_id):
        _log("caffe.cpp:197", "solver_mode is GPU, but this Caffe has no GPU " + str(param.device_id) + "; it trains on the CPU", "W")
        asked = False
    _set_mode(caffe, (gpu or str(param.device_id)) if asked else "")
    if "level" not in flags and "stage" not in flags:
        return path
    param.train_state.level = int(flags.get("level", "0"))
    param.train_state.stage.extend(filter(None, flags.get("stage", "").split(",")))
    copy = os.path.join(folder, "solver.prototxt")  # noqa: PTH118
    with open(copy, "w", encoding="utf-8") as stream:  # noqa: PTH123
        stream.write(text_format.MessageToString(param))
    return copy


def _set_mode(caffe: ModuleType, gpu: str) -> None:
    """Compute on the GPU of this number, or for "" on the CPU."""
    if gpu:
        _log("caffe.cpp:218", "Using GPUs " + gpu)
        caffe.set_device(int(gpu))
        caffe.set_mode_gpu()
    else:
        _log("caffe.cpp:197", "Use CPU.")
        caffe.set_mode_cpu()


def _has_device(caffe: ModuleType, device: int) -> bool:
    """Return whether this Caffe can use a GPU. One that cannot ends the process, so a child tries."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            caffe.set_device(device)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitpid(child, 0)[1] == 0


def _log(place: str, text: str, severity: str = "I") -> None:
    now = time.strftime("%m%d %H:%M:%S")
    sys.stderr.write(f"{severity}{now}.000000 {os.getpid()} {place}] {text}\n")
    sys.stderr.flush()


def _fatal(text: str) -> None:
    _log("caffe.cpp:0", text, "F")
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
