"""The files of a fine-tuning: train_val, solver and deploy prototxts, made together and written together."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caffetools.data.databases import open_database
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.files import atomic_write
from caffetools.layers.base import Shape, shown
from caffetools.net.net import located
from caffetools.net.weights import read_weights
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import format_text, read_net, read_solver
from caffetools.surgery.comparison import DIFFERS, Comparison, compare_weights
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.finetune import solver_for
from caffetools.surgery.inputs import source_param
from caffetools.surgery.retarget import HEAD_LR_MULT, Retargeted, check_classes, retarget
from caffetools.surgery.sources import data_layers, set_sources
from caffetools.surgery.summary import summarize

PathLike = str | os.PathLike[str]

FILES = ("train_val.prototxt", "solver.prototxt", "deploy.prototxt")


@dataclass(frozen=True)
class DataOptions:
    """What the data layers are to read; None leaves it.

    Attributes:
        train_source, val_source: databases. mean: a file, or values as text, such as ``104,117,123``.
        train_batch, val_batch: pictures a batch. crop: the side of the square cut out of each picture, at random in training.
    """

    train_source: str | None = None
    val_source: str | None = None
    mean: str | None = None
    train_batch: int | None = None
    val_batch: int | None = None
    crop: int | None = None

    def settings(self) -> dict[str, Any]:
        """The arguments of :func:`~caffetools.surgery.sources.set_sources`. Raises :class:`DataError` where the mean is none."""
        mean_file, mean_values = read_mean_option(self.mean)
        return {**{k: v for k, v in asdict(self).items() if k != "mean"}, "mean_file": mean_file, "mean_values": mean_values}


@dataclass
class Project:
    """The three messages, what was changed on the way, and where the net came from."""

    retargeted: Retargeted
    solver: Any
    deploy: Any
    source: Path
    input_shape: Shape | None = None


def check_free(folder: PathLike, *, force: bool = False) -> None:
    """Raise :class:`CaffeToolsError` where a file of a project is in ``folder`` already and ``force`` is not set."""
    taken = [name for name in FILES if (Path(folder) / name).exists()]
    if taken and not force:
        raise CaffeToolsError(f"{Path(folder) / taken[0]} exists; choose another folder, or --force to replace it")


def make_project(
    source: Path,
    classes: int,
    folder: Path,
    *,
    trained_by: Path | None = None,
    head_lr_mult: float = HEAD_LR_MULT,
    heads: Iterable[str] | None = None,
    data: DataOptions | None = None,
    epochs: int = 20,
    base_lr: float | None = None,
    seed: int | None = None,
    input_shape: Shape | None = None,
) -> Project:
    """Retarget the net in the file ``source`` to ``classes``, and make its solver and its deploy net. Nothing is written.

    Args:
        folder: Where it will be written to: the solver names the net, and its snapshots, from there.
        trained_by: The solver file that the net was trained with; see :func:`~caffetools.surgery.finetune.solver_for`.
        head_lr_mult, heads: as for :func:`~caffetools.surgery.retarget.retarget`.
        epochs: Passes over the training pictures, which are counted where the database is there.
        base_lr, seed: the solver's, where not as :func:`~caffetools.surgery.finetune.solver_for` chooses.
        input_shape: (N, C, H, W) or (C, H, W) of the deployed net's input, where the data layers do not tell.

    Raises:
        NetError: the net cannot be retargeted or deployed; the message has the file and the line. PrototxtError: it cannot be read.
        DataError: a mean file, or a database that is there, cannot be used.
    """
    check_classes(classes)
    options = data or DataOptions()
    settings = options.settings()
    param = read_net(source)
    with located(source):
        made = retarget(param, classes, head_lr_mult=head_lr_mult, heads=heads)
        made.changes += set_sources(made.train_val, **settings)
        if not any(layer.type.endswith("Loss") for layer in made.train_val.layer):
            raise NetError(f"the net '{made.train_val.name}' has no loss, so it cannot be trained; give its train_val prototxt")
        deploy = deploy_from(made.train_val, input_shape=input_shape)
    train, val = (_batches(made.train_val, phase) for phase in (TRAIN, TEST))
    solver = solver_for(
        str(folder / FILES[0]),
        train_count=train[0],
        val_count=val[0],
        train_batch=train[1],
        val_batch=val[1],
        epochs=epochs,
        base_lr=base_lr,
        seed=seed,
        like=read_solver(trained_by) if trained_by is not None else None,
        snapshot_prefix=str(folder / "snapshot"),
    )
    return Project(made, solver, deploy, source, input_shape)


def compare(project: Project, weights: PathLike) -> Comparison:
    """Which layers take their parameters from ``weights``, and which start anew.

    Raises:
        NetError: a layer that is not made anew has others in the file, so that training would refuse it.
        ModelFileError: the file cannot be read.
    """
    shape = project.input_shape
    shapes = {} if shape is None else {"": shape if len(shape) == 4 else (1, *shape)}
    comparison = compare_weights(summarize(project.retargeted.train_val, TRAIN, shapes=shapes), read_weights(weights))
    for layer in comparison.layers:
        if layer.status == DIFFERS:
            stored = ", ".join(shown(blob.shape) for blob in layer.blobs)
            wanted = ", ".join(shown(s) for s in layer.expected or ())
            raise NetError(
                f"its parameters are {wanted}, but {os.fspath(weights)} holds {stored}: weights of another net", layer=layer.layer
            )
    return comparison


def write_project(project: Project, folder: PathLike) -> list[Path]:
    """Write the three files, all or none, and return their paths. Raises :class:`RunFailed` where that is not possible."""
    messages = (project.retargeted.train_val, project.solver, project.deploy)
    paths = [Path(folder) / name for name in FILES]
    head = f"# Written by caffetools retarget from {project.source.name}.\n"
    with contextlib.ExitStack() as stack:
        for path, message in zip(paths, messages, strict=True):
            stream = stack.enter_context(atomic_write(path, "w"))
            stream.write(head + format_text(message))
            # On the disk before the first file gets its name.
            stream.flush()
    return paths


def read_mean_option(mean: str | None) -> tuple[str | None, list[float] | None]:
    """A mean as people give it: (file, None) or (None, values). Raises :class:`DataError` where it is neither."""
    if mean is None:
        return None, None
    number = r"\s*-?\d+(?:\.\d*)?\s*"
    if re.fullmatch(rf"{number}(,{number})*", mean):
        return None, [float(value) for value in mean.split(",")]
    if not Path(mean).is_file():
        raise DataError(f"{mean}: no such mean file, and no list of values like 104,117,123")
    return mean, None


def _batches(net: Any, phase: int) -> tuple[int | None, int]:
    """(number of pictures, where the database is there; pictures a batch) of a phase's first data layer."""
    layers = data_layers(net, phase)
    if not layers:
        return None, 1
    param = source_param(layers[0])
    count = None
    if layers[0].type == "Data" and param.source and Path(param.source).exists():
        database = open_database(param.source)
        count = len(database)
        database.close()
    return count, param.batch_size or 1
