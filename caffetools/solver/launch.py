"""Start the processes of a training on this machine through torchrun's agent (torch.distributed.elastic).

The agent starts ``caffetools`` once for each process, with its rank in the environment, watches them, starts them again where that
is asked for, and ends all when one fails. Here signals are passed on to them, and one message names the rank that failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from types import FrameType
from typing import TYPE_CHECKING, Any

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.solver.strategy import launched
from caffetools.util.process_settings import RUN_SIGNALS, environment_restored, logger_level
from caffetools.util.threads import limit_openmp

if TYPE_CHECKING:
    from caffetools.solver.agent import Agent

# Seconds that the other processes have to end by themselves at SIGTERM once one has failed.
_SHUTDOWN_TIMEOUT = 20


def relaunch(processes: int | None, gpus: str, arguments: Sequence[str], restarts: int = 0) -> int | None:
    """Run ``caffetools ARGUMENTS`` once for each process that ``--processes`` or Caffe's ``--gpu`` asks for.

    Args:
        processes: Value of ``--processes``; None if not given.
        gpus: Value of ``--gpu``; empty if not given.
        arguments: The command line, without the program's name.
        restarts: How often all processes are started again when one fails.

    Returns:
        The exit code; None where nothing is to be started: one process is enough, or this is one of several already.

    Raises:
        CaffeToolsError: The devices do not exist, or the two options contradict each other.
        RunFailed: As :func:`launch`.
    """
    if launched():
        return None
    numbers = devices(gpus) if gpus else []
    if numbers and processes not in (None, len(numbers)):
        raise CaffeToolsError(f"--gpu={gpus} asks for {len(numbers)} process(es), so --processes {processes} does not fit; leave it out")
    count = len(numbers) if numbers else 1 if processes is None else processes
    return None if count == 1 else launch(count, arguments, numbers, restarts)


def launch(count: int, arguments: Sequence[str], gpus: Sequence[int] = (), restarts: int = 0) -> int:
    """Run ``caffetools ARGUMENTS`` in ``count`` processes that train together, and wait for their end.

    SIGINT, SIGTERM and SIGHUP are passed on to all of them. When one fails, the others end too.

    Args:
        count: Number of processes.
        arguments: The command line, without the program's name.
        gpus: CUDA devices to use, one for each process; any if empty.
        restarts: How often all processes are started again when one fails; give ``--resume auto`` with it.

    Returns:
        The exit code: 0, or that of the process that failed.

    Raises:
        CaffeToolsError: ``count`` is below 1.
        RunFailed: A process was ended by a signal (killed, out of memory).
    """
    if count < 1:
        raise CaffeToolsError(f"the number of processes must be at least 1, not {count}")
    with tempfile.TemporaryDirectory(prefix="caffetools_") as folder, environment_restored():
        # The processes share the cores; each would use all of them.
        limit_openmp(count)
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
        agent = _agent(count, ["-m", "caffetools", *arguments], folder, restarts)
        # One message states what failed.
        with _passing_on(agent), logger_level("torch.distributed.elastic", logging.CRITICAL):
            result = agent.run()
    return _exit_code(result.failures, agent.first_ended, count) if result.is_failed() else 0


def devices(gpu: str) -> list[int]:
    """Return the GPUs that Caffe's ``--gpu`` names: ``all``, or numbers with commas between. Raises :class:`CaffeToolsError`."""
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
            raise CaffeToolsError(
                f"--gpu={gpu}: there is no CUDA device {number} here ({f'only 0 to {there - 1}' if there else 'there are none'})"
            )
    if len(set(numbers)) != len(numbers):
        raise CaffeToolsError(f"--gpu={gpu}: names a device twice")
    return numbers


def _visible(gpus: Sequence[int]) -> str:
    """Return which devices the processes may see, by the numbers that the system has for them."""
    known = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = known.split(",") if known else None
    return ",".join(names[number] if names else str(number) for number in gpus)


def _agent(count: int, arguments: Sequence[str], folder: str, restarts: int) -> Agent:
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    from caffetools.solver.agent import Agent

    # As torchrun --standalone.
    where = RendezvousParameters(
        backend="c10d", endpoint="localhost:0", run_id=str(uuid.uuid4()), min_nodes=1, max_nodes=1, local_addr="127.0.0.1", is_host=True
    )
    spec = WorkerSpec(
        role="train",
        local_world_size=count,
        entrypoint=sys.executable,
        args=tuple(arguments),
        rdzv_handler=get_rendezvous_handler(where),
        max_restarts=restarts,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    options: dict[str, Any] = {"logs_specs": DefaultLogsSpecs(log_dir=folder)}
    if "shutdown_timeout" in signature(Agent.__init__).parameters:
        # Older releases of torch wait 30 seconds.
        options["shutdown_timeout"] = _SHUTDOWN_TIMEOUT
    return Agent(spec, **options)


@contextmanager
def _passing_on(agent: Agent) -> Iterator[None]:
    """Pass signals on to the processes during the block, so that they write their snapshot; the agent itself would end them."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in agent.get_worker_group().workers:
            with suppress(ProcessLookupError, TypeError):
                os.kill(worker.id, number)

    # Newer releases of torch set handlers for the signals that this variable names, others for all.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, pass_on) for number in RUN_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(failures: Mapping[int, Any], first: Collection[int], count: int) -> int:
    """Return the exit code of the process that failed; it has reported its error itself, unless a signal ended it.

    Args:
        failures: torch's record of each process that failed, by rank; those that the agent ended are among them.
        first: Ranks of the processes that had ended before; empty where that is unknown.
        count: Number of processes.

    Raises:
        RunFailed: A signal ended it.
    """
    ended = {rank: failure.exitcode for rank, failure in failures.items()}
    killed = {rank: -code for rank, code in ended.items() if code < 0 and -code != signal.SIGTERM}
    reported = [code for code in ended.values() if code > 0]
    if killed:
        rank, number = min(killed.items(), key=lambda item: (item[0] not in first, item[0]))
        hint = ", maybe because memory ran out" if number == getattr(signal, "SIGKILL", None) else ""
        raise RunFailed(f"process {rank} of {count} was ended by {signal.Signals(number).name}{hint}")
    return reported[0] if reported else 1
