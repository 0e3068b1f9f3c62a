"""``caffe.io.Transformer``: from a picture to the values of a net's input, and back."""

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
    """Preprocess pictures (H, W, C) to inputs (C, H, W): resize, transpose, swap channels, scale, subtract the mean, scale.

    Every setting is per input; steps that are not set, or are None, are left out.

    Args:
        inputs: Input name → its blob's shape (N, C, H, W).
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]):
        self.inputs = inputs  # the caller's own, as in Caffe: a name that is entered there later is known
        self.transpose: dict[str, Sequence[int] | None] = {}
        self.channel_swap: dict[str, Sequence[int] | None] = {}
        self.raw_scale: dict[str, float | None] = {}
        self.mean: dict[str, NDArray[Any] | None] = {}
        self.input_scale: dict[str, float | None] = {}
        self.is_flow: dict[str, bool] = {}

    def preprocess(self, in_: str, data: NDArray[Any]) -> Array:
        """Preprocess one picture.

        Args:
            in_: Name of the input.
            data: The picture (H, W, C); it is not changed.

        Returns:
            The item of the input, float32 (C, H, W).

        Raises:
            DataError: The input is unknown.
        """
        self._known(in_)
        values: Any = data.astype(np.float32)
        size = self._shape(in_)[2:]
        if values.shape[:2] != size:
            values = resize_image(values, size)
        if (order := self.transpose.get(in_)) is not None:
            values = values.transpose(order)
        if (order := self.channel_swap.get(in_)) is not None:
            values = values[np.array(order), :, :]
        values = np.array(values, order="K")
        if (scale := self.raw_scale.get(in_)) is not None:
            values *= scale
        if (mean := self.mean.get(in_)) is not None:
            values -= mean
        if (scale := self.input_scale.get(in_)) is not None:
            values *= scale
        result: Array = values
        return result

    def deprocess(self, in_: str, data: NDArray[Any]) -> NDArray[Any]:
        """Invert :meth:`preprocess`, but for the size.

        Args:
            in_: Name of the input.
            data: An item of the input (C, H, W), or a batch of one.

        Returns:
            The picture (H, W, C), of the type of ``data``, or float32 for whole numbers.

        Raises:
            DataError: The input is unknown.
        """
        self._known(in_)
        values: Any = np.array(data.squeeze(), None if np.issubdtype(data.dtype, np.floating) else np.float32)
        if (scale := self.input_scale.get(in_)) is not None:
            values /= scale
        if (mean := self.mean.get(in_)) is not None:
            values += mean
        if (scale := self.raw_scale.get(in_)) is not None:
            values /= scale
        if (order := self.channel_swap.get(in_)) is not None:
            values = values[np.argsort(order), :, :]
        if (order := self.transpose.get(in_)) is not None:
            values = values.transpose(np.argsort(order))
        result: NDArray[Any] = values
        return result

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the axes of (H, W, C): (2, 0, 1) for Caffe's inputs. Raises :class:`DataError` for another number of axes."""
        self._known(in_)
        if len(order) != (axes := len(self._shape(in_)) - 1):
            raise _error(f"input '{in_}' has {axes} axes a picture, so transpose needs as many, not {len(order)}")
        self.transpose[in_] = tuple(order)

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the channels: (2, 1, 0) from RGB to BGR. Raises :class:`DataError` for another number of channels."""
        self._known(in_)
        if len(order) != (channels := self._shape(in_)[1]):
            raise _error(f"input '{in_}' has {channels} channels, so channel_swap needs as many, not {len(order)}")
        self.channel_swap[in_] = tuple(order)

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor before the mean is subtracted: 255 for pictures in [0, 1]."""
        self._known(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: NDArray[Any]) -> None:
        """Set the mean to subtract.

        Args:
            in_: Name of the input.
            mean: One value a channel (C), or a picture (C, H, W), which is resized to the input's size.

        Raises:
            DataError: Its shape does not fit the input.
        """
        self._known(in_)
        channels, *size = self._shape(in_)[1:]
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
        """Set the factor after the mean was subtracted."""
        self._known(in_)
        self.input_scale[in_] = scale

    def set_is_flow(self, in_: str, is_flow: bool) -> None:
        """Note that an input is optical flow, as LRCN's fork does: for :func:`caffe.io.flip_image`; the preprocessing is the same."""
        self._known(in_)
        self.is_flow[in_] = is_flow

    def _shape(self, in_: str) -> tuple[int, ...]:
        return tuple(self.inputs[in_])

    def _known(self, in_: str) -> None:
        if in_ not in self.inputs:
            raise _error(f"'{in_}' is not one of the net's inputs: {', '.join(self.inputs)}")


def _error(message: str) -> CaffeToolsError:
    return also(DataError(message), ValueError)
