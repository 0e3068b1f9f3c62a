"""Starting the processes of a run on this machine, as torchrun does, but with signals passed on and one error shown.

Nothing here computes: every process is this very command again, with its number in the environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.util.threads import cpu_count

# The process that started this one; a process whose launcher is gone stops as at Ctrl-C.
LAUNCHER = "CAFFETOOLS_LAUNCHER"
# Seconds that the others have to end by themselves once one has failed, and then to end at SIGTERM.
_SHUTDOWN_TIMEOUT = 20.0
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def relaunch(processes: int | None, gpus: str, arguments: Sequence[str]) -> int | None:
    """Do what ``--processes`` and Caffe's ``--gpu`` ask for: run ``caffetools ARGUMENTS`` once for each process, or for each GPU.

    Returns:
        The exit code; None where nothing is to be started: one process is enough, or this is one of several already.

    Raises:
        CaffeToolsError: there are no such devices, or the two do not fit together. RunFailed: as :func:`launch`.
    """
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    numbers = devices(gpus) if gpus else []
    if numbers and processes not in (None, len(numbers)):
        raise CaffeToolsError(f"--gpu={gpus} means {len(numbers)} process(es), so --processes {processes} does not fit; leave it out")
    count = len(numbers) if numbers else 1 if processes is None else processes
    return None if count == 1 else launch(count, arguments, numbers)


def launch(count: int, arguments: Sequence[str], gpus: Sequence[int] = ()) -> int:
    """Run ``caffetools ARGUMENTS`` in ``count`` processes that train together, and wait for their end.

    SIGINT, SIGTERM and SIGHUP go on to all of them. When one fails, the others end too.

    Args:
        gpus: The CUDA devices to use, one for each process; any where empty.

    Returns:
        The exit code: 0, or that of the process that failed.

    Raises:
        CaffeToolsError: ``count`` is below 1. RunFailed: all ended without a word (killed, out of memory).
    """
    if count < 1:
        raise CaffeToolsError(f"the number of processes must be at least 1, not {count}")
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with _Processes() as processes:
        for rank in range(count):
            processes.start(arguments, _environment(rank, count, store.port) | _visible(gpus))
        return processes.wait(store)


def devices(gpu: str) -> list[int]:
    """The GPUs that Caffe's ``--gpu`` names: ``all``, or numbers with commas between. Raises :class:`CaffeToolsError`."""
    import torch

    there = torch.cuda.device_count()
    if gpu.strip() == "all":
        numbers = list(range(there))
        if not numbers:
            raise CaffeToolsError("--gpu=all: there is no CUDA device here; leave --gpu out, or give --processes for several on the CPU")
        return numbers
    try:
        numbers = [int(number) for number in gpu.split(",")]
    except ValueError:
        raise CaffeToolsError(f"--gpu={gpu}: give numbers with commas between, or all") from None
    for number in numbers:
        if not 0 <= number < there:
            raise CaffeToolsError(f"--gpu={gpu}: there is no CUDA device {number} here (devices: {there})")
    if len(set(numbers)) != len(numbers):
        raise CaffeToolsError(f"--gpu={gpu}: names a device twice")
    return numbers


def orphaned() -> bool:
    """Whether this process was started by :func:`launch`, and the launcher is gone."""
    launcher = os.environ.get(LAUNCHER)
    return launcher is not None and os.getppid() != int(launcher)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, LAUNCHER: os.getpid()}
    mine = {name: str(value) for name, value in number.items()} | {"CAFFETOOLS_STORE": f"127.0.0.1:{port}"}
    # The processes share the cores; each would take all of them.
    threads = {"OMP_NUM_THREADS": str(max(1, cpu_count() // count))}
    return {**threads, **os.environ, **mine}


def _visible(gpus: Sequence[int]) -> dict[str, str]:
    """Which devices the processes may see; what is hidden from this one has no number."""
    if not gpus:
        return {}
    name = "CUDA_VISIBLE_DEVICES"
    known = os.environ[name].split(",") if os.environ.get(name) else None
    return {name: ",".join(known[number] if known else str(number) for number in gpus)}


class _Processes:
    """The processes of a run; a context in which signals are passed on to them. None outlives it."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Processes:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all(0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        # In a session of its own: a Ctrl-C on the terminal then reaches it once, through us.
        command = [sys.executable, "-m", "caffetools", *arguments]
        self._all.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def wait(self, store: Any) -> int:
        """Wait until all have ended; once one fails, see to it that all do."""
        while not (failed := [p for p in self._all if p.poll()]) and any(p.poll() is None for p in self._all):
            time.sleep(0.05)
        if not failed:
            return 0
        first = failed[0]
        if first.returncode < 0:
            self._tell(store, first)
        self._end_all(_SHUTDOWN_TIMEOUT)
        codes = [p.returncode for p in self._all if p.returncode > 0]
        if not codes:
            raise RunFailed(self._exit_message(first))
        return first.returncode if first.returncode > 0 else codes[0]

    def _tell(self, store: Any, dead: subprocess.Popen[bytes]) -> None:
        from caffetools.solver.parallel import say

        # It could not say so itself; whoever loses the connection to it looks here.
        with suppress(RuntimeError):
            say(store, self._exit_message(dead), shown=False)

    def _exit_message(self, dead: subprocess.Popen[bytes]) -> str:
        name = signal.Signals(-dead.returncode).name
        hint = ", maybe because memory ran out" if name == "SIGKILL" else ""
        return f"process {self._all.index(dead)} of {len(self._all)} was ended by {name}{hint}"

    def _end_all(self, patience: float) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + patience
            while any(p.poll() is None for p in self._all) and time.monotonic() < until:
                time.sleep(0.05)
            for process in self._all:
                if process.poll() is None:
                    process.send_signal(number)
        for process in self._all:
            process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for process in self._all:
            if process.poll() is None:
                process.send_signal(number)
