"""``caffetools train``: a solver prototxt in, snapshots and a log out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.gflags import Gpu, Level, SighupEffect, SigintEffect, Stage, chosen_device, glog_folder, quiet_by_glog, split
from caffetools.cli.options import Dialect, Plugin
from caffetools.cli.show import console
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, fan_out

if TYPE_CHECKING:
    from caffetools.solver.callbacks import Callback
    from caffetools.solver.distributed import ComputeOptions
    from caffetools.solver.run import TrainResult


Processes = Annotated[
    int | None, typer.Option("--processes", "-n", help="Train in so many processes on this machine, each with the net's batch size.")
]
Restarts = Annotated[
    int, typer.Option(metavar="N", help="With --processes: start all processes again up to N times when one fails; add --resume auto.")
]

Quantize = Annotated[
    str, typer.Option(metavar="int8", help="Compute with simulated int8 (quantization-aware training).", show_default=False)
]


def train(
    solver: Annotated[Path | None, typer.Argument(metavar="SOLVER", help="The solver's prototxt.", show_default=False)] = None,
    solver_flag: Annotated[Path | None, typer.Option("--solver", metavar="FILE", help="The same, as Caffe's flag.")] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights", "-w", metavar="FILE[,FILE]", help="Start from the layers of these .caffemodel files, or of networks of the zoo."
        ),
    ] = "",
    snapshot: Annotated[Path | None, typer.Option("--snapshot", "-s", metavar="FILE", help="Resume from this .solverstate.")] = None,
    resume: Annotated[
        str, typer.Option(metavar="auto|FILE", help="Resume from the newest complete snapshot, if there is one; FILE is as --snapshot.")
    ] = "",
    gpu: Gpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    max_iter: Annotated[int | None, typer.Option(help="Iterations to train for, in place of the solver's.")] = None,
    stage: Stage = "",
    level: Level = 0,
    sigint_effect: SigintEffect = "stop",
    sighup_effect: SighupEffect = "snapshot",
    log: Annotated[Path | None, typer.Option(help="Write the log here.  [default: PREFIX.log]", show_default=False)] = None,
    processes: Processes = None,
    restarts: Restarts = 0,
    precision: Annotated[str, typer.Option(help="fp32 (as Caffe), tf32, bf16 or fp16.")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="Run the nets through torch.compile.")] = False,
    quantize: Quantize = "",
    engine: Annotated[str, typer.Option(help="caffetools, or caffe: the real Caffe of this machine.")] = "caffetools",
    engine_image: Annotated[str, typer.Option(metavar="IMAGE", help="The docker image with the real Caffe.", show_default=False)] = "",
    tensorboard: Annotated[Path | None, typer.Option(metavar="DIR", help="Write metrics for TensorBoard here.", show_default=False)] = None,
    mlflow: Annotated[str, typer.Option(metavar="EXPERIMENT", help="Log metrics to MLflow (MLFLOW_TRACKING_URI).")] = "",
    wandb: Annotated[str, typer.Option(metavar="PROJECT", help="Log metrics to Weights & Biases.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors; the log is written all the same.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Train the net of a solver prototxt as [bold]caffe train[/bold] does; its flags work here too.

    Snapshots are PREFIX_iter_N.caffemodel and .solverstate. The log has Caffe's words; PREFIX_log.jsonl has the same for scripts.
    Ctrl-C takes a snapshot and stops, a second one stops at once; SIGHUP takes a snapshot and goes on.
    """
    from caffetools.cli.models import weights_file

    path = _given_once(solver, solver_flag)
    quiet = quiet or quiet_by_glog()
    log = log if log is not None or not glog_folder() else Path(glog_folder()) / f"{path.stem}.log"
    start = {"weights": [str(weights_file(name)) for name in split(weights)], **_start(snapshot, resume), "log": log}
    if engine != "caffetools" or engine_image:
        from caffetools.cli.train_caffe import train_by_caffe

        ours = {"--device": device != "auto", "--max-iter": max_iter is not None, "--processes": processes is not None}
        ours |= {"--tensorboard": tensorboard is not None, "--mlflow": bool(mlflow), "--wandb": bool(wandb)}
        ours |= {"--precision": precision != "fp32", "--compile": compiled, "--quantize": bool(quantize)}
        flags = {"gpu": gpu, "stage": stage, "level": level, "sigint_effect": sigint_effect, "sighup_effect": sighup_effect}
        train_by_caffe(engine, engine_image, path, flags, [name for name, given in ours.items() if given], start, quiet=quiet)
        return
    options: dict[str, Any] = {"max_iter": max_iter, "level": level, "stages": split(stage), "trackers": (tensorboard, mlflow, wandb)}
    several = processes is not None or gpu == "all" or "," in gpu
    options["callbacks"] = _quantization(quantize, several=several, plain=precision == "fp32" and not compiled)
    compute, effects = _compute_options(precision, compiled), (sigint_effect, sighup_effect)
    _train(path, processes, restarts, gpu, device, effects, compute, quiet, start | options)


