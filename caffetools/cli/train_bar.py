"""The progress bar of ``caffetools train``: loss, learning rate, accuracy, iterations per second and what is left."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rich import progress as bars
from rich.console import Console
from rich.table import Column

from caffetools.solver.callbacks import Observer, Snapshot, TestResult, TrainStats

if TYPE_CHECKING:
    from caffetools.solver.solver import Solver


# Where the lines come from that tell what was loaded, resumed, found elsewhere, or drawn.
_TOLD = (" net.cpp:750", " caffe.cpp:235", " solver.cpp:100", " solver.cpp:44")


class _Speed(bars.ProgressColumn):
    def render(self, task: bars.Task) -> str:
        """Iterations per second, or seconds per iteration where it is slow."""
        speed = task.speed
        if not speed:
            return ""
        return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"


class TrainBar(Observer):
    """A bar on stderr that follows a solver; a context that yields itself. Tests and snapshots are printed above it."""

    def __init__(self, console: Console | None = None) -> None:
        # The bar gives way to the numbers on a narrow terminal.
        columns = (
            bars.BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            bars.MofNCompleteColumn(table_column=Column(no_wrap=True)),
            bars.TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
            _Speed(table_column=Column(no_wrap=True)),
            bars.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        self._bar = bars.Progress(*columns, console=console or Console(stderr=True, highlight=False, soft_wrap=True), expand=True)
        self._task: bars.TaskID | None = None
        self._loss = self._accuracy = ""

    def __enter__(self) -> TrainBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def echo(self, line: str) -> None:
        """Print a line of the log above the bar where it is worth reading at once: a warning, or where weights and nets come from."""
        head, _, text = line.partition("] ")
        if line.startswith("W") or head.endswith(_TOLD):
            self._print(text.rstrip("\n"))

    def started(self, solver: Solver) -> None:
        """Show the bar."""
        total = int(solver.param.max_iter)
        self._task = self._bar.add_task(solver.net.name or "training", total=total, completed=solver.iteration, state="")

    def after_update(self, solver: Solver) -> None:
        """Move it."""
        if self._task is not None:
            self._bar.update(self._task, completed=solver.iteration)

    def displayed(self, solver: Solver, what: TrainStats) -> None:
        """Show the loss and the learning rate."""
        self._loss = f"loss {what.loss:.3g} lr {what.rate:.3g}"
        self._show()

    def tested(self, solver: Solver, what: TestResult) -> None:
        """Show the accuracy, and print every output."""
        self._accuracy = " ".join(f"{o.name} {o.value:.1%}" for o in what.outputs if "acc" in o.name.lower())
        scores = ", ".join(f"{o.name} {o.value:.4g}" for o in what.outputs)
        self._print(f"iteration {what.iteration}: test net #{what.net}: {scores}")
        self._show()

    def snapshotted(self, solver: Solver, what: Snapshot) -> None:
        """Print its name."""
        self._print(f"iteration {what.iteration}: snapshot {what.weights}")

    def _print(self, text: str) -> None:
        # A terminal that has been closed must not end the run.
        with suppress(OSError):
            self._bar.console.print(text, markup=False)

    def _show(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, state=" ".join(part for part in (self._loss, self._accuracy) if part))
