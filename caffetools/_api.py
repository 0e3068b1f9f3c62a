"""The functions of the public API: thin calls into the rooms, imported only when they are used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caffetools.data.datasets.card import DatasetCard
    from caffetools.graph.summary import Summary
    from caffetools.infer.classifier import ClassificationResult, ImageLike
    from caffetools.net.net import Net
    from caffetools.onnx.verify import Verification
    from caffetools.project.retargeting import RetargetResult
    from caffetools.proto.binary import Caffemodel
    from caffetools.proto.schema import NetParameter
    from caffetools.solver.run import TrainResult
    from caffetools.solver.testing import TestScores

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
        prototxt: A net of any age: V0 and V1 forms are upgraded.
        weights: A .caffemodel or .caffemodel.h5; None fills the parameters from their fillers.
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
        >>> net = ct.load_net(ct.zoo_prototxt("lenet"))
        >>> sorted(net({"data": torch.zeros(2, 1, 28, 28)}))
        ['prob']
    """
    from caffetools.net.net import Net, located
    from caffetools.net.weights import load_weights

    net = Net.from_file(prototxt, _phase(phase), level=level, stages=tuple(stages), fill=True)
    if weights is not None:
        with located(prototxt):
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
        ZooError: There is no such model.

    Example:
        >>> import caffetools as ct
        >>> ct.zoo_prototxt("lenet", "solver").name
        'solver.prototxt'
    """
    from caffetools.zoo.networks import prototxt_path

    return prototxt_path(model, kind)


def build_dataset(
    pictures: PathLike,
    out: PathLike,
    *,
    size: str = "256",
    val: float = 0.2,
    seed: int = 1,
    gray: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatasetCard:
    """Build training and validation LMDBs, labels and a mean from a folder with one subfolder of images per class.

    Args:
        pictures: The folder; its subfolders are the classes, in natural order of their names.
        out: Folder of the dataset; it must not exist.
        size: Size to resize images to: ``"256"`` or ``"320x240"`` (width x height).
        val: Fraction of each class that is held out, from 0 to 1.
        seed: Seed of the split and the order.
        gray: Store one channel.
        events: Receives ``Progress`` events, in images.
        cancel: Checked between images; nothing is left behind after a cancellation.

    Returns:
        The dataset's card: classes, counts, size, mean values.

    Raises:
        DataError: There are no usable images, or ``out`` exists.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.data.datasets.build import build_dataset as build
    from caffetools.events import reporter

    report = reporter(events, "dataset", "images", cancel)
    return build(Path(pictures), Path(out), size=size, val=val, seed=seed, gray=gray, progress=report)


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
        net: A train_val prototxt, a ``NetParameter``, or a :class:`Net`, whose weights are then used unless ``weights`` is given.
        classes: New number of classes; taken from ``dataset`` if None.
        weights: Trained parameters; those that still fit are kept in the result's ``weights``.
        dataset: A dataset folder or its card: sources, mean and batch sizes are set for it.
        heads: Of several classifiers, the layers to replace; by default all that have the same number of classes.
        head_lr_mult: Factor on the learning rates of the new classifier.
        input_shape: (N, C, H, W) of the deploy net's input, or shapes by blob name, if the data layers do not give them.
        epochs: Passes over the training images.
        base_lr: Base learning rate; by default a tenth of the rate that the net was trained with, or 0.001.
        seed: Random seed of the solver; None is nondeterministic.

    Returns:
        The result: ``train_val``, ``solver`` and ``deploy`` messages, ``changes``, ``weights``; ``save(folder)`` writes it,
        ``net()`` builds a runnable net.

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
    from caffetools.project.dataset_config import classes_of
    from caffetools.project.retargeting import compare, prepare_retarget, starting_weights

    card = dataset if isinstance(dataset, DatasetCard) or dataset is None else load_card(dataset)
    count = classes_of(card, classes) if card is not None else classes
    if count is None:
        raise CaffeToolsError("the number of classes is missing", hint="give classes or dataset")
    if isinstance(net, Net):
        weights = to_caffemodel(net) if weights is None else weights
        source: Any = net.full_param
    else:
        source = Path(net) if isinstance(net, str | os.PathLike) else net
    result = prepare_retarget(
        source,
        count,
        Path(),
        heads=heads,
        head_lr_mult=head_lr_mult,
        dataset=card,
        input_shape=_shapes(input_shape),
        epochs=epochs,
        base_lr=base_lr,
        seed=seed,
        weights=weights,
    )
    if weights is not None:
        compare(result, weights, trimmed=True)
        result.weights = starting_weights(result, weights)
    return result