def _train(
    path: Path,
    processes: int | None,
    restarts: int,
    gpu: str,
    device: str,
    effects: tuple[str, str],
    compute: ComputeOptions | None,
    quiet: bool,
    options: dict[str, Any],
) -> None:
    from caffetools.net.malloc_tuning import disable_malloc_trim
    from caffetools.solver import launch
    from caffetools.solver import run as training
    from caffetools.solver.signals import Signals
    from caffetools.solver.strategy import is_main, join, launched

    disable_malloc_trim()
    # An agent of torch.distributed.elastic ends processes by SIGTERM.
    signals = Signals(*effects, sigterm="stop" if launched() else None)
    code = launch.relaunch(processes, gpu, sys.argv[1:], restarts)
    if code is not None:
        raise typer.Exit(code)
    place = chosen_device(gpu, device, several=True)
    quiet = quiet or not is_main()
    from caffetools.cli.train_bar import terminal

    trackers = _trackers(options.pop("trackers"), is_main())
    bar, echo = terminal(quiet)
    with join(cuda=place != "cpu") as strategy, bar as shown:
        events = fan_out([shown, *trackers]) if trackers else shown
        done = training.train(
            path,
            device=place,
            signals=signals,
            echo=echo,
            events=events,
            strategy=strategy if strategy.size > 1 else None,
            compute=compute,
            **options,
        )
    if not quiet:
        _report(done, path)


def _trackers(chosen: tuple[Path | None, str, str], is_root: bool) -> list[EventSink]:
    """Return the sinks of ``--tensorboard``, ``--mlflow`` and ``--wandb``; only the first of several processes has them."""
    if not is_root or not any(chosen):
        return []
    from caffetools.solver.sinks import tracker_sinks

    return tracker_sinks(*chosen)


def _given_once(solver: Path | None, flag: Path | None) -> Path:
    path = solver if solver is not None else flag
    if path is None or (solver is not None and flag is not None):
        raise CaffeToolsError("give the solver's prototxt once, as SOLVER or as --solver")
    return path


def _start(snapshot: Path | None, resume: str) -> dict[str, Any]:
    """Return what ``--snapshot`` and ``--resume`` mean."""
    if snapshot is not None and resume:
        raise CaffeToolsError("give either --snapshot or --resume, not both")
    if resume and resume != "auto":
        return {"snapshot": Path(resume)}
    return {"snapshot": snapshot, "resume": resume == "auto"}


def _compute_options(precision: str, compiled: bool) -> Any:
    if precision == "fp32" and not compiled:
        return None
    from caffetools.solver.distributed import ComputeOptions

    return ComputeOptions(precision, compiled)


def _quantization(wanted: str, *, several: bool, plain: bool) -> list[Callback]:
    """Return the callbacks of ``--quantize``."""
    if not wanted:
        return []
    if wanted != "int8":
        raise CaffeToolsError(f"--quantize is int8, not '{wanted}'")
    from caffetools.solver.strategy import launched

    if several or launched():
        raise CaffeToolsError("--quantize trains in one process; leave out --processes and further GPUs")
    if not plain:
        raise CaffeToolsError("--quantize computes in float32; leave out --precision and --compile")
    from caffetools.quant.aware import QuantizationAware

    return [QuantizationAware()]


def _report(done: TrainResult, solver: Path) -> None:
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
        console.print(f"Go on with: caffetools train {solver} --resume auto")
