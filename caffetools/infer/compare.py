"""The same inputs through several engines or models: how far their outputs are apart, and how fast each is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
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
        milliseconds: Median duration of a batch (16 images or fewer).
        reason: Why there is no comparison; empty where there is one.
        failed: The engine is here, and the model cannot be read or run, or has other outputs.
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
    failed: bool = False

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
    batch: int = 16,
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
        batch: Images a run.
        repeats: Timed runs of the first batch; each further one of the same size is timed once.
        seed: Seed of random inputs.
        events: Receives ``Progress``.
        cancel: Checked between runs.

    Returns:
        A row for each output of each; a candidate that cannot run gets one row with the reason.

    Raises:
        CaffeToolsError: The reference cannot run, or an image cannot be read.
        Cancelled: ``cancel`` was set.
    """
    with ExitStack() as stack:
        first = _Run(reference)
        stack.callback(first.close)
        engine = first.open()
        batches = _batches(first.preprocessing, engine, images, options, batch) if images else iter([_random(reference, engine, seed)])
        runs = [_Run(candidate) for candidate in candidates]
        for run in runs:
            stack.callback(run.close)
        rounds = -(-len(images) // batch) or 1
        for done, given in enumerate(batches):
            expected = first.predict(given, repeats)
            first.measure(expected)
            for index, run in enumerate(runs, 1):
                if cancel is not None:
                    cancel.raise_if_cancelled("the comparison")
                run.compare_on(given, expected, repeats)
                if done + 1 == rounds:
                    run.close()
                events(Progress(task="verify", done=done * len(runs) + index, total=rounds * len(runs), unit="runs"))
        return [row for run in (first, *runs) for row in run.rows()]


class _Run:
    """A candidate, its engine while it is open, and how far its outputs have been from the reference's."""

    def __init__(self, candidate: Candidate):
        self.candidate = candidate
        self.preprocessing: Preprocessing | None = None
        self._engine: Engine | None = None
        self._totals: dict[str, _Totals] = {}
        self._items, self._durations, self._reason, self._failed = 0, list[float](), "", False

    def open(self) -> Engine:
        """Return the engine. Raises :class:`CaffeToolsError` where it is not there or does not take the model."""
        if self._engine is None:
            self._engine, self.preprocessing = open_engine(self.candidate.model, self.candidate.weights, engine=self.candidate.engine)
        return self._engine

    def close(self) -> None:
        if isinstance(self._engine, ExternalEngine):
            self._engine.close()
        self._engine = None

    def predict(self, batch: Mapping[str, Array], repeats: int) -> dict[str, Array]:
        """Return the outputs; a batch of another number of items than the first is not timed."""
        engine, items = self.open(), len(next(iter(batch.values()), ()))
        if self._items and items != self._items:
            return engine.predict(batch)
        if not self._items:
            self._items, outputs = items, engine.predict(batch)
        else:
            repeats = min(repeats, 1)
        for _ in range(repeats):
            start = time.perf_counter()
            outputs = engine.predict(batch)
            # What an engine measures itself is without the way to its process and back.
            self._durations.append(engine.seconds if isinstance(engine, ExternalEngine) else time.perf_counter() - start)
        return outputs

    def compare_on(self, batch: Mapping[str, Array], expected: Mapping[str, Array], repeats: int) -> None:
        """Run on the reference's inputs, and compare; nothing more after the first failure."""
        if self._reason:
            return
        try:
            inputs = self.open().inputs
            if set(inputs) != set(batch) and len(inputs) != len(batch):
                self._reason, self._failed = f"it has other inputs ({', '.join(inputs)})", True
                return
            given = batch if set(inputs) == set(batch) else dict(zip(inputs, batch.values(), strict=True))
            self.compare(expected, self.predict(given, repeats))
        except CaffeToolsError as error:
            # An engine that does not open is one that is not here.
            self._reason, self._failed = str(error), self._engine is not None or not isinstance(error, EngineError)

    def compare(self, expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Count the differences of the outputs of one batch."""
        pairs = {name: name for name in expected if name in got}
        if not pairs and len(got) == len(expected):
            pairs = dict(zip(expected, got, strict=True))
        if not pairs:
            self._reason, self._failed = f"it has other outputs ({', '.join(got)})", True
        for name, other in pairs.items():
            self._totals.setdefault(name, _Totals()).add(expected[name], got[other])

    def measure(self, outputs: Mapping[str, Array]) -> None:
        """Note the largest values of the reference, which is compared with nothing."""
        for name, values in outputs.items():
            totals = self._totals.setdefault(name, _Totals())
            totals.scale = max(totals.scale, float(np.abs(values).max(initial=0)))

    def rows(self) -> list[OutputComparison]:
        """Return a row for each output, or one with the reason why there are none."""
        if self._reason:
            return [OutputComparison(self.candidate.name, reason=self._reason, failed=self._failed)]
        milliseconds = float(np.median(self._durations or [0.0])) * 1000
        return [totals.row(self.candidate.name, name, milliseconds) for name, totals in self._totals.items()]


@dataclass
class _Totals:
    """How far an output is from the reference's, over all batches."""

    largest: float = 0.0
    scale: float = 0.0
    gaps: float = 0.0
    values: int = 0
    products: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    same: int = 0
    items: int = 0
    reason: str = ""

    def add(self, expected: Array, got: Array) -> None:
        if expected.size != got.size:
            shapes = " x ".join(map(str, got.shape))
            self.reason = self.reason or f"its output is {shapes}, not {' x '.join(map(str, expected.shape))}"
            return
        a, b = expected.astype(np.float64), got.reshape(expected.shape).astype(np.float64)
        with np.errstate(invalid="ignore"):
            gaps = np.where(a == b, 0.0, np.abs(a - b))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        self.largest, self.scale = max(self.largest, float(gaps.max(initial=0))), max(self.scale, float(np.abs(a).max(initial=0)))
        self.gaps, self.values = self.gaps + float(gaps.sum()), self.values + a.size
        with np.errstate(invalid="ignore"):
            self.products += float((a * b).sum())
            self.squares = (self.squares[0] + float((a * a).sum()), self.squares[1] + float((b * b).sum()))
        if a.ndim >= 2 and a.shape[1] > 1 and a.size == a.shape[0] * a.shape[1]:
            classes = [values.reshape(len(values), -1).argmax(1) for values in (a, b)]
            self.same, self.items = self.same + int((classes[0] == classes[1]).sum()), self.items + len(a)

    def row(self, candidate: str, output: str, milliseconds: float) -> OutputComparison:
        if self.reason:
            return OutputComparison(candidate, output, reason=self.reason, failed=True)
        norms = math.sqrt(self.squares[0] * self.squares[1])
        cosine, top1 = self.products / norms if norms else 1.0, self.same / self.items if self.items else None
        mean = self.gaps / self.values if self.values else 0.0
        return OutputComparison(candidate, output, self.largest, mean, self.scale, cosine, top1, milliseconds)


def _random(reference: Candidate, engine: Engine, seed: int) -> dict[str, Array]:
    net = engine.net if isinstance(engine, TorchEngine) else None
    if net is None and reference.weights is not None:
        net = Net.from_file(reference.model, fill=False)
    if net is not None:
        return random_inputs(net, {blob: net.blob_shapes[blob] for blob in net.inputs}, seed)
    random = np.random.RandomState(seed)
    return {name: (random.randn(*shape) * 50).astype(np.float32) for name, shape in engine.inputs.items()}


def _batches(
    known: Preprocessing | None, engine: Engine, images: Sequence[PathLike], options: PreprocessOptions | None, batch: int
) -> Iterator[dict[str, Array]]:
    blobs = [blob for blob, shape in engine.inputs.items() if len(shape) == 4]
    if len(engine.inputs) != 1 or not blobs:
        raise EngineError("comparing on images needs a net with one input of images")
    shape = engine.inputs[blobs[0]]
    how = merge_preprocessing(known or Preprocessing(), options or PreprocessOptions(), channels=shape[1])
    preprocessor = Preprocessor(shape, how)
    for start in range(0, len(images), batch):
        yield {blobs[0]: np.concatenate([preprocessor.centre(preprocessor.read(image)) for image in images[start : start + batch]])}