def train(
    solver: PathLike,
    *,
    weights: PathLike | Sequence[PathLike] = (),
    snapshot: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    max_iter: int | None = None,
    log: PathLike | None = None,
) -> TrainResult:
    """Train the net of a solver prototxt, as ``caffe train`` does.

    Args:
        solver: The solver prototxt.
        weights: One or several .caffemodel files to start from.
        snapshot: A .solverstate to resume from.
        resume: Resume from the newest complete snapshot under the solver's prefix, if there is one.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        max_iter: Iterations to train for, in place of the solver's.
        log: Log file; default ``PREFIX.log``. ``PREFIX_log.jsonl`` holds the same as JSON lines.

    Returns:
        The solver with its net, the history of losses and tests, the last snapshot, and whether the run was stopped early.

    Raises:
        CaffeToolsError: Bad input; nothing has been written.
        RunFailed: The loss diverged, or a file could not be written; earlier snapshots are kept.
    """
    from caffetools.solver.run import train as run

    given = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    return run(solver, weights=given, snapshot=snapshot, resume=resume, device=device, max_iter=max_iter, log=log)


def test(
    net: PathLike | Net,
    weights: PathLike | None = None,
    *,
    iterations: int = 50,
    device: str = "cpu",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> TestScores:
    """Score a net on the data of its TEST phase, as ``caffe test`` does.

    Args:
        net: A train_val prototxt, or a :class:`Net` built for the TEST phase.
        weights: A .caffemodel; needed for a prototxt.
        iterations: Number of batches.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        events: Receives a ``Progress`` event after every batch.
        cancel: Checked after every batch.

    Returns:
        The mean loss and the mean of every output.

    Raises:
        CaffeToolsError: A file cannot be read, the weights are missing, or no data layer fills the net's inputs.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.events import reporter
    from caffetools.net.device import find_device
    from caffetools.net.net import Net
    from caffetools.solver.testing import load_test_net, test_net

    if isinstance(net, str | os.PathLike):
        if weights is None:
            raise CaffeToolsError("a prototxt needs its weights to be tested", hint="give weights")
        net = load_test_net(net, weights, device=find_device(device))
    elif not isinstance(net, Net):
        raise CaffeToolsError(f"a prototxt's path or a Net is expected, not {type(net).__name__}")
    return test_net(net, iterations, progress=reporter(events, "test", "batches", cancel))


test.__test__ = False  # type: ignore[attr-defined]  # pytest collects functions of this name


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
        net: A train_val prototxt, a ``NetParameter``, or a :class:`Net`.
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
    from caffetools.net.net import located
    from caffetools.surgery.deploy import deploy_from

    param, path = _param(net)
    options: dict[str, Any] = {"batch": batch, "input_shape": _shapes(input_shape), "drop_dropout": drop_dropout}
    options["heads"] = list(heads) if heads is not None else None
    if path is None:
        return deploy_from(param, **options)
    with located(path):
        return deploy_from(param, **options)


def classify(
    images: ImageLike | Iterable[ImageLike],
    model: PathLike,
    weights: PathLike | None = None,
    *,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    top: int = 5,
    batch: int = 16,
    oversample: bool = False,
    channel_order: Literal["RGB", "BGR"] = "RGB",
    engine: str | None = None,
    device: str = "cpu",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> list[ClassificationResult]:
    """Classify images with a deployed net.

    Args:
        images: One image or several: paths, Pillow images, or uint8 arrays (H, W, 3) or (H, W) with values from 0 to 255.
        model: A deploy prototxt, or an ONNX file.
        weights: The .caffemodel; None for an ONNX file.
        mean: Values per channel in BGR order, ``"104,117,123"``, a .binaryproto or .npy file, or an array (C, H, W).
        labels: Class names in order, or a text file with one per line.
        scale: Factor applied after the mean is subtracted.
        resize: (width, height) of the whole image before the center crop.
        top: Number of classes to return for each image.
        batch: Images per batch.
        oversample: Average ten crops, as ``caffe.io.oversample`` does.
        channel_order: Order of the channels of arrays; Pillow images and files need none.
        engine: ``"torch"`` or ``"onnxruntime"``; by default torch for a prototxt and onnxruntime for an ONNX file.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        events: Receives ``Progress`` events, in images.
        cancel: Checked before every batch.

    Returns:
        One result per image: the most probable classes, or ``error`` for a file that cannot be read.

    Raises:
        CaffeToolsError: Model, weights, mean, labels or arrays cannot be used.
        Cancelled: ``cancel`` was set.

    Example:
        >>> import caffetools as ct, numpy as np
        >>> from caffetools.net.weights import save_weights
        >>> deploy = ct.zoo_prototxt("lenet")
        >>> save_weights(ct.load_net(deploy), "lenet.caffemodel")
        >>> digit = np.zeros((28, 28), np.uint8)
        >>> result, = ct.classify(digit, deploy, "lenet.caffemodel", mean=[0], scale=1 / 256, top=1)
        >>> 0 <= result.guesses[0].index < 10
        True
    """
    from caffetools.infer.classifier import Classifier, Options, as_images

    options = Options(mean=mean, labels=labels, scale=scale, resize=resize)
    classifier = Classifier(model, weights, options, engine=engine, device=device)
    return classifier.classify(
        as_images(images), top=top, batch=batch, oversample=oversample, channel_order=channel_order, events=events, cancel=cancel
    )


def export_onnx(
    deploy: PathLike,
    weights: PathLike,
    path: PathLike,
    *,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    opset: int = 17,
    batch: int | None = None,
    images: Sequence[PathLike] = (),
) -> Verification:
    """Export a deployed net as an ONNX file, after onnxruntime has given the same numbers.

    Args:
        deploy: The deploy prototxt.
        weights: Its .caffemodel.
        path: ONNX file to write.
        mean: As for :func:`classify`; stored in the file's metadata.
        labels: As for :func:`classify`; stored in the file's metadata.
        scale: As for :func:`classify`; stored in the file's metadata.
        resize: As for :func:`classify`; stored in the file's metadata.
        opset: Version of ONNX's operator set, 11 to 20.
        batch: Batch size to fix; None leaves it dynamic.
        images: Image files to verify on; seeded random inputs if empty.

    Returns:
        What was compared, and the largest differences.

    Raises:
        ExportError: The net has no exact ONNX form, or the exported model gives other numbers; nothing is written then.
        CaffeToolsError: A file cannot be read, or does not fit the net.
    """
    from caffetools.infer.classifier import Options
    from caffetools.project.onnx_file import export_deployed

    options = Options(mean=mean, labels=labels, scale=scale, resize=resize)
    return export_deployed(deploy, weights, path, options, opset=opset, batch=batch, pictures=images)


def verify(model: PathLike, deploy: PathLike, weights: PathLike, *, tolerance: float = 1e-4, seed: int = 0) -> Verification:
    """Compare an ONNX model with the Caffe net it came from, on seeded random inputs.

    Args:
        model: The ONNX file.
        deploy: The deploy prototxt.
        weights: Its .caffemodel.
        tolerance: Largest difference allowed, relative to the largest absolute value of an output.
        seed: Seed of the inputs.

    Returns:
        The largest difference of every output, worst first.

    Raises:
        ExportError: An output differs by more than ``tolerance``; names the first blob that differs.
        CaffeToolsError: A file cannot be read.
    """
    from caffetools.engines.torch import TorchEngine
    from caffetools.onnx.verify import verify as compare

    return compare(model, TorchEngine.load(deploy, weights).net, tolerance=tolerance, seed=seed)


def inspect(
    net: PathLike | NetParameter | Net,
    phase: Phase = "TEST",
    *,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
) -> Summary:
    """List the layers of a net: type, output shapes, parameters, multiply-accumulates and memory. Nothing is run.

    Args:
        net: A prototxt, a ``NetParameter``, or a :class:`Net`.
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
    from caffetools.net.net import located
    from caffetools.proto.upgrades.v1 import upgrade_net

    param, path = _param(net)
    shapes = _shapes(input_shape)
    given = shapes if isinstance(shapes, dict) else {"": shapes} if shapes is not None else {}
    if path is None:
        return summarize(upgrade_net(param), _phase(phase), shapes=given)
    with located(path):
        return summarize(upgrade_net(param), _phase(phase), shapes=given)


def _param(net: PathLike | NetParameter | Net) -> tuple[Any, PathLike | None]:
    """Return the ``NetParameter`` of all phases, and the file it came from."""
    from caffetools.net.net import Net
    from caffetools.proto.text import read_net

    if isinstance(net, str | os.PathLike):
        return read_net(net), net
    return (net.full_param, None) if isinstance(net, Net) else (net, None)


def _phase(phase: str) -> int:
    from caffetools.proto.schema import TEST, TRAIN

    if phase not in ("TRAIN", "TEST"):
        raise CaffeToolsError(f"the phase is 'TRAIN' or 'TEST', not '{phase}'")
    return TRAIN if phase == "TRAIN" else TEST


def _shapes(given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> Any:
    if isinstance(given, Mapping):
        return {blob: tuple(shape) for blob, shape in given.items()}
    return None if given is None else tuple(given)
