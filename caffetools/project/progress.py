"""Who is told what a pipeline does: each step with the command that does the same by hand, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from caffetools.events import EventSink
from caffetools.results import Step

Progress = Callable[[int, int], None]


class ProgressReporter(Protocol):
    """What a pipeline tells whoever watches; the command line shows it."""

    def step(self, title: str, command: str) -> None:
        """A step begins; ``command`` does the same by hand."""

    def say(self, text: str) -> None:
        """What came of it, a line."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """A context that yields a function ``(done, total)`` for long work."""

    def training(self) -> AbstractContextManager[EventSink]:
        """Return a context that yields a sink for the events of the training."""


class Recorder:
    """Passes everything on to a narrator and keeps the steps, with what was said and how long each took, for the report."""

    def __init__(self, narrator: ProgressReporter):
        self.narrator = narrator
        self.steps: list[Step] = []

    @contextmanager
    def step(self, title: str, command: str) -> Iterator[Callable[[str], None]]:
        """Announce a step, yield a function to say things with, and record it all when the step is done."""
        self.narrator.step(title, command)
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            self.narrator.say(text)

        begin = time.perf_counter()
        yield say
        self.steps.append(Step(title, command, " ".join(said), time.perf_counter() - begin))
