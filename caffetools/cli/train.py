"""``caffetools train``: a solver prototxt in, snapshots and a log out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.show import console

if TYPE_CHECKING:
    from caffetools.solver.training import Trained


def train(
    solver: Annotated[Path, typer.Argument(help="The solver's prototxt.", show_default=False)],
    weights: Annotated[
        str, typer.Option("--weights", "-w", metavar="FILE[,FILE]", help="Start from the layers of these .caffemodel files.")
    ] = "",
    snapshot: Annotated[Path | None, typer.Option("--snapshot", "-s", metavar="FILE", help="Go on from this .solverstate.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    max_iter: Annotated[int | None, typer.Option(help="Train for so many iterations, whatever the solver says.")] = None,
    log: Annotated[Path | None, typer.Option(help="Write the log here.  [default: PREFIX.log]", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors; the log is written all the same.")] = False,
) -> None:
    """Train the net of a solver prototxt as [bold]caffe train[/bold] does.

    Snapshots are PREFIX_iter_N.caffemodel and .solverstate. The log has Caffe's words; PREFIX_log.jsonl has the same for scripts.
    Ctrl-C takes a snapshot and stops, a second one stops at once; SIGHUP takes a snapshot and goes on.
    """
    from caffetools.solver import training

    bar: Any = nullcontext()
    echo: Callable[[str], object] | None = None
    if not quiet and sys.stderr.isatty():
        from caffetools.cli.train_bar import TrainBar

        bar = TrainBar()
        echo = bar.echo
    elif not quiet:
        echo = sys.stderr.write
    with bar as observer:
        done = training.train(
            solver,
            weights=[name.strip() for name in weights.split(",") if name.strip()],
            snapshot=snapshot,
            device=device,
            max_iter=max_iter,
            log=log,
            echo=echo,
            observers=[observer] if observer is not None else [],
        )
    if not quiet:
        _report(done, solver)


def _report(done: Trained, solver: Path) -> None:
    """Say what there is now, and how to go on."""
    saved, iteration = done.snapshot, done.solver.iteration
    console.print(f"{'Stopped' if done.stopped else 'Trained'} at iteration {iteration}.")
    for test in done.history.test[-len(done.solver.test_nets) :] if done.solver.test_nets else []:
        scores = ", ".join(f"{output.name} {output.value:.4g}" for output in test.outputs)
        console.print(f"  test net #{test.net} at iteration {test.iteration}: {scores}")
    if saved is not None:
        console.print(f"  weights   {saved.weights}\n  state     {saved.state}")
    console.print(f"  log       {done.log}\n  metrics   {done.metrics}")
    if done.stopped and saved is not None:
        console.print(f"Go on with: caffetools train {solver} --snapshot {saved.state}")
