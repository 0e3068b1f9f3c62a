"""torchrun's agent with what :mod:`caffetools.solver.launch` needs beyond it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from caffetools.util.process_settings import RUN_SIGNALS


class Agent(LocalElasticAgent):
    """Notes which processes ended before it ends the others, and leaves the handlers of signals as they are.

    torch 2.6 sets handlers that end the processes each time it starts them.

    Attributes:
        first_ended: Ranks of the processes that had ended when the agent last looked; empty where the system cannot say.
    """

    first_ended: frozenset[int] = frozenset()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        handlers = {number: signal.getsignal(number) for number in RUN_SIGNALS}
        try:
            started: dict[int, Any] = super()._start_workers(worker_group)
            return started
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        # The agent's own look ends all processes where one has failed, and does not say which came first.
        self.first_ended = frozenset(worker.global_rank for worker in worker_group.workers if _has_ended(worker.id))
        if hasattr(os, "waitid") and not self.first_ended:
            return RunResult(WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        return result


def _has_ended(process: int) -> bool:
    """Return whether a child process has ended, and leave its exit code to whoever asks for it; False where that cannot be known."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        # Its exit code was asked for already.
        return True
