"""The same inputs through several engines or models: how far their outputs are apart, and how fast each is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.engines.base import Engine, EngineError
from caffetools.engines.external import ExternalEngine
from caffetools.engines.torch import TorchEngine
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, Progress, ignore
from caffetools.infer.classifier import PreprocessOptions, merge_preprocessing
from caffetools.infer.load import open_engine, usual_engine
from caffetools.infer.preprocess import Preprocessor
from caffetools.net.net import Net
from caffetools.onnx.verify import random_inputs
from caffetools.results import Preprocessing

PathLike = str | os.PathLike[str]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """Something to compare with the reference: a model and the engine that runs it.

    Attributes:
        model: A deploy prototxt, an ONNX file or an engine that TensorRT built.
        weights: The .caffemodel of a prototxt.
        engine: ``torch``, ``onnxruntime``, ``opencv``, ``caffe`` or ``tensorrt``; None for the model's usual one.
    """

    model: PathLike
    weights: PathLike | None = None
    engine: str | None = None

    @property
    def name(self) -> str:
        """How the table calls it."""
        kind = self.engine or usual_engine(self.model)
        return f"{kind}: {Path(self.weights if self.weights is not None else self.model).name}"


@dataclass(frozen=True)
class OutputComparison:
    """One output of a candidate and of the reference's.

    Attributes:
        candidate: The candidate's name.
        output: The reference's blob.
        largest: Largest absolute difference.
        mean: Mean absolute difference.
        scale: Largest absolute value of the reference.
        cosine: Cosine of the two outputs as vectors; 1 for equal directions.
        top1: Share of items with the same largest class; None for an output that is not a vector for each item.
        milliseconds: Median duration of a batch.
        reason: Why there is no comparison; empty where there is one.
    """

    candidate: str
    output: str = ""
    largest: float = 0.0
    mean: float = 0.0
    scale: float = 0.0
    cosine: float = 1.0
    top1: float | None = None
    milliseconds: float = 0.0
    reason: str = ""

    @property
    def relative(self) -> float:
        """The largest difference divided by the largest value."""
        return self.largest / self.scale if self.scale else float(self.largest > 0)


def compare_engines(
    reference: Candidate,
    candidates: Sequence[Candidate],
    *,
    images: Sequence[PathLike] = (),
    options: PreprocessOptions | None = None,
    repeats: int = 3,
    seed: int = 0,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> list[OutputComparison]:
    """Run all on the same inputs and compare each candidate's outputs with the reference's.

    Outputs are matched by name, and where names differ by their order, if there are as many.

    Args:
        reference: What the others are compared with; its first row has its own speed.
        candidates: The others.
        images: Image files, prepared by ``deploy.json`` or the ONNX metadata of the reference; seeded random inputs when empty.
        options: Mean, scale and size in place of the stored ones.
        repeats: Timed runs of a batch.
        seed: Seed of random inputs.
        events: Receives ``Progress``.
        cancel: Checked between runs.

    Returns:
        A row for each output of each; a candidate that cannot run gets one row with the reason.

    Raises:
        CaffeToolsError: The reference cannot run.
        Cancelled: ``cancel`` was set.
    """
    with ExitStack() as stack:
        engine, known = _open(reference, stack)
        batch = _images(engine, known, images, options) if images else _random(reference, engine, seed)
        expected, milliseconds = _timed(engine, batch, repeats)
        rows = [OutputComparison(reference.name, name, scale=_largest(expected[name]), milliseconds=milliseconds) for name in expected]
        for index, candidate in enumerate(candidates, 1):
            if cancel is not None:
                cancel.raise_if_cancelled("the comparison")
            rows += _candidate_rows(candidate, batch, expected, repeats)
            events(Progress(task="verify", done=index, total=len(candidates), unit="engines"))
    return rows


def _candidate_rows(
    candidate: Candidate, batch: Mapping[str, Array], expected: Mapping[str, Array], repeats: int
) -> list[OutputComparison]:
    try:
        with ExitStack() as stack:
            engine, _ = _open(candidate, stack)
            given = dict(zip(engine.inputs, batch.values(), strict=True)) if set(engine.inputs) != set(batch) else batch
            got, milliseconds = _timed(engine, given, repeats)
    except CaffeToolsError as error:
        return [OutputComparison(candidate.name, reason=str(error))]
    except ValueError:
        return [OutputComparison(candidate.name, reason=f"it has other inputs ({', '.join(engine.inputs)})")]
    pairs = {name: name for name in expected if name in got}
    if not pairs and len(got) == len(expected):
        pairs = dict(zip(expected, got, strict=True))
    if not pairs:
        return [OutputComparison(candidate.name, reason=f"it has other outputs ({', '.join(got)})")]
    return [_compare(candidate.name, name, expected[name], got[other], milliseconds) for name, other in pairs.items()]


def _compare(candidate: str, name: str, expected: Array, got: Array, milliseconds: float) -> OutputComparison:
    if expected.size != got.size:
        shapes = " x ".join(map(str, got.shape))
        return OutputComparison(candidate, name, reason=f"its output is {shapes}, not {' x '.join(map(str, expected.shape))}")
    a, b = expected.astype(np.float64), got.reshape(expected.shape).astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.where(a == b, 0.0, np.abs(a - b))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    top1 = None
    if a.ndim >= 2 and a.shape[1] > 1 and a.size == a.shape[0] * a.shape[1]:
        rows = [values.reshape(len(values), -1).argmax(1) for values in (a, b)]
        top1 = float((rows[0] == rows[1]).mean())
    cosine = float((a * b).sum() / norms) if norms else 1.0
    return OutputComparison(candidate, name, float(gaps.max(initial=0)), float(gaps.mean()), _largest(expected), cosine, top1, milliseconds)


def _open(candidate: Candidate, stack: ExitStack) -> tuple[Engine, Preprocessing | None]:
    engine, known = open_engine(candidate.model, candidate.weights, engine=candidate.engine)
    if isinstance(engine, ExternalEngine):
        stack.callback(engine.close)
    return engine, known


def _timed(engine: Engine, batch: Mapping[str, Array], repeats: int) -> tuple[dict[str, Array], float]:
    outputs, durations = engine.predict(batch), []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.predict(batch)
        # What an engine measures itself is without the way to its process and back.
        durations.append(engine.seconds if isinstance(engine, ExternalEngine) else time.perf_counter() - start)
    return outputs, float(np.median(durations or [0.0])) * 1000


def _random(reference: Candidate, engine: Engine, seed: int) -> dict[str, Array]:
    net = engine.net if isinstance(engine, TorchEngine) else None
    if net is None and reference.weights is not None:
        net = Net.from_file(reference.model, fill=False)
    if net is not None:
        return random_inputs(net, {blob: net.blob_shapes[blob] for blob in net.inputs}, seed)
    random = np.random.RandomState(seed)
    return {name: (random.randn(*shape) * 50).astype(np.float32) for name, shape in engine.inputs.items()}


def _images(engine: Engine, known: Preprocessing | None, images: Sequence[PathLike], options: PreprocessOptions | None) -> dict[str, Array]:
    blobs = [blob for blob, shape in engine.inputs.items() if len(shape) == 4]
    if len(engine.inputs) != 1 or not blobs:
        raise EngineError("comparing on images needs a net with one input of images")
    shape = engine.inputs[blobs[0]]
    how = merge_preprocessing(known or Preprocessing(), options or PreprocessOptions(), channels=shape[1])
    preprocessor = Preprocessor(shape, how)
    return {blobs[0]: np.concatenate([preprocessor.centre(preprocessor.read(image)) for image in images])}


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0))
