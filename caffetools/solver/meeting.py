"""How the processes of a run find each other."""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from caffetools.errors import RunFailed

# Where the launcher's store listens; under torchrun it is the agent that keeps one.
STORE = "CAFFETOOLS_STORE"
# Seconds that a process waits for another one before it gives up.
TIMEOUT = "CAFFETOOLS_TIMEOUT"
_DEFAULT_TIMEOUT = 600.0


def launched() -> bool:
    """Whether this process was started as one of several that work together, by torchrun or by our launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_root() -> bool:
    """Whether this process is the one that tests, logs and saves; one that was started alone is."""
    return not launched() or int(os.environ["RANK"]) == 0


def meet(*, cuda: bool) -> tuple[int, int, int, Any, Any]:
    """Meet the others, as the environment says: rank, size, rank on this machine, a store for last words, and a group of CPUs for messages.

    Raises:
        RunFailed: they did not come in time.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timedelta(seconds=float(os.environ.get(TIMEOUT, _DEFAULT_TIMEOUT)))
    start = time.monotonic()
    try:
        base = _open_store(limit)
        store = dist.PrefixStore(f"caffetools/{_attempt(base, rank, size, limit)}", base)  # type: ignore[attr-defined]
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunFailed(f"process {rank} of {size} did not meet the others within {time.monotonic() - start:.0f} s: {why}") from error
    # Our launcher starts a run once, and leaves word in its store.
    words = base if STORE in os.environ else store
    return rank, size, int(os.environ.get("LOCAL_RANK", rank)), words, control


def _open_store(limit: timedelta) -> Any:
    if STORE in os.environ:
        host, _, port = os.environ[STORE].rpartition(":")
        return dist.TCPStore(host, int(port), timeout=limit)  # type: ignore[attr-defined]
    return next(iter(dist.rendezvous("env://", timeout=limit)))[0]  # type: ignore[attr-defined]


def _attempt(store: Any, rank: int, size: int, limit: timedelta) -> str:
    """A name for this start of the run that all its processes know.

    torchrun starts a run again with the same store, where addresses of processes lie that are no more. So each process says hello with
    a word of its own, and the root answers to every word it finds, old ones too, until all have said that they heard it.
    """
    store = dist.PrefixStore("caffetools/meeting", store)  # type: ignore[attr-defined]
    if rank:
        word = secrets.token_hex(8)
        store.set(f"hello/{rank}", word)
        store.wait([f"answer/{word}"], limit)
        name: str = store.get(f"answer/{word}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return name
    name, end = secrets.token_hex(8), time.monotonic() + limit.total_seconds()
    missing = set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"heard/{name}/{other}"])}
        if time.monotonic() > end:
            raise RuntimeError(f"{len(missing)} of them did not come")
        time.sleep(0.02)
    return name
