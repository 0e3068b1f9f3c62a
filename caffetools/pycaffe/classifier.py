"""``Classifier``: class probabilities of pictures, as ``caffe.Classifier``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.proto.schema import TEST
from caffetools.pycaffe import io
from caffetools.pycaffe.net import Net

PathLike = str | os.PathLike[str]


class Classifier(Net):
    """A net with one input for pictures, and the transformer that preprocesses them.

    Args:
        model_file: The deploy prototxt.
        pretrained_file: The weights.
        image_dims: (height, width) that pictures are resized to before they are cropped to the input; None: the input's size.
        mean: See :meth:`~caffetools.pycaffe.transformer.Transformer.set_mean`.
        input_scale: Factor after the mean was subtracted.
        raw_scale: Factor before it.
        channel_swap: Order of the channels.
    """

    def __init__(
        self,
        model_file: PathLike,
        pretrained_file: PathLike,
        image_dims: Sequence[int] | None = None,
        mean: NDArray[Any] | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ):
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = make_transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = image_dims or self.crop_dims

    def predict(self, inputs: Sequence[NDArray[Any]], oversample: bool = True) -> NDArray[np.float32]:
        """Return the class probabilities of pictures.

        Args:
            inputs: Pictures (H, W, C), which may differ in size.
            oversample: Average over ten crops (corners, centre, mirrored); False takes the centre.

        Returns:
            float32 (pictures, classes).

        Raises:
            IndexError: There is no picture, or the first has no channel axis, as in pycaffe.
        """
        rows, columns = self.image_dims
        pictures = np.zeros((len(inputs), rows, columns, inputs[0].shape[2]), np.float32)
        for index, picture in enumerate(inputs):
            pictures[index] = io.resize_image(picture, self.image_dims)
        if oversample:
            crops = io.oversample(pictures, self.crop_dims)
        else:
            top, left = (np.array(self.image_dims) / 2.0 - self.crop_dims / 2.0).astype(int)
            height, width = self.crop_dims
            crops = pictures[:, top : top + height, left : left + width, :]
        source = self.inputs[0]
        batch = np.stack([self.transformer.preprocess(source, crop) for crop in crops])
        predictions = self.forward_all(**{source: batch})[self.outputs[0]]
        if oversample:
            predictions = predictions.reshape(len(predictions) // 10, 10, -1).mean(1)
        return predictions


def make_transformer(
    net: Net,
    mean: NDArray[Any] | None,
    input_scale: float | None,
    raw_scale: float | None,
    channel_swap: Sequence[int] | None,
) -> io.Transformer:
    """Return the transformer of the net's first input, from (H, W, C) to (C, H, W), with the settings given; see :class:`Classifier`."""
    source = net.inputs[0]
    transformer = io.Transformer({source: net.blobs[source].shape})
    transformer.set_transpose(source, (2, 0, 1))
    if mean is not None:
        transformer.set_mean(source, mean)
    if input_scale is not None:
        transformer.set_input_scale(source, input_scale)
    if raw_scale is not None:
        transformer.set_raw_scale(source, raw_scale)
    if channel_swap is not None:
        transformer.set_channel_swap(source, channel_swap)
    return transformer
