"""``caffetools train``: a solver prototxt in, snapshots and a log out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.gflags import Gpu, Level, SighupEffect, SigintEffect, Stage, chosen_device, glog_folder, quiet_by_glog, split
from caffetools.cli.models import complete_model, only_here, prototxt
from caffetools.cli.numbers import MOST_PROCESSES
from caffetools.cli.options import Dialect, Engine, EngineImage, Plugin, SkipCorrupt, not_standard_output
from caffetools.cli.show import console, note, print_json, print_next, verbosity
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, fan_out
from caffetools.solver.compute_options import ComputeOptions

if TYPE_CHECKING:
    from caffetools.solver.callbacks import Callback
    from caffetools.solver.run import TrainResult


Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", "-n", min=1, max=MOST_PROCESSES, help="Number of processes on this machine, each with the net's batch size."
    ),
]
Restarts = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="With --processes: start all processes again up to N times when one fails; add --resume auto."),
]

Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        metavar="FILE[,FILE]",
        help="Start from the layers of these .caffemodel files, or of networks of the zoo.",
        autocompletion=complete_model,
    ),
]
Resume = Annotated[
    str,
    typer.Option(
        metavar="auto|FILE", help="auto: resume from the newest complete snapshot, if there is one; FILE: the same as --snapshot."
    ),
]
CheckpointMemory = Annotated[
    bool, typer.Option("--checkpoint-memory", help="Recompute most activations in the backward pass: less memory, the same weights.")
]
CudaGraphs = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="Record the passes as a CUDA graph and replay it: less time, more memory; by default where possible.",
        show_default=False,
    ),
]
Quantize = Annotated[
    str, typer.Option(metavar="int8", help="Quantization-aware training: compute with simulated int8.", show_default=False)
]

Log = Annotated[Path | None, typer.Option(callback=not_standard_output, help="Log file; by default PREFIX.log.", show_default=False)]
TensorBoard = Annotated[
    Path | None,
    typer.Option(metavar="DIR", callback=not_standard_output, help="Folder for TensorBoard's metrics.", show_default=False),
]


def train(
    solver: Annotated[Path | None, typer.Argument(metavar="SOLVER", help="The solver's prototxt.", show_default=False)] = None,
    solver_flag: Annotated[Path | None, typer.Option("--solver", metavar="FILE", help="The solver's prototxt, as Caffe's flag.")] = None,
    weights: Weights = "",
    snapshot: Annotated[Path | None, typer.Option("--snapshot", "-s", metavar="FILE", help="Resume from this .solverstate.")] = None,
    resume: Resume = "",
    gpu: Gpu = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    max_iter: Annotated[int | None, typer.Option(help="Last iteration, in place of the solver's max_iter.")] = None,
    skip_corrupt: SkipCorrupt = 0,
    stage: Stage = "",
    level: Level = 0,
    sigint_effect: SigintEffect = "stop",
    sighup_effect: SighupEffect = "snapshot",
    log: Log = None,
    processes: Processes = None,
    restarts: Restarts = 0,
    precision: Annotated[str, typer.Option(help="fp32 (as Caffe), tf32, bf16 or fp16.")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the nets with torch.compile.")] = False,
    checkpoint_memory: CheckpointMemory = False,
    cuda_graphs: CudaGraphs = None,
    quantize: Quantize = "",
    engine: Engine = "caffetools",
    engine_image: EngineImage = "",
    tensorboard: TensorBoard = None,
    mlflow: Annotated[str, typer.Option(metavar="EXPERIMENT", help="Log metrics to MLflow.")] = "",
    wandb: Annotated[str, typer.Option(metavar="PROJECT", help="Log metrics to Weights & Biases.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors; the log is still written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Train the net of a solver prototxt as [bold]caffe train[/bold] does; its flags work here too.

    Snapshots are PREFIX_iter_N.caffemodel and .solverstate. The log has Caffe's words; PREFIX_log.jsonl has the same for scripts.
    Ctrl-C and SIGTERM take a snapshot and stop, a second Ctrl-C stops at once; SIGHUP takes a snapshot and training continues.
    """
    from caffetools.cli.models import weights_file

    path = _given_once(solver, solver_flag)
    quiet = quiet or verbosity.quiet or as_json or quiet_by_glog()
    log = log if log is not None or not glog_folder() else Path(glog_folder()) / f"{path.stem}.log"
    start = {"weights": [str(weights_file(name)) for name in split(weights)], **_start(snapshot, resume), "log": log}
    if engine != "caffetools" or engine_image:
        from caffetools.cli.train_caffe import train_by_caffe

        ours = {"--device": device != "auto", "--max-iter": max_iter is not None, "--processes": processes is not None}
        ours |= {"--skip-corrupt": skip_corrupt > 0, "--tensorboard": tensorboard is not None}
        ours |= {"--mlflow": bool(mlflow), "--wandb": bool(wandb)}
        ours |= {"--precision": precision != "fp32", "--compile": compiled, "--quantize": bool(quantize)}
        ours |= {"--checkpoint-memory": checkpoint_memory, "--cuda-graphs": cuda_graphs is not None}
        flags = {"gpu": gpu, "stage": stage, "level": level, "sigint_effect": sigint_effect, "sighup_effect": sighup_effect}
        names = [name for name, given in ours.items() if given]
        train_by_caffe(engine, engine_image, path, flags, names, start, quiet=quiet, as_json=as_json)
        return
    options: dict[str, Any] = {"max_iter": max_iter, "level": level, "stages": split(stage), "skip_corrupt": skip_corrupt}
    compute = ComputeOptions(precision, compiled, checkpoint_memory=checkpoint_memory, cuda_graphs=cuda_graphs)
    options["trackers"] = _installed((tensorboard, mlflow, wandb))
    several = processes is not None or gpu == "all" or "," in gpu
    options["callbacks"] = _quantization(quantize, compute, several=several)
    if not (snapshot or resume or quiet):
        _note_start(path, weighted=bool(weights))
    done = _train(path, processes, restarts, gpu, device, (sigint_effect, sighup_effect), compute, quiet, start | options)
    if done is not None and (as_json or not quiet):
        print_json(_as_json(done)) if as_json else _report(done, path, quantize)


