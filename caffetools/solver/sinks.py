"""Sinks that pass the events of training on to experiment trackers: TensorBoard, MLflow, Weights & Biases.

A tracker that fails while a net trains (a server that does not answer, a full disk) is left out from then on, with a warning: the
training continues, and its log has all numbers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from caffetools.errors import CaffeToolsError
from caffetools.events import Event, EventSink, Finished, Metrics, Started, Status, Tested

_logger = logging.getLogger(__name__)

# Receives what a run is called by: its net, the type of its solver, the number of iterations, the command line.
_Start = Callable[[dict[str, str | int]], object]
# Receives tag → value, and the iteration.
_Log = Callable[[dict[str, float], int], None]
_MLFLOW_STATUS: dict[Status, str] = {"done": "FINISHED", "stopped": "KILLED", "cancelled": "KILLED", "failed": "FAILED"}


def scalars(event: Event) -> tuple[dict[str, float], int]:
    """Return the numbers of an event by tag (``train/loss``, ``train/lr``, ``test/accuracy``) and its iteration; none for other events.

    Further test nets are ``test1/…``, ``test2/…``.
    """
    if isinstance(event, Metrics):
        values = {f"train/{name}": float(value) for name, value in event.outputs.items()}
        return {**values, "train/smoothed_loss": float(event.loss), "train/lr": float(event.lr)}, event.iteration
    if isinstance(event, Tested):
        place = f"test{event.net}" if event.net else "test"
        return {f"{place}/{name}": float(value) for name, value in event.outputs.items()}, event.iteration
    return {}, 0


def settings(event: Started) -> dict[str, str | int]:
    """Return what a run is called by: net, type of the solver, ``max_iter``, and the command line that starts it, as far as known."""
    known = {name: event.details[name] for name in ("net", "solver", "max_iter") if event.details.get(name)}
    return {**known, "command": event.command} if event.command else known


def tensorboard_sink(folder: str | os.PathLike[str]) -> EventSink:
    """Return a sink that writes TensorBoard's event files. A resumed run appends to those of the same folder.

    Args:
        folder: Where; ``tensorboard --logdir FOLDER`` shows them.

    Raises:
        CaffeToolsError: the package tensorboard is not installed, or the folder cannot be written to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    try:
        writer = SummaryWriter(os.fspath(folder))
    except OSError as error:
        raise CaffeToolsError(f"{os.fspath(folder)}: cannot write TensorBoard's files: {error.strerror}") from None

    def log(values: dict[str, float], iteration: int) -> None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, iteration)
        writer.flush()

    return _sink("TensorBoard", log, lambda _: writer.close())


def mlflow_sink(experiment: str) -> EventSink:
    """Return a sink that logs metrics to an MLflow experiment, and the run's :func:`settings` as its parameters.

    The environment variable MLFLOW_TRACKING_URI names the server or database; by default it is MLflow's own, mlflow.db in the current
    folder. The experiment is opened at once, its run when the training starts: one that ends before leaves no run that never ends.

    Raises:
        CaffeToolsError: a package is not installed, the server or database does not answer, or the experiment was deleted.
    """
    try:
        import mlflow
    except ImportError:
        raise _missing("mlflow") from None
    try:
        client = mlflow.MlflowClient()
        known = client.get_experiment_by_name(experiment)
        number = known.experiment_id if known is not None else client.create_experiment(experiment)
    except mlflow.exceptions.MlflowException as error:
        hint = None
        if find_spec("sqlalchemy") is None and "sqlite:" in str(error):
            hint = "its database needs the package sqlalchemy: pip install 'caffetools[mlflow]'; or set MLFLOW_TRACKING_URI to a server"
        raise CaffeToolsError(f"MLflow: {error}", hint=hint) from None
    except ImportError as error:
        # MLflow imports what a kind of server or database needs when that is opened.
        raise CaffeToolsError(f"MLflow: {error}", hint="pip install 'caffetools[mlflow]'") from None
    if known is not None and known.lifecycle_stage == "deleted":
        raise CaffeToolsError(f"MLflow: the experiment '{experiment}' was deleted", hint="restore it, or give another name")
    run = ""

    def start(values: dict[str, str | int]) -> None:
        nonlocal run
        run = client.create_run(number).info.run_id
        for name, value in values.items():
            client.log_param(run, name, value)

    def log(values: dict[str, float], iteration: int) -> None:
        for tag, value in values.items():
            client.log_metric(run, tag, value, step=iteration)

    return _sink("MLflow", log, lambda status: client.set_terminated(run, _MLFLOW_STATUS[status]), start)


def wandb_sink(project: str) -> EventSink:
    """Return a sink that logs metrics and the run's :func:`settings` to a project of Weights & Biases; WANDB_MODE=offline keeps them on this machine.

    The run is opened when the training starts: one that ends before leaves none. If that fails, the sink raises CaffeToolsError then.

    Raises:
        CaffeToolsError: the package wandb is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise _missing("wandb") from None
    run: Any = None

    def start(values: dict[str, str | int]) -> None:
        nonlocal run
        try:
            run = wandb.init(project=project, config=values)
        except wandb.Error as error:
            raise CaffeToolsError(f"Weights & Biases: {error}") from None
        # The x axis of the charts.
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")

    def log(values: dict[str, float], iteration: int) -> None:
        run.log({**values, "iteration": iteration})

    return _sink("Weights & Biases", log, lambda status: run.finish(exit_code=int(status == "failed")), start)


def check_trackers(tensorboard: str | os.PathLike[str] | None = None, mlflow: str = "", wandb: str = "") -> None:
    """Raise :class:`CaffeToolsError` where a package of :func:`tracker_sinks` is not installed, before anything is opened or printed."""
    for asked, package in ((tensorboard, "tensorboard"), (mlflow, "mlflow"), (wandb, "wandb")):
        # A folder of the name (W&B writes one) is a package without a file.
        if asked and getattr(find_spec(package), "origin", None) is None:
            raise _missing(package)


def tracker_sinks(tensorboard: str | os.PathLike[str] | None = None, mlflow: str = "", wandb: str = "") -> list[EventSink]:
    """Return the sinks that are asked for.

    Args:
        tensorboard: A folder.
        mlflow: An experiment.
        wandb: A project; empty ones are left out.

    Raises:
        CaffeToolsError: as the single ones.
    """
    sinks = [tensorboard_sink(tensorboard)] if tensorboard else []
    sinks += [mlflow_sink(mlflow)] if mlflow else []
    return sinks + ([wandb_sink(wandb)] if wandb else [])


def _missing(package: str) -> CaffeToolsError:
    what = {"tensorboard": "TensorBoard's files need", "mlflow": "MLflow needs", "wandb": "Weights & Biases needs"}[package]
    return CaffeToolsError(f"{what} the package {package}: pip install 'caffetools[{package}]'")


def _sink(name: str, log: _Log, close: Callable[[Status], object], start: _Start = lambda _: None) -> EventSink:
    works = True

    def sink(event: Event) -> None:
        nonlocal works
        if not works:
            return
        values, iteration = scalars(event)
        try:
            if isinstance(event, Started):
                start(settings(event))
            if values:
                log(values, iteration)
            if isinstance(event, Finished):
                close(event.status)
        except CaffeToolsError:
            # The tracker refuses at the start, when nothing is lost yet.
            works = False
            raise
        except Exception as error:
            works = False
            _logger.warning("%s: %s; it gets no more numbers of this training", name, error)

    return sink
