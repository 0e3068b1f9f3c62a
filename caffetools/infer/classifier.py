"""Classifying pictures with a deployed network: the class names and probabilities for each of them."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.data.images import SUFFIXES, Pixels
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.events import EventSink, Progress, Warned, ignore
from caffetools.graph.inputs import is_data_layer
from caffetools.infer.load import open_engine
from caffetools.infer.preprocess import Preprocessor, read_labels, read_mean
from caffetools.layers.base import format_shape
from caffetools.proto.blobs import Array
from caffetools.proto.text import read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.results import Preprocessing

PathLike = str | os.PathLike[str]
T = TypeVar("T")


class PillowImage(Protocol):
    """The part of ``PIL.Image.Image`` that is used here; Pillow itself is not needed."""

    @property
    def mode(self) -> str:
        """Its pixel format, such as ``"RGB"``."""

    def convert(self, mode: str) -> Any:
        """Return the image in another mode."""


ImageLike = PathLike | NDArray[Any] | PillowImage


@dataclass(frozen=True)
class Prediction:
    """A class and how probable the net finds it: its number, its name (the number as text where none is known), 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class ClassificationResult:
    """What came of one picture: the most probable classes, best first, or the reason why it could not be read."""

    picture: str
    guesses: tuple[Prediction, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class PreprocessOptions:
    """How images are prepared, in place of what is stored with the model; None keeps the stored value.

    Attributes:
        mean: As :func:`~caffetools.infer.preprocess.read_mean` takes it.
        labels: As :func:`~caffetools.infer.preprocess.read_labels` takes them.
        scale: Factor after the mean is subtracted.
        resize: (width, height) of the whole image before the crop.
    """

    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None
    labels: PathLike | Sequence[str] | None = None
    scale: float | None = None
    resize: tuple[int, int] | None = None


# Shown once where neither the user nor the model's files give a mean.
UNKNOWN_MEAN = "no mean is subtracted, since none is known for this net; give --mean (or --mean 0 if it was trained without one)"


class PictureModel:
    """A deployed net with one input, of pictures, and how these are prepared for it.

    Args:
        deploy: A deploy prototxt, or an ONNX file.
        weights: Its .caffemodel; None for ONNX.
        options: See :class:`Classifier`.
        engine: ``"torch"`` or ``"onnxruntime"``; None takes that of the file's kind.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: As for :func:`~caffetools.infer.load.open_engine`.
        output: The blob of the results; None if the net has only one output.
        task: What the net is for, for the message: ``classifying``.
        results: What the output holds, for the message.

    Raises:
        CaffeToolsError: A file cannot be read, the weights belong to another net, the net has another number of inputs or no such
            output, or a mean does not fit it.
    """

    def __init__(
        self,
        deploy: PathLike,
        weights: PathLike | None,
        options: PreprocessOptions | None,
        *,
        engine: str | None,
        device: str,
        precision: str,
        output: str | None,
        task: str,
        results: str,
    ):
        try:
            self.engine, known = open_engine(deploy, weights, engine=engine, device=device, precision=precision)
        except CaffeToolsError as error:
            error.hint = error.hint or _hint_for_training(deploy)
            raise
        pictures = [blob for blob, shape in self.engine.inputs.items() if len(shape) == 4]
        if len(self.engine.inputs) != 1 or not pictures:
            inputs = ", ".join(self.engine.inputs) or "none"
            raise NetError(f"{task} needs a net with one input for pictures; it has {inputs}", path=deploy, hint=_hint_for_training(deploy))
        self.input = pictures[0]
        outputs = self.engine.outputs
        if output not in outputs and (output is not None or len(outputs) != 1):
            wrong = f"has no output '{output}'" if output else "has several outputs"
            text = f"the net {wrong}; choose the {results} among {', '.join(outputs)}"
            raise NetError(text, path=deploy, hint=f"as with --output {outputs[-1]}")
        self.output = output or outputs[0]
        shape = self.engine.inputs[self.input]
        self.preprocessing = merge_preprocessing(known or Preprocessing(), options or PreprocessOptions(), channels=shape[1])
        self.preprocessor = Preprocessor(shape, self.preprocessing)


class Classifier(PictureModel):
    """A deployed net that classifies images.

    Args:
        deploy: A deploy prototxt, or an ONNX file.
        weights: Its .caffemodel; None for ONNX.
        options: Mean, labels, scale and size; where one is None, the value stored with the model is used: in ``deploy.json`` next
            to the prototxt, or in the ONNX file's metadata.
        engine: ``"torch"`` or ``"onnxruntime"``; None takes torch for a prototxt and onnxruntime for an ONNX file.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: As for :func:`~caffetools.infer.load.open_engine`.
        output: The blob of the probabilities; None if the net has only one output.

    Raises:
        CaffeToolsError: A file cannot be read, the weights belong to another net, or mean or labels do not fit the net.
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
            deploy,
            weights,
            options,
            engine=engine,
            device=device,
            precision=precision,
            output=output,
            task="classifying",
            results="probabilities",
        )
        self.labels = self.preprocessing.labels
        self._warned = False
        given = options.labels if options is not None else None
        self._labels_from = os.fspath(given if isinstance(given, str | os.PathLike) else deploy)

    def classify(
        self,
        pictures: Iterable[ImageLike],
        *,
        top: int = 5,
        batch: int = 16,
        oversample: bool = False,
        channel_order: str = "RGB",
        observe: Callable[[int, Array], None] | None = None,
        events: EventSink = ignore,
        cancel: CancelToken | None = None,
    ) -> list[ClassificationResult]:
        """Classify images. A file that cannot be read gets an error as its result; the others are classified.

        Args:
            pictures: Paths of image files, Pillow images, or uint8 arrays (H, W, 3), (H, W, 4) or (H, W) with values from 0 to 255.
            top: Number of classes to return for each image.
            batch: Number of images that the net processes at once.
            oversample: Average the probabilities of ten crops (corners and center, and their mirror images), as ``caffe.io.oversample`` does.
            channel_order: ``"RGB"`` or ``"BGR"``, for arrays.
            observe: Called for every image that could be read with its index in ``pictures`` and (classes,) float32 probabilities.
            events: Receives a ``Progress`` event after every batch.
            cancel: Checked before every batch.

        Returns:
            One result for each image, in the order of ``pictures``.

        Raises:
            DataError: an array has another dtype or shape.
            NetError: the output is not one vector of probabilities per image, or the number of labels differs from it.
            Cancelled: ``cancel`` was set.
        """
        items = list(pictures)
        names = [image_name(item, index) for index, item in enumerate(items)]
        results: dict[int, ClassificationResult] = {}
        for start in range(0, len(names), max(batch, 1)):
            if cancel is not None:
                cancel.raise_if_cancelled("classification")
            chunk = range(start, min(start + max(batch, 1), len(names)))
            read: dict[int, Array] = {}
            for index in chunk:
                try:
                    image = self._pixels(items[index], channel_order)
                    read[index] = self.preprocessor.oversample(image) if oversample else self.preprocessor.centre(image)
                except DataError as error:
                    if not isinstance(items[index], str | os.PathLike):
                        raise DataError(f"{names[index]}: {error}") from None
                    results[index] = ClassificationResult(names[index], error=str(error))
            for index, row in zip(read, self.probabilities(list(read.values())), strict=True):
                results[index] = ClassificationResult(names[index], self._best(row, top))
                if observe is not None:
                    observe(index, row)
            if read and not self.preprocessing.mean_known and not self._warned:
                self._warned = True
                events(Warned(task="classify", message=UNKNOWN_MEAN))
            events(Progress(task="classify", done=chunk.stop, total=len(names), unit="images"))
        return [results[index] for index in range(len(names))]

    def _pixels(self, image: ImageLike, channel_order: str) -> Pixels:
        """Return an image resized for the net: uint8 (H, W, 3) BGR or (H, W)."""
        if isinstance(image, str | os.PathLike):
            return self.preprocessor.read(image)
        if isinstance(image, np.ndarray):
            return self.preprocessor.from_array(image, channel_order=channel_order)
        return self.preprocessor.from_array(pillow_pixels(image))

    def probabilities(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the classes' probabilities for each of ``inputs``, averaged over its crops.

        Args:
            inputs: For each picture (crops, C, H, W) float32, as the preprocessor makes them.

        Returns:
            (classes,) float32 for each.
        """
        if not inputs:
            return []
        outputs = self._run(np.concatenate(list(inputs)))
        ends = np.cumsum([len(crops) for crops in inputs])
        return [outputs[end - len(crops) : end].mean(axis=0) for crops, end in zip(inputs, ends, strict=True)]

    def _run(self, batch: Array) -> Array:
        fixed = self.engine.batch
        rows = [self.engine.predict({self.input: part})[self.output] for part in _parts(batch, fixed)]
        output = np.concatenate(rows)[: len(batch)]
        if output.ndim < 2 or int(np.prod(output.shape[2:])) != 1 or len(output) != len(batch):
            raise NetError(
                f"output '{self.output}' is {format_shape(output.shape)} for {len(batch)} picture(s); classifying needs one vector for each"
            )
        output = output.reshape(len(batch), -1)
        if not np.isfinite(output).all() or output.min() < 0 or output.max() > 1 + 1e-4:
            raise NetError(
                f"output '{self.output}' has values from {output.min():.3g} to {output.max():.3g}, which are no probabilities; "
                "use the deploy prototxt with its Softmax layer (`caffetools deploy` writes it)"
            )
        if self.labels and len(self.labels) != output.shape[1]:
            raise NetError(f"{self._labels_from}: there are {len(self.labels)} labels, but the net has {output.shape[1]} classes")
        return output

    def _best(self, row: Array, top: int) -> tuple[Prediction, ...]:
        # Stable, so that of equal probabilities the lower class comes first.
        order = np.argsort(-row, kind="stable")[:top]
        return tuple(Prediction(int(i), self.labels[i] if self.labels else str(i), float(row[i])) for i in order)


def merge_preprocessing(known: Preprocessing, options: PreprocessOptions, *, channels: int) -> Preprocessing:
    """Return ``known`` with the values of ``options`` that are not None in its place.

    Args:
        known: What is stored with the model.
        options: What the user gives.
        channels: Channels of the net's input: 1 is always gray.

    Raises:
        DataError: The scale is 0 or not finite, or mean or labels cannot be read.
    """
    color = known.channel_order if known.channel_order in ("BGR", "RGB") else "BGR"
    changes: dict[str, Any] = {"channel_order": "GRAY" if channels == 1 else color}
    if options.mean is not None:
        changes["mean_values"], changes["mean_image"] = read_mean(options.mean)
    if options.labels is not None:
        changes["labels"] = read_labels(options.labels)
    if options.scale is not None:
        if isinstance(options.scale, str) or not math.isfinite(options.scale) or options.scale == 0:
            raise DataError(f"the scale must be a finite number other than 0, such as 0.00390625, not {options.scale}")
        changes["scale"] = options.scale
    if options.resize is not None:
        changes["resize"] = options.resize
    return replace(known, **changes)


def pillow_pixels(image: PillowImage) -> Pixels:
    """Return a Pillow image's pixels: uint8 (H, W, 3) RGB, or (H, W) for gray ones. Raises :class:`DataError` for more than 8 bits."""
    if image.mode[:1] in ("I", "F"):
        raise DataError(f"a Pillow image of mode {image.mode} has more than 8 bits per channel; convert it to 'RGB' or 'L' first")
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def image_name(image: ImageLike, index: int) -> str:
    """Return the name of an image in messages and results: its path, or its number in the list."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return getattr(image, "filename", "") or f"image {index}"


def as_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one image or several as a list; an array of four axes (N, H, W, C) and a folder hold several.

    Raises:
        DataError: One of them is not an image, or a folder holds no pictures.
    """
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Mapping | bytes) or _is_image(images) or not isinstance(images, Iterable):
        found = [images]
    else:
        found = list(images)
    for index, image in enumerate(found):
        if not _is_image(image):
            raise DataError(
                f"image {index}: an image is a path, a Pillow image or a uint8 array (H, W, 3) or (H, W), not {type(image).__name__}"
            )
    return [each for image in found for each in _unfolded(cast("ImageLike", image))]


