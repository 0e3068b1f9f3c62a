"""Verification of an exported model: its error against the net in float64, blob by blob, next to the float32 engine's own error."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caffetools.engines.base import EngineError
from caffetools.errors import ExportMismatch, ModelFileError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.net.net import Net
from caffetools.onnx.difference import FACTOR, FLOOR, SMALLEST_SCALE, Difference, is_finite, measure
from caffetools.onnx.model import OnnxModel, from_proto, load_model
from caffetools.onnx.parts import run_in_parts, run_optimized
from caffetools.onnx.reference import run_double, run_layer_double, run_rounded, run_single

Array = NDArray[Any]
Inputs = Mapping[str, Array]
PathLike = str | os.PathLike[str]

# Samples of float32's rounding, besides the engine's own, to measure the error that is allowed on before a model is refused.
_SAMPLES = 4
# From this relative error on, float32 is too far off for an answer, and a note says so.
_LOOSE = 0.01


@dataclass(frozen=True)
class Verification:
    """What was compared: the largest error of every blob, the largest relative one first, and on which inputs."""

    differences: tuple[Difference, ...]
    measured_on: str
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[Difference, ...]:
        """The errors of the model's outputs."""
        return tuple(difference for difference in self.differences if difference.is_output) or self.differences

    @property
    def worst(self) -> Difference:
        """The output with the largest relative error."""
        return self.outputs[0]

    @property
    def largest(self) -> float:
        """The largest relative error of all outputs."""
        return self.worst.relative

    @property
    def tolerance(self) -> float:
        """The relative error allowed for that output."""
        return self.worst.allowed / max(self.worst.scale, SMALLEST_SCALE)

    def describe(self) -> str:
        """Return one sentence: the largest error and how it was measured."""
        text = (
            f"largest error {self.largest:.1e} of the largest value of '{self.worst.blob}' (allowed: {self.tolerance:.1e}; "
            f"{FACTOR:g} times that of float32), onnxruntime against float64 on {self.measured_on}; {len(self.differences)} blobs compared"
        )
        # An output of probabilities near 0 and 1 has next to no error; what is before it is the evidence.
        if self.differences and self.differences[0].relative > self.largest:
            text += f", the largest error {self.differences[0].relative:.1e}, of '{self.differences[0].blob}'"
        return text


