"""Holding an exported model against the net it came from, on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from caffetools.engines.base import EngineError
from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ExportError
from caffetools.net.net import Net

Inputs = Mapping[str, NDArray[Any]]
PathLike = str | os.PathLike[str]

TOLERANCE = 1e-4

# Differences are relative to a blob's largest value; below this a blob is as good as zero.
_SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class Difference:
    """The largest difference found in one output.

    Attributes:
        output: The blob. relative: the largest absolute difference divided by the largest absolute value of the blob.
        absolute: the difference itself, at index ``where``, between ``expected`` (the net) and ``got`` (onnxruntime).
    """

    output: str
    relative: float
    absolute: float
    where: tuple[int, ...]
    expected: float
    got: float


@dataclass(frozen=True)
class Verification:
    """What was compared, and how far apart the two were: the largest difference of every output, worst first."""

    differences: tuple[Difference, ...]
    tolerance: float
    measured_on: str

    @property
    def largest(self) -> float:
        """The largest relative difference of all outputs."""
        return self.differences[0].relative

    def describe(self) -> str:
        """One sentence for a person: the largest difference and how it was measured."""
        worst = self.differences[0]
        return (
            f"largest difference {worst.relative:.1e} of the largest value of '{worst.output}' (allowed: {self.tolerance:g}), "
            f"onnxruntime against caffetools on {self.measured_on}"
        )


def verify(
    model: PathLike | bytes,
    net: Net,
    inputs: Inputs | None = None,
    tolerance: float = TOLERANCE,
    *,
    seed: int = 0,
    shown_as: PathLike | None = None,
) -> Verification:
    """Run the model with onnxruntime (CPU) and ``net`` on the same inputs, and compare all outputs.

    A model whose batch size is free runs once more with one item more, so that a batch size that was baked in is found. Where an
    output is a Softmax, the scores below it are compared too: probabilities of 0 and 1 would hide a difference.

    Args:
        model: The ONNX file, or its bytes. net: The net it was exported from, in the TEST phase, with the same weights.
        inputs: Input blobs by name, (N, C, H, W) float32; seeded random ones when None.
        tolerance: The largest difference allowed, relative to the largest absolute value of the output.
        seed: For random inputs. shown_as: How errors call the file.

    Raises:
        ExportError: an output differs by more, has another shape, or is not finite; names the output, the place and both values,
            and the first blob of the net that differs.
    """
    name = os.fspath(shown_as or ("the exported model" if isinstance(model, bytes) else model))
    engine = OnnxRuntimeEngine.load(model)
    scores = _scores(net)
    beside = OnnxRuntimeEngine.load(_exposing(model, scores, alone=True)) if scores else None
    batches = [_random_inputs(net, seed)] if inputs is None else [dict(inputs)]
    if engine.batch is None and engine.inputs:
        batches.append(_one_more(batches[0], list(engine.inputs)))
    found: dict[str, Difference] = {}
    for batch in batches:
        expected = _run_net(net, batch, scores)
        got = _run_model(engine, batch, name)
        if beside:
            got |= _run_model(beside, batch, name)
        for blob, value in got.items():
            difference = compare(blob, expected[_blob(blob, net)], value)
            if blob not in found or difference.relative > found[blob].relative:
                found[blob] = difference
            if difference.relative > tolerance:
                raise ExportError(f"{name}: {_tell(difference, tolerance)}{_first_wrong(model, net, batch, tolerance)}")
    worst_first = sorted(found.values(), key=lambda d: -d.relative)
    return Verification(tuple(worst_first), tolerance, _measured_on(batches, inputs is None, seed))


def compare(output: str, expected: NDArray[Any], got: NDArray[Any]) -> Difference:
    """The largest difference between two arrays of one blob; infinite where a value is not finite or the shapes differ."""
    if expected.shape != got.shape:
        return Difference(output, np.inf, np.inf, (), float(expected.size), float(got.size))
    if not expected.size:
        return Difference(output, 0.0, 0.0, (), 0.0, 0.0)
    finite = np.isfinite(expected) & np.isfinite(got)
    gap = np.abs(np.where(finite, expected, np.inf).astype(np.float64) - np.where(finite, got, 0))
    where = np.unravel_index(int(np.argmax(gap)), gap.shape)
    absolute = float(gap[where])
    scale = max(float(np.abs(expected).max()), _SMALLEST_SCALE)
    place = tuple(int(i) for i in where)
    return Difference(
        output, absolute / scale if np.isfinite(absolute) else np.inf, absolute, place, float(expected[where]), float(got[where])
    )


def _run_model(engine: OnnxRuntimeEngine, batch: Inputs, name: str) -> dict[str, NDArray[Any]]:
    try:
        return engine.predict({blob: batch[blob] for blob in engine.inputs})
    except EngineError as error:
        size = next((len(value) for value in batch.values() if value.ndim), 1)
        raise ExportError(f"{name}: with batch size {size}, {error}") from None


def _run_net(net: Net, batch: Inputs, keep: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    shapes = {blob: net.blob_shapes[blob] for blob in net.inputs}
    given = {blob: torch.from_numpy(np.array(value, np.float32)) for blob, value in batch.items()}
    with torch.no_grad():
        blobs = net(given, keep=keep)
    net.reshape(shapes)
    return {blob: value.cpu().numpy() for blob, value in blobs.items()}


def _random_inputs(net: Net, seed: int) -> dict[str, NDArray[Any]]:
    """Pictures about zero for four axes; small whole numbers for the rest, which may be indices or flags."""
    random = np.random.RandomState(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for blob in net.inputs:
        shape = net.blob_shapes[blob]
        values = random.randn(*shape) * 50 if len(shape) == 4 else np.arange(np.prod(shape)).reshape(shape) % 5
        inputs[blob] = np.asarray(values, np.float32)
    return inputs


def _one_more(batch: Inputs, names: list[str]) -> dict[str, NDArray[Any]]:
    """The batch with its first item again at the end, turned around so that it is another one."""
    longer = dict(batch)
    for name in names:
        item = batch[name][:1]
        if item.ndim == 4:
            item = item[:, :, ::-1, ::-1]
        longer[name] = np.concatenate([batch[name], item])
    return longer


def _blob(value: str, net: Net) -> str:
    # An output that is also an input of the net, overwritten in place, is BLOB@LAYER in the graph.
    return value if value in net.blob_shapes else value.rpartition("@")[0]


def _tell(difference: Difference, tolerance: float) -> str:
    if not difference.where and difference.relative == np.inf:
        return f"output '{difference.output}' has {difference.got:.0f} values in ONNX, but {difference.expected:.0f} in the net"
    return (
        f"output '{difference.output}' differs by {difference.absolute:.3g} at {difference.where}: {difference.got:.6g} in ONNX, "
        f"{difference.expected:.6g} in the net ({difference.relative:.1e} of the largest value, allowed is {tolerance:g})"
    )


def _first_wrong(model: PathLike | bytes, net: Net, batch: Inputs, tolerance: float) -> str:
    """Where the two part: the first blob, in the net's order, that differs; for the error message."""
    engine = OnnxRuntimeEngine.load(_exposing(model, list(net.blob_shapes)))
    got = engine.predict({blob: batch[blob] for blob in engine.inputs})
    blobs = [blob for blob in net.blob_shapes if blob in got]
    expected = _run_net(net, batch, blobs)
    for blob in blobs:
        if compare(blob, expected[blob], got[blob]).relative > tolerance:
            return f"; the first blob that differs is '{blob}'"
    return ""


def _scores(net: Net) -> list[str]:
    """What the Softmax layers that make the net's outputs take."""
    softmax = [layer for layer in net.layers if layer.TRAITS.role == "probability" and layer.tops[0] in net.outputs]
    return [layer.bottoms[0] for layer in softmax if layer.bottoms[0] not in (*net.inputs, *net.outputs)]


def _exposing(source: PathLike | bytes, blobs: Sequence[str], *, alone: bool = False) -> bytes:
    """The model with ``blobs`` (those that its nodes make) as further outputs, or as its only ones."""
    model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    made = {name for node in model.graph.node for name in node.output}
    if alone:
        del model.graph.output[:]
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(blob) for blob in blobs if blob in made - outputs)
    data: bytes = model.SerializeToString()
    return data


def _measured_on(batches: list[dict[str, NDArray[Any]]], random: bool, seed: int) -> str:
    sizes = [max((value.shape[0] for value in batch.values() if value.ndim), default=1) for batch in batches]
    kind = f"random inputs (seed {seed})" if random else "the given inputs"
    return f"{kind}, batch size {' and '.join(map(str, sizes))}"
