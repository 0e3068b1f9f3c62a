"""From a net in use back to one that can be trained: data for its input, a loss and accuracies for its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffetools.data.datasets.card import DatasetCard
from caffetools.data.layers.data import Data
from caffetools.data.layers.hdf5_data import HDF5Data
from caffetools.errors import CaffeToolsError, NetError
from caffetools.graph.classifiers import copy_class_axis
from caffetools.graph.graph import Graph, unused_name
from caffetools.graph.inputs import is_input
from caffetools.graph.learned import declared_blobs
from caffetools.graph.merges import is_linear
from caffetools.graph.stages import choose_stages
from caffetools.graph.summary import summarize
from caffetools.infer.sidecar import mean_path, read_preprocessing
from caffetools.layers.accuracy import Accuracy
from caffetools.layers.base import Shape, format_shape
from caffetools.layers.inputs import Input
from caffetools.layers.registry import traits
from caffetools.layers.softmax import SoftmaxWithLoss
from caffetools.layers.traits import field_at
from caffetools.net.net import error_context
from caffetools.project.config import FILES
from caffetools.project.data_config import DataOptions, check_crops, fit_batches, set_data_sources
from caffetools.project.output import PathLike, solver_in, write_messages
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter, SolverParameter
from caffetools.proto.text import read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.results import Preprocessing
from caffetools.surgery.changes import Change, number

_BATCHES = (32, 32)


@dataclass
class Trainable:
    """A net for training made from a deploy net, its solver, where it came from, what was changed, and what to look at."""

    train_val: NetParameter
    solver: SolverParameter
    source: Path
    changes: list[Change]
    notes: list[str]


def make_trainable(
    source: Path,
    folder: Path,
    *,
    data: DataOptions | None = None,
    dataset: DatasetCard | None = None,
    scale: float | None = None,
    epochs: int = 20,
    base_lr: float | None = None,
    seed: int | None = None,
    stages: Iterable[str] | None = None,
    input_shape: Mapping[str, Shape] | None = None,
    known: Preprocessing | None = None,
) -> Trainable:
    """Return a net for training and its solver from the deploy net in the file ``source``; nothing is written.

    Args:
        source: The deploy prototxt.
        folder: Where the files will be written.
        data: As for :func:`~caffetools.project.retargeting.prepare_retarget`.
        dataset: As for :func:`~caffetools.project.retargeting.prepare_retarget`.
        scale: The factor for pixels, after the mean is subtracted.
        epochs: As for :func:`~caffetools.project.retargeting.prepare_retarget`.
        base_lr: As for :func:`~caffetools.project.retargeting.prepare_retarget`.
        seed: As for :func:`~caffetools.project.retargeting.prepare_retarget`.
        stages: The stages whose layers are taken; by default the file's stage for use, where it has one.
        input_shape: Shapes of blobs that are given from outside.
        known: How images are prepared for the net; by default ``deploy.json`` next to ``source``. Its mean and scale are taken where
            ``data``, ``dataset`` and ``scale`` give none.

    Raises:
        NetError, PrototxtError, DataError: as :func:`~caffetools.project.retargeting.prepare_retarget`, and as :func:`trainable_from`.
    """
    options = (data or DataOptions()).with_dataset(dataset)
    settings = options.settings()
    known = known or read_preprocessing(source)
    param = read_net(source)
    with error_context(source):
        param = choose_stages(upgrade_net(param), stages, input_shape, deploy=True).net
        net, changes, notes = trainable_from(param, scale=known.scale if scale is None and known is not None else scale)
        if net.layer[0].type == HDF5Data.TYPE and (dataset is not None or options.mean is not None or scale not in (None, 1)):
            raise NetError(
                f"the net '{net.name}' ends in a Sigmoid, so each picture has several labels, which only HDF5 files hold; "
                "they are read as they are: leave --dataset, --mean and --scale out"
            )
        if known is not None and net.layer[0].type == Data.TYPE:
            if options.mean is None:
                settings |= {"mean_values": list(known.mean_values or ()) or None, "mean_file": _mean_file(known, source)}
            if known.channel_order == "RGB":
                notes.append(
                    "the net takes RGB, but Caffe's data layers give BGR: swap the channels of its first layer's weights, or of the data"
                )
        changes += set_data_sources(net, **settings)
        if dataset is not None:
            check_crops(net, dataset)
            changes += fit_batches(net, dataset)
    return Trainable(net, solver_in(net, folder, epochs=epochs, base_lr=base_lr, seed=seed, like=None), source, changes, notes)


def _mean_file(known: Preprocessing, source: Path) -> str | None:
    """Return the file of a mean image, next to ``deploy.json``."""
    return str(mean_path(source)) if known.mean_image is not None else None


def write_trainable(made: Trainable, folder: PathLike, *, force: bool = False) -> list[Path]:
    """Write train_val.prototxt and solver.prototxt, both or none. Raises :class:`CaffeToolsError` where they are there already."""
    taken = [path for name in FILES[:2] if (path := Path(folder) / name).exists()]
    if taken and not force:
        raise CaffeToolsError("already exists", path=taken[0], hint="give another folder, or --force to replace it")
    return write_messages(
        {FILES[0]: made.train_val, FILES[1]: made.solver}, folder, f"# Written by caffetools trainable from {made.source.name}.\n"
    )


def trainable_from(
    deploy: NetParameter, *, sources: tuple[str, str] = ("train_lmdb", "val_lmdb"), scale: float | None = None
) -> tuple[Any, list[Change], list[str]]:
    """Return a net for training that the deploy net ``deploy`` could have come from.

    Its input becomes Data layers for both phases, cropped to the input's size where that is square (HDF5Data for a net that ends in a
    Sigmoid, which has a label for each of its outputs); a final Softmax becomes a SoftmaxWithLoss with accuracies, a final Sigmoid a
    SigmoidCrossEntropyLoss; a net that ends in scores gets a SoftmaxWithLoss. Layers without a filler get xavier, so that they can also
    be reinitialized; weights that do not learn by the file learn again; BatchNorm gathers statistics again.

    Args:
        deploy: A ``NetParameter`` of any age; it is not changed.
        sources: The databases of the two phases.
        scale: The factor of the pixels (transform_param).

    Returns:
        The ``NetParameter``, what was changed, and sentences on what was taken for granted.

    Raises:
        NetError: The net has a loss already, several inputs, no scores among its outputs, or maps of them; the message names it.
    """
    net = NetParameter()
    net.CopyFrom(upgrade_net(deploy))
    if any(traits(layer).role == "loss" for layer in net.layer):
        raise NetError(f"the net '{net.name}' has a loss, so it can be trained as it is")
    inputs = [layer for layer in net.layer if is_input(layer)]
    if len(inputs) != 1 or len(inputs[0].top) != 1:
        tops = ", ".join(top for layer in inputs for top in layer.top) or "none"
        raise NetError(f"a net of one input can be made trainable; the inputs of '{net.name}' are {tops}")
    if not inputs[0].input_param.shape:
        raise NetError("has no shape; add input_param { shape { dim: … } }", layer=inputs[0].name)
    changes: list[Change] = []
    scores, answers = _scores(net)
    classes = _classes(net, scores)
    multi = bool(answers) and _gives_each_class_alone(answers[0])
    kept = [layer for layer in net.layer if not is_input(layer) and layer.name not in {answer.name for answer in answers}]
    label = unused_name(net, "label")
    trainable = NetParameter(name=net.name)
    for phase, source, batch in zip((TRAIN, TEST), sources, _BATCHES, strict=True):
        trainable.layer.add().CopyFrom(_data(inputs[0], label, phase, source, batch, scale, multi=multi))
    changes.append(Change(inputs[0].name, "layer", Input.TYPE, f"{trainable.layer[0].type} of {sources[0]} and {sources[1]}"))
    trainable.layer.extend(kept)
    for layer in trainable.layer:
        _make_learn(layer, changes)
        _follow_batch(layer, inputs[0].input_param.shape[0].dim[0], changes)
    _add_loss(trainable, scores, answers, label, classes, changes)
    for phase, batch in zip((TRAIN, TEST), _BATCHES, strict=True):
        shape = (batch, *inputs[0].input_param.shape[0].dim[1:])
        summarize(trainable, phase, shapes={"": shape, **({label: (batch, classes)} if multi else {})})
    return trainable, changes, _notes(net, scores, answers, classes)


def _notes(net: NetParameter, scores: str, answers: list[Any], classes: int) -> list[str]:
    """Return what was taken for granted."""
    graph, notes = Graph(net, TEST), []
    others = [top for i, top in graph.outputs() if graph.layers[i] not in answers and top != scores]
    if others:
        notes.append(f"{', '.join(others)}: no loss reads them, so what makes them learns nothing; add losses for them by hand")
    if not answers:
        notes.append(
            f"'{scores}' is taken for the scores of {classes} classes; if it is an embedding, a classifier and a loss must be added after it"
        )
    elif _gives_each_class_alone(answers[0]):
        notes.append(f"each picture needs {classes} labels of 0 or 1: they come from HDF5 files, which the sources list")
    return notes


def _scores(net: NetParameter) -> tuple[str, list[Any]]:
    """Return the blob that the loss is to read, and the layers that only turn it into probabilities."""
    graph = Graph(net, TEST)
    ends = [graph.layers[i] for i, _ in graph.outputs()]
    answers = [layer for layer in ends if traits(layer).loss]
    if len(answers) == 1:
        return str(answers[0].bottom[0]), answers
    if not answers:
        made = [(i, top) for i, top in graph.outputs() if any(_gives_scores(graph.layers[m]) for m in (i, *graph.walk_up(i, top)))]
        if len(made) == 1:
            return made[0][1], []
    outputs = ", ".join(top for _, top in graph.outputs()) or "none"
    raise NetError(
        f"which scores of the net '{net.name}' are to be learned is not clear: its outputs are {outputs}; one Softmax is expected"
    )


def _gives_scores(layer: LayerParameter) -> bool:
    """Return whether ``layer`` may give scores of classes; a Deconvolution at a net's end enlarges maps or pictures."""
    return is_linear(layer) and traits(layer).coordinates != "transposed"


