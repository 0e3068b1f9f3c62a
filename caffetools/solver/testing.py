"""``test``: score a net over many batches, as ``caffe test`` does."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from caffetools.cancel import CancelToken
from caffetools.data.layers.batch_source import pause_reading
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, Progress, Tested, ignore, reported
from caffetools.layers.draws import drawing_from
from caffetools.net.net import Net, error_context
from caffetools.net.weights import load_weights
from caffetools.proto.file_names import read_net_near_files
from caffetools.proto.schema import TEST
from caffetools.proto.text import format_text
from caffetools.solver.callbacks import named_values
from caffetools.solver.control import Log, Output, no_log
from caffetools.solver.logs.caffe_log import log_loaded, log_net, number, output_text
from caffetools.solver.scores import Scores, read_outputs

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TestScores:
    """The mean weighted loss, and the mean of every number of the net's outputs, over ``iterations`` batches."""

    # pytest is not to collect it for its name.
    __test__ = False

    loss: float
    outputs: list[Output]
    iterations: int


def test_net(
    net: Net, iterations: int = 50, *, log: Log = no_log, events: EventSink = ignore, cancel: CancelToken | None = None
) -> TestScores:
    """Run ``net`` over ``iterations`` batches of its own data layers, without gradients.

    Args:
        net: A net of the TEST phase.
        iterations: Number of batches, at least 1.
        log: Receives the lines that ``caffe test`` prints: every output of every batch, then the means.
        events: Receives ``Started``, ``Progress`` in batches, ``Tested`` and ``Finished``.
        cancel: Checked after every batch.

    Raises:
        CaffeToolsError: ``iterations`` is below 1.
        Cancelled: ``cancel`` was cancelled.
    """
    if iterations < 1:
        raise CaffeToolsError(f"iterations must be at least 1, not {iterations}")
    with reported("test", f"Testing {net.name or 'the net'}", events):
        result = _score(net, iterations, log, events, cancel or CancelToken())
        events(Tested(task="test", outputs=named_values(result.outputs), loss=result.loss))
    log("caffe.cpp:309", f"Loss: {number(result.loss)}")
    for output in result.outputs:
        log("caffe.cpp:321", output_text(output))
    return result


def _score(net: Net, iterations: int, log: Log, events: EventSink, cancel: CancelToken) -> TestScores:
    log("caffe.cpp:281", f"Running for {iterations} iterations.")
    scores = Scores(net)
    try:
        with torch.no_grad():
            for batch in range(iterations):
                cancel.raise_if_cancelled("the test")
                blobs = net()
                scores.add(blobs)
                if log is not no_log:
                    for output in read_outputs(net, blobs):
                        log("caffe.cpp:304", f"Batch {batch}, {output.name} = {number(output.value)}")
                events(Progress(task="test", done=batch + 1, total=iterations, unit="batches"))
    finally:
        pause_reading(net.layers)
    return TestScores(scores.loss(), scores.means(), iterations)


def load_test_net(
    path: PathLike, weights: PathLike, *, device: torch.device | str = "cpu", level: int = 0, stages: Iterable[str] = (), log: Log = no_log
) -> Net:
    """Build the TEST net of a prototxt and load its weights (several files, comma-separated, one after the other).

    Raises:
        PrototxtError, NetError, ModelFileError: a file is wrong, or no layer has weights in it.
    """
    log("caffe.cpp:275", "Use CPU." if torch.device(device).type == "cpu" else "Use GPU.")
    param = read_net_near_files(path, log)
    # Layers that the file lacks keep their fillers' values: the same in every call, and the caller's random state is left alone.
    with error_context(path), drawing_from(torch.Generator()):
        net = Net(param, TEST, level=level, stages=stages)
    log_net(log, net, format_text(net.param))
    given = [top for layer in net.layers if layer.TRAITS.role == "input" for top in layer.tops]
    if given:
        names = ", ".join(f"'{name}'" for name in given)
        raise CaffeToolsError(
            f"{os.fspath(path)}: no data layer fills the input {names}, so there is nothing to test on; give the train_val net"
        )
    for name in os.fspath(weights).split(","):
        with error_context(path):
            report = load_weights(net, name.strip())
        if not report.loaded:
            raise CaffeToolsError(f"{name}: has no layer of the net '{net.name}' ({os.fspath(path)}); are these its weights?")
        log_loaded(log, name, report)
    return net.to(device)


# pytest would take it for a test where it is imported.
test_net.__test__ = False  # type: ignore[attr-defined]
