"""The steps of a pipeline: each emits ``Started`` with the command that does the same by hand, and ``Finished`` with its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from caffetools.cancel import CancelToken
from caffetools.errors import Cancelled
from caffetools.events import EventSink, Finished, Started, Status, Warned, ignore, reporter
from caffetools.results import Step


class Steps:
    """Emits the events of a pipeline's steps, and keeps them for the report.

    Args:
        events: Receives all events, also those of the work inside a step.
        cancel: Checked at the beginning of every step; handed on to the work inside.

    Attributes:
        done: The completed steps, in order.
        seconds: Duration of each step by its title, earlier attempts included.
    """

    def __init__(self, events: EventSink = ignore, cancel: CancelToken | None = None):
        self.events, self.cancel = events, cancel
        self.done: list[Step] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, task: str, title: str, command: str) -> Iterator[Callable[[str], None]]:
        """Run a step; yields a function that adds a line to its result.

        Args:
            task: The events' task.
            title: A few words.
            command: Command line that does the same by hand; several are separated by ``"; "``.

        Raises:
            Cancelled: The work was cancelled.
        """
        if self.cancel is not None:
            self.cancel.raise_if_cancelled(task)
        self.events(Started(task=task, title=title, command=command, details={"step": len(self.done) + 1}))
        lines: list[str] = []
        begin = time.perf_counter()
        status: Status = "failed"
        try:
            yield lines.append
            status = "done"
        except Cancelled:
            status = "cancelled"
            raise
        finally:
            seconds = time.perf_counter() - begin
            self.seconds[title] = self.seconds.get(title, 0.0) + seconds
            self.events(Finished(task=task, status=status, message="\n".join(lines), seconds=seconds))
        self.done.append(Step(title, command, " ".join(lines), self.seconds[title]))

    def add_earlier(self, seconds: Mapping[str, float]) -> None:
        """Add the durations of an earlier, interrupted attempt, by title."""
        for title, value in seconds.items():
            self.seconds[title] = self.seconds.get(title, 0.0) + value
        self.done = [replace(step, seconds=self.seconds[step.title]) for step in self.done]

    def progress(self, task: str, unit: str) -> Callable[[int, int], None]:
        """Return a function ``(done, total)`` that emits ``Progress`` and raises :class:`Cancelled` after a cancellation."""
        return reporter(self.events, task, unit, self.cancel)

    def warn(self, task: str, message: str) -> None:
        """Emit ``Warned``."""
        self.events(Warned(task=task, message=message))