def _data(given: LayerParameter, label: str, phase: int, source: str, batch: int, scale: float | None, *, multi: bool) -> LayerParameter:
    layer = NetParameter().layer.add(name=given.name, type=HDF5Data.TYPE if multi else Data.TYPE, top=[given.top[0], label])
    layer.include.add(phase=phase)
    if multi:
        layer.hdf5_data_param.source, layer.hdf5_data_param.batch_size = source, batch
        layer.hdf5_data_param.shuffle = phase == TRAIN
        return layer
    shape = list(given.input_param.shape[0].dim)
    if len(shape) == 4 and shape[2] == shape[3]:
        layer.transform_param.crop_size = shape[2]
    if scale is not None and scale != 1:
        layer.transform_param.scale = scale
    if len(shape) == 4 and shape[1] == 1:
        # Grey pictures, often of digits or letters, which are others in the mirror.
        layer.transform_param.force_gray = True
    elif phase == TRAIN:
        layer.transform_param.mirror = True
    layer.data_param.source, layer.data_param.batch_size = source, batch
    layer.data_param.backend = layer.data_param.LMDB
    return layer


def _make_learn(layer: LayerParameter, changes: list[Change]) -> None:
    facts = traits(layer)
    filled = facts.weight_filler == "weight_filler"
    if filled:
        param = facts.settings_of(layer)
        if not param.HasField("weight_filler"):
            param.weight_filler.type = "xavier"
            changes.append(Change(layer.name, "weight_filler", "", "xavier"))
    specs = declared_blobs(layer)
    learns = specs[0].learnable if specs else specs is None
    if learns and layer.param and layer.param[0].lr_mult == 0:
        before = [spec.lr_mult for spec in layer.param]
        for index, spec in enumerate(layer.param):
            # Biases learn twice as fast and do not decay, as in Caffe's own nets.
            bias = filled and index == 1
            spec.lr_mult, spec.decay_mult = (2, 0) if bias else (1, 1)
        after = " / ".join(number(spec.lr_mult) for spec in layer.param)
        changes.append(Change(layer.name, "lr_mult", " / ".join(map(number, before)), after))
    if facts.statistics_switch:
        message, field = field_at(layer, facts.statistics_switch)
        if getattr(message, field):
            message.ClearField(field)
            changes.append(Change(layer.name, field, "true", ""))


