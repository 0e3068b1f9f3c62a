"""Retarget a net to new classes: its train_val, solver and deploy prototxts, made together and written together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import NetError
from caffetools.graph.classifiers import detects, find_heads
from caffetools.graph.graph import Graph, graphs_present, phases, shapes_in
from caffetools.graph.inputs import as_shapes
from caffetools.graph.stages import Stages, deploy_stage, find_stages, resolve_stages, stage_names
from caffetools.graph.summary import summarize
from caffetools.graph.weights_diff import DIFFERS, FRESH, Comparison, LayerWeights, compare_weights
from caffetools.infer.data_preprocessing import input_channels, preprocessing_of, update_preprocessing
from caffetools.layers.base import Shape, format_shape
from caffetools.net.net import Net, error_context
from caffetools.net.topology import check_blob_graph
from caffetools.net.weights import load_weights, read_weights
from caffetools.project.config import FILES
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
from caffetools.proto.file_names import find_data_base, rebase_sources, restore_sources
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.results import Preprocessing
from caffetools.surgery.changes import Change
from caffetools.surgery.class_incremental import Classes, extend_classifier_weights, trim_weights
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.freezing import Tuning, tune
from caffetools.surgery.layer_edits import LayerEdits, retarget_with_edits
from caffetools.surgery.losses import NotDeployable, losses_of
from caffetools.surgery.retarget import HEAD_LR_MULT, Retargeted, check_classes

__all__ = [
    "DataOptions",
    "LayerEdits",
    "RetargetResult",
    "check_free",
    "compare",
    "prepare_retarget",
    "read_mean_option",
    "starting_weights",
    "write_retarget",
]


@dataclass
class RetargetResult:
    """A retargeted net with its solver and its deploy net; nothing is on disk until :meth:`save`.

    Attributes:
        retargeted: The surgery's own result: the train_val net, changes, renamed layers and notes.
        solver: A ``SolverParameter`` for fine-tuning.
        deploy: The deploy net, a ``NetParameter``.
        source: File that the net came from, or its name where it came from memory.
        shapes: Input shapes that the user gave, by blob.
        original: The net before retargeting, a ``NetParameter`` in today's form.
        weights: Trained parameters that still fit, to start training from; None if no weights were given.
        file_names: The names of files as the net has them, by those that are found from the working directory.
        missing: Files that cannot be made of this net (``train_val.prototxt``, ``deploy.prototxt``) → why; what they would hold is empty.
    """

    retargeted: Retargeted
    solver: SolverParameter
    deploy: NetParameter
    source: Path
    shapes: dict[str, Shape] = field(default_factory=dict)
    original: NetParameter = field(default_factory=NetParameter)
    weights: Caffemodel | None = None
    file_names: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of the prototxts that are written."""
        return [name for name in FILES if name not in self.missing]

    @property
    def train_val(self) -> NetParameter:
        """The net for training, a ``NetParameter`` with both phases."""
        return self.retargeted.train_val

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for the net; None if its data layers do not read images."""
        return preprocessing_of(self.train_val, channels=input_channels(self.deploy))

    @property
    def changes(self) -> list[Change]:
        """What differs from the original net, layer by layer."""
        return self.retargeted.changes

    @property
    def reinitialized(self) -> list[str]:
        """Names of the layers that start from their fillers, sorted."""
        return sorted(self.retargeted.reinitialized)

    def net(self, phase: int = TEST) -> Net:
        """Build a runnable net with the weights that still fit: the deploy net for TEST, the train_val net for TRAIN.

        Args:
            phase: ``TRAIN`` or ``TEST``.

        Raises:
            NetError: the net cannot be built.
        """
        net = Net(self.deploy if phase == TEST else self.train_val, phase)
        if self.weights is not None:
            load_weights(net, self.weights)
        return net

    def save(self, folder: PathLike, *, force: bool = False) -> list[Path]:
        """Write train_val, solver and deploy prototxts, and weights.caffemodel if there are weights; all or none.

        Args:
            folder: Created if missing; the solver names the net and its snapshots in it.
            force: Replace files that exist.

        Returns:
            The paths written.

        Raises:
            CaffeToolsError: a file exists and ``force`` is not set.
            RunFailed: a file cannot be written.
        """
        check_free(folder, force=force, weights=self.weights is not None, files=self.files)
        self.solver.net = str(Path(folder) / FILES[0])
        self.solver.snapshot_prefix = str(Path(folder) / "snapshot")
        return write_retarget(self, folder, self.weights)


def prepare_retarget(
    source: PathLike | NetParameter,
    classes: int,
    folder: Path,
    *,
    trained_by: Path | None = None,
    head_lr_mult: float = HEAD_LR_MULT,
    heads: Iterable[str] | None = None,
    data: DataOptions | None = None,
    dataset: DatasetCard | None = None,
    tuning: Tuning | None = None,
    edits: LayerEdits | None = None,
    epochs: int = 20,
    base_lr: float | None = None,
    seed: int | None = None,
    input_shape: Shape | Mapping[str, Shape] | None = None,
    weights: PathLike | Caffemodel | None = None,
    stages: Stages | None = None,
    partial: bool = False,
) -> RetargetResult:
    """Retarget a net to ``classes``, and make its solver and its deploy net. Nothing is written.

    Args:
        source: A train_val prototxt, or a ``NetParameter`` of any age.
        classes: New number of classes.
        folder: Where the files will be written; the solver names the net and its snapshots in it.
        trained_by: Solver file that the net was trained with; see :func:`~caffetools.project.solver_config.solver_for`.
        head_lr_mult: As for :func:`~caffetools.surgery.retarget.retarget`.
        heads: As for :func:`~caffetools.surgery.retarget.retarget`.
        data: Sources, mean and batch sizes of the data layers.
        dataset: Dataset whose sources and mean are used, and whose size limits the batches, where ``data`` gives none.
        tuning: Which layers learn, and how fast.
        edits: Layers to remove and to insert; none by default.
        epochs: Passes over the training images, counted if the database exists.
        base_lr: Base learning rate; default as :func:`~caffetools.project.solver_config.solver_for` chooses.
        seed: Random seed of the solver; default nondeterministic.
        input_shape: (N, C, H, W) or (C, H, W) of the deploy net's input, or shapes by blob, if the data layers do not give them.
        weights: The .caffemodel that training starts from; no new classifier gets the name of a layer in it.
        stages: Stages of training, testing and use, where the net's rules name stages; by default those that it needs.
        partial: Leave out the files that cannot be made of a detector's net: of one for training, whose targets need labels, the deploy
            net; of one for testing, which has no loss, the net for training and its solver.

    Raises:
        NetError: the net cannot be retargeted or deployed; the message has the file and the line.
        PrototxtError: it cannot be read.
        DataError: a mean file, or a database that is there, cannot be used.
    """
    check_classes(classes)
    options = (data or DataOptions()).with_dataset(dataset)
    settings = options.settings()
    tuning, shapes = tuning or Tuning(), as_shapes(input_shape)
    param = source if isinstance(source, NetParameter) else read_net(source)
    names = {} if isinstance(source, NetParameter) else rebase_sources(param, find_data_base(param, Path(source)))
    with nullcontext() if isinstance(source, NetParameter) else error_context(source):
        whole = upgrade_net(param)
        stages = find_stages(whole).replaced(stages)
        original = resolve_stages(whole, stages.train, stages.test) if stage_names(whole) else whole
        _check_wiring(original)
        taken = _caffemodel(weights).blobs if weights is not None else ()
        made = retarget_with_edits(
            original, classes, edits or LayerEdits(), tuning, shapes, head_lr_mult=head_lr_mult, heads=heads, taken=taken
        )
        made.changes += tune(made.train_val, tuning, made.reinitialized, shapes)
        made.changes += convert_imagedata_to_data(made.train_val) if dataset is not None else []
        made.changes += set_data_sources(made.train_val, **settings)
        if dataset is not None:
            check_crops(made.train_val, dataset)
            made.changes += fit_batches(made.train_val, dataset, train=options.train_batch is None, val=options.val_batch is None)
        missing = _missing_loss(made.train_val, partial=partial)
        plan = _Edits(classes, edits or LayerEdits(), tuning, head_lr_mult, heads)
        try:
            deploy = _deploy_net(whole, original, stages, made, plan, shapes)
        except NotDeployable as error:
            if not (partial and _is_detector(made.train_val)):
                raise
            deploy, missing[FILES[2]] = NetParameter(), error.message
        check_parameter_shapes_match(made.train_val, deploy, shapes)
    like = read_solver(trained_by) if trained_by is not None else None
    solver = solver_in(made.train_val, folder, epochs=epochs, base_lr=base_lr, seed=seed, like=like)
    # The net that is written needs no stages; nets made from the same file in Caffe's way do.
    if stages.train:
        solver.train_state.stage.extend(stages.train)
    if stages.test and solver.test_iter:
        solver.test_state.add(stage=stages.test)
    origin = Path(param.name or "net") if isinstance(source, NetParameter) else Path(source)
    made.changes = [replace(change, before=names.get(change.before, change.before)) for change in made.changes]
    return RetargetResult(made, solver, deploy, origin, shapes, original, file_names=names, missing=missing)


@dataclass(frozen=True)
class _Edits:
    """The edits of one retargeting, to repeat them on the deploy stage."""

    classes: int
    layers: LayerEdits
    tuning: Tuning
    head_lr_mult: float
    heads: Iterable[str] | None


def _deploy_net(
    whole: NetParameter, original: NetParameter, stages: Stages, made: Retargeted, edits: _Edits, shapes: Mapping[str, Shape]
) -> NetParameter:
    """Return the deploy net: that of the file's stage for use, or what follows from the retargeted net for training."""
    if stages.deploy is not None:
        heads = [head.layer for head in find_heads(original, edits.heads)]
        return _deploy_stage(whole, stages.deploy, made, edits, heads, shapes)
    has_loss = made.loss_layer in {loss.name for loss in losses_of(made.train_val).values()}
    return deploy_from(made.train_val, input_shape=shapes, heads=[made.loss_layer] if has_loss else None)


