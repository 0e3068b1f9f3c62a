"""Train by the ``caffe`` module of another Python as ``caffe train`` does: same flags, log lines, signals and snapshots.

Started by :mod:`caffetools.engines.caffe`; Python 3.8 and later, needs nothing of ours. A signal acts after the current iteration.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Protocol

_KNOWN = ("solver", "weights", "snapshot", "gpu", "level", "stage", "sigint_effect", "sighup_effect")


class _Solver(Protocol):
    """The part of a solver of caffe's Python module that is used between iterations."""

    def snapshot(self) -> None:
        """Write a snapshot."""


class _Stopped(Exception):
    """Ends the training after a snapshot."""


def main(words: list[str]) -> None:
    # This folder holds a caffe.py of ours.
    sys.path.pop(0)
    flags = {name.replace("-", "_"): value for name, _, value in (word.lstrip("-").partition("=") for word in words if word != "train")}
    unknown = [name for name in flags if name not in _KNOWN]
    if unknown:
        _fatal("the flag --" + unknown[0] + " is not known to caffe's Python module")
    caffe = importlib.import_module("caffe")
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
    solver.add_callback(lambda: _act(solver, wanted), lambda: None)
    try:
        solver.solve()
    except _Stopped:
        _log("solver.cpp:316", "Optimization stopped early.")
    _log("caffe.cpp:250", "Optimization Done.")


def _wish(effect: str, wanted: list[str]) -> Callable[[int, FrameType | None], None]:
    """Return a signal handler that notes what is wanted."""

    def handle(number: int, frame: FrameType | None) -> None:
        wanted.append(effect)

    return handle


def _act(solver: _Solver, wanted: list[str]) -> None:
    """Do what the signals since the last iteration asked for."""
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
    if asked:
        _log("caffe.cpp:218", "Using GPUs " + (gpu or str(param.device_id)))
        caffe.set_device(int(gpu or param.device_id))
        caffe.set_mode_gpu()
    else:
        _log("caffe.cpp:197", "Use CPU.")
        caffe.set_mode_cpu()
    if "level" not in flags and "stage" not in flags:
        return path
    param.train_state.level = int(flags.get("level", "0"))
    param.train_state.stage.extend(filter(None, flags.get("stage", "").split(",")))
    copy = os.path.join(folder, "solver.prototxt")  # noqa: PTH118
    with open(copy, "w", encoding="utf-8") as stream:  # noqa: PTH123
        stream.write(text_format.MessageToString(param))
    return copy


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
