"""Training: build a dataset, train, test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from caffetools._api.models import net_path, weights_path
from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore
from caffetools.solver.compute_options import ComputeOptions
from caffetools.util.arguments import check_control, file_path, several, whole_number

if TYPE_CHECKING:
    from caffetools.data.datasets.card import DatasetCard
    from caffetools.net.net import Net
    from caffetools.solver.run import TrainResult
    from caffetools.solver.testing import TestScores

PathLike = str | os.PathLike[str]
Phase = Literal["TRAIN", "TEST"]


def build_dataset(
    pictures: PathLike,
    out: PathLike,
    *,
    size: int | str = "256",
    resize_mode: str = "squash",
    val: float = 0.2,
    test: float = 0.0,
    group_by: str | None = None,
    seed: int = 1,
    gray: bool = False,
    encode: str = "raw",
    min_per_class: int = 1,
    drop_duplicates: bool = False,
    drop_similar: bool = False,
    root: PathLike | None = None,
    val_list: PathLike | None = None,
    test_list: PathLike | None = None,
    labels: PathLike | None = None,
    strict: bool = False,
    force: bool = False,
    resume: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> DatasetCard:
    """Build LMDBs for training, validation and testing, lists, labels and a mean of images.

    Args:
        pictures: A folder with one subfolder of images per class; `train/`, `val/` and maybe `test/` with such folders; a zip or tar of
            them; or a list: Caffe's `path label` lines, CSV, TSV or JSON.
        out: Folder of the dataset.
        size: Size to store: `256`, `"320x240"` (width x height), or 0 to keep the images' own sizes.
        resize_mode: `"squash"`, `"crop"` (the center), `"fill"` (black borders) or `"half-crop"`.
        val: Fraction of each class for validation, between 0 and 1.
        test: Fraction of each class for testing, from 0.
        group_by: Column of a list, or regular expression: images with the same value, or the same match in their paths, are in one split.
        seed: Seed of the split and the order.
        gray: Store one channel.
        encode: `"raw"` (pixels), `"png"`, `"jpeg"`, or `"source"` (the images' own JPEG, PNG and BMP files where the size allows).
        min_per_class: Leave out classes with fewer usable images.
        drop_duplicates: Keep one of several equal files; none if their labels differ.
        drop_similar: The same for near-identical images.
        root: Folder that the paths of a list are relative to.
        val_list: List of the images for validation.
        test_list: List of the images for testing.
        labels: File of class names, for a list with numbers as labels.
        strict: Raise the error of an image that cannot be used, instead of leaving it out.
        force: Replace a dataset at `out` once the new one is complete.
        resume: Continue a build that was killed or cancelled.
        events: Receives `Progress` events, in images.
        cancel: Checked between images; nothing is at `out` after a cancellation, and `resume` continues.

    Returns:
        The dataset's card: classes, counts, size, mean values, duplicates, what was left out, and checksums.

    Raises:
        DataError: There are no usable images, or ``out`` exists.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.data.datasets.build import build_dataset as build

    check_control(events, cancel)
    for name, value in (("pictures", pictures), ("out", out)):
        file_path(name, value)
    return build(
        pictures,
        out,
        size=size,
        resize_mode=resize_mode,
        val=val,
        test=test,
        group_by=group_by,
        seed=seed,
        gray=gray,
        encode=encode,
        min_per_class=min_per_class,
        drop_duplicates=drop_duplicates,
        drop_similar=drop_similar,
        root=root,
        val_list=val_list,
        test_list=test_list,
        labels=labels,
        strict=strict,
        force=force,
        resume=resume,
        events=events,
        cancel=cancel,
    )


def train(
    solver: PathLike,
    *,
    weights: PathLike | Sequence[PathLike] = (),
    snapshot: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    max_iter: int | None = None,
    log: PathLike | None = None,
    compute: ComputeOptions = ComputeOptions(),
    quantize: Literal["", "int8"] = "",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> TrainResult:
    """Train the net of a solver prototxt, as ``caffe train`` does.

    Args:
        solver: The solver prototxt.
        weights: One or several .caffemodel files to start from; names of models of the zoo are fetched if they are not in the cache.
        snapshot: A .solverstate to resume from.
        resume: Resume from the newest complete snapshot under the solver's prefix, if there is one.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        max_iter: Iterations to train for, in place of the solver's.
        log: Log file; default ``PREFIX.log``. ``PREFIX_log.jsonl`` holds the same as JSON lines.
        compute: Precision (``ComputeOptions("bf16")``), compiling, memory and CUDA graphs; the default computes as Caffe.
        quantize: ``"int8"`` computes with simulated int8 (quantization-aware training); each snapshot gets its ranges next to it.
        events: Receives ``Started``, ``Progress`` after each iteration, ``Metrics``, ``Tested``, ``CheckpointWritten``, ``Finished``.
        cancel: When cancelled, the run stops after the current update with a snapshot.

    Returns:
        The solver with its net, the history of losses and tests, the last snapshot, and whether the run was stopped early.

    Raises:
        CaffeToolsError: Bad input; nothing has been written.
        RunFailed: The loss diverged, or a file could not be written; earlier snapshots are kept.
    """
    from caffetools.quant.aware import training_callbacks
    from caffetools.solver.run import train as run

    check_control(events, cancel)
    if max_iter is not None:
        whole_number("max_iter", max_iter, least=0)
    given = [weights_path(one, events, cancel) for one in several("weights", weights)]
    return run(
        file_path("solver", solver),
        weights=given,
        snapshot=snapshot,
        resume=resume,
        device=device,
        max_iter=max_iter,
        log=log,
        compute=compute,
        callbacks=training_callbacks(quantize, compute),
        events=events,
        cancel=cancel,
    )


def test(
    net: PathLike | Net,
    weights: PathLike | None = None,
    *,
    iterations: int = 50,
    device: str = "cpu",
    precision: str = "fp32",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> TestScores:
    """Score a net on the data of its TEST phase, as ``caffe test`` does.

    Args:
        net: A train_val prototxt, the name of a model of the zoo, or a :class:`Net` built for the TEST phase.
        weights: A .caffemodel, or the name of a model of the zoo; needed for a prototxt.
        iterations: Number of batches.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: Of a prototxt's net: ``"fp32"`` as Caffe, ``"tf32"``, ``"bf16"`` or ``"fp16"``.
        events: Receives a ``Progress`` event after every batch.
        cancel: Checked after every batch.

    Returns:
        The mean loss and the mean of every output.

    Raises:
        CaffeToolsError: A file cannot be read, the weights are missing, or no data layer fills the net's inputs.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.net.device import find_device
    from caffetools.net.net import Net
    from caffetools.net.precision import set_precision
    from caffetools.proto.schema import TEST
    from caffetools.solver.testing import load_test_net, test_net

    check_control(events, cancel)
    whole_number("iterations", iterations)
    if isinstance(net, str | os.PathLike):
        if weights is None:
            raise CaffeToolsError("a prototxt needs its weights to be tested", hint="give weights")
        path = net_path("net", net, "train_val")
        net = set_precision(load_test_net(path, weights_path(weights, events, cancel), device=find_device(device)), precision)
    elif not isinstance(net, Net):
        raise CaffeToolsError(f"a prototxt's path or a Net is expected, not {type(net).__name__}")
    elif weights is not None:
        raise CaffeToolsError("a Net has its weights already", hint="load them with load_net, or give the prototxt's path")
    elif net.phase != TEST:
        raise CaffeToolsError("the net is in the TRAIN phase", hint='build it with phase="TEST"')
    return test_net(net, iterations, events=events, cancel=cancel)


test.__test__ = False  # type: ignore[attr-defined]  # pytest collects functions of this name