def _deploy_stage(
    whole: NetParameter, stages: Iterable[str], made: Retargeted, edits: _Edits, found: list[str], shapes: Mapping[str, Shape]
) -> NetParameter:
    """Return the net of the deploy stage with the edits that the net for training had, and its layers' new names."""
    net = deploy_stage(whole, stages, made.train_val, shapes)
    present = {layer.name for layer in net.layer}
    heads = [name for name in found if name in present]
    if heads:
        lr = edits.head_lr_mult
        changed = retarget_with_edits(net, edits.classes, edits.layers, edits.tuning, shapes, head_lr_mult=lr, heads=heads, taken=present)
        net = changed.train_val
        for old, new in changed.renamed.items():
            for layer in net.layer:
                if layer.name == new:
                    layer.name = made.renamed.get(old, new)
    return deploy_from(net, input_shape=shapes)


def compare(project: RetargetResult, weights: PathLike | Caffemodel, *, trimmed: bool = False) -> Comparison:
    """Compare ``weights`` with the net: which layers take their parameters from it, and which are reinitialized.

    Args:
        project: The retargeted net.
        weights: The .caffemodel, or what was read of it.
        trimmed: The classifiers' weights are to be taken out first (see :func:`starting_weights`), so that they are reinitialized.

    Raises:
        NetError: a layer that is not reinitialized has other shapes in the file, so that training would refuse it.
        ModelFileError: the file cannot be read.
    """
    net = project.retargeted.train_val
    comparison = compare_weights(summarize(net, TRAIN, shapes=shapes_in(Graph(net, TRAIN), project.shapes)), _caffemodel(weights))
    reinitialized = project.retargeted.reinitialized
    for layer in comparison.layers:
        if trimmed and layer.layer in reinitialized:
            layer.status = FRESH
        if layer.status == DIFFERS:
            hint = (
                "; let its weights be taken out of the file (--write-weights)"
                if layer.layer in reinitialized
                else _other_net(project, layer)
            )
            stored = ", ".join(format_shape(blob.shape) for blob in layer.blobs)
            wanted = ", ".join(format_shape(s) for s in layer.expected or ())
            raise NetError(f"its parameters are {wanted}, but {_origin(weights)} holds {stored}{hint}", layer=layer.layer)
    return comparison


