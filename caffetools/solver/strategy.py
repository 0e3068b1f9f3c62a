"""How the processes of a training work together: one process alone, or several through torch.distributed.

Several processes are started by torchrun, or by ``--processes`` (:mod:`caffetools.solver.launch`), whose agent gives each its rank,
starts them again and ends them. The main process (rank 0) tests, logs and writes snapshots. An error in one process ends all of
them, and one of them reports it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from caffetools.errors import CaffeToolsError, RunFailed
from caffetools.solver.presence import Presence

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket, Store

T = TypeVar("T")

# Environment variable: seconds that a process waits for another one in a collective operation before it gives up.
TIMEOUT = "CAFFETOOLS_TIMEOUT"
_DEFAULT_TIMEOUT = 600.0
# Tests and snapshots of the main process take as long as they take; one that has died is noticed at once.
_NO_TIMEOUT = timedelta(days=30)
# Most seconds that a process which has lost another one waits for that one's report, or for the agent to end it, which takes a while
# on a busy machine.
_REPORT_TIMEOUT = timedelta(seconds=30)
# Keys of the store: how many processes wanted to report a failure, and the text of the one that did.
_REPORTERS, _REPORT = "caffetools/reporters", "caffetools/report"


class PeerLost(RunFailed):
    """Another process cannot be reached any more.

    Args:
        message: What happened.
        reported: Whether another process reports the error.
    """

    def __init__(self, message: str, *, reported: bool):
        super().__init__(message)
        self.reported = reported


class Strategy(Protocol):
    """The processes of a training as one of them sees them. All processes must call the same methods at the same points."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this process tests, logs and writes snapshots."""

    def setup(self, device: torch.device) -> torch.device:
        """Return the device of this process, of the kind of ``device``."""

    def wrap(self, module: torch.nn.Module, device: torch.device, *, find_unused: bool) -> torch.nn.Module:
        """Return ``module`` with its gradients averaged over all processes after each backward pass."""

    def all_reduce(self, values: Sequence[float], op: str = "mean") -> list[float]:
        """Return the ``mean`` or ``max`` of each number over all processes."""

    def broadcast(self, value: object = None) -> Any:
        """Return the main process's ``value`` (what JSON can hold) in every process."""

    def gather(self, value: object) -> list[Any]:
        """Return every process's ``value`` (what JSON can hold), by rank."""

    def copy_from_main(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` (any shape) in place by the main process's."""

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Run ``work`` in the main process while the others wait; return its result there, None elsewhere."""

    def launcher_is_gone(self) -> bool:
        """Return whether the process that started this one has ended."""

    def connected(self) -> Any:
        """Return a context in which a broken connection raises :class:`PeerLost`."""


class SingleProcess:
    """One process; nothing is exchanged."""

    rank, size, is_main = 0, 1, True

    def setup(self, device: torch.device) -> torch.device:
        """Return ``device``."""
        return device

    def wrap(self, module: torch.nn.Module, device: torch.device, *, find_unused: bool) -> torch.nn.Module:
        """Return ``module``."""
        return module

    def all_reduce(self, values: Sequence[float], op: str = "mean") -> list[float]:
        """Return the numbers."""
        return list(values)

    def broadcast(self, value: object = None) -> Any:
        """Return ``value``."""
        return value

    def gather(self, value: object) -> list[Any]:
        """Return ``value`` in a list."""
        return [value]

    def copy_from_main(self, tensors: list[Tensor]) -> None:
        """Do nothing."""

    def barrier(self) -> None:
        """Do nothing."""

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Run ``work``."""
        return work()

    def launcher_is_gone(self) -> bool:
        """Return False."""
        return False

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Do nothing."""
        yield


class DDP:
    """Several processes by DistributedDataParallel: gloo between CPUs, NCCL between GPUs.

    Rank, number and addresses come from torchrun's environment variables.

    Args:
        cuda: Whether gradients may be on GPUs.

    Raises:
        RunFailed: The other processes did not join in time.
    """

    def __init__(self, *, cuda: bool):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._parent = os.getppid()
        # Whether an exchange with the others has failed.
        self._broken = False
        limit = timedelta(seconds=float(os.environ.get(TIMEOUT, _DEFAULT_TIMEOUT)))
        self._report_limit = min(limit, _REPORT_TIMEOUT)
        try:
            base = next(iter(dist.rendezvous("env://", timeout=limit)))[0]  # type: ignore[attr-defined]
            attempt = _agree_on_attempt(base, self.rank, self.size, limit)
            self._store: Any = dist.PrefixStore(f"caffetools/{attempt}", base)  # type: ignore[attr-defined]
            store = dist.PrefixStore("group", self._store)  # type: ignore[attr-defined]
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=limit)
            self._control: Any = dist.new_group(backend="gloo", timeout=limit)
            self._untimed_group: Any = dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)
            self._presence = Presence(self._store, self.rank, self.size)
        except (RuntimeError, ValueError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunFailed(f"process {self.rank} of {self.size} could not join the others: {why}") from error

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def setup(self, device: torch.device) -> torch.device:
        """Return the GPU of this process's local rank, or ``device`` if it is not a GPU.

        Raises:
            CaffeToolsError: There are fewer GPUs than processes.
        """
        if device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise CaffeToolsError(
                f"process {self.rank} has no GPU: {torch.cuda.device_count()} CUDA device(s) here; start no more processes than devices"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def wrap(self, module: torch.nn.Module, device: torch.device, *, find_unused: bool) -> torch.nn.Module:
        """Return ``module`` in DistributedDataParallel. Its buffers are constants, which every process reads for itself."""
        devices = [device] if device.type == "cuda" else None
        for parameter in module.parameters():
            if parameter.requires_grad and 1 in parameter.shape[1:]:
                parameter.register_hook(partial(_with_strides, strides=parameter.stride()))  # type: ignore[no-untyped-call]
        with self._exchange():
            wrapped = torch.nn.parallel.DistributedDataParallel(
                module, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=find_unused
            )
        # The argument of this name is deprecated in newer releases, and the new one missing in older ones.
        wrapped.broadcast_buffers = False
        wrapped.register_comm_hook(None, lambda _, bucket: self._average(bucket))
        return wrapped

    def all_reduce(self, values: Sequence[float], op: str = "mean") -> list[float]:
        """Return the ``mean`` or ``max`` of each number over all processes."""
        total = torch.tensor(list(values), dtype=torch.float64)
        with self._exchange():
            dist.all_reduce(total, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, self._control)
        return (total if op == "max" else total / self.size).tolist()

    def broadcast(self, value: object = None) -> Any:
        """Return the main process's ``value`` in every process."""
        return self._spread(json.dumps(value) if self.is_main else "", 0)

    def gather(self, value: object) -> list[Any]:
        """Return every process's ``value``, by rank."""
        text = json.dumps(value)
        return [self._spread(text if rank == self.rank else "", rank) for rank in range(self.size)]

    def copy_from_main(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` (any shape) in place by the main process's."""
        with self._exchange():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.detach().copy_(whole)

    def barrier(self) -> None:
        """Wait until all processes are here, however long it takes."""
        with self._exchange():
            dist.barrier(self._untimed_group)

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Run ``work`` in the main process while the others wait."""
        result = work() if self.is_main else None
        self.barrier()
        return result

    def launcher_is_gone(self) -> bool:
        """Return whether the process that started this one has ended."""
        return os.getppid() != self._parent

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Raise :class:`PeerLost` for an error of an exchange inside the block, as of the gradients in a backward pass."""
        try:
            yield
        except RuntimeError as error:
            # Only NCCL's errors and the store's have a type of their own; gloo's are noted where they arise.
            if isinstance(error, CaffeToolsError) or not (self._broken or isinstance(error, dist.DistError)):
                raise
            raise self._lost() from error

    def close(self) -> None:
        """Leave the other processes."""
        self._presence.close()
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def error_to_raise(self, error: BaseException) -> BaseException:
        """Return what this process raises for ``error``: itself, or a silent exit where another process reports the failure."""
        code = getattr(error, "exit_code", 1)
        if isinstance(error, PeerLost):
            return SystemExit(code) if error.reported else error
        if not self._claim_report():
            return SystemExit(code)
        text = str(error) if isinstance(error, CaffeToolsError) else f"{type(error).__name__}: {error}"
        text = text if self.is_main else f"process {self.rank} of {self.size}: {text}"
        with suppress(RuntimeError):
            self._store.set(_REPORT, text)
        if self.is_main or not isinstance(error, Exception):
            return error
        named = RunFailed(text)
        named.exit_code = code
        return named

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Raise :class:`PeerLost` for any error inside the block, which does nothing but an exchange with the others."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost() from error

    def _average(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Start to average gradients over all processes, as DistributedDataParallel does by itself, and note an error."""

        def averaged(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            try:
                return done.value()[0]
            except RuntimeError:
                self._broken = True
                raise

        try:
            work = dist.all_reduce(bucket.buffer().div_(self.size), async_op=True)
        except RuntimeError:
            self._broken = True
            raise
        return work.get_future().then(averaged)

    def _spread(self, text: str, source: int) -> Any:
        length = torch.tensor([len(text.encode())])
        with self._exchange():
            dist.broadcast(length, source, self._control)
            data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
            if self.rank != source:
                data = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, source, self._control)
        return json.loads(data.numpy().tobytes())

    def _lost(self) -> PeerLost:
        """Return the error for a lost process, after giving that process time to report its own."""
        if threading.current_thread() is threading.main_thread():
            # The agent ends the processes that are left; until it does, another one may report.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._presence.ask()
        try:
            self._store.wait([_REPORT], self._report_limit)
            text, reported = self._store.get(_REPORT).decode(), True
        except RuntimeError:
            if lost := self._presence.lost():
                text = f"no answer from {lost} (killed, stopped, or the machine lost?)"
            else:
                text = "the connection to another process broke off, or a step took too long; all processes still run"
            reported = not self._claim_report()
        return PeerLost(f"training in {self.size} processes has ended: {text}", reported=reported)

    def _claim_report(self) -> bool:
        """Return whether it is this process that reports the failure: the first that asks."""
        try:
            return int(self._store.add(_REPORTERS, 1)) == 1
        except RuntimeError:
            return self.local_rank == 0


def launched() -> bool:
    """Return whether this process was started as one of several, by torchrun or ``--processes``."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_main() -> bool:
    """Return whether this process tests, logs and writes snapshots; one that was started alone does."""
    return not launched() or int(os.environ["RANK"]) == 0


@contextmanager
def join(*, cuda: bool = False) -> Iterator[Strategy]:
    """Join the other processes of this training, and leave them at the end of the block.

    Args:
        cuda: Whether gradients may be on GPUs.

    Yields:
        :class:`DDP`, or :class:`SingleProcess` in a process that was started alone.

    Raises:
        RunFailed: The others did not join, or were lost.
        SystemExit: Something failed, and another process reports it.
    """
    if not launched():
        yield SingleProcess()
        return
    strategy = DDP(cuda=cuda and torch.cuda.is_available())
    try:
        yield strategy
        # No process leaves while another still needs it.
        strategy.barrier()
    except BaseException as error:
        raised = strategy.error_to_raise(error)
        if raised is error:
            raise
        raise raised from None
    finally:
        strategy.close()


def _agree_on_attempt(store: Store, rank: int, size: int, limit: timedelta) -> str:
    """Return a name for this start of the processes that all of them know.

    torchrun starts processes again with the same store, which still has the addresses of those that have ended, and the agents of
    several machines count restarts differently. So each process writes a random word, and the main one answers every word it finds,
    old ones too, until all have confirmed the answer.
    """
    store = dist.PrefixStore("caffetools/attempt", store)  # type: ignore[attr-defined]
    if rank:
        word = secrets.token_hex(8)
        store.set(f"word/{rank}", word)
        store.wait([f"answer/{word}"], limit)
        name: str = store.get(f"answer/{word}").decode()
        store.set(f"confirmed/{name}/{rank}", "")
        return name
    name, end = secrets.token_hex(8), time.monotonic() + limit.total_seconds()
    missing = set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"word/{other}"]):
                store.set(f"answer/{store.get(f'word/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"confirmed/{name}/{other}"])}
        if time.monotonic() > end:
            raise RuntimeError(f"{len(missing)} of them did not come")
        time.sleep(0.02)
    return name


def _with_strides(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``gradient`` with ``strides`` where these differ on axes of size 1 only, about which torch would warn."""
    differing = [size for size, mine, stride in zip(gradient.shape, gradient.stride(), strides, strict=True) if mine != stride]
    return gradient.as_strided(gradient.shape, strides) if differing and max(differing) == 1 else gradient