def _unfolded(image: ImageLike) -> Sequence[ImageLike]:
    return find_pictures([image]) if isinstance(image, str | os.PathLike) and Path(image).is_dir() else [image]


def _is_image(image: object) -> bool:
    return isinstance(image, str | os.PathLike | np.ndarray) or (hasattr(image, "convert") and hasattr(image, "mode"))


def find_pictures(names: Iterable[PathLike]) -> list[str]:
    """Return the picture files that ``names`` match: files as they are, folders with all pictures below them, patterns with ``*`` or ``?``.

    Sorted within a folder or pattern. A file that does not exist stays in the list, to be reported like a broken one.

    Raises:
        DataError: a folder holds no pictures, or a pattern matches nothing.
    """
    found: list[str] = []
    for name in (os.fspath(name) for name in names):
        if Path(name).is_dir():
            inside = _below(Path(name))
            if not inside:
                raise DataError(f"{name}: the folder holds no pictures ({', '.join(sorted(SUFFIXES)[:6])}, …)")
            found += inside
        elif glob.has_magic(name) and not Path(name).exists():
            matches = sorted(m for m in glob.glob(name, recursive=True) if not Path(m).is_dir())  # noqa: PTH207 (names may be absolute)
            if not matches:
                raise DataError(f"{name}: nothing matches this pattern")
            found += matches
        else:
            found.append(name)
    return found


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return up to ``most`` of ``items``, evenly spread, so that each class of a sorted list has its share."""
    return list(items) if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


def _below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _parts(batch: Array, size: int | None) -> Iterator[Array]:
    """``batch`` in parts of exactly ``size``, the last one filled up with its last item; None takes all at once."""
    if size is None:
        yield batch
        return
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        missing = size - len(part)
        yield np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part


def _hint_for_training(deploy: PathLike) -> str:
    """Return what to do where a net for training is given for a deploy net; "" for any other file."""
    with suppress(CaffeToolsError, OSError):
        if Path(deploy).suffix != ".onnx" and any(map(is_data_layer, upgrade_net(read_net(deploy)).layer)):
            return "this is a net for training: give its deploy net (`caffetools deploy` writes it)"
    return ""