def _other_net(project: RetargetResult, layer: LayerWeights) -> str:
    """Return why a layer's weights do not fit: the size of the input, which fully connected layers depend on, or that they are another net's."""
    with suppress(NetError):
        for row in summarize(project.original, TRAIN).layers:
            if row.name == layer.layer and row.parameters == [blob.shape for blob in layer.blobs]:
                return ", which it needs for pictures of the net's own size; give a --crop that keeps it, or leave --weights out"
    return ": weights of another net"


def starting_weights(project: RetargetResult, weights: PathLike | Caffemodel, classes: Classes | None = None) -> Caffemodel:
    """Return ``weights`` without removed and reinitialized layers; with ``classes``, also the rows of the known ones.

    Raises:
        NetError, CaffeToolsError: as :func:`~caffetools.surgery.class_incremental.extend_classifier_weights`.
        ModelFileError: the file cannot be read.
    """
    made = project.retargeted
    model = _caffemodel(weights)
    if classes is None:
        return trim_weights(model, made.train_val, made.renamed)
    rows = summarize(made.train_val, TRAIN, shapes=shapes_in(Graph(made.train_val, TRAIN), project.shapes)).layers
    shapes = {row.name: row.parameters or [] for row in rows}
    return extend_classifier_weights(model, project.original, made.train_val, made.renamed, shapes, classes)


