"""Build a bundle: everything that a device needs to run a deployed classifier, in one verified folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import caffetools
from caffetools.bundle import standalone
from caffetools.bundle.check import BundleCheck, check_bundle
from caffetools.bundle.model import INPUT, JETSON_MEAN, JETSON_STD, OUTPUT, adapt_calibration, prepend_denormalization, rename_value
from caffetools.bundle.pages import build_script, readme
from caffetools.bundle.samples import draw_samples
from caffetools.bundle.sums import write_sums
from caffetools.cancel import CancelToken
from caffetools.data.images import encode_image
from caffetools.errors import DataError, NetError
from caffetools.events import ArtifactWritten, EventSink, Warned, ignore, reported
from caffetools.infer.classifier import Classifier, Options
from caffetools.infer.export import ExportOptions, export_deployed
from caffetools.infer.preprocess import Preprocessor
from caffetools.util.files import write_text
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
RUNNER = Path(__file__).parent / "runner"


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        opset: Version of ONNX's operators that its runtimes read.
        backend: The runtime that the bundle is checked with.
        normalized: Whether the model takes pictures as jetson-inference normalizes them.
    """

    opset: int
    backend: str
    normalized: bool = False


# Opset 11 is what TensorRT 7 (JetPack 4) and the importer of OpenCV 4.5 read.
TARGETS = {
    "jetson": Target(11, "onnxruntime", normalized=True),
    "onnxruntime": Target(17, "onnxruntime"),
    "opencv": Target(11, "opencv"),
}