def _train(
    path: Path,
    processes: int | None,
    restarts: int,
    gpu: str,
    device: str,
    effects: tuple[str, str],
    compute: ComputeOptions,
    quiet: bool,
    options: dict[str, Any],
) -> TrainResult | None:
    """Train; None in a process that is not the main one."""
    from caffetools.net.malloc_tuning import tune_for_training
    from caffetools.solver import launch
    from caffetools.solver import run as training
    from caffetools.solver.signals import Signals
    from caffetools.solver.strategy import is_main, join

    tune_for_training(little_memory=compute.checkpoint_memory)
    signals = Signals(*effects)
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
        return done if is_main() else None


def _note_start(path: Path, *, weighted: bool) -> None:
    """Note what a training from iteration 0 may do that is not intended; processes that another one started leave that to it."""
    from caffetools.solver.strategy import launched

    if launched():
        return
    _note_earlier_snapshots(path)
    if not weighted:
        _warn_of_random_start(path)


def _note_earlier_snapshots(path: Path) -> None:
    """Note that snapshots of an earlier training are where those of the new one will be."""
    from contextlib import suppress

    from caffetools.proto.text import read_solver
    from caffetools.solver.checkpoints.resume import newest_snapshot
    from caffetools.solver.paths import snapshot_prefix

    with suppress(CaffeToolsError):
        found = newest_snapshot(snapshot_prefix(read_solver(path), path))
        if found is not None:
            note(
                f"{found.state} is of an earlier training; this one begins at iteration 0 and replaces its snapshots (--resume auto continues it)"
            )


def _warn_of_random_start(path: Path) -> None:
    """Note that a net that is set up for fine-tuning starts from random weights."""
    from contextlib import suppress

    from caffetools.project.next_step import net_of_solver
    from caffetools.project.remarks import is_set_up_for_finetuning
    from caffetools.proto.text import read_net, read_solver
    from caffetools.proto.upgrades.v1 import upgrade_net

    # What is wrong with the files is reported where they are used.
    with suppress(CaffeToolsError):
        net = net_of_solver(path)
        solver = read_solver(path)
        if net is not None and not solver.weights and is_set_up_for_finetuning(upgrade_net(read_net(net))):
            note(
                f"{path}: starts from random weights, but base_lr {solver.base_lr:g} and the lr_mult of {net.name} are for fine-tuning; "
                "give the trained weights by --weights"
            )


