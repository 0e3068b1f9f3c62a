"""From a net and calibration images to a model in lower precision, its calibration tables, and what they cost in accuracy."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.engines.onnxruntime import Session, open_session
from caffetools.errors import CaffeToolsError, Cancelled, DataError, ExportError, NetError, RunFailed, did_you_mean
from caffetools.events import ArtifactWritten, EventSink, Progress, Warned, ignore, reported
from caffetools.layers.softmax import Softmax
from caffetools.net.net import Net
from caffetools.onnx.export import DEFAULT_OPSET, build
from caffetools.onnx.model import OnnxModel
from caffetools.quant.calibration import Images, LabelledImages, Ranges, calibrate, remove_state, state_path
from caffetools.quant.fake import Bounds
from caffetools.quant.histograms import METHODS, Method
from caffetools.quant.models import layer_inputs, to_fp16, to_int8, trained_ranges
from caffetools.quant.noise import layer_noise
from caffetools.quant.tables import TABLES, tensorrt_cache
from caffetools.util.files import atomic_files

PathLike = str | os.PathLike[str]
Precision = Literal["int8", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("int8", "fp16")

_TIMED_RUNS = 10


@dataclass(frozen=True)
class QuantizeOptions:
    """How a net is brought to lower precision.

    Attributes:
        precision: ``int8`` or ``fp16``.
        method: How thresholds are found: ``minmax``, ``entropy`` or ``percentile``.
        percentile: For ``percentile``: % of the magnitudes above 0 that are not clipped.
        keep: Layers that are not quantized.
        min_agreement: Share of the decisions, 0 to 1, whose best class must stay the same; the layers with the lowest signal-to-noise ratio
            stay in float until it is reached.
        tables: Calibration tables to write: ``tensorrt``, ``ncnn``, ``caffe``.
        batch: Images a run.
        opset: Version of ONNX's operators.
        resume: Continue an unfinished calibration.
        trained: Layer → (lowest, highest) of its input that quantization-aware training learned, in place of what is counted.
    """

    precision: Precision = "int8"
    method: Method = "minmax"
    percentile: float = 99.99
    keep: Sequence[str] = ()
    min_agreement: float | None = None
    tables: Sequence[str] = tuple(TABLES)
    batch: int = 8
    opset: int = DEFAULT_OPSET
    resume: bool = False
    trained: Mapping[str, Bounds] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution or inner product.

    Attributes:
        name: The layer.
        sqnr: Signal-to-noise ratio in dB of its output when it alone is int8; None where it was not measured.
        kept: Whether it stays in float.
    """

    name: str
    sqnr: float | None
    kept: bool


@dataclass(frozen=True)
class Quantization:
    """Result of :func:`quantize_net`.

    Attributes:
        path: The ONNX file.
        precision: ``int8`` or ``fp16``.
        images: Number of calibration images.
        agreement: Share of the decisions, 0 to 1, in which the best class is that of the float model; None where the net has no classes.
        decisions: How many classes are chosen: one an image or, in a detector or a segmentation, one a box or a pixel.
        layers: Convolutions and inner products, in the net's order.
        tables: Name of a table → its file.
        bytes_before: Size of the float model.
        bytes_after: Size of the file.
        ms_before: Milliseconds an image of the float model in onnxruntime, the shortest of 10 runs of one image.
        ms_after: The same of the new model.
        tested: Number of labelled images.
        accuracy_before: Share of them, 0 to 1, whose best class in the float model is their label; None without labelled images.
        accuracy_after: The same of the new model.
    """

    path: Path
    precision: Precision
    images: int
    agreement: float | None
    decisions: int
    layers: list[QuantizedLayer] = field(default_factory=list)
    tables: dict[str, Path] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    ms_before: float = 0.0
    ms_after: float = 0.0
    tested: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None