def _gives_each_class_alone(answer: LayerParameter) -> bool:
    """Return whether the layer that gives the answers does so for each class by itself, so that several classes may be right."""
    return traits(traits(answer).loss).compares == "targets"


def _follow_batch(layer: LayerParameter, batch: int, changes: list[Change]) -> None:
    """Let a Reshape that names the number of pictures take as many as there are."""
    param = layer.reshape_param
    if (
        traits(layer).channels == "reshaped"
        and param.axis == 0
        and param.num_axes == -1
        and param.shape.dim
        and param.shape.dim[0] == batch
    ):
        param.shape.dim[0] = 0
        changes.append(Change(layer.name, "dim", str(batch), "0 (as many pictures as there are)"))


def _classes(net: NetParameter, scores: str) -> int:
    """Return the number of classes of the blob ``scores``; 1 if its shape is not known."""
    for row in summarize(net).layers:
        for top, shape in zip(row.tops, row.shapes, strict=True):
            if top == scores and shape is not None:
                if math.prod(shape[2:]) > 1:
                    raise NetError(
                        f"gives a map of scores, {format_shape(shape)}, where one score a class is expected; pool them", layer=row.name
                    )
                return shape[1] if len(shape) > 1 else 1
    return 1


def _add_loss(net: NetParameter, scores: str, answers: list[Any], label: str, classes: int, changes: list[Change]) -> None:
    """Append the loss, and accuracies for testing where one class is right."""
    answer = answers[0] if answers else None
    kind = traits(answer).loss if answer is not None else SoftmaxWithLoss.TYPE
    name = unused_name(net, "loss")
    loss = net.layer.add(name=name, type=kind, bottom=[scores, label], top=[name])
    if answer is not None:
        copy_class_axis(answer, loss)
    before = f"{answer.type} '{answer.name}'" if answer is not None else ""
    changes.append(Change(name, "layer", before, kind))
    if traits(kind).compares != "classes":
        return
    for top_k in (1, 5):
        if top_k <= classes:
            called = unused_name(net, "accuracy" if top_k == 1 else f"accuracy_top{top_k}")
            accuracy = net.layer.add(name=called, type=Accuracy.TYPE, bottom=[scores, label], top=[called])
            accuracy.include.add(phase=TEST)
            if top_k > 1:
                accuracy.accuracy_param.top_k = top_k