def verify(
    model: PathLike | bytes, net: Net, inputs: Inputs | None = None, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Compare an ONNX file, or a model's bytes, with the net it was exported from; see :func:`verify_model`.

    A model whose batch size is free runs at two batch sizes.
    """
    proto = load_model(model)
    parts, names = from_proto(proto), {value.name for value in proto.graph.input}
    base = {blob: net.blob_shapes[blob] for blob in net.inputs if blob in names}
    first = proto.graph.input[0].type.tensor_type.shape.dim[0] if proto.graph.input else None
    cases = [base]
    if first is not None and not first.HasField("dim_value"):
        cases.append({blob: (shape[0] + 1, *shape[1:]) for blob, shape in base.items()})
    name = "the exported model" if isinstance(model, bytes) else os.fspath(model)
    return verify_model(parts, net, cases, inputs, name=name, seed=seed, progress=progress)


def verify_model(
    model: OnnxModel,
    net: Net,
    cases: Sequence[Mapping[str, Shape]],
    inputs: Inputs | None = None,
    *,
    name: str = "the exported model",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Run ``model`` in onnxruntime (CPU), and ``net`` in float32 and in float64, on the same inputs, and compare every blob.

    At the first sizes every blob is compared; at the others the outputs, against the float32 engine.
    The error of a blob of the model may be at most 4 times the float32 engine's plus 1e-6 of the blob's largest value. Before a model
    is refused, the engine's error is measured again as the largest of several runs that round differently, since one run may be near
    float64 by chance; and where a layer turns a difference that was allowed into a large one (a maximum, a threshold, a Sigmoid), the
    layer itself is computed in float64 from the model's own bottoms. Equal infinities are equal, and so are two NaN.

    Args:
        model: The model; its weights are not copied.
        net: The net it was exported from, in the TEST phase, with the same weights; its configuration is the same afterwards.
        cases: Shapes of the input blobs to run with; the first only where ``inputs`` are given and the batch size is fixed.
        inputs: Input blob → (N, C, H, W) float32; seeded random ones when None.
        name: How errors call the model.
        seed: Seed of random inputs.
        progress: Called with (layers compared, all layers) after each; may raise to stop.

    Returns:
        The errors of every blob.

    Raises:
        ExportMismatch: A blob's error is larger, or its shape is another; names the blob, the layer that makes it, the index and both
            values, and whether it is the first that differs.
    """
    base = {blob: net.blob_shapes[blob] for blob in net.inputs}
    try:
        comparison = _Comparison(model, net, name, progress)
        if inputs is None:
            batches = [random_inputs(net, {**base, **case}, seed) for case in cases]
        else:
            batches = [dict(inputs)]
            if len(cases) > 1:
                batches.append(_one_more(dict(inputs), list(cases[0])))
        finals = comparison.run_shipped(batches)
        compared = batches[:1]
        comparison.add(batches[0], finals[0])
        for batch, final in zip(batches[1:], finals[1:], strict=True):
            # Other sizes: the outputs against float32, and all blobs against float64 only where that leaves a doubt.
            if not comparison.outputs_agree(batch, final):
                comparison.add(batch, final)
                compared.append(batch)
        if comparison.failed():
            comparison.look_closer()
            again = True
            while again:
                for batch, final in zip(compared, comparison.run_shipped(compared), strict=True):
                    comparison.add(batch, final)
                again = bool(comparison.failed()) and comparison.look_further()
        comparison.check()
        notes = [*model.notes]
        if comparison.infinite:
            notes.append(f"blob '{comparison.infinite[0]}' is not finite on these inputs; verify on pictures (--pictures)")
        verification = Verification(comparison.sorted(), _measured_on(batches, inputs is None, seed), tuple(notes))
        if (loose := max(verification.outputs, key=lambda d: d.relative_float32)).relative_float32 > _LOOSE:
            notes.append(
                f"with these weights and inputs float32 itself is off by {loose.relative_float32:.0%} of the largest value of '{loose.blob}'; "
                "verify on pictures (--pictures), and check the weights"
            )
        return replace(verification, notes=tuple(notes))
    finally:
        net.reshape(base)


class _Comparison:
    """Errors of every blob over several inputs."""

    def __init__(self, model: OnnxModel, net: Net, name: str, progress: Callable[[int, int], None] | None):
        self.net, self.name, self.progress, self.compared = net, name, progress, 0
        made = {value for node in model.proto.graph.node for value in node.output}
        # An input of the net that a layer overwrites in place is BLOB@LAYER afterwards; every other blob has its own name.
        self.outputs = {_blob(value.name, net): value.name for value in model.proto.graph.output}
        self.values = {blob: blob for blob in net.blob_shapes if blob in made} | self.outputs
        self.inputs = [value.name for value in model.proto.graph.input]
        self.makers = {top: index for index, layer in enumerate(net.layers) if not layer.IS_DATA for top in layer.tops}
        self.model = model
        # (Layer, bottom) → the value that the layer reads: another than the blob's last one where a layer overwrites the blob.
        self.read = {
            (index, bottom): value
            for index, layer in enumerate(net.layers)
            for bottom in layer.bottoms
            if (value := self._value_read(index, bottom, made)) is not None
        }
        # Values that are computed too, for a closer look: overwritten ones, and those that the outputs' layers read.
        self.inner: set[str] = set()
        self.exposed: set[str] = set()
        # Values that a layer in doubt reads, and that were not at hand.
        self.missed: set[str] = set()
        self.samples = 0
        self.found: dict[str, Difference] = {}
        self.infinite: list[str] = []

    def _value_read(self, index: int, bottom: str, made: set[str]) -> str | None:
        """Return the ONNX value that layer ``index`` reads as ``bottom``; None for an input, or where it is not known."""
        makers = [i for i, layer in enumerate(self.net.layers[:index]) if bottom in layer.tops and not layer.IS_DATA]
        if not makers:
            return None
        value = self.values.get(bottom) if makers[-1] == self.makers[bottom] else f"{bottom}@{self.net.layers[makers[-1]].name}"
        return value if value in made else None

    def _made_name(self, index: int, blob: str) -> str:
        """Return how errors and values name a top of a layer: the blob's name, or where a later layer overwrites it BLOB@LAYER."""
        return blob if self.makers[blob] == index else f"{blob}@{self.net.layers[index].name}"

    def look_closer(self) -> None:
        """Forget the errors, and measure them again with more samples of float32 and every layer's own bottoms at hand.

        A layer that amplifies rounding (a Sigmoid or Softmax of large values) is computed in float64 from them, in the model's parts
        and, for outputs, in the optimized model.
        """
        self.found, self.samples = {}, _SAMPLES
        outputs = [self.makers[blob] for blob in self.outputs if blob in self.makers]
        self.inner = {value for value in self.read.values() if value not in self.values.values()}
        self.values |= {value: value for value in self.inner}
        self.makers |= {
            value: index
            for index, layer in enumerate(self.net.layers)
            for top in layer.tops
            if (value := f"{top}@{layer.name}") in self.inner
        }
        self.exposed = {value for (index, _), value in self.read.items() if index in outputs} - set(self.outputs.values())

    def look_further(self) -> bool:
        """Let the optimized model give what layers in doubt read, too, and forget the errors; False where it gives all of that already."""
        more = self.missed - self.exposed - set(self.outputs.values())
        self.exposed |= more
        if more:
            self.found = {}
        return bool(more)

    def run_shipped(self, batches: Sequence[Inputs]) -> list[dict[str, Array]]:
        """Return the outputs for each batch of the model as it is written, optimized as where it is used."""
        wanted = {*self.exposed, *self.outputs.values()}
        given = [self._given(batch) for batch in batches]
        try:
            return run_optimized(self.model, given, wanted, self._naming)
        except ModelFileError as error:
            raise error.located(self.name) from None

    def add(self, batch: Inputs, final: Mapping[str, Array]) -> None:
        """Compare every blob on ``batch``, and the outputs in ``final``, and join the errors."""
        parts = self._run_parts(batch)
        got: dict[str, Array] = {}
        last = {name: index for index, layer in enumerate(self.net.layers) for name in layer.bottoms}
        tensors = {blob: torch.from_numpy(np.array(value, np.float32)) for blob, value in batch.items()}
        rounded = [run_rounded(self.net, tensors, seed) for seed in range(self.samples)]
        for (index, double), *samples in zip(run_double(self.net, tensors), run_single(self.net, tensors), *rounded, strict=True):
            names = [self._made_name(index, blob) for blob in double]
            blobs = [blob for blob in names if blob in self.values]
            while any(self.values[blob] not in got for blob in blobs):
                with self._naming(batch):
                    got |= next(parts)
            for blob in blobs:
                plain = _blob(blob, self.net)
                singles = [sample[plain].detach().cpu().numpy() for _, sample in samples]
                for source in (got, *([final] if self.values[blob] in final else [])):
                    self._join(self._measure(blob, double[plain].detach().numpy(), singles, source, index, batch))
            for bottom in self.net.layers[index].bottoms:
                if (read := self.read.get((index, bottom), "")) in self.inner:
                    got.pop(read, None)
            for blob in {*self.net.layers[index].bottoms, *double}:
                if last.get(blob, -1) <= index:
                    got.pop(self.values.get(blob, blob), None)
            self.compared = max(self.compared, index + 1)
            if self.progress is not None:
                self.progress(self.compared, len(self.net.layers))

    def outputs_agree(self, batch: Inputs, final: Mapping[str, Array]) -> bool:
        """Return whether the outputs are as near to the float32 engine's as the errors of both at the first sizes let them be."""
        single = self._run_net(batch, list(self.outputs))
        for blob, value in self.outputs.items():
            expected, got, known = single[blob], final[value], self.found.get(blob)
            if expected.shape != got.shape or known is None:
                return False
            difference = measure(blob, expected.astype(np.float64), None, got)
            allowed = (FACTOR + 1) * max(known.float32_error, FLOOR * known.scale) / max(known.scale, SMALLEST_SCALE)
            if difference.relative > allowed:
                return False
        return True

    def failed(self) -> list[Difference]:
        """Return the blobs whose error is too large, in the net's order."""
        return sorted((d for d in self.found.values() if not d.passed), key=lambda d: self.makers[d.blob])

    def check(self) -> None:
        """Raise :class:`ExportMismatch` for the first blob whose error is too large."""
        failed = self.failed()
        if not failed:
            return
        first = failed[0]
        layer = self.net.layers[self.makers[first.blob]]
        more = f"; {len(failed) - 1} later blobs differ too" if len(failed) > 1 else ""
        raise ExportMismatch(
            f"{self.name}: the first blob that differs is '{_blob(first.blob, self.net)}', of layer '{layer.name}' ({layer.type_name}): it differs by "
            f"{first.error:.3g} at {first.where}: {first.got:.6g} in ONNX, {first.expected:.6g} in float64; float32 differs by "
            f"{first.float32_error:.3g}, so {first.allowed:.3g} is allowed{more}"
        )

    def sorted(self) -> tuple[Difference, ...]:
        """Return the errors, the largest relative one first."""
        return tuple(sorted(self.found.values(), key=lambda d: -d.relative))

    def _join(self, difference: Difference) -> None:
        known = self.found.get(difference.blob)
        self.found[difference.blob] = difference if known is None else known.joined(difference)

    def _measure(
        self, blob: str, expected: Array, singles: Sequence[Array], values: Mapping[str, Array], index: int, batch: Inputs
    ) -> Difference:
        is_output, got = blob in self.outputs, values[self.values[blob]]
        if expected.shape != got.shape:
            layer = self.net.layers[index]
            local = self._local(layer, values, batch, blob)
            if local is None or local.shape != got.shape:
                raise ExportMismatch(
                    f"{self.name}: blob '{blob}' of layer '{layer.name}' is {format_shape(got.shape)} in ONNX, but "
                    f"{format_shape(expected.shape)} in the net"
                )
            expected, singles = local, []
        difference = _largest_errors(blob, expected, singles, got, is_output)
        if blob not in self.infinite and not is_finite(expected):
            self.infinite.append(blob)
        if difference.passed:
            return difference
        local = self._local(self.net.layers[index], values, batch, blob)
        if local is not None and local.shape == got.shape:
            again = measure(blob, local, None, got, is_output=is_output)
            # The rounding of one layer alone: as much as a few dozen float32 operations on its largest value.
            if again.error <= 32 * FLOOR * again.scale:
                return Difference(blob, 0.0, difference.float32_error, difference.scale, is_output=is_output)
        return difference

    def _local(self, layer: Layer, values: Mapping[str, Array], batch: Inputs, blob: str) -> Array | None:
        """Return the blob in float64 from the model's own bottoms of its layer; None where those are not at hand."""
        position = self.net.layers.index(layer)
        bottoms = []
        for bottom in layer.bottoms:
            first = not any(bottom in made.tops and not made.IS_DATA for made in self.net.layers[:position])
            read = "" if first else self.read.get((position, bottom), "")
            value = batch.get(bottom) if first else values.get(read)
            if value is None:
                self.missed |= {read} - {""}
                return None
            bottoms.append(torch.from_numpy(np.array(value)).double())
        with torch.no_grad():
            tops = run_layer_double(layer, bottoms)
        result: Array = tops[layer.tops.index(_blob(blob, self.net))].numpy()
        return result

    def _given(self, batch: Inputs) -> dict[str, Array]:
        return {name: np.ascontiguousarray(batch[name], np.float32) for name in self.inputs}

    def _run_parts(self, batch: Inputs) -> Iterator[dict[str, Array]]:
        shapes = self.net.plan({blob: value.shape for blob, value in batch.items()}).blob_shapes
        values = {value for node in self.model.proto.graph.node for value in node.output}
        sizes = {value: 4 * math.prod(shapes.get(_blob(value, self.net), (0,))) for value in values}
        return run_in_parts(self.model, self._given(batch), set(self.values.values()), sizes)

    @contextmanager
    def _naming(self, batch: Inputs) -> Iterator[None]:
        """Name the inputs in an error."""
        try:
            yield
        except EngineError as error:
            shapes = ", ".join(f"{blob} {format_shape(batch[blob].shape)}" for blob in self.inputs)
            raise ExportMismatch(f"{self.name}: with inputs {shapes}, {error}") from None

    def _run_net(self, batch: Inputs, keep: Sequence[str]) -> dict[str, Array]:
        given = {blob: torch.from_numpy(np.array(value, np.float32)) for blob, value in batch.items()}
        found: dict[str, Array] = {}
        for index, tops in run_single(self.net, given):
            found |= {blob: top.cpu().numpy() for blob, top in tops.items() if blob in keep and self.makers[blob] == index}
        return found


def _largest_errors(blob: str, expected: Array, singles: Sequence[Array], got: Array, is_output: bool) -> Difference:
    """Return the error of ``got``, and the largest one of the float32 runs in ``singles``."""
    if not singles:
        return measure(blob, expected, None, got, is_output=is_output)
    return reduce(Difference.joined, (measure(blob, expected, single, got, is_output=is_output) for single in singles))


def random_inputs(net: Net, shapes: Mapping[str, Shape], seed: int) -> dict[str, Array]:
    """Return random float32 values of the given shapes for every input blob: what the layers that read it take as valid, else pictures about zero for four axes.

    Blobs of fewer axes get small whole numbers, which may be indices or flags.
    """
    random = np.random.RandomState(seed)
    inputs: dict[str, Array] = {}
    net.reshape(shapes)
    for blob in net.inputs:
        shape = shapes.get(blob, net.blob_shapes[blob])
        values = next((v for v in _samples(net.layers, blob, shape, random) if v is not None), None)
        if values is None:
            values = random.randn(*shape) * 50 if len(shape) == 4 else np.arange(np.prod(shape)).reshape(shape) % 5
        inputs[blob] = np.asarray(values, np.float32)
    return inputs


def _samples(layers: Iterable[Layer], blob: str, shape: Shape, random: np.random.RandomState) -> Iterable[Array | None]:
    for layer in layers:
        for index, bottom in enumerate(layer.bottoms):
            if bottom == blob:
                yield layer.sample_bottom(index, shape, random)


def _one_more(batch: dict[str, Array], names: list[str]) -> dict[str, Array]:
    """Return the batch with its first item again at the end, turned around so that it is another one."""
    longer = dict(batch)
    for name in names:
        item = batch[name][:1]
        if item.ndim == 4:
            item = item[:, :, ::-1, ::-1]
        longer[name] = np.concatenate([batch[name], item])
    return longer


def _blob(value: str, net: Net) -> str:
    return value if value in net.blob_shapes else value.rpartition("@")[0]


def _measured_on(batches: list[dict[str, Array]], random: bool, seed: int) -> str:
    largest = [max((value.shape for value in batch.values()), key=lambda shape: (len(shape), shape), default=()) for batch in batches]
    sizes = [shape[0] if shape else 1 for shape in largest]
    maps = {shape[2:] for shape in largest if len(shape) == 4}
    kind = f"random inputs (seed {seed})" if random else "the given inputs"
    more = f", maps of {', '.join('x'.join(map(str, size)) for size in sorted(maps))}" if len(maps) > 1 else ""
    return f"{kind}, batch size {' and '.join(map(str, dict.fromkeys(sizes)))}{more}"