def _trackers(chosen: tuple[Path | None, str, str], is_root: bool) -> list[EventSink]:
    """Return the sinks of ``--tensorboard``, ``--mlflow`` and ``--wandb``; only the first of several processes has them."""
    if not is_root or not any(chosen):
        return []
    from caffetools.solver.sinks import tracker_sinks

    return tracker_sinks(*chosen)


def _installed(chosen: tuple[Path | None, str, str]) -> tuple[Path | None, str, str]:
    """Return the trackers that were chosen. Raises where a package is missing, before anything is printed."""
    if any(chosen):
        from caffetools.solver.sinks import check_trackers

        check_trackers(*chosen)
    return chosen


def _given_once(solver: Path | None, flag: Path | None) -> Path:
    if solver is not None and flag is not None:
        raise CaffeToolsError("give the solver's prototxt once, as SOLVER or as --solver")
    path = solver if solver is not None else flag
    return prototxt(path) if path is not None else _only_solver_here()


def _only_solver_here() -> Path:
    """Return the only solver in the current folder or one below it.

    Raises:
        CaffeToolsError: There is none, or there are several.
    """
    from caffetools.project.find import solvers

    if found := only_here(solvers(Path()), "solver", "solvers"):
        return found
    raise CaffeToolsError(
        "no solver.prototxt is in this folder", hint="give the prototxt of a SOLVER; `caffetools retarget` writes one for a net"
    )


def _start(snapshot: Path | None, resume: str) -> dict[str, Any]:
    """Return what ``--snapshot`` and ``--resume`` mean."""
    if snapshot is not None and resume:
        raise CaffeToolsError("give either --snapshot or --resume, not both")
    if resume and resume != "auto":
        return {"snapshot": Path(resume)}
    return {"snapshot": snapshot, "resume": resume == "auto"}


def _quantization(wanted: str, compute: ComputeOptions, *, several: bool) -> list[Callback]:
    """Return the callbacks of ``--quantize``."""
    if not wanted:
        return []
    from caffetools.quant.aware import training_callbacks
    from caffetools.solver.strategy import launched

    if several or launched():
        raise CaffeToolsError("--quantize trains in one process; leave out --processes and further GPUs")
    return training_callbacks(wanted, compute)


def _report(done: TrainResult, solver: Path, quantize: str) -> None:
    """Print what was trained, how good it is, and the next command."""
    from caffetools.project.config import command
    from caffetools.project.next_step import after_training

    saved, iteration = done.snapshot, done.solver.iteration
    console.print(f"{'Stopped' if done.stopped else 'Trained'} at iteration {iteration}.")
    for test in done.history.test[-len(done.solver.test_nets) :] if done.solver.test_nets else []:
        scores = ", ".join(f"{output.name} {output.value:.4g}" for output in test.outputs)
        console.print(f"  test net #{test.net} at iteration {test.iteration}: {scores or 'not scored, its test_iter is 0'}")
    if saved is not None:
        console.print(f"  weights   {saved.weights}\n  state     {saved.state}")
    console.print(f"  log       {done.log}\n  metrics   {done.metrics}")
    for remark in _remarks(done):
        note(remark)
    if done.stopped and saved is not None:
        print_next(command("train", solver, "--resume", "auto", *(["--quantize", quantize] if quantize else [])))
    elif saved is not None:
        print_next(after_training(solver, Path(saved.weights), next(iter(done.solver.param.test_iter), 0)))


def _remarks(done: TrainResult) -> list[str]:
    """Return what the user should know about the result: chance level, overfitting."""
    from contextlib import suppress

    from caffetools.project.remarks import remarks_on_training
    from caffetools.solver.logs.training_log import read_log

    if done.stopped:
        return []
    log = None
    with suppress(CaffeToolsError):
        log = read_log(done.log)
    net = done.solver.test_nets[0] if done.solver.test_nets else None
    return remarks_on_training(done.history, net, next(iter(done.solver.param.test_iter), 0), log)


def _as_json(done: TrainResult) -> dict[str, Any]:
    saved = done.snapshot
    tests = done.history.test[-len(done.solver.test_nets) :] if done.solver.test_nets else []
    return {
        "iteration": done.solver.iteration,
        "stopped": done.stopped,
        "weights": str(saved.weights) if saved is not None else None,
        "state": str(saved.state) if saved is not None else None,
        "log": str(done.log),
        "metrics": str(done.metrics),
        "tests": [{"net": t.net, "iteration": t.iteration, "outputs": {o.name: o.value for o in t.outputs}} for t in tests],
        "remarks": _remarks(done),
    }
