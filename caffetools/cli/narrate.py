"""How a pipeline's events look on a terminal: numbered steps with their commands, and bars while something takes time."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from caffetools.cli.show import Progress as Advance
from caffetools.cli.show import console, note, progress
from caffetools.events import Event, Finished, Progress, Started, Warned

if TYPE_CHECKING:
    from types import TracebackType

_DOING = {"dataset": "Reading pictures", "fetch": "Fetching", "classify": "Classifying", "export": "Verifying"}


class TerminalSink:
    """Event sink that prints steps on stdout; progress bars go to stderr if it is a terminal. Use it as a context manager."""

    def __init__(self) -> None:
        self._count = 0
        self._bar: tuple[str, ExitStack, Advance] | None = None
        self._training: Any = None

    def __enter__(self) -> TerminalSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Started) and "step" in event.details:
            self._close()
            self._count += 1
            console.print(f"\n{self._count}. {event.title}", style="bold")
            for part in event.command.split("; ") if event.command else []:
                console.print(f"   $ {part}", style="dim")
        elif isinstance(event, Started):
            self._start_training(event)
        elif isinstance(event, Progress) and self._training is None:
            self._advance(event)
        elif isinstance(event, Warned):
            self._close()
            note(event.message)
        elif isinstance(event, Finished):
            self._finish(event)
        elif self._training is not None:
            self._training(event)

    def _start_training(self, event: Started) -> None:
        self._close()
        if not sys.stderr.isatty():
            return
        from caffetools.cli.train_bar import TrainBar

        stack = ExitStack()
        self._training = stack.enter_context(TrainBar())
        self._training(event)
        self._bar = (event.task, stack, lambda done, total: None)

    def _advance(self, event: Progress) -> None:
        if self._bar is None or self._bar[0] != event.task:
            self._close()
            stack = ExitStack()
            bar: AbstractContextManager[Advance] = progress(_DOING.get(event.task, event.task.capitalize()))
            self._bar = (event.task, stack, stack.enter_context(bar))
        self._bar[2](event.done, event.total)

    def _finish(self, event: Finished) -> None:
        self._close()
        if event.status == "done" and event.message:
            for line in event.message.splitlines():
                console.print(f"   {line}", markup=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar[1].close()
        self._bar = self._training = None