def quantize_net(
    net: Net,
    images: Images,
    path: PathLike,
    options: QuantizeOptions | None = None,
    *,
    test: LabelledImages | None = None,
    properties: Mapping[str, str] | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Quantization:
    """Write ``net`` to ``path`` in lower precision, after its outputs were compared with the float model's.

    Args:
        net: A net in the TEST phase, with its weights.
        images: What it is calibrated and compared on.
        path: The ONNX file to write; tables get its name with other endings.
        options: Precision, calibration and layers to keep.
        test: Images with labels, on which the accuracy of both models is measured.
        properties: The file's ``metadata_props``.
        events: Receives ``Started``, ``Progress``, ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between batches.

    Raises:
        CaffeToolsError: An option is wrong, or an image cannot be read.
        ExportError: The net has no exact ONNX form, or a value does not fit the precision.
        RunFailed: ``min_agreement`` is not reached with any layer in int8, or a file cannot be written.
        Cancelled: ``cancel`` was set; a calibration that had begun can be resumed.
    """
    how = options or QuantizeOptions()
    with reported("calibrate", f"{how.precision} model {os.fspath(path)}", events):
        _check(net, images, how)
        work = _Work(net, images, test, how, Path(path), events, cancel)
        return work.run(dict(properties or {}))


def table_paths(path: str | os.PathLike[str], how: QuantizeOptions) -> list[Path]:
    """Return the calibration tables that :func:`quantize` writes next to a model.

    Args:
        path: The ONNX file to write.
        how: The settings; fp16 has no tables.
    """
    return [Path(path).with_suffix(TABLES[name][0]) for name in how.tables if name in TABLES] if how.precision == "int8" else []


def _check(net: Net, images: Images, how: QuantizeOptions) -> None:
    for what, value, known in (("precision", how.precision, PRECISIONS), ("method", how.method, METHODS)):
        if value not in known:
            raise CaffeToolsError(f"'{value}' is not a {what}; {', '.join(known)} are")
    if unknown := [name for name in how.tables if name not in TABLES]:
        raise CaffeToolsError(f"'{unknown[0]}' is not a calibration table; {', '.join(TABLES)} are")
    names = {layer.name for layer in net.layers}
    if unknown := [name for name in how.keep if name not in names]:
        raise NetError(f"the net '{net.name}' has no layer '{unknown[0]}' to keep{did_you_mean(unknown[0], names)}")
    if unknown := [name for name in how.trained if name not in names]:
        text = f"the trained ranges are of another net: '{net.name}' has no layer '{unknown[0]}'{did_you_mean(unknown[0], names)}"
        raise NetError(text, hint="give --ranges none to calibrate in place of them")
    if not 0 < how.percentile <= 100:
        raise CaffeToolsError(f"the percentile must be above 0 and at most 100, not {how.percentile:g}")
    if how.min_agreement is not None and not 0 <= how.min_agreement <= 1:
        raise CaffeToolsError(f"the agreement is a share from 0 to 1, not {how.min_agreement:g}")
    if how.batch < 1:
        raise CaffeToolsError(f"the batch must be at least 1, not {how.batch}")
    if not len(images):
        raise DataError("there are no calibration images")


def _class_axes(net: Net) -> dict[str, int]:
    """Return output → the axis of its classes: of those that a Softmax makes or, without one, axis 1 of those with two or four axes."""
    made = {layer.tops[0]: layer.softmax_axis for layer in net.layers if isinstance(layer, Softmax) and layer.tops[0] in net.outputs}
    shapes = {blob: net.blob_shapes[blob] for blob in net.outputs}
    return made or {blob: 1 for blob, shape in shapes.items() if len(shape) in (2, 4) and shape[1] > 1}


class _Work:
    """One quantization: the float model, its ranges, and the models that are tried."""

    def __init__(
        self,
        net: Net,
        images: Images,
        test: LabelledImages | None,
        how: QuantizeOptions,
        path: Path,
        events: EventSink,
        cancel: CancelToken | None,
    ):
        self.net, self.images, self.test, self.how, self.path = net, images, test, how, path
        self.events, self.cancel = events, cancel
        self.thresholds: dict[str, float] = {}
        self.ranges: dict[str, tuple[float, float]] = {}

    def run(self, properties: dict[str, str]) -> Quantization:
        """Quantize; what was counted is kept where the work is cancelled or killed, also after the last image."""
        try:
            done = self._run(properties)
        except (CaffeToolsError, OSError) as error:
            if not isinstance(error, Cancelled) and self.thresholds:
                remove_state(self.path)
            raise
        except KeyboardInterrupt:
            if state_path(self.path).exists():
                message = "what was counted is kept; the same command with --resume continues"
                self.events(Warned(task="calibrate", message=message))
            raise
        remove_state(self.path)
        return done

    def _run(self, properties: dict[str, str]) -> Quantization:
        how = self.how
        self.model = build(self.net, opset=how.opset, properties=properties)[0]
        self.float_session = open_session(self.model.to_proto())
        self.inputs = layer_inputs(self.net, self.model)
        self.class_axes = _class_axes(self.net)
        # Before the calibration, which takes longest: labels that do not fit are found here.
        self.accuracy_before = self._accuracy(self.float_session)
        noise: dict[str, float] = {}
        if how.precision == "int8":
            self._calibrate()
            bounds = {layer: self.ranges[value] for layer, value in self.inputs.items()}
            noise = layer_noise(self.net, self.images, bounds, batch=how.batch, cancel=self.cancel)
        self.expected = self._classes(self.float_session)
        if how.min_agreement is not None and not self.expected:
            raise ExportError("the net's outputs have no classes, so there is no agreement to reach", hint="leave out --min-agreement")
        if any(len(classes) > 1 and (classes == classes[0]).all() for classes in self.expected.values()):
            message = "in float all pictures have the same best class, so the agreement says little; take pictures of several classes, and trained weights"
            self.events(Warned(task="compare", message=message))
        order = sorted((name for name in self.inputs if name not in how.keep), key=lambda name: noise.get(name, 0.0))
        made, agreement, kept = self._search(order)
        return self._write(made, agreement, kept, noise)

    def _calibrate(self) -> None:
        how = self.how
        counted: Ranges = calibrate(
            self.model,
            self.images,
            batch=how.batch,
            state=state_path(self.path),
            resume=how.resume,
            events=self.events,
            cancel=self.cancel,
        )
        self.ranges = {name: value.clipped(how.method, how.percentile) for name, value in counted.values.items()}
        self.thresholds = {name: value.threshold(how.method, how.percentile) for name, value in counted.values.items()}
        for name, bounds in trained_ranges(self.model, self.inputs, how.trained).items():
            self.ranges[name], self.thresholds[name] = bounds, max(-bounds[0], bounds[1])

    def _search(self, order: Sequence[str]) -> tuple[onnx.ModelProto, float | None, tuple[str, ...]]:
        """Return the model with the fewest layers of ``order`` in float that agrees enough, by bisection."""
        given = tuple(self.how.keep)
        best = (*self._try(given), given)
        wanted = self.how.min_agreement
        if wanted is None or best[1] is None or best[1] >= wanted:
            return best
        # At least one layer is quantized, else there is no result.
        low, high = 1, len(order) - 1
        found: tuple[onnx.ModelProto, float | None, tuple[str, ...]] | None = None
        while low <= high:
            count = (low + high) // 2
            kept = (*given, *order[:count])
            made, agreement = self._try(kept)
            if agreement is not None and agreement >= wanted:
                found, high = (made, agreement, kept), count - 1
            else:
                low = count + 1
        if found is None:
            raise RunFailed(
                f"an agreement of {wanted:g} is not reached with any layer in {self.how.precision} (all in it: {best[1]:.4f})",
                hint="calibrate with more images or by another --method, or fine-tune with train --quantize int8",
            )
        return found

    def _try(self, keep: Sequence[str]) -> tuple[onnx.ModelProto, float | None]:
        if self.how.precision == "int8":
            made = to_int8(self.model, self.net, self.ranges, keep)
        else:
            made = to_fp16(self.model, self.net, keep)
        got = self._classes(open_session(made))
        shares = [float((self.expected[blob] == got[blob]).mean()) for blob in self.expected]
        return made, min(shares, default=None)

    def _classes(self, session: Session) -> dict[str, NDArray[np.int64]]:
        """Return output → index of the best class, over all images and positions in one row, for the outputs that have classes.

        A detector's Reshape may put the batch on another axis (1 x anchors x 2), so the parts need not have equal shapes.
        """
        rows: dict[str, list[NDArray[np.int64]]] = {}
        for start in range(0, len(self.images), self.how.batch):
            if self.cancel is not None:
                self.cancel.raise_if_cancelled("quantization")
            stop = min(start + self.how.batch, len(self.images))
            for blob, output in session.run({self.images.blob: self.images.read(start, stop)}).items():
                if not np.isfinite(output).all():
                    raise ExportError("has values that are not finite in this precision", blob=blob, hint="keep layers in float (--keep)")
                if blob in self.class_axes:
                    rows.setdefault(blob, []).append(output.argmax(axis=self.class_axes[blob]).ravel().astype(np.int64))
            self.events(Progress(task="compare", done=stop, total=len(self.images), unit="images"))
        return {blob: np.concatenate(parts) for blob, parts in rows.items()}

    def _write(self, made: onnx.ModelProto, agreement: float | None, kept: Sequence[str], noise: Mapping[str, float]) -> Quantization:
        onnx.helper.set_model_props(made, {**{p.key: p.value for p in self.model.proto.metadata_props}, **self._card(kept, agreement)})
        data = made.SerializeToString()
        accuracy = self._accuracy(open_session(data))
        tables = self._write_files(data, self._tables(kept) if self.how.precision == "int8" else {})
        one = {self.images.blob: self.images.read(0, 1)}
        float_ms, own_ms = _milliseconds([self.float_session, open_session(data)], one)
        return Quantization(
            self.path,
            self.how.precision,
            len(self.images),
            agreement,
            sum(len(classes) for classes in self.expected.values()),
            [QuantizedLayer(name, noise.get(name), name in kept) for name in self.inputs],
            tables,
            _size(self.model),
            len(data),
            float_ms,
            own_ms,
            0 if self.test is None else len(self.test),
            self.accuracy_before,
            accuracy,
        )

    def _accuracy(self, session: Session) -> float | None:
        """Return the share of the labelled images whose best class is their label; None without any."""
        if self.test is None:
            return None
        right = 0
        for start in range(0, len(self.test), self.how.batch):
            if self.cancel is not None:
                self.cancel.raise_if_cancelled("quantization")
            stop = min(start + self.how.batch, len(self.test))
            outputs = session.run({self.test.blob: self.test.read(start, stop)})
            output = next((outputs[blob] for blob in reversed(self.class_axes)), np.empty(0))
            if output.ndim < 2 or output.size != len(output) * output.shape[1]:
                raise NetError(f"the net '{self.net.name}' has no output of one vector of classes, so its accuracy cannot be measured")
            labels = self.test.labels(start, stop)
            if labels.min() < 0 or labels.max() >= output.shape[1]:
                raise DataError(
                    f"the labelled images have labels from {labels.min()} to {labels.max()}, but the net has {output.shape[1]} classes"
                )
            right += int((output.reshape(len(output), -1).argmax(axis=1) == labels).sum())
            self.events(Progress(task="test", done=stop, total=len(self.test), unit="images"))
        return right / len(self.test)

    def _card(self, kept: Sequence[str], agreement: float | None) -> dict[str, str]:
        card = {"caffetools.precision": self.how.precision, "caffetools.kept_in_float": ",".join(kept)}
        if self.how.precision == "int8":
            card["caffetools.calibration"] = f"{self.how.method}, {len(self.images)} images{', trained ranges' if self.how.trained else ''}"
        if agreement is not None:
            card["caffetools.top1_agreement"] = f"{agreement:.4f}"
        return card

    def _tables(self, kept: Sequence[str]) -> dict[str, str]:
        """Return the text of each calibration table by its name."""
        by_layer = {layer: self.thresholds[value] for layer, value in self.inputs.items()}
        made = {name: TABLES[name][1] for name in self.how.tables}
        return {name: tensorrt_cache(self.thresholds) if make is None else make(self.net, by_layer, kept) for name, make in made.items()}

    def _write_files(self, data: bytes, tables: Mapping[str, str]) -> dict[str, Path]:
        """Write the model and its tables, all or none; return the tables' paths."""
        paths = {name: self.path.with_suffix(TABLES[name][0]) for name in tables}
        with atomic_files() as write:
            for name, text in tables.items():
                write(paths[name], text.encode())
            write(self.path, data)
        for name, path in paths.items():
            self.events(ArtifactWritten(task="calibrate", path=os.fspath(path), what=f"{name} table"))
        self.events(ArtifactWritten(task="calibrate", path=os.fspath(self.path), what="onnx"))
        return paths


def _size(model: OnnxModel) -> int:
    return model.size + model.proto.ByteSize()


def _milliseconds(sessions: Sequence[Session], batch: Mapping[str, NDArray[Any]]) -> list[float]:
    """Return each session's shortest run; in turns, so that other work on the machine slows all of them alike."""
    durations: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(batch)
    for _ in range(_TIMED_RUNS):
        for session, found in zip(sessions, durations, strict=True):
            start = time.perf_counter()
            session.run(batch)
            found.append(time.perf_counter() - start)
    return [min(found) * 1000 for found in durations]
