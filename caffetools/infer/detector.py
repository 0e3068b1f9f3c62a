"""Detecting objects in pictures with a deployed network that ends in a layer of boxes, such as SSD's DetectionOutput."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.images import Pixels, read_image
from caffetools.engines.torch import TorchEngine
from caffetools.errors import DataError, NetError
from caffetools.events import EventSink, Progress, ignore
from caffetools.infer.classifier import ImageLike, PictureModel, PreprocessOptions, image_name, pillow_pixels
from caffetools.layers.base import format_shape
from caffetools.layers.detection import DetectionOutput
from caffetools.proto.blobs import Array

PathLike = str | os.PathLike[str]
# Values of a row: item, class, score, then the corners xmin, ymin, xmax, ymax over the input's size.
_ROW = 7


@dataclass(frozen=True)
class Detection:
    """An object in a picture.

    Attributes:
        index: Its class.
        label: The class's name; the number as text where none is known.
        score: From 0 to 1.
        box: xmin, ymin, xmax, ymax in pixels of the picture.
    """

    index: int
    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class DetectionResult:
    """What is in a picture.

    Attributes:
        picture: Its name.
        width: Pixels; 0 if it could not be read.
        height: Pixels; 0 if it could not be read.
        objects: The objects, best first.
        error: Why it could not be read; None otherwise.
    """

    picture: str
    width: int = 0
    height: int = 0
    objects: tuple[Detection, ...] = ()
    error: str | None = None


class Detector(PictureModel):
    """A deployed net whose output has a row (item, class, score, corners) for each object: SSD's, and the YOLO layers of the forks.

    Args:
        deploy: A deploy prototxt, or an ONNX file.
        weights: Its .caffemodel; None for ONNX.
        options: Mean, labels, scale and size; see :class:`~caffetools.infer.classifier.Classifier`. Labels are those of all classes, or of
            all but the background.
        engine: ``"torch"`` or ``"onnxruntime"``; None takes that of the file's kind.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: As for :func:`~caffetools.infer.load.open_engine`.
        output: The blob of the rows; None if the net has only one output.

    Raises:
        CaffeToolsError: A file cannot be read, the weights belong to another net, the net has no such output, or mean or labels do not
            fit it.
    """

    def __init__(
        self,
        deploy: PathLike,
        weights: PathLike | None = None,
        options: PreprocessOptions | None = None,
        *,
        engine: str | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        output: str | None = None,
    ):
        super().__init__(
            deploy, weights, options, engine=engine, device=device, precision=precision, output=output, task="detecting", results="objects"
        )
        self._layer = self._output_layer()
        self.labels = self._fitting_labels()

    def detect(
        self,
        pictures: Sequence[ImageLike],
        *,
        threshold: float = 0.0,
        top: int | None = None,
        batch: int = 1,
        names: Sequence[str] | None = None,
        channel_order: str = "RGB",
        events: EventSink = ignore,
        cancel: CancelToken | None = None,
    ) -> list[DetectionResult]:
        """Detect the objects in pictures. A picture that cannot be read gets an error as its result; the others are processed.

        Args:
            pictures: Paths of image files, Pillow images, or uint8 arrays (H, W, 3), (H, W, 4) or (H, W) with values from 0 to 255.
            threshold: Lowest score, from 0 to 1; the net has one of its own.
            top: Most objects of a picture; None returns all.
            batch: Number of pictures that the net processes at once, where its rows name the item.
            names: Names of the pictures in the results; None uses their paths or numbers.
            channel_order: ``"RGB"`` or ``"BGR"``, for arrays.
            events: Receives ``Progress`` (unit ``images``).
            cancel: Checked before every batch.

        Returns:
            One result for each picture, in their order.

        Raises:
            NetError: The output does not have rows of objects.
            Cancelled: ``cancel`` was set.
        """
        batch = max(batch, 1) if isinstance(self._layer, DetectionOutput) and self.engine.batch is None else 1
        results: list[DetectionResult] = []
        for start in range(0, len(pictures), batch):
            if cancel is not None:
                cancel.raise_if_cancelled("detection")
            chunk = list(pictures[start : start + batch])
            shown = [names[start + i] if names else image_name(item, start + i) for i, item in enumerate(chunk)]
            results += self._detect(chunk, shown, threshold, top, channel_order)
            events(Progress(task="detect", done=len(results), total=len(pictures), unit="images"))
        return results

    def _detect(
        self, pictures: list[ImageLike], names: list[str], threshold: float, top: int | None, channel_order: str
    ) -> list[DetectionResult]:
        results: dict[int, DetectionResult] = {}
        inputs: dict[int, Array] = {}
        for index, picture in enumerate(pictures):
            try:
                pixels, order = self._pixels(picture, channel_order)
                inputs[index] = self.preprocessor.centre(self.preprocessor.from_array(pixels, channel_order=order))
                results[index] = DetectionResult(names[index], pixels.shape[1], pixels.shape[0])
            except DataError as error:
                results[index] = DetectionResult(names[index], error=str(error))
        for index, rows in zip(inputs, self._rows(list(inputs.values())), strict=True):
            found = results[index]
            objects = self._objects(rows, (found.width, found.height), threshold)
            results[index] = DetectionResult(found.picture, found.width, found.height, tuple(objects[:top]))
        return [results[index] for index in range(len(pictures))]

    def _pixels(self, picture: ImageLike, channel_order: str) -> tuple[Pixels, str]:
        """Return a picture's pixels, and the order of their channels."""
        if isinstance(picture, str | os.PathLike):
            return read_image(picture, color=self.preprocessor.channels == 3), "BGR"
        return (picture, channel_order) if isinstance(picture, np.ndarray) else (pillow_pixels(picture), "RGB")

    def _rows(self, inputs: list[Array]) -> Iterator[Array]:
        """Yield (K, 7) rows of each of ``inputs``, (1, C, H, W) each."""
        if not inputs:
            return
        count = self.engine.batch or 1
        given = np.concatenate(inputs if len(inputs) > 1 else inputs * count)
        rows = np.asarray(self.engine.predict({self.input: given})[self.output], np.float32)
        if rows.shape[-1:] != (_ROW,) or rows.size != rows.shape[-2] * _ROW:
            raise NetError(
                f"output '{self.output}' is {format_shape(rows.shape)}; detecting needs rows of item, class, score and four corners, as a "
                "DetectionOutput layer makes them"
            )
        rows = rows.reshape(-1, _ROW)
        for index in range(len(inputs)):
            yield rows[(rows[:, 0] == index) & (rows[:, 1] >= 0)]

    def _objects(self, rows: Array, size: tuple[int, int], threshold: float) -> list[Detection]:
        """Return the objects of one picture, best first; ``size`` is its (width, height)."""
        wide, high = self.preprocessor.size
        width, height = self.preprocessor.width, self.preprocessor.height
        # The input is the centre of the resized picture.
        left, top = (wide - width) // 2, (high - height) // 2
        scale = np.array([size[0] / wide, size[1] / high] * 2)
        found = []
        for row in rows[np.argsort(-rows[:, 2], kind="stable")]:
            if row[2] < threshold:
                break
            box = (row[3:].astype(np.float64) * [width, height, width, height] + [left, top, left, top]) * scale
            index = int(row[1])
            label = self.labels[index] if index < len(self.labels) else str(index)
            found.append(Detection(index, label, float(row[2]), (float(box[0]), float(box[1]), float(box[2]), float(box[3]))))
        return found

    def _output_layer(self) -> object | None:
        """Return the layer that makes the output; None for an engine that has no layers."""
        if not isinstance(self.engine, TorchEngine):
            return None
        layer = next((layer for layer in reversed(self.engine.net.layers) if self.output in layer.tops), None)
        if layer is None or layer.TRAITS.role != "detection":
            raise NetError(f"output '{self.output}' is not made by a layer of boxes", hint="for classes of whole pictures use classify")
        return layer

    def _fitting_labels(self) -> tuple[str, ...]:
        """Return the labels by class, with one for the background where the given ones leave it out."""
        labels = self.preprocessing.labels
        if not labels or self._layer is None:
            return labels
        if isinstance(self._layer, DetectionOutput):
            classes, background = self._layer.settings.classes, self._layer.settings.background
        else:
            # Their classes count from 1.
            classes, background = int(getattr(self._layer, "classes", len(labels))) + 1, 0
        if len(labels) == classes - 1 and background == 0:
            return ("BACKGROUND", *labels)
        if len(labels) != classes:
            raise NetError(f"there are {len(labels)} labels, but the net has {classes} classes, the background included")
        return labels