def write_retarget(project: RetargetResult, folder: PathLike, weights: Caffemodel | None = None, *, planned: str = "") -> list[Path]:
    """Write the three prototxts (and the weights to start from), all or none, and deploy.json with the preprocessing.

    Args:
        project: The retargeted net.
        folder: Created if missing.
        weights: Trained parameters that still fit.
        planned: Command that trains the net, for a comment in the solver.

    Returns:
        The paths of the prototxts and the weights.

    Raises:
        RunFailed: A file cannot be written.
    """
    train_val = type(project.train_val).FromString(project.train_val.SerializeToString())
    restore_sources(train_val, project.file_names, Path(folder) / FILES[0])
    messages = dict(zip(FILES, (train_val, project.solver, project.deploy), strict=True))
    messages = {name: messages[name] for name in project.files}
    paths = write_messages(messages, folder, f"# Written by caffetools retarget from {project.source.name}.\n", weights, planned=planned)
    if FILES[2] in messages:
        update_preprocessing(Path(folder) / FILES[2], project.preprocessing)
    return paths


def _caffemodel(weights: PathLike | Caffemodel) -> Caffemodel:
    return weights if isinstance(weights, Caffemodel) else read_weights(weights)


def _origin(weights: PathLike | Caffemodel) -> str:
    return "the weights" if isinstance(weights, Caffemodel) else os.fspath(weights)


def _is_detector(net: NetParameter) -> bool:
    return any(map(detects, phases(net)))


def _missing_loss(net: NetParameter, *, partial: bool) -> dict[str, str]:
    """Return the files that a net without a loss has no content for, with the reason.

    Raises:
        NetError: There is no loss, and the net is not the one for testing of a detector, or ``partial`` is not set.
    """
    if losses_of(net):
        return {}
    why = f"the net '{net.name}' has no loss, so it cannot be trained"
    if partial and _is_detector(net):
        return dict.fromkeys(FILES[:2], why)
    raise NetError(f"{why}; give its train_val prototxt, or make one of it first (caffetools trainable)")


def _check_wiring(param: NetParameter) -> None:
    """Raise :class:`NetError` where a bottom is missing, while the layers still have the names that the user gave them."""
    net = upgrade_net(param)
    for graph in graphs_present(net).values():
        check_blob_graph(graph.layers.values(), net)
