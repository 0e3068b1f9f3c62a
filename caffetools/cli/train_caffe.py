"""``caffetools train|test|time --engine caffe``: the same commands, carried out by real Caffe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffetools.cli.show import console, print_json, print_next
from caffetools.errors import CaffeToolsError

if TYPE_CHECKING:
    from caffetools.solver.caffe_process import CaffeTrainResult

_DEFAULTS = {"gpu": "", "stage": "", "level": 0, "sigint_effect": "stop", "sighup_effect": "snapshot", "phase": "TRAIN"}


def caffe_flags(engine: str, flags: Mapping[str, object]) -> list[str]:
    """Return Caffe's flags that differ from its own defaults, for ``test`` and ``time``. Raises :class:`CaffeToolsError` for an unknown engine."""
    _check_engine(engine)
    return [f"--{name}={value}" for name, value in flags.items() if value != _DEFAULTS[name]]


def _check_engine(engine: str) -> None:
    if engine not in ("caffe", "caffetools"):
        raise CaffeToolsError(f"unknown engine '{engine}'; it is caffetools or caffe")
    if engine == "caffetools":
        raise CaffeToolsError("--engine-image is the image of --engine caffe; give that too")


def train_by_caffe(
    engine: str,
    image: str,
    path: Path,
    flags: Mapping[str, Any],
    ours: Sequence[str],
    start: Mapping[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run ``caffe train``.

    Args:
        engine: The value of ``--engine``.
        image: The value of ``--engine-image``.
        path: The solver.
        flags: Caffe's own flags by name.
        ours: Options given that only caffetools has.
        start: Weights, snapshot, resume and log, as keyword arguments of ``train_with_caffe``.
        quiet: Print nothing but errors.
        as_json: Print the result as JSON.

    Raises:
        CaffeToolsError: An engine that is unknown, or options that real Caffe does not have.
        RunFailed: Caffe failed.
    """
    _check_engine(engine)
    if ours:
        raise CaffeToolsError(f"{', '.join(ours)}: real Caffe has no such option; set it in the solver, or leave --engine out")
    from caffetools.cli.train_bar import terminal
    from caffetools.solver.caffe_process import train_with_caffe

    arguments = [f"--{name}={value}" for name, value in flags.items() if value != _DEFAULTS[name]]
    bar, echo = terminal(quiet)
    with bar as events:
        done = train_with_caffe(path, image=image or None, arguments=arguments, echo=echo, events=events, **start)
    if as_json:
        print_json(_as_json(done))
    elif not quiet:
        _report(done, path)


def _report(done: CaffeTrainResult, solver: Path) -> None:
    """Print what was trained, how good it is, and the next command."""
    from caffetools.project.config import command
    from caffetools.project.next_step import after_training
    from caffetools.proto.text import read_solver

    console.print(f"Real Caffe {'stopped' if done.stopped else 'has ended'} at iteration {done.iteration}.")
    for test in done.history.test[-1:]:
        scores = ", ".join(f"{output.name} {output.value:.4g}" for output in test.outputs)
        console.print(f"  test net #{test.net} at iteration {test.iteration}: {scores}", markup=False)
    if done.snapshot is not None:
        console.print(f"  weights   {done.snapshot.weights}\n  state     {done.snapshot.state}", markup=False)
    console.print(f"  log       {done.log}", markup=False)
    if done.snapshot is not None and done.stopped:
        print_next(command("train", solver, "--engine", "caffe", "--resume", "auto"))
    elif done.snapshot is not None:
        print_next(after_training(solver, Path(done.snapshot.weights), next(iter(read_solver(solver).test_iter), 0)))


def _as_json(done: CaffeTrainResult) -> dict[str, Any]:
    saved = done.snapshot
    return {
        "iteration": done.iteration,
        "stopped": done.stopped,
        "weights": str(saved.weights) if saved is not None else None,
        "state": str(saved.state) if saved is not None else None,
        "log": str(done.log),
        "tests": [
            {"net": t.net, "iteration": t.iteration, "outputs": {o.name: o.value for o in t.outputs}} for t in done.history.test[-1:]
        ],
    }
