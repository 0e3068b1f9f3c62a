"""Build a bundle: everything that a device needs to run a deployed classifier or detector, in one verified folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import caffetools
from caffetools.bundle import standalone, standalone_check
from caffetools.bundle.check import BundleCheck, check_bundle, write_sums
from caffetools.bundle.detectnet import GridOutputs, find_grid, grid_detector, grid_rows, write_grid_net
from caffetools.bundle.detector import BOXES, SCORES, Detector, append_decoding, detection_values, expected_boxes, find_detector
from caffetools.bundle.model import (
    DETECTNET,
    IMAGENET,
    INPUT,
    OUTPUT,
    Normalization,
    adapt_calibration,
    prepend_denormalization,
    rename_value,
    split_unsqueezes,
)
from caffetools.bundle.pages import build_script, readme
from caffetools.bundle.samples import draw_samples
from caffetools.cancel import CancelToken
from caffetools.data.images import encode_image, read_image
from caffetools.engines.torch import TorchEngine
from caffetools.errors import DataError, NetError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore, reported
from caffetools.graph.passes.fold_batch_norm import fold_batch_norm
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.infer.export import SOURCE_SHA256, WEIGHTS_SHA256, ExportOptions, export_deployed
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing, write_preprocessing
from caffetools.layers.normalization import BatchNorm
from caffetools.net.phases import filter_net, make_state
from caffetools.net.weights import read_weights
from caffetools.onnx.lrn import expand_lrn
from caffetools.proto.binary import write_caffemodel
from caffetools.proto.schema import TEST
from caffetools.proto.text import read_net, write_prototxt
from caffetools.proto.upgrades.v1 import upgrade_caffemodel, upgrade_net
from caffetools.util.checksums import file_sha256
from caffetools.util.files import text_lines, write_text
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
# Classes or boxes of each sample in expected.json.
EXPECTED = 5
RUNNER = Path(__file__).parent / "runner"


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        backend: The runtime that the bundle is checked with.
        normalized: Whether the model takes pictures as jetson-inference normalizes them.
    """

    backend: str
    normalized: bool = False


# The version of ONNX's operators that TensorRT 7 (JetPack 4) and the importer of OpenCV 4.5, which every runner falls back to, read.
OPSET = 11
TARGETS = {
    "jetson": Target("onnxruntime", normalized=True),
    "onnxruntime": Target("onnxruntime"),
    "opencv": Target("opencv"),
}


