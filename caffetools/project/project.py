"""The files of a fine-tuning: train_val, solver and deploy prototxts, made together and written together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import NetError
from caffetools.graph.graph import Graph, phases_present, shapes_in
from caffetools.graph.inputs import as_shapes
from caffetools.graph.summary import summarize
from caffetools.graph.weights_diff import DIFFERS, FRESH, Comparison, LayerWeights, compare_weights
from caffetools.layers.base import Shape, format_shape
from caffetools.net.net import error_context
from caffetools.net.phases import filter_net, make_state
from caffetools.net.topology import check_blob_graph
from caffetools.net.weights import read_weights
from caffetools.project.data_config import (
    DataOptions,
    check_crops,
    convert_imagedata_to_data,
    fit_batches,
    read_mean_option,
    set_data_sources,
)
from caffetools.project.output import PathLike, check_free, solver_in, write_messages
from caffetools.project.shape_check import check_parameter_shapes_match
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TRAIN
from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.class_incremental import Classes, extend_classifier_weights, trim_weights
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.freezing import Tuning, tune
from caffetools.surgery.layer_edits import Depth, retarget_with_edits
from caffetools.surgery.losses import losses_of
from caffetools.surgery.retarget import HEAD_LR_MULT, Retargeted, check_classes

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
    """The three messages, what was changed on the way, where the net came from (``original``, in today's form), and inputs' shapes."""

    retargeted: Retargeted
    solver: Any
    deploy: Any
    source: Path
    shapes: dict[str, Shape] = field(default_factory=dict)
    original: Any = None


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
    input_shape: Shape | Mapping[str, Shape] | None = None,
    weights: PathLike | None = None,
) -> Project:
    """Retarget the net in the file ``source`` to ``classes``, and make its solver and its deploy net. Nothing is written.

    Args:
        folder: Where it will be written to: the solver names the net, and its snapshots, from there.
        trained_by: The solver file that the net was trained with; see :func:`~caffetools.project.solver_config.solver_for`.
        head_lr_mult, heads: as for :func:`~caffetools.surgery.retarget.retarget`.
        dataset: Sources and mean are its own, and batches fit it, where ``data`` does not say otherwise.
        tuning: How the layers learn. depth: which layers go, and which come in; by default none.
        epochs: Passes over the training pictures, which are counted where the database is there.
        base_lr, seed: the solver's, where not as :func:`~caffetools.project.solver_config.solver_for` chooses.
        input_shape: (N, C, H, W) or (C, H, W) of the deployed net's input, or shapes by blob, where the data layers do not tell.
        weights: The .caffemodel that training is to start from: no new classifier gets the name of a layer in it.

    Raises:
        NetError: the net cannot be retargeted or deployed; the message has the file and the line. PrototxtError: it cannot be read.
        DataError: a mean file, or a database that is there, cannot be used.
    """
    check_classes(classes)
    options = (data or DataOptions()).with_dataset(dataset)
    settings = options.settings()
    tuning, shapes = tuning or Tuning(), as_shapes(input_shape)
    param = read_net(source)
    with error_context(source):
        _check_wiring(param)
        taken = read_weights(weights).blobs if weights is not None else ()
        original = upgrade_net(param)
        made = retarget_with_edits(original, classes, depth or Depth(), tuning, shapes, head_lr_mult=head_lr_mult, heads=heads, taken=taken)
        made.changes += tune(made.train_val, tuning, made.anew)
        made.changes += convert_imagedata_to_data(made.train_val) if dataset is not None else []
        made.changes += set_data_sources(made.train_val, **settings)
        if dataset is not None:
            check_crops(made.train_val, dataset)
            made.changes += fit_batches(made.train_val, dataset, train=options.train_batch is None, val=options.val_batch is None)
        _check_loss(made.train_val)
        judged = made.judge in {loss.name for loss in losses_of(made.train_val).values()}
        deploy = deploy_from(made.train_val, input_shape=shapes, heads=[made.judge] if judged else None)
        check_parameter_shapes_match(made.train_val, deploy, shapes)
    like = read_solver(trained_by) if trained_by is not None else None
    solver = solver_in(made.train_val, folder, epochs=epochs, base_lr=base_lr, seed=seed, like=like)
    return Project(made, solver, deploy, source, shapes, original)


def compare(project: Project, weights: PathLike, *, trimmed: bool = False) -> Comparison:
    """Which layers take their parameters from ``weights``, and which start anew.

    Args:
        trimmed: The classifiers' weights are to be taken out first (see :func:`starting_weights`), so that they start anew.

    Raises:
        NetError: a layer that is not made anew has others in the file, so that training would refuse it.
        ModelFileError: the file cannot be read.
    """
    net = project.retargeted.train_val
    comparison = compare_weights(summarize(net, TRAIN, shapes=shapes_in(Graph(net, TRAIN), project.shapes)), read_weights(weights))
    anew = project.retargeted.anew
    for layer in comparison.layers:
        if trimmed and layer.layer in anew:
            layer.status = FRESH
        if layer.status == DIFFERS:
            hint = "; let its weights be taken out of the file (--write-weights)" if layer.layer in anew else _other_net(project, layer)
            stored = ", ".join(format_shape(blob.shape) for blob in layer.blobs)
            wanted = ", ".join(format_shape(s) for s in layer.expected or ())
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
        NetError, CaffeToolsError: as :func:`~caffetools.surgery.class_incremental.extend_classifier_weights`.
        ModelFileError: the file cannot be read.
    """
    made = project.retargeted
    model = read_weights(weights)
    if classes is None:
        return trim_weights(model, made.train_val, made.renamed)
    rows = summarize(made.train_val, TRAIN, shapes=shapes_in(Graph(made.train_val, TRAIN), project.shapes)).layers
    shapes = {row.name: row.parameters or [] for row in rows}
    return extend_classifier_weights(model, project.original, made.train_val, made.renamed, shapes, classes)


def write_project(project: Project, folder: PathLike, weights: Caffemodel | None = None) -> list[Path]:
    """Write the three files (and the weights to start from), all or none, and return their paths.

    Raises:
        RunFailed: that is not possible.
    """
    messages = (project.retargeted.train_val, project.solver, project.deploy)
    return write_messages(messages, folder, f"# Written by caffetools retarget from {project.source.name}.\n", weights)


def _check_loss(net: Any) -> None:
    if not losses_of(net):
        raise NetError(
            f"the net '{net.name}' has no loss, so it cannot be trained; give its train_val prototxt, "
            "or make one of it first (caffetools trainable)"
        )


def _check_wiring(param: Any) -> None:
    """Raise :class:`NetError` where a bottom is missing, while the layers still have the names that the user gave them."""
    net = upgrade_net(param)
    for phase in phases_present(net):
        check_blob_graph(filter_net(net, make_state(phase)), net)
