"""How commands show things: one console, progress bars, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from caffetools.events import Event, Warned

# What library functions call to tell how far they are: (done, total).
Progress = Callable[[int, int], None]

console = Console(highlight=False, soft_wrap=True)


def print_json(answer: Any) -> None:
    """Print ``answer`` as JSON on stdout: what ``--json`` promises a script."""
    sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")


def note(text: str) -> None:
    """Say something on stderr that a user should know, though nothing failed."""
    sys.stderr.write(f"caffetools: note: {text}\n")


def show_warnings(event: Event) -> None:
    """Event sink: show ``Warned`` events as notes on stderr."""
    if isinstance(event, Warned):
        note(event.message)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A progress bar on stderr (a terminal only, gone when done); yields a function ``(done, total)`` for library code to call."""
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
