"""Nets: load, retarget, deploy, inspect."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caffetools._api.models import net_path, weights_path
from caffetools.errors import CaffeToolsError
from caffetools.util.arguments import MOST_SEED, file_path, finite_number, named_shapes, positive_number, several, shape, whole_number

if TYPE_CHECKING:
    from caffetools.data.datasets.card import DatasetCard
    from caffetools.graph.summary import Summary
    from caffetools.net.net import Net
    from caffetools.project.retargeting import RetargetResult
    from caffetools.proto.model import Caffemodel
    from caffetools.proto.schema import NetParameter

PathLike = str | os.PathLike[str]
Phase = Literal["TRAIN", "TEST"]


def load_net(
    prototxt: PathLike,
    weights: PathLike | Caffemodel | None = None,
    phase: Phase = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
) -> Net:
    """Build the net of a prototxt and load its weights.

    Args:
        prototxt: A net of any age (V0 and V1 forms are upgraded); or the name of a model of the zoo, such as ``"googlenet"``: its
            deploy net, in the TRAIN phase its net for training.
        weights: A .caffemodel or .caffemodel.h5; or the name of a model of the zoo, whose published weights are fetched if they are not
            in the cache; None fills the parameters from their fillers.
        phase: ``"TEST"`` or ``"TRAIN"``: which layers exist, and how dropout and batch normalization behave.
        level: Level of Caffe's ``NetState``.
        stages: Stages of Caffe's ``NetState``.

    Returns:
        An ordinary ``torch.nn.Module``: ``net({"data": x})`` maps input tensors (N, C, H, W) float32 to output tensors by blob name.

    Raises:
        PrototxtError: The prototxt cannot be parsed.
        ModelFileError: The weights cannot be read.
        NetError: The net cannot be built, or the weights do not fit it.

    Example:
        >>> import caffetools as ct, torch
        >>> net = ct.load_net("lenet")
        >>> sorted(net({"data": torch.zeros(2, 1, 28, 28)}))
        ['prob']
    """
    from caffetools.net.net import Net, error_context
    from caffetools.net.weights import load_weights

    level = whole_number("level", level, least=-(2**31))
    path = net_path("prototxt", prototxt, "deploy" if phase == "TEST" else "train_val")
    net = Net.from_file(path, _phase(phase), level=level, stages=tuple(several("stages", stages)), fill=True)
    weights = weights_path(weights)
    if weights is not None:
        with error_context(prototxt):
            report = load_weights(net, weights)
        if not report.loaded and any(len(layer.blobs) for layer in net.layers):
            name = "the weights" if not isinstance(weights, str | os.PathLike) else os.fspath(weights)
            raise CaffeToolsError(f"no layer of {os.fspath(prototxt)} has weights in {name}", hint="check that they belong to this net")
    return net


def zoo_prototxt(model: str, kind: Literal["train_val", "deploy", "solver"] = "deploy") -> Path:
    """Return the path of a zoo model's prototxt, which is installed with caffetools.

    Args:
        model: A model of the zoo, such as ``"lenet"`` or ``"squeezenet_v1.1"``.
        kind: Which of its prototxts.

    Raises:
        ZooError: The model does not exist.

    Example:
        >>> import caffetools as ct
        >>> ct.zoo_prototxt("lenet", "solver").name
        'solver.prototxt'
    """
    from caffetools.zoo.networks import prototxt_path

    if not isinstance(model, str):
        raise CaffeToolsError(f"model must be the name of a model of the zoo, not {type(model).__name__}")
    return prototxt_path(model, kind)


def retarget(
    net: PathLike | NetParameter | Net,
    classes: int | None = None,
    *,
    weights: PathLike | Caffemodel | None = None,
    dataset: PathLike | DatasetCard | None = None,
    heads: Iterable[str] | None = None,
    head_lr_mult: float = 10.0,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    epochs: int = 20,
    base_lr: float | None = None,
    seed: int | None = None,
) -> RetargetResult:
    """Replace the classifier of a net for a new number of classes.

    Args:
        net: A train_val prototxt or the name of a model of the zoo, a ``NetParameter``, or a :class:`Net`, whose weights are then used
            unless ``weights`` is given.
        classes: New number of classes; taken from ``dataset`` if None.
        weights: Trained parameters, or the name of a model of the zoo; those that still fit are kept in the result's ``weights``.
        dataset: A dataset folder or its card: sources, mean and batch sizes are set for it.
        heads: Of several classifiers, the layers to replace; by default all that have the same number of classes.
        head_lr_mult: Factor on the learning rates of the new classifier.
        input_shape: (N, C, H, W) of the deploy net's input, or shapes by blob name, if the data layers do not give them.
        epochs: Passes over the training images.
        base_lr: Base learning rate; by default a tenth of the rate that the net was trained with, or 0.001.
        seed: Random seed of the solver; None is nondeterministic.

    Returns:
        The result: ``train_val``, ``solver`` and ``deploy`` messages, ``changes``, ``weights``; ``save(folder)`` writes it,
        ``net()`` builds a runnable net. Of a detector's net, ``missing`` names the files that it has no content for.

    Raises:
        NetError: The net has no classifier that can be replaced, or weights do not fit it.
        CaffeToolsError: The number of classes is missing or differs from the dataset's.

    Example:
        >>> import caffetools as ct
        >>> result = ct.retarget(ct.zoo_prototxt("lenet", "train_val"), classes=4, input_shape=(1, 1, 28, 28))
        >>> result.reinitialized
        ['ip2_4']
        >>> result.net().blob_shapes["prob"]
        (1, 4)
    """
    from caffetools.data.datasets.card import DatasetCard, load_card
    from caffetools.net.net import Net
    from caffetools.net.weights import to_caffemodel
    from caffetools.project.data_config import classes_of
    from caffetools.project.retargeting import compare, prepare_retarget, starting_weights

    weights = weights_path(weights)
    classes = None if classes is None else whole_number("classes", classes, least=2)
    epochs, head_lr_mult = whole_number("epochs", epochs), finite_number("head_lr_mult", head_lr_mult)
    base_lr = None if base_lr is None else positive_number("base_lr", base_lr)
    seed = None if seed is None else whole_number("seed", seed, 0, MOST_SEED)
    card = dataset if isinstance(dataset, DatasetCard) or dataset is None else load_card(file_path("dataset", dataset))
    count = classes_of(card, classes) if card is not None else classes
    if count is None:
        raise CaffeToolsError("the number of classes is missing", hint="give classes or dataset")
    if isinstance(net, Net):
        weights = to_caffemodel(net) if weights is None else weights
        source: Any = net.full_param
    else:
        param, path = _param(net, "train_val")
        source = param if path is None else path
    result = prepare_retarget(
        source,
        count,
        Path(),
        heads=None if heads is None else several("heads", heads),
        head_lr_mult=head_lr_mult,
        dataset=card,
        input_shape=_shapes(input_shape),
        epochs=epochs,
        base_lr=base_lr,
        seed=seed,
        weights=weights,
        partial=True,
    )
    if weights is not None:
        compare(result, weights, trimmed=True)
        result.weights = starting_weights(result, weights)
    return result


def deploy(
    net: PathLike | NetParameter | Net,
    *,
    batch: int = 1,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    heads: Iterable[str] | None = None,
    drop_dropout: bool = False,
) -> NetParameter:
    """Make the deploy net of a net for training.

    Data layers become an Input, the loss becomes ``prob``, layers that only training needs are removed. Layers keep their names,
    so the same weights load.

    Args:
        net: A train_val prototxt or the name of a model of the zoo, a ``NetParameter``, or a :class:`Net`.
        batch: Batch size of the input.
        input_shape: (N, C, H, W) of the input, or shapes by blob name; by default as the TEST data layer crops.
        heads: Of several losses, the ones to keep: names, or ``["all"]``; by default the one with the largest weight.
        drop_dropout: Remove Dropout layers, which do nothing in the TEST phase.

    Returns:
        A ``NetParameter``; ``str()`` of it is the prototxt.

    Raises:
        NetError: The net has no output left, or the input's size is not known.

    Example:
        >>> import caffetools as ct
        >>> param = ct.deploy(ct.zoo_prototxt("lenet", "train_val"), input_shape=(1, 1, 28, 28))
        >>> param.layer[0].type, param.layer[-1].top[0]
        ('Input', 'prob')
    """
    from caffetools.net.net import error_context
    from caffetools.surgery.deploy import deploy_from

    param, path = _param(net, "train_val")
    options: dict[str, Any] = {"batch": whole_number("batch", batch), "input_shape": _shapes(input_shape), "drop_dropout": drop_dropout}
    options["heads"] = several("heads", heads) if heads is not None else None
    with error_context(path) if path is not None else nullcontext():
        deployed: NetParameter = deploy_from(param, **options)
    return deployed


def inspect(
    net: PathLike | NetParameter | Net,
    phase: Phase = "TEST",
    *,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
) -> Summary:
    """List the layers of a net: type, output shapes, parameters, multiply-accumulates and memory. Nothing is run.

    Args:
        net: A prototxt or the name of a model of the zoo (its deploy net), a ``NetParameter``, or a :class:`Net`.
        phase: ``"TEST"`` or ``"TRAIN"``.
        input_shape: (N, C, H, W) of the input, or shapes by blob name, if the net does not give them.

    Returns:
        A summary with one row per layer.

    Raises:
        NetError: The shapes do not fit.

    Example:
        >>> import caffetools as ct
        >>> summary = ct.inspect(ct.zoo_prototxt("lenet"))
        >>> len(summary.layers), summary.parameters
        (9, 431080)
    """
    from caffetools.graph.summary import summarize
    from caffetools.net.net import error_context
    from caffetools.proto.upgrades.v1 import upgrade_net

    param, path = _param(net, "deploy")
    shapes = _shapes(input_shape)
    given = shapes if isinstance(shapes, dict) else {"": shapes} if shapes is not None else {}
    if path is None:
        return summarize(upgrade_net(param), _phase(phase), shapes=given)
    with error_context(path):
        return summarize(upgrade_net(param), _phase(phase), shapes=given)


def _param(net: PathLike | NetParameter | Net, kind: Literal["train_val", "deploy"]) -> tuple[Any, Path | None]:
    """Return the ``NetParameter`` of all phases, and the file it came from: of the zoo's prototxts that of ``kind``."""
    from caffetools.net.net import Net
    from caffetools.proto.file_names import read_net_near_files

    if isinstance(net, str | os.PathLike):
        path = net_path("net", net, kind)
        return read_net_near_files(path), path
    if isinstance(net, Net):
        return net.full_param, None
    if getattr(getattr(net, "DESCRIPTOR", None), "name", "") != "NetParameter":
        raise CaffeToolsError(f"a prototxt's path, a NetParameter or a Net is expected, not {type(net).__name__}")
    return net, None


def _phase(phase: str) -> int:
    from caffetools.proto.schema import TEST, TRAIN

    if phase not in ("TRAIN", "TEST"):
        raise CaffeToolsError(f"the phase is 'TRAIN' or 'TEST', not '{phase}'")
    return TRAIN if phase == "TRAIN" else TEST


def _shapes(given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> Any:
    if isinstance(given, Mapping):
        return named_shapes("input_shape", given)
    return None if given is None else shape("input_shape", given)