def build_bundle(
    deploy: PathLike,
    weights: PathLike,
    out: PathLike,
    target: str = "jetson",
    options: PreprocessOptions | None = None,
    *,
    calibration: PathLike | None = None,
    output: str | None = None,
    pictures: Sequence[PathLike] = (),
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BundleCheck:
    """Build a bundle in the new folder ``out`` and check it.

    Args:
        deploy: The deploy prototxt; the preprocessing in ``deploy.json`` next to it is used.
        weights: Its .caffemodel.
        out: The folder to create; it appears only when the bundle is complete and its samples give what the net gives.
        target: ``jetson``, ``onnxruntime`` or ``opencv``.
        options: Mean, labels, scale and size in place of those of ``deploy.json``.
        calibration: TensorRT's calibration cache for int8, as ``caffetools quantize`` writes it, for ``jetson``.
        output: The blob of the probabilities or detections, where the net has several outputs.
        pictures: Image files to copy as samples; drawn ones if empty.
        force: Replace an existing bundle.
        events: Receives ``Started``, ``Progress`` of the export, ``Warned``, ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between the steps; nothing is left after a cancellation.

    Returns:
        What the final check measured.

    Raises:
        DataError: The target is unknown, ``out`` exists, or a mean, labels, pictures or the cache do not fit.
        NetError: The net is not a classifier, an SSD or a DetectNet with one input for pictures.
        ExportError: The net has no exact ONNX form.
        Cancelled: ``cancel`` was set.
    """
    if target not in TARGETS:
        raise DataError(f"unknown target '{target}'", hint=f"known are {', '.join(TARGETS)}")
    if calibration is not None and not TARGETS[target].normalized:
        raise DataError(f"a calibration cache is for TensorRT, which a bundle for {target} does not use", hint="--target jetson does")
    with reported("bundle", f"Building a bundle for {target}", events):
        with new_folder(out, force=force, replaceable=_is_bundle) as folder, tempfile.TemporaryDirectory(prefix="caffetools-") as parts:
            grid = find_grid(deploy) if output is None else None
            source = deploy if grid is None else write_grid_net(deploy, grid, Path(parts))
            classifier = Classifier(source, weights, options, output=output if grid is None else grid.coverage)
            builder = _Builder(folder, target, classifier, grid, events, cancel)
            digests = {SOURCE_SHA256: file_sha256(deploy), WEIGHTS_SHA256: file_sha256(weights)}
            folded = _fold(source, weights, Path(parts, "folded")) if builder.has_batch_norm else (source, weights)
            builder.write_model(*folded, options or PreprocessOptions(), digests)
            builder.write_preprocessing()
            builder.write_samples(pictures)
            if calibration is not None:
                builder.write_calibration(Path(calibration))
            builder.write_scripts(Path(deploy).name, Path(out).name)
            write_sums(folder)
            checked = check_bundle(folder, backend=TARGETS[target].backend, cancel=cancel)
        events(ArtifactWritten(task="bundle", path=os.fspath(out), what="bundle"))
    return checked


class _Builder:
    """Writes the parts of a bundle into ``folder``."""

    def __init__(
        self, folder: Path, target: str, classifier: Classifier, grid: GridOutputs | None, events: EventSink, cancel: CancelToken | None
    ):
        self.folder, self.name, self.target = folder, target, TARGETS[target]
        self.classifier, self.events, self.cancel = classifier, events, cancel
        self.preprocessor: Preprocessor = classifier.preprocessor
        self.detector: Detector | None = None
        self.has_batch_norm = False
        if isinstance(classifier.engine, TorchEngine):
            net = classifier.engine.net
            self.has_batch_norm = any(isinstance(layer, BatchNorm) for layer in net.layers)
            self.detector = (
                find_detector(net, classifier.output) if grid is None else grid_detector(grid, net.blob_shapes, self.preprocessor.shape)
            )
        self.normalization: Normalization | None = None
        if self.target.normalized and self.preprocessor.channels == 3:
            self.normalization = DETECTNET if self.detector else IMAGENET
        self.has_calibration = False
        self.labels_from: PathLike | None = None
        self._check_target()

    def _check_target(self) -> None:
        if not self.target.normalized:
            return
        if self.detector is not None and self.detector.settings.background != 0:
            raise NetError(
                f"jetson-inference takes class 0 of a detector as the background; here it is {self.detector.settings.background}",
                hint="--target onnxruntime has runners for it",
            )
        if self.normalization is None:
            message = "the net takes gray pictures, which jetson-inference cannot give; use the bundle's own runners"
            self.events(Warned(task="bundle", message=message))

    def write_model(self, deploy: PathLike, weights: PathLike, options: PreprocessOptions, digests: Mapping[str, str]) -> None:
        """Export the net with the batch size 1 and give it the bundle's input and outputs; ``digests`` are those of the user's files."""
        self._check_cancelled()
        self.labels_from = options.labels if isinstance(options.labels, str | os.PathLike) else None
        path = self.folder / "model.onnx"
        outputs = (self.detector.locations, self.detector.scores) if self.detector else (self.classifier.output,)
        how = ExportOptions(opset=OPSET, dynamic_axes=(), batch=1, outputs=outputs)
        # The labels are written to a file of their own; a detector's blobs do not have as many values.
        export_deployed(deploy, weights, path, replace(options, labels=()), how, events=_without_artifacts(self.events))
        if path.with_name("model.onnx.data").exists():
            raise NetError(f"{os.fspath(deploy)}: the model has 2 GB or more, which a bundle does not hold")
        model = onnx.load(path)
        for item in model.metadata_props:
            item.value = digests.get(item.key, item.value)
        split_unsqueezes(model)
        self.blob = model.graph.input[0].name
        if self.normalization:
            prepend_denormalization(model, self.normalization, self.preprocessor)
        else:
            rename_value(model, self.blob, INPUT)
        self.output_value = model.graph.output[0].name
        if self.detector:
            append_decoding(model, self.detector)
            self.classes = self.detector.settings.classes
        else:
            rename_value(model, self.output_value, OUTPUT)
            self.classes = int(np.prod([dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim][1:]))
        if self.name == "onnxruntime":
            expand_lrn(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)

    def write_preprocessing(self) -> None:
        """Write preprocessing.json, labels.txt and, for a mean image, mean.f32."""
        how, shape = self.preprocessor.how, self.preprocessor.shape
        values: dict[str, Any] = {
            "format": standalone.FORMAT,
            "caffetools": caffetools.__version__,
            "target": self.name,
            "input": {"name": INPUT, "shape": [1, *shape[1:]]},
            "output": {"name": OUTPUT, "classes": self.classes},
            "resize": list(self.preprocessor.size),
            "interpolation": "bilinear",
        }
        if self.detector:
            values["output"] = {"scores": SCORES, "boxes": BOXES, "classes": self.classes}
            values["detection"] = detection_values(self.detector)
        if self.normalization:
            values |= {"channel_order": "RGB", "mean": self.normalization.pixel_mean, "scale": self.normalization.pixel_scale}
        else:
            values |= {"channel_order": how.channel_order, "scale": [float(np.float32(how.scale))]}
            mean_array = self.preprocessor.input_mean
            if mean_array.shape[1:] == (1, 1):
                values["mean"] = [float(value) for value in mean_array.reshape(-1)]
            else:
                np.ascontiguousarray(mean_array, "<f4").tofile(self.folder / "mean.f32")
                values["mean_file"] = "mean.f32"
        write_text(self.folder / "preprocessing.json", json.dumps(values, indent=2) + "\n")
        self.labels = self._labels()
        write_text(self.folder / "labels.txt", "".join(f"{label}\n" for label in self.labels))

    def _labels(self) -> tuple[str, ...]:
        labels = self.classifier.labels or tuple(str(number) for number in range(self.classes))
        if self.detector and self.detector.settings.background == 0 and len(labels) == self.classes - 1:
            labels = ("BACKGROUND", *labels)
        if len(labels) != self.classes:
            raise DataError(f"there are {len(labels)} labels, but the net has {self.classes} classes", path=self.labels_from)
        if bad := next((label for label in labels if text_lines(label) != [label]), None):
            raise DataError(f"the label {bad!r} is empty or has a line break, which labels.txt cannot hold")
        return labels

    def write_samples(self, pictures: Sequence[PathLike]) -> None:
        """Write sample pictures and what the net computes for them, with its own preprocessing, in expected.json."""
        self._check_cancelled()
        folder = self.folder / "samples"
        folder.mkdir()
        if pictures:
            for number, picture in enumerate(pictures):
                target = folder / f"{number:02d}_{Path(picture).name}"
                self.preprocessor.read(picture)
                shutil.copyfile(picture, target)
        else:
            for name, image in draw_samples().items():
                (folder / name).write_bytes(encode_image(image, ".png"))
        paths = sorted(folder.iterdir())
        expected = self._expected_boxes(paths, self.detector) if self.detector else self._expected_classes(paths)
        write_text(folder / "expected.json", json.dumps(expected, indent=2, ensure_ascii=False) + "\n")

    def _expected_classes(self, paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
        results = self.classifier.classify(paths, top=EXPECTED, batch=1)
        return {
            path.name: [{"index": g.index, "label": self.labels[g.index], "probability": g.probability} for g in result.guesses]
            for path, result in zip(paths, results, strict=True)
        }

    def _expected_boxes(self, paths: Sequence[Path], detector: Detector) -> dict[str, list[dict[str, Any]]]:
        expected = {}
        for path in paths:
            image = read_image(path, color=self.preprocessor.channels == 3)
            place = partial(self._place, image.shape[1], image.shape[0])
            batch = self.preprocessor.centre(self.preprocessor.read(path))
            outputs = self.classifier.engine.predict({self.classifier.input: batch})
            rows = grid_rows(outputs, detector) if detector.is_grid else outputs[self.classifier.output].reshape(-1, 7)
            boxes = expected_boxes(rows, detector.settings, place)[:EXPECTED]
            expected[path.name] = [{**box, "label": self.labels[box["index"]]} for box in boxes]
        return expected

    def _place(self, width: int, height: int, x: float, y: float) -> tuple[float, float]:
        """Return pixels of a picture of ``width`` and ``height`` for a place in the net's input, 0 to 1."""
        wide, high = self.preprocessor.size
        left, top = (wide - self.preprocessor.width) // 2, (high - self.preprocessor.height) // 2
        return (x * self.preprocessor.width + left) * width / wide, (y * self.preprocessor.height + top) * height / high

    def write_calibration(self, cache: Path) -> None:
        """Write calibration.cache with the names of the bundle's model."""
        names = {self.blob: self.blob if self.normalization else INPUT}
        if self.detector is None:
            names[self.output_value] = OUTPUT
        largest = self.normalization.largest if self.normalization else None
        write_text(self.folder / "calibration.cache", adapt_calibration(cache, names, largest))
        self.has_calibration = True

    def write_scripts(self, source: str, name: str) -> None:
        """Write the runners, build_engine.sh and README.md."""
        for module, script in ((standalone, "classify.py"), (standalone_check, "check.py")):
            shutil.copyfile(str(module.__file__), self.folder / script)
            (self.folder / script).chmod(0o755)
        shutil.copytree(RUNNER, self.folder / "runner", ignore=shutil.ignore_patterns("__pycache__", "build"))
        if self.target.normalized:
            write_text(self.folder / "build_engine.sh", build_script(self.has_calibration))
            (self.folder / "build_engine.sh").chmod(0o755)
        page = readme(
            name,
            source,
            self.name,
            normalized=self.normalization is not None,
            int8=self.has_calibration,
            detector=self.detector is not None,
        )
        write_text(self.folder / "README.md", page)

    def _check_cancelled(self) -> None:
        if self.cancel is not None:
            self.cancel.raise_if_cancelled("the bundle")


def _fold(deploy: PathLike, weights: PathLike, folder: Path) -> tuple[PathLike, PathLike]:
    """Return a net and its weights with batch normalizations folded, as :func:`caffetools.quantize` does: a calibration cache fits those."""
    net = filter_net(upgrade_net(read_net(deploy)), make_state(TEST))
    try:
        folded = fold_batch_norm(net, upgrade_caffemodel(read_weights(weights)))
    except NetError:
        return deploy, weights
    folder.mkdir()
    made = folder / Path(deploy).name, folder / f"{Path(weights).name.partition('.')[0]}.caffemodel"
    write_prototxt(made[0], folded.net)
    write_caffemodel(made[1], folded.weights)
    if (known := read_preprocessing(deploy)) is not None:
        write_preprocessing(made[0], known)
    return made


def _without_artifacts(events: EventSink) -> EventSink:
    return lambda event: None if isinstance(event, ArtifactWritten) else events(event)


def _is_bundle(path: Path) -> bool:
    return (path / "SHA256SUMS").is_file() and (path / "preprocessing.json").is_file()
