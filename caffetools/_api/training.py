"""Training: build a dataset, train, test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore

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
    from caffetools.net.device import find_device
    from caffetools.net.net import Net
    from caffetools.solver.testing import load_test_net, test_net

    if isinstance(net, str | os.PathLike):
        if weights is None:
            raise CaffeToolsError("a prototxt needs its weights to be tested", hint="give weights")
        net = load_test_net(net, weights, device=find_device(device))
    elif not isinstance(net, Net):
        raise CaffeToolsError(f"a prototxt's path or a Net is expected, not {type(net).__name__}")
    return test_net(net, iterations, events=events, cancel=cancel)


test.__test__ = False  # type: ignore[attr-defined]  # pytest collects functions of this name
