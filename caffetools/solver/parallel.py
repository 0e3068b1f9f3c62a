"""Several processes that train one net together (torch.distributed): who is who, what they tell each other, and how they end.

The processes are started by torchrun, or by :mod:`caffetools.solver.launch`. The first one (rank 0, the root) tests, logs and takes
snapshots. An error in one process ends all of them, and one process says why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.solver.meeting import is_root, launched, meet

__all__ = ["Lost", "World", "is_root", "join", "launched", "say"]

T = TypeVar("T")

# What the root tells those who wait for it.
_BUSY, _DONE = 0, 1
# Seconds to wait for a process that fails to say why; between two signs of life of a root that is busy.
_LAST_WORDS, _HEARTBEAT = 3.0, 20.0
# Under these names the store keeps what went wrong, and who shows it to the user.
_ERROR, _CLAIMS = "caffetools/error", "caffetools/claims"


class Lost(RunFailed):
    """The others cannot be reached any more. ``shown``: another process tells the user why."""

    def __init__(self, message: str, *, shown: bool):
        self.shown = shown
        super().__init__(message)


@dataclass
class World:
    """The processes of a run, as one of them sees them; alone it is the root, and nothing below costs anything.

    Attributes:
        rank: Its number of ``size``. local_rank: its number on its machine, which is its GPU's too.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    control: Any = None
    _heard: float = field(default_factory=time.monotonic)

    @property
    def root(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def place(self, device: torch.device) -> torch.device:
        """This process' own of the machine's devices of that kind."""
        if device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise CaffeToolsError(
                f"process {self.rank} has no GPU: {torch.cuda.device_count()} CUDA device(s) here; start no more processes than devices"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set in any process. All must ask at the same point."""
        if self.alone:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, dist.ReduceOp.MAX, self.control)
        return [bool(value) for value in values]

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each number over all processes. All must ask at the same point."""
        if self.alone:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return [float(value) for value in total / self.size]

    def share(self, value: Any = None) -> Any:
        """The root's ``value`` (whatever JSON can hold) in every process."""
        return value if self.alone else self._spread(json.dumps(value) if self.root else "", 0)

    def gather(self, value: Any) -> list[Any]:
        """Every process' ``value`` (whatever JSON can hold), by rank, in every process."""
        if self.alone:
            return [value]
        text = json.dumps(value)
        return [self._spread(text if rank == self.rank else "", rank) for rank in range(self.size)]

    def copy_from_root(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite ``tensors`` with the root's, in place."""
        if not self.alone:
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.detach().copy_(whole)

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Run ``work`` in the root while the others wait; its result there, None elsewhere."""
        if self.alone:
            return work()
        if self.root:
            self._heard = time.monotonic()
            result = work()
            self._tell(_DONE)
            return result
        while self._tell(_BUSY) == _BUSY:
            pass
        return None

    def heartbeat(self) -> None:
        """To be called by what runs long inside of :meth:`run_on_main`: those who wait must not take the root for dead."""
        if not self.alone and self.root and time.monotonic() - self._heard > _HEARTBEAT:
            self._heard = time.monotonic()
            self._tell(_BUSY)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns the many errors of a broken connection into :class:`Lost`, with the reason if the process at fault gave one."""
        try:
            yield
        except RuntimeError as error:
            if self.alone or not _is_connection(error):
                raise
            raise self._lost() from error

    # ---- inside ----

    def _spread(self, text: str, source: int) -> Any:
        length = torch.tensor([len(text.encode())])
        dist.broadcast(length, source, self.control)
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        if self.rank != source:
            data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, source, self.control)
        return json.loads(data.numpy().tobytes())

    def _tell(self, word: int) -> int:
        message = torch.tensor([word])
        dist.broadcast(message, 0, self.control)
        return int(message)

    def _lost(self) -> Lost:
        """What became of the others: their own words, or that there were none."""
        said = _words(self.store)
        silence = "the connection to another process broke off, or it did not answer (was it killed, or its machine lost?)"
        text = said["text"] if said else silence
        shown = bool(said and said["shown"]) or not self._claim()
        return Lost(f"training in {self.size} processes has ended: {text}", shown=shown)

    def _claim(self) -> bool:
        """Whether it is this process that shows the error: the first that asks."""
        try:
            return int(self.store.add(_CLAIMS, 1)) == 1
        except RuntimeError:
            return self.local_rank == 0

    def failed(self, error: BaseException) -> BaseException:
        """What to raise in this process for ``error``: itself, or a quiet exit where another process shows what happened."""
        code = getattr(error, "exit_code", 1)
        if isinstance(error, Lost):
            return SystemExit(code) if error.shown else error
        if not self._claim():
            return SystemExit(code)
        text = str(error) if isinstance(error, CaffeToolsError) else f"{type(error).__name__}: {error}"
        if not self.root:
            text = f"process {self.rank} of {self.size}: {text}"
        with suppress(RuntimeError):
            say(self.store, text, shown=True)
        if self.root or not isinstance(error, CaffeToolsError):
            return error
        named = RunFailed(text)
        named.exit_code = code
        return named


@contextmanager
def join(*, cuda: bool = False) -> Iterator[World]:
    """Meet the other processes of this run; leave them when the block ends. A process that was started alone gets a world of one.

    Args:
        cuda: Gradients may lie on GPUs, and are exchanged by NCCL then; gloo does so between CPUs.

    Raises:
        RunFailed: the others did not come, or were lost. SystemExit: something failed, and another process tells the user what.
    """
    if not launched():
        yield World()
        return
    world = World(*meet(cuda=cuda and torch.cuda.is_available()))
    try:
        with world.guarded():
            yield world
            # Nobody leaves while another still needs it.
            world.any(False)
    except BaseException as error:
        raised = world.failed(error)
        if raised is error:
            raise
        raise raised from None
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def say(store: Any, text: str, *, shown: bool) -> None:
    """Leave word in the ``store`` of what went wrong; ``shown`` is whether the user has been told."""
    store.set(_ERROR, json.dumps({"text": text, "shown": shown}))


def _words(store: Any) -> Mapping[str, Any] | None:
    try:
        store.wait([_ERROR], timedelta(seconds=_LAST_WORDS))
        return dict(json.loads(store.get(_ERROR)))
    except (RuntimeError, ValueError):
        return None


def _is_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection", "Socket"))
