"""The progress bar of ``caffetools train``: loss, learning rate, accuracy, iterations per second and what is left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from rich import progress as bars
from rich.console import Console
from rich.table import Column

from caffetools.cli.show import SafeConsole, write_log
from caffetools.events import CheckpointWritten, Event, EventSink, Metrics, Progress, Started, Tested, ignore

# Places in Caffe's sources whose lines are worth reading at once: what was loaded, resumed, found elsewhere, or drawn.
_SHOWN = (" net.cpp:750", " caffe.cpp:235", " solver.cpp:100", " solver.cpp:44")


class _Speed(bars.ProgressColumn):
    def render(self, task: bars.Task) -> str:
        """Render iterations per second, or seconds per iteration where it is slow."""
        speed = task.speed
        if not speed:
            return ""
        return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"


class TrainBar:
    """A progress bar on stderr: a sink for the events of a training, and a context that yields itself.

    Tests and snapshots are printed above the bar.
    """

    def __init__(self, console: Console | None = None) -> None:
        # On a narrow terminal the bar shrinks first.
        columns = (
            bars.BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            bars.MofNCompleteColumn(table_column=Column(no_wrap=True)),
            bars.TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True)),
            _Speed(table_column=Column(no_wrap=True)),
            bars.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        self._bar = bars.Progress(*columns, console=console or SafeConsole(stderr=True), expand=True)
        self._task: bars.TaskID | None = None
        self._loss = self._accuracy = ""

    def __enter__(self) -> TrainBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def echo(self, line: str) -> None:
        """Print a line of the log above the bar if it is worth reading at once: a warning, or where weights and nets come from."""
        head, _, text = line.partition("] ")
        if line.startswith("W") or head.endswith(_SHOWN):
            self._print(text.rstrip("\n"))

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self._task = self._bar.add_task(str(event.details.get("net") or "training"), total=None, state="")
        elif isinstance(event, Progress) and self._task is not None:
            self._bar.update(self._task, completed=event.done, total=event.total)
        elif isinstance(event, Metrics):
            self._loss = f"loss {event.loss:.3g} lr {event.lr:.3g}"
            self._show()
        elif isinstance(event, Tested):
            self._accuracy = " ".join(f"{name} {value:.1%}" for name, value in event.outputs.items() if "acc" in name.lower())
            scores = ", ".join(f"{name} {value:.4g}" for name, value in event.outputs.items())
            self._print(f"iteration {event.iteration}: test net #{event.net}: {scores}")
            self._show()
        elif isinstance(event, CheckpointWritten):
            self._print(f"iteration {event.iteration}: snapshot {event.weights}")

    def _print(self, text: str) -> None:
        # A closed terminal must not end the run.
        with suppress(OSError):
            self._bar.console.print(text, markup=False)

    def _show(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, state=" ".join(part for part in (self._loss, self._accuracy) if part))


def terminal(quiet: bool) -> tuple[AbstractContextManager[EventSink], Callable[[str], object] | None]:
    """Return how a training is shown: a context that yields an event sink, and what receives the lines of the log (or None)."""
    if quiet:
        return nullcontext(ignore), None
    if not sys.stderr.isatty():
        return nullcontext(ignore), write_log
    bar = TrainBar()
    return bar, bar.echo
