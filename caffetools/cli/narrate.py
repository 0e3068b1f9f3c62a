"""How the long commands tell what they do: numbered steps with their commands, and bars while something takes time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rich.markup import escape

from caffetools.cli.show import Progress, console, progress

if TYPE_CHECKING:
    from caffetools.events import EventSink


class ConsoleNarrator:
    """Prints steps on stdout; bars go to stderr, where it is a terminal."""

    def __init__(self) -> None:
        self._count = 0

    def step(self, title: str, command: str) -> None:
        """Print the number, the title and the command."""
        self._count += 1
        console.print(f"\n[bold]{self._count}. {escape(title)}[/bold]")
        for part in command.split("; ") if command else []:
            console.print(f"   [dim]$ {escape(part)}[/dim]")

    def say(self, text: str) -> None:
        """Print a line below the step."""
        console.print(f"   {text}", markup=False)

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """A bar."""
        return progress(what)

    def training(self) -> AbstractContextManager[EventSink]:
        """The training bar on a terminal; elsewhere nothing, since the log is in a file."""
        import sys

        if sys.stderr.isatty():
            from caffetools.cli.train_bar import TrainBar

            return TrainBar()
        from caffetools.events import ignore

        return nullcontext(ignore)


class SilentNarrator(ConsoleNarrator):
    """Prints nothing: for ``--json``."""

    def step(self, title: str, command: str) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """Nothing to see."""
        return nullcontext(lambda done, total: None)

    def training(self) -> AbstractContextManager[EventSink]:
        """Nothing to see."""
        from caffetools.events import ignore

        return nullcontext(ignore)