def build_bundle(
    deploy: PathLike,
    weights: PathLike,
    out: PathLike,
    target: str = "jetson",
    options: Options | None = None,
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
        calibration: TensorRT's calibration cache for int8, as ``caffetools quantize`` writes it.
        output: The blob of the probabilities, where the net has several outputs.
        pictures: Image files to copy as samples; drawn ones if empty.
        force: Replace an existing bundle.
        events: Receives ``Started``, ``Warned``, ``ArtifactWritten`` and ``Finished``.
        cancel: Checked between the steps; nothing is left after a cancellation.

    Returns:
        What the final check measured.

    Raises:
        DataError: The target is unknown, ``out`` exists, or a mean, labels, pictures or the cache do not fit.
        NetError: The net is not a classifier with one input for pictures.
        ExportError: The net has no exact ONNX form.
        Cancelled: ``cancel`` was set.
    """
    if target not in TARGETS:
        raise DataError(f"unknown target '{target}'", hint=f"known are {', '.join(TARGETS)}")
    with reported("bundle", f"Building a bundle for {target}", events), new_folder(out, force=force, replaceable=_is_bundle) as folder:
        builder = _Builder(folder, target, Classifier(deploy, weights, options, output=output), events, cancel)
        builder.write_model(deploy, weights, options or Options())
        builder.write_preprocessing()
        builder.write_samples(pictures)
        if calibration is not None:
            builder.write_calibration(Path(calibration))
        builder.write_scripts(Path(deploy).name, Path(out).name)
        write_sums(folder)
        checked = check_bundle(folder, backend=TARGETS[target].backend)
    events(ArtifactWritten(task="bundle", path=os.fspath(out), what="bundle"))
    return checked


class _Builder:
    """Writes the parts of a bundle into ``folder``."""

    def __init__(self, folder: Path, target: str, classifier: Classifier, events: EventSink, cancel: CancelToken | None):
        self.folder, self.name, self.target = folder, target, TARGETS[target]
        self.classifier, self.events, self.cancel = classifier, events, cancel
        self.preprocessor: Preprocessor = classifier.preprocessor
        self.normalized = self.target.normalized and self.preprocessor.channels == 3
        self.has_calibration = False
        self.blob, self.output_value = classifier.input, classifier.output
        if self.target.normalized and not self.normalized:
            events(
                Warned(
                    task="bundle", message="the net takes gray pictures, which jetson-inference cannot give; use the bundle's own runners"
                )
            )

    def write_model(self, deploy: PathLike, weights: PathLike, options: Options) -> None:
        """Export the net with the batch size 1 and give it the bundle's input and output."""
        self._check_cancelled()
        path = self.folder / "model.onnx"
        how = ExportOptions(opset=self.target.opset, dynamic_axes=(), batch=1, outputs=(self.classifier.output,))
        export_deployed(deploy, weights, path, options, how, events=_without_artifacts(self.events))
        if path.with_name("model.onnx.data").exists():
            raise NetError(f"{os.fspath(deploy)}: the model has 2 GB or more, which a bundle does not hold")
        model = onnx.load(path)
        self.blob, self.output_value = model.graph.input[0].name, model.graph.output[0].name
        if self.normalized:
            prepend_denormalization(model, self.preprocessor.input_mean, self.preprocessor.how.scale)
        else:
            rename_value(model, self.blob, INPUT)
        rename_value(model, self.output_value, OUTPUT)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        dims = model.graph.output[0].type.tensor_type.shape.dim
        self.classes = int(np.prod([dim.dim_value for dim in dims][1:]))

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
        if self.normalized:
            mean = [float(np.float32(255 * value)) for value in JETSON_MEAN]
            scale = [float(np.float32(1 / (255 * value))) for value in JETSON_STD]
            values |= {"channel_order": "RGB", "mean": mean, "scale": scale}
        else:
            values |= {"channel_order": how.channel_order, "scale": [float(np.float32(how.scale))]}
            mean_array = self.preprocessor.input_mean
            if mean_array.shape[1:] == (1, 1):
                values["mean"] = [float(value) for value in mean_array.reshape(-1)]
            else:
                np.ascontiguousarray(mean_array, "<f4").tofile(self.folder / "mean.f32")
                values["mean_file"] = "mean.f32"
        labels = self.classifier.labels or tuple(str(number) for number in range(self.classes))
        if bad := next((label for label in labels if "\n" in label or "\r" in label), None):
            raise DataError(f"the label {bad!r} has a line break, which labels.txt cannot hold")
        write_text(self.folder / "preprocessing.json", json.dumps(values, indent=2) + "\n")
        write_text(self.folder / "labels.txt", "".join(f"{label}\n" for label in labels))

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
        results = self.classifier.classify(paths, top=5, batch=1)
        labels = (self.folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        expected = {
            path.name: [{"index": g.index, "label": labels[g.index], "probability": g.probability} for g in result.guesses]
            for path, result in zip(paths, results, strict=True)
        }
        write_text(folder / "expected.json", json.dumps(expected, indent=2, ensure_ascii=False) + "\n")

    def write_calibration(self, cache: Path) -> None:
        """Write calibration.cache with the names of the bundle's model."""
        names = {self.blob: self.blob if self.normalized else INPUT, self.output_value: OUTPUT}
        largest = float(np.max(np.maximum(JETSON_MEAN, 1 - JETSON_MEAN) / JETSON_STD)) if self.normalized else None
        write_text(self.folder / "calibration.cache", adapt_calibration(cache, names, largest))
        self.has_calibration = True

    def write_scripts(self, source: str, name: str) -> None:
        """Write the runners, build_engine.sh and README.md."""
        shutil.copyfile(Path(standalone.__file__), self.folder / "classify.py")
        shutil.copytree(RUNNER, self.folder / "runner", ignore=shutil.ignore_patterns("__pycache__", "build"))
        if self.target.normalized:
            write_text(self.folder / "build_engine.sh", build_script(self.has_calibration))
            (self.folder / "build_engine.sh").chmod(0o755)
        (self.folder / "classify.py").chmod(0o755)
        write_text(self.folder / "README.md", readme(name, source, self.name, normalized=self.normalized, int8=self.has_calibration))

    def _check_cancelled(self) -> None:
        if self.cancel is not None:
            self.cancel.raise_if_cancelled("the bundle")


def _without_artifacts(events: EventSink) -> EventSink:
    return lambda event: None if isinstance(event, ArtifactWritten) else events(event)


def _is_bundle(path: Path) -> bool:
    return (path / "SHA256SUMS").is_file() and (path / "preprocessing.json").is_file()
