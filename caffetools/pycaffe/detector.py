"""``Detector``: class scores of windows in pictures (Girshick et al., R-CNN, 2014), as ``caffe.Detector``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.proto.schema import TEST
from caffetools.pycaffe import io
from caffetools.pycaffe.classifier import make_transformer
from caffetools.pycaffe.net import Net

PathLike = str | os.PathLike[str]
Window = Sequence[float]


class Detector(Net):
    """A net that scores windows of pictures.

    Args:
        model_file: The deploy prototxt.
        pretrained_file: The weights.
        mean: See :meth:`~caffetools.pycaffe.transformer.Transformer.set_mean`.
        input_scale: Factor after the mean was subtracted.
        raw_scale: Factor before it.
        channel_swap: Order of the channels.
        context_pad: How many of the input's pixels on each side show the surroundings of a window; outside of the picture they are
            the mean.
    """

    def __init__(
        self,
        model_file: PathLike,
        pretrained_file: PathLike,
        mean: NDArray[Any] | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ):
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = make_transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Iterable[tuple[PathLike, Iterable[Window]]]) -> list[dict[str, Any]]:
        """Score windows.

        Args:
            images_windows: For each picture's file its windows (ymin, xmin, ymax, xmax) in pixels.

        Returns:
            One dict a window: ``window``, ``prediction`` (float32, one score a class) and ``filename``.

        Raises:
            DataError: A picture cannot be read.
            NetError: The crops do not fit the net's input.
        """
        found: list[tuple[PathLike, Window]] = []
        crops = []
        source = self.inputs[0]
        for filename, windows in images_windows:
            image = io.load_image(filename).astype(np.float32)
            for window in windows:
                crops.append(self.transformer.preprocess(source, self.crop(image, window)))
                found.append((filename, window))
        if not crops:
            return []
        predictions = self.forward_all(**{source: np.stack(crops)})[self.outputs[0]]
        return [
            {"window": window, "prediction": scores, "filename": filename}
            for (filename, window), scores in zip(found, predictions, strict=True)
        ]

    def detect_selective_search(self, image_fnames: Iterable[PathLike]) -> list[dict[str, Any]]:
        """Refused: selective search is MATLAB code. Raises :class:`DataError`."""
        raise DataError(
            "detect_selective_search needs MATLAB code that is not part of Caffe; find windows otherwise and use detect_windows"
        )

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context of :meth:`crop`, and the mean that fills a window outside of the picture."""
        source, transformer = self.inputs[0], self.transformer
        order = transformer.transpose.get(source)
        back = np.arange(3) if order is None else np.argsort(order)
        self.crop_dims = np.array(self.blobs[source].shape[1:])[back]
        self.context_pad = context_pad
        mean: Any = np.zeros(self.crop_dims, np.float32)
        if context_pad and (known := transformer.mean.get(source)) is not None:
            mean = known.transpose(back)
            if (swap := transformer.channel_swap.get(source)) is not None:
                mean = mean[:, :, np.argsort(swap)]
            if (scale := transformer.raw_scale.get(source)) is not None:
                mean = mean / scale
        self.crop_mean = mean

    def crop(self, im: NDArray[Any], window: Window) -> NDArray[np.float32]:
        """Cut a window out of a picture, with its surroundings where ``context_pad`` is set.

        Args:
            im: The picture (H, W, C).
            window: (ymin, xmin, ymax, xmax) in pixels.

        Returns:
            float32 (height, width, C).

        Raises:
            DataError: The window lies outside of the picture.
        """
        box = np.asarray(window, float)
        if not self.context_pad:
            top, left, bottom, right = box.astype(int)
            inside: NDArray[np.float32] = im[top:bottom, left:right]
            return inside
        # The input is taken to be square, as in Caffe.
        size = self.blobs[self.inputs[0]].width
        halves = (box[2:] - box[:2] + 1) / 2.0
        grown = halves * (size / (size - 2.0 * self.context_pad))
        box = np.round(np.concatenate([box[:2] + halves - grown, box[:2] + halves + grown]))
        scales = size / (box[2:] - box[:2] + 1)
        pads = [round(float(max(0, -low) * scale)) for low, scale in zip(box[:2], scales, strict=True)]
        box = np.clip(box, 0, np.tile(im.shape[:2], 2))
        sides = [round(float((high - low + 1) * s)) for low, high, s in zip(box[:2], box[2:], scales, strict=True)]
        height, width = (min(side, size - pad) for side, pad in zip(sides, pads, strict=True))
        top, left, bottom, right = box.astype(int)
        if bottom <= top or right <= left or height < 1 or width < 1:
            raise DataError(f"the window {tuple(window)} is outside of its picture of {im.shape[0]} x {im.shape[1]}")
        filled = np.ones(self.crop_dims, np.float32) * self.crop_mean
        filled[pads[0] : pads[0] + height, pads[1] : pads[1] + width] = io.resize_image(im[top:bottom, left:right], (height, width))
        result: NDArray[np.float32] = filled.astype(np.float32)
        return result
