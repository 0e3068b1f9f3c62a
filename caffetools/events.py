"""Typed events of long-running work, and the sinks that receive them.

Dataset building, fetching, training (by our engine and by real Caffe), testing, evaluation, export, verification and calibration
all call one sink, a function of one event: the terminal, a JSON-lines file, a notebook or a web page. Order of events:
``Started``, then any number of ``Progress``, ``Metrics``, ``Tested``, ``CheckpointWritten``, ``ArtifactWritten`` and ``Warned``,
then ``Finished``, which comes also after an error or a cancellation.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar, Literal, ParamSpec, TypeVar, cast

from caffetools.cancel import CancelToken
from caffetools.errors import Cancelled

P = ParamSpec("P")
R = TypeVar("R")
Status = Literal["done", "stopped", "cancelled", "failed"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes:
        task: What emits it: ``dataset``, ``fetch``, ``train``, ``test``, ``evaluate``, ``export``, ``import``, ``verify``, ``check``, ``calibrate``…
        time: Seconds since the epoch (Unix time).
    """

    kind: ClassVar[str] = "event"
    task: str = ""
    time: float = field(default_factory=time.time)

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain values for JSON, with ``kind`` first."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Work begins.

    Attributes:
        title: One line for people.
        command: Command line that does the same by hand, if there is one.
        details: Further facts. Training gives ``net``, ``solver``, ``iteration`` and ``max_iter``; a step of a pipeline gives ``step``.
    """

    kind: ClassVar[str] = "started"
    title: str = ""
    command: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """``done`` of ``total`` units are finished; ``total`` is 0 where it is unknown.

    Attributes:
        done: Units finished.
        total: Units in all.
        unit: ``images``, ``iterations``, ``bytes``, ``records``, ``batches``…
    """

    kind: ClassVar[str] = "progress"
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Metrics(Event):
    """Training figures at a displayed iteration.

    Attributes:
        iteration: Iterations completed.
        loss: Smoothed loss (``average_loss``).
        lr: Learning rate of this iteration.
        outputs: Output blob name → value; the values of a blob with several are numbered ``name[0]``, ``name[1]``…
        seconds: Seconds since the previous display.
        iterations_per_second: Over the same time.
    """

    kind: ClassVar[str] = "metrics"
    iteration: int = 0
    loss: float = 0.0
    lr: float = 0.0
    outputs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    iterations_per_second: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tested(Event):
    """A test net was scored.

    Attributes:
        iteration: Training iteration it was tested at.
        net: Index of the test net.
        outputs: Output blob name → mean value, named as for :class:`Metrics`.
        loss: Mean weighted loss, where it is computed.
        seconds: Duration of the test.
    """

    # pytest must not collect it for its name.
    __test__ = False

    kind: ClassVar[str] = "tested"
    iteration: int = 0
    net: int = 0
    outputs: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten(Event):
    """A snapshot is complete on disk: its ``.caffemodel`` (``weights``) and ``.solverstate`` (``state``)."""

    kind: ClassVar[str] = "checkpoint"
    iteration: int = 0
    weights: str = ""
    state: str = ""


@dataclass(frozen=True, kw_only=True)
class ArtifactWritten(Event):
    """A file or folder is complete on disk.

    Attributes:
        path: Where.
        what: Its role: ``lmdb``, ``mean``, ``labels``, ``train_val``, ``deploy``, ``onnx``, ``report``, ``figure``…
    """

    kind: ClassVar[str] = "artifact"
    path: str = ""
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know that does not stop the work. Emitted once, not once an iteration."""

    kind: ClassVar[str] = "warning"
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """Work has ended.

    Attributes:
        status: ``done``; ``stopped`` (early, with a snapshot); ``cancelled``; ``failed``.
        message: The error, or a summary line.
        seconds: Duration.
    """

    kind: ClassVar[str] = "finished"
    status: Status = "done"
    message: str = ""
    seconds: float = 0.0


EventSink = Callable[[Event], None]

KINDS: dict[str, type[Event]] = {
    cls.kind: cls for cls in (Started, Progress, Metrics, Tested, CheckpointWritten, ArtifactWritten, Warned, Finished)
}


def ignore(event: Event) -> None:
    """Discard an event: the sink of work that nobody follows."""


def on_progress(function: Callable[[int, int], object]) -> EventSink:
    """Return a sink that calls ``function(done, total)`` for each ``Progress`` event and discards all others."""

    def sink(event: Event) -> None:
        if isinstance(event, Progress):
            function(event.done, event.total)

    return sink


def reporter(sink: EventSink, task: str, unit: str, cancel: CancelToken | None = None) -> Callable[[int, int], None]:
    """Return a function ``(done, total)`` that emits a ``Progress`` event, for code that reports by such a function.

    Args:
        sink: Receives the events.
        task: The events' task.
        unit: The events' unit.
        cancel: Checked at each call, which raises :class:`~caffetools.errors.Cancelled` after a cancellation.
    """

    def report(done: int, total: int) -> None:
        if cancel is not None:
            cancel.raise_if_cancelled(task)
        sink(Progress(task=task, done=done, total=total, unit=unit))

    return report


def fan_out(sinks: Iterable[EventSink]) -> EventSink:
    """Return a sink that passes each event to all of ``sinks``, in order."""
    targets = tuple(sinks)

    def sink(event: Event) -> None:
        for target in targets:
            target(event)

    return sink


def json_lines(stream: IO[str]) -> EventSink:
    """Return a sink that writes each event to ``stream`` as one line of JSON, flushed."""

    def sink(event: Event) -> None:
        stream.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
        stream.flush()

    return sink


def from_dict(values: Mapping[str, Any]) -> Event:
    """Return the event that :meth:`Event.to_dict` gave ``values`` of. Raises :class:`ValueError` for an unknown kind."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown event kind {kind!r}")
    return KINDS[kind](**rest)


@contextmanager
def reported(task: str, title: str, sink: EventSink) -> Iterator[None]:
    """Emit ``Started`` before the block and ``Finished`` after it, also when it raises.

    Args:
        task: ``task`` of the events.
        title: One line for people.
        sink: Receives the events.
    """
    start = time.perf_counter()
    sink(Started(task=task, title=title))
    status: Status = "failed"
    message = ""
    try:
        yield
        status = "done"
    except Cancelled:
        status = "cancelled"
        raise
    except BaseException as error:
        message = str(error)
        raise
    finally:
        sink(Finished(task=task, status=status, message=message, seconds=time.perf_counter() - start))


def reporting(task: str, title: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of a function with a keyword ``events``, which then also receives ``Started`` and ``Finished`` (:func:`reported`).

    Args:
        task: ``task`` of the events.
        title: One line for people.

    Example:
        >>> @reporting("count", "Count to three")
        ... def count(*, events=ignore):
        ...     events(Progress(task="count", done=3, total=3))
        >>> count(events=lambda event: print(event.kind))
        started
        progress
        finished
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with reported(task, title, cast("EventSink", kwargs.get("events", ignore))):
                return function(*args, **kwargs)

        return call

    return decorate
