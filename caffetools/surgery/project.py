"""The files of a fine-tuning: train_val, solver and deploy prototxts, made together and written together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffetools.data.card import DatasetCard
from caffetools.errors import NetError
from caffetools.layers.base import Shape, shown
from caffetools.net.net import located
from caffetools.net.state import filter_net, make_state
from caffetools.net.weights import read_weights
from caffetools.net.wiring import check_wiring
from caffetools.proto.binary import Caffemodel
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrade import upgrade_net
from caffetools.surgery.added import Depth
from caffetools.surgery.adding import add_layers
from caffetools.surgery.changes import Change
from caffetools.surgery.comparison import DIFFERS, FRESH, Comparison, LayerWeights, compare_weights
from caffetools.surgery.cutting import drop_after
from caffetools.surgery.datasets import check_crops, fit_batches, read_databases
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.growing import Classes, grown_weights, trim_weights
from caffetools.surgery.learning import Tuning, tune
from caffetools.surgery.options import DataOptions, read_mean_option
from caffetools.surgery.output import PathLike, check_free, solver_in, write_messages
from caffetools.surgery.retarget import HEAD_LR_MULT, Retargeted, check_classes, retarget
from caffetools.surgery.sources import set_sources
from caffetools.surgery.summary import summarize

__all__ = [
    "DataOptions",
    "Depth",
    "Project",
    "check_free",
    "compare",
    "make_project",
    "read_mean_option",
    "starting_weights",
    "write_project",
]


@dataclass
class Project:
    """The three messages, what was changed on the way, and where the net came from (``original``, in today's form)."""

    retargeted: Retargeted
    solver: Any
    deploy: Any
    source: Path
    input_shape: Shape | None = None
    original: Any = None

    @property
    def shapes(self) -> dict[str, Shape]:
        """The input's shape as :func:`~caffetools.surgery.summary.summarize` takes it."""
        shape = _with_batch(self.input_shape)
        return {} if shape is None else {"": shape}


def make_project(
    source: Path,
    classes: int,
    folder: Path,
    *,
    trained_by: Path | None = None,
    head_lr_mult: float = HEAD_LR_MULT,
    heads: Iterable[str] | None = None,
    data: DataOptions | None = None,
    dataset: DatasetCard | None = None,
    tuning: Tuning | None = None,
    depth: Depth | None = None,
    epochs: int = 20,
    base_lr: float | None = None,
    seed: int | None = None,
    input_shape: Shape | None = None,
    weights: PathLike | None = None,
) -> Project:
    """Retarget the net in the file ``source`` to ``classes``, and make its solver and its deploy net. Nothing is written.

    Args:
        folder: Where it will be written to: the solver names the net, and its snapshots, from there.
        trained_by: The solver file that the net was trained with; see :func:`~caffetools.surgery.finetune.solver_for`.
        head_lr_mult, heads: as for :func:`~caffetools.surgery.retarget.retarget`.
        dataset: Sources and mean are its own, and batches fit it, where ``data`` does not say otherwise.
        tuning: How the layers learn. depth: which layers go, and which come in; by default none.
        epochs: Passes over the training pictures, which are counted where the database is there.
        base_lr, seed: the solver's, where not as :func:`~caffetools.surgery.finetune.solver_for` chooses.
        input_shape: (N, C, H, W) or (C, H, W) of the deployed net's input, where the data layers do not tell.
        weights: The .caffemodel that training is to start from: no new classifier gets the name of a layer in it.

    Raises:
        NetError: the net cannot be retargeted or deployed; the message has the file and the line. PrototxtError: it cannot be read.
        DataError: a mean file, or a database that is there, cannot be used.
    """
    check_classes(classes)
    options = (data or DataOptions()).with_dataset(dataset)
    settings = options.settings()
    tuning = tuning or Tuning()
    param = read_net(source)
    with located(source):
        _check_wiring(param)
        taken = read_weights(weights).blobs if weights is not None else ()
        original = upgrade_net(param)
        made = _retargeted(original, classes, depth or Depth(), tuning, head_lr_mult, heads, taken, input_shape)
        made.changes += tune(made.train_val, tuning, made.anew)
        made.changes += read_databases(made.train_val) if dataset is not None else []
        made.changes += set_sources(made.train_val, **settings)
        if dataset is not None:
            check_crops(made.train_val, dataset)
            made.changes += fit_batches(made.train_val, dataset, train=options.train_batch is None, val=options.val_batch is None)
        if not any(layer.type.endswith("Loss") for layer in made.train_val.layer):
            raise NetError(f"the net '{made.train_val.name}' has no loss, so it cannot be trained; give its train_val prototxt")
        deploy = deploy_from(made.train_val, input_shape=input_shape)
        _check(made.train_val, deploy, input_shape)
    like = read_solver(trained_by) if trained_by is not None else None
    solver = solver_in(made.train_val, folder, epochs=epochs, base_lr=base_lr, seed=seed, like=like)
    return Project(made, solver, deploy, source, input_shape, original)


def _retargeted(
    net: Any,
    classes: int,
    depth: Depth,
    tuning: Tuning,
    head_lr_mult: float,
    heads: Iterable[str] | None,
    taken: Iterable[str],
    input_shape: Shape | None,
) -> Retargeted:
    """``net`` with other classes and of other depth; it is not changed."""
    names = None if heads is None else list(heads)
    cut, changes = NetParameter(), list[Change]()
    cut.CopyFrom(net)
    if depth.drop_after is not None:
        changes = drop_after(cut, depth.drop_after, heads=names, input_shape=_with_batch(input_shape))
    made = retarget(cut, classes, head_lr_mult=head_lr_mult, filler=tuning.filler, heads=names, keep_names=tuning.keep_names, taken=taken)
    if depth.add:
        names = None if names is None else [made.renamed[name] for name in names]
        added, made.added = add_layers(made.train_val, depth.add, heads=names, lr_mult=head_lr_mult, filler=tuning.filler, taken=taken)
        changes += added
    made.changes = changes + made.changes
    return made


def compare(project: Project, weights: PathLike, *, trimmed: bool = False) -> Comparison:
    """Which layers take their parameters from ``weights``, and which start anew.

    Args:
        trimmed: The classifiers' weights are to be taken out first (see :func:`starting_weights`), so that they start anew.

    Raises:
        NetError: a layer that is not made anew has others in the file, so that training would refuse it.
        ModelFileError: the file cannot be read.
    """
    comparison = compare_weights(summarize(project.retargeted.train_val, TRAIN, shapes=project.shapes), read_weights(weights))
    anew = project.retargeted.anew
    for layer in comparison.layers:
        if trimmed and layer.layer in anew:
            layer.status = FRESH
        if layer.status == DIFFERS:
            hint = "; let its weights be taken out of the file (--write-weights)" if layer.layer in anew else _other_net(project, layer)
            stored = ", ".join(shown(blob.shape) for blob in layer.blobs)
            wanted = ", ".join(shown(s) for s in layer.expected or ())
            raise NetError(f"its parameters are {wanted}, but {os.fspath(weights)} holds {stored}{hint}", layer=layer.layer)
    return comparison


def _other_net(project: Project, layer: LayerWeights) -> str:
    """Why a layer's weights do not fit: the size of the input, which fully connected layers depend on, or that they are another net's."""
    with suppress(NetError):
        for row in summarize(project.original, TRAIN).layers:
            if row.name == layer.layer and row.parameters == [blob.shape for blob in layer.blobs]:
                return ", which it needs for pictures of the net's own size; give a --crop that keeps it, or leave --weights out"
    return ": weights of another net"


def starting_weights(project: Project, weights: PathLike, classes: Classes | None = None) -> Caffemodel:
    """``weights`` without what the net has no more or what starts anew; with ``classes``, also the rows of the known ones.

    Raises:
        NetError, CaffeToolsError: as :func:`~caffetools.surgery.growing.grown_weights`. ModelFileError: the file cannot be read.
    """
    made = project.retargeted
    model = read_weights(weights)
    if classes is None:
        return trim_weights(model, made.train_val, made.renamed)
    rows = summarize(made.train_val, TRAIN, shapes=project.shapes).layers
    shapes = {row.name: row.parameters or [] for row in rows}
    return grown_weights(model, project.original, made.train_val, made.renamed, shapes, classes)


def write_project(project: Project, folder: PathLike, weights: Caffemodel | None = None) -> list[Path]:
    """Write the three files (and the weights to start from), all or none, and return their paths.

    Raises:
        RunFailed: that is not possible.
    """
    messages = (project.retargeted.train_val, project.solver, project.deploy)
    return write_messages(messages, folder, f"# Written by caffetools retarget from {project.source.name}.\n", weights)


def _with_batch(shape: Shape | None) -> Shape | None:
    """(N, C, H, W) of an input shape that may lack N."""
    return shape if shape is None or len(shape) == 4 else (1, *shape)


def _check(train_val: Any, deploy: Any, input_shape: Shape | None) -> None:
    """Raise :class:`NetError` where the nets cannot be put together, as far as that can be told without running them."""
    shape = _with_batch(input_shape)
    for phase in (TRAIN, TEST):
        summarize(train_val, phase, shapes={} if shape is None else {"": shape})
    summarize(deploy)


def _check_wiring(param: Any) -> None:
    """Raise :class:`NetError` where a bottom is missing, while the layers still have the names that the user gave them."""
    for phase in (TRAIN, TEST):
        check_wiring(filter_net(upgrade_net(param), make_state(phase)))
