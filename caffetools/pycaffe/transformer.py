"""``caffe.io.Transformer``: from a picture to what a net's input takes, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import CaffeToolsError, DataError
from caffetools.pycaffe.errors import also
from caffetools.pycaffe.resize import resize_image

Array = NDArray[np.float32]


class Transformer:
    """Turns pictures (H, W, C) into inputs (C, H, W), in this order: resize, transpose, swap channels, scale, take the mean off, scale.

    Args:
        inputs: Input name → its blob's shape (N, C, H, W).

    Every setting is per input; those that are not set are left out.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]):
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, tuple[int, ...]] = {}
        self.channel_swap: dict[str, tuple[int, ...]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, NDArray[Any]] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, in_: str, data: NDArray[Any]) -> Array:
        """The input that ``data`` makes: float32, without the batch axis. ``data`` stays as it is."""
        self._known(in_)
        values: Any = data.astype(np.float32)
        size = self.inputs[in_][2:]
        if values.shape[:2] != size:
            values = resize_image(values, size)
        if in_ in self.transpose:
            values = values.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            values = values[np.array(self.channel_swap[in_]), :, :]
        values = np.array(values, order="K")
        if in_ in self.raw_scale:
            values *= self.raw_scale[in_]
        if in_ in self.mean:
            values -= self.mean[in_]
        if in_ in self.input_scale:
            values *= self.input_scale[in_]
        result: Array = values
        return result

    def deprocess(self, in_: str, data: NDArray[Any]) -> Array:
        """The picture that the input ``data`` was made of; sizes stay as they are."""
        self._known(in_)
        values: Any = np.array(data.squeeze(), np.float32)
        if in_ in self.input_scale:
            values /= self.input_scale[in_]
        if in_ in self.mean:
            values += self.mean[in_]
        if in_ in self.raw_scale:
            values /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            values = values[np.argsort(self.channel_swap[in_]), :, :]
        if in_ in self.transpose:
            values = values.transpose(np.argsort(self.transpose[in_]))
        result: Array = values
        return result

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of the axes, of (H, W, C): (2, 0, 1) for Caffe's inputs. Raises :class:`DataError` for another number of axes."""
        self._known(in_)
        if len(order) != len(self.inputs[in_]) - 1:
            raise _error(f"input '{in_}' has {len(self.inputs[in_]) - 1} axes a picture, so transpose needs as many, not {len(order)}")
        self.transpose[in_] = tuple(order)

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of the channels: (2, 1, 0) from RGB to BGR. Raises :class:`DataError` for another number of channels."""
        self._known(in_)
        if len(order) != self.inputs[in_][1]:
            raise _error(f"input '{in_}' has {self.inputs[in_][1]} channels, so channel_swap needs as many, not {len(order)}")
        self.channel_swap[in_] = tuple(order)

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """A factor before the mean is taken off: 255 for pictures in [0, 1]."""
        self._known(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: NDArray[Any]) -> None:
        """The mean to take off: one value a channel, or a picture (C, H, W), which is resized to the input's size.

        Raises:
            DataError: its shape does not suit the input.
        """
        self._known(in_)
        channels, *size = self.inputs[in_][1:]
        if mean.ndim == 1:
            if mean.shape[0] != channels:
                raise _error(f"input '{in_}' has {channels} channels, the mean {mean.shape[0]}")
            mean = mean[:, np.newaxis, np.newaxis]
        else:
            mean = mean[np.newaxis] if mean.ndim == 2 else mean
            if mean.ndim != 3 or mean.shape[0] != channels:
                raise _error(f"a mean for input '{in_}' is {channels} values, or a picture of {channels} channels, not {mean.shape}")
            if list(mean.shape[1:]) != size:
                mean = resize_image(mean.transpose(1, 2, 0), size).transpose(2, 0, 1)
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """A factor after the mean was taken off."""
        self._known(in_)
        self.input_scale[in_] = scale

    def _known(self, in_: str) -> None:
        if in_ not in self.inputs:
            raise _error(f"'{in_}' is not one of the net's inputs: {', '.join(self.inputs)}")


def _error(message: str) -> CaffeToolsError:
    return also(DataError(message), ValueError)
