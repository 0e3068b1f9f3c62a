"""A deployed net with its preprocessing: what every command that draws something for a picture opens."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.engines.torch import TorchEngine
from caffetools.errors import DataError
from caffetools.infer.classifier import PreprocessOptions, merge_preprocessing
from caffetools.infer.data_preprocessing import preprocessing_near
from caffetools.infer.preprocess import Preprocessor
from caffetools.net.net import Net
from caffetools.net.probe import picture_input
from caffetools.results import Preprocessing
from caffetools.visualize.units import other_inputs

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Prepared:
    """A picture for the net and for the eye.

    Attributes:
        input: (C, H, W) float32, preprocessed.
        shown: (H, W, 3) uint8 RGB: the same pixels as the input's.
        name: The file's name.
    """

    input: NDArray[np.float32]
    shown: NDArray[np.uint8]
    name: str


class PictureNet:
    """A net in the TEST phase whose input is one picture.

    Args:
        deploy: A deploy prototxt, or a net for training, with the mean, scale and size of its TEST data layer.
        weights: Its .caffemodel.
        options: Mean, labels, scale and size; see :class:`~caffetools.infer.classifier.PreprocessOptions`.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        inputs: Values of the net's other inputs, by name, with or without a batch axis of 1; a number fills an input, and as many
            numbers as an input holds get its shape.

    Attributes:
        net: The net with its weights.
        labels: Class names; empty where none were given.
        input: The blob of pictures.
        others: Values of other inputs, by name, with a batch axis of 1.

    Raises:
        CaffeToolsError: a file cannot be read, the weights are another net's, the net's input takes no pictures, or a value does not
            fit an input.
    """

    def __init__(
        self,
        deploy: PathLike,
        weights: PathLike,
        options: PreprocessOptions | None = None,
        *,
        device: str = "cpu",
        inputs: Mapping[str, NDArray[Any]] | None = None,
    ):
        self.net: Net = TorchEngine.load(deploy, weights, device=device).net
        self.input = picture_input(self.net)
        shape = self.net.blob_shapes[self.input]
        known = merge_preprocessing(
            preprocessing_near(deploy) or Preprocessing(), options or PreprocessOptions(), channels=shape[1] if len(shape) > 1 else 0
        )
        self.preprocessing = known
        self.preprocessor = Preprocessor(shape, known)
        self.labels = known.labels
        shaped = {name: self._shaped(name, value) for name, value in (inputs or {}).items()}
        self.others = other_inputs(self.net, shaped, self.input)

    def _shaped(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        shape = self.net.blob_shapes.get(name, ())[1:]
        if value.size == 1:
            return np.broadcast_to(value.reshape(()), shape)
        return value.reshape(shape) if value.ndim == 1 and value.size == math.prod(shape) else value

    def prepare(self, picture: PathLike) -> Prepared:
        """Read a picture file. Raises :class:`DataError` naming the file where it is not a picture."""
        return self.prepare_pixels(self.preprocessor.read(picture), Path(picture).name)

    def prepare_pixels(self, pixels: NDArray[np.uint8], name: str = "") -> Prepared:
        """Prepare (H, W, 3) BGR or (H, W) grey uint8 pixels, of any size."""
        x = self.preprocessor.centre(pixels)[0]
        return Prepared(x, self.to_pixels(x), name)

    def to_pixels(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Undo the preprocessing of an input (C, H, W): (H, W, 3) RGB uint8, clipped to 0 and 255."""
        planes = x / np.float32(self.preprocessing.scale) + self.mean()
        pixels = np.rint(np.clip(planes, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., ::-1])

    def mean(self) -> NDArray[np.float32]:
        """Return what is subtracted from the pixels of the input: (C, H, W) or (C, 1, 1) float32, 0 to 255."""
        image = self.preprocessing.mean_image
        if image is None:
            return np.array(self.preprocessing.mean_values or (0.0,), np.float32).reshape(-1, 1, 1)
        _, height, width = image.shape
        top, left = (height - self.preprocessor.height) // 2, (width - self.preprocessor.width) // 2
        return np.asarray(image[:, top : top + self.preprocessor.height, left : left + self.preprocessor.width], np.float32)

    def class_name(self, index: int) -> str:
        """Return the label of class ``index``, or the number as text. Raises :class:`DataError` for labels of another number."""
        if not self.labels:
            return str(index)
        if not 0 <= index < len(self.labels):
            raise DataError(f"there are {len(self.labels)} labels, but class {index} is needed")
        return self.labels[index]
