"""Comparing an imported net with its model: on two inputs, and on both in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.errors import CaffeToolsError
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.onnx.import_graph import ImportFailed, ImportGraph
from caffetools.onnx.import_net import NetWriter, clean_name
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST

Array = NDArray[Any]

# The largest difference allowed, relative to an output's largest value: layers that stand for one operator round several times.
TOLERANCE = 1e-4
# Operators that give 0 and 1 (or other limits) for all large inputs, and those that only move values.
_SATURATING = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh", "Clip"})
# Caffe computes a sigmoid as 0.5 · tanh(0.5 · x) + 0.5, which rounds by units in the last place of 1 however small the result is: where all
# are small, differences are relative to this.
_SIGMOID_SCALE = 1e-2
_MOVING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Cast", "Concat", "Split", "Slice"})


class Checked(NamedTuple):
    """What a comparison found.

    Attributes:
        largest_difference: Of all compared values on both inputs, relative to a value's largest.
        batch_limit: Why no other batch size is taken; ``""`` where one is.
    """

    largest_difference: float
    batch_limit: str


def check(writer: NetWriter, model: Caffemodel, outputs: Mapping[str, str], moved: Mapping[str, tuple[int, ...]]) -> Checked:
    """Compare an imported net with its model.

    Args:
        writer: What the net was written from; its graph holds the model's values for two inputs.
        model: The net.
        outputs: ONNX output → blob.
        moved: ONNX input → the order of its axes in the net.

    Raises:
        ImportFailed: The net gives other numbers, or is not valid; names the first node that differs.
    """
    graph = writer.graph
    try:
        net = Net(model.net, TEST, fill=False)
        load_weights(net, model)
    except CaffeToolsError as error:
        raise ImportFailed(f"the imported net is not valid: {error}") from None
    first, second = _feed(graph, graph.sample, {}), _feed(graph, graph.second, moved)
    worst = _compare_values(graph, _run(net, first, list(net.blob_shapes)), {**outputs, **_before_saturation(writer)})
    got = _run(net, second)
    for value, blob in outputs.items():
        difference = _difference(graph.second[value], got[blob].numpy(), _least_scale(graph, value))
        if difference > TOLERANCE:
            raise ImportFailed(
                f"output '{value}': on a second input the net differs from the model by {difference:.2g} of its largest value; please report it"
            )
        worst = max(worst, difference)
    return Checked(worst, _batch_limit(graph, net, outputs, first, second))


def _feed(graph: ImportGraph, values: Mapping[str, Array], moved: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    arrays = {name: values[name].transpose(moved.get(name, range(values[name].ndim))) for name in graph.inputs}
    return {clean_name(name): torch.from_numpy(np.array(array, np.float32, order="C")) for name, array in arrays.items()}


def _run(net: Net, feed: dict[str, torch.Tensor], keep: list[str] | tuple[()] = ()) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return net(feed, keep=keep)


def _compare_values(graph: ImportGraph, blobs: Mapping[str, torch.Tensor], compared: Mapping[str, str]) -> float:
    """Return the largest relative difference; raises :class:`ImportFailed` where it is over TOLERANCE, naming the first node that differs."""
    worst = 0.0
    for value, blob in compared.items():
        worst = max(worst, _difference(graph.sample[value], blobs[blob].numpy(), _least_scale(graph, value)))
    if worst > TOLERANCE:
        for node in graph.nodes:
            for value in node.outputs:
                blob = clean_name(value)
                if blob not in blobs or value not in graph.sample:
                    continue
                if _difference(graph.sample[value], blobs[blob].numpy(), _least_scale(graph, value)) > TOLERANCE:
                    raise node.error(f"its layers give other numbers (blob '{blob}'); please report it")
        raise ImportFailed(f"the imported net differs from the model by {worst:.2g} of the largest value")
    return worst


def _batch_limit(
    graph: ImportGraph, net: Net, outputs: Mapping[str, str], first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
) -> str:
    """Run both inputs as one batch; gives why its items do not have the numbers that they have alone, else ``""``."""
    try:
        together = _run(net, {name: torch.cat([value, second[name]]) for name, value in first.items()})
    except (CaffeToolsError, RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    for value, blob in outputs.items():
        expected, got = (graph.sample[value], graph.second[value]), together[blob].numpy()
        if not np.ndim(expected[0]) or got.shape != (2 * len(expected[0]), *expected[0].shape[1:]):
            return f"its output '{blob}' is not a row for each item of the batch"
        if max(_difference(*pair, _least_scale(graph, value)) for pair in zip(expected, np.split(got, 2), strict=True)) > TOLERANCE:
            return f"in its output '{blob}' the items of a batch depend on one another"
    return ""


def _before_saturation(writer: NetWriter) -> dict[str, str]:
    """Return ONNX value → blob of what the last Softmax or Sigmoid before each output reads, where a blob of its name holds it.

    Also of what the node before an output reads whose values are all the same (a classifier of zeros): it would be equal to any other.
    """
    graph, found = writer.graph, dict[str, str]()
    waiting = list(graph.outputs)
    seen = set(waiting)
    while waiting:
        node = graph.maker(waiting.pop())
        if node is None:
            continue
        plain = _is_plain(graph.sample.get(node.outputs[0]))
        if node.op not in _MOVING | _SATURATING and not plain:
            continue
        for value in node.inputs:
            if value in seen or value not in graph.sample or value in graph.constants:
                continue
            seen.add(value)
            if node.op in _MOVING or plain:
                waiting.append(value)
            if node.op not in _MOVING and (blob := writer.known_blob(value)) is not None:
                found[value] = blob
    return found


def _is_plain(values: Array | None) -> bool:
    return values is not None and values.size > 0 and bool((values == values.reshape(-1)[0]).all())


def _least_scale(graph: ImportGraph, value: str) -> float:
    """Return what differences of a value are relative to at least."""
    maker = graph.maker(value)
    while maker is not None and maker.op in _MOVING:
        maker = graph.maker(maker.inputs[0])
    return _SIGMOID_SCALE if maker is not None and maker.op == "Sigmoid" else 0.0


def _difference(expected: Array, got: Array, least: float = 0.0) -> float:
    """Return the largest difference, relative to the largest expected value, or to ``least`` where that is smaller."""
    if expected.shape != got.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.where(expected == got, 0.0, np.abs(expected.astype(np.float64) - got))
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=least))
    largest = float(gaps.max())
    return 0.0 if largest == 0 else largest / scale if scale else largest
