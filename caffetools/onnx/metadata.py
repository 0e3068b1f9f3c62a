"""What an ONNX file says of itself: where it comes from, and how pictures must be prepared for it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffetools.errors import ModelFileError
from caffetools.proto.blobs import Array

_PREFIX = "caffetools."


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the net's input: resized, cropped in the centre, ``(pixel - mean) * scale``. Pixels are 0 to 255.

    Attributes:
        channel_order: ``"BGR"``, as Caffe's tools read pictures, or ``"GRAY"``.
        mean_values: One value for each channel, or one for all; empty for none.
        mean_image: A mean of every pixel, (C, H, W) float32, in place of the values.
        scale: The factor after the mean is taken off.
        resize: (width, height) that the whole picture is resized to before the crop; None is the net's input size.
        labels: The classes' names in order; empty when not known.
    """

    channel_order: str = "BGR"
    mean_values: tuple[float, ...] = ()
    mean_image: Array | None = None
    scale: float = 1.0
    resize: tuple[int, int] | None = None
    labels: tuple[str, ...] = ()

    def to_properties(self) -> dict[str, str]:
        """As ONNX ``metadata_props``: text, with JSON for lists; a mean image is base64 of its little-endian float32 values."""
        properties = {"channel_order": self.channel_order, "scale": repr(self.scale)}
        if self.mean_values:
            properties["mean"] = json.dumps(list(self.mean_values))
        if self.mean_image is not None:
            properties["mean_image_shape"] = json.dumps(list(self.mean_image.shape))
            properties["mean_image"] = base64.b64encode(np.ascontiguousarray(self.mean_image, "<f4").tobytes()).decode()
        if self.resize is not None:
            properties["resize"] = json.dumps(list(self.resize))
        if self.labels:
            properties["labels"] = json.dumps(list(self.labels), ensure_ascii=False)
        return {_PREFIX + key: value for key, value in properties.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Preprocessing | None:
        """The inverse of :meth:`to_properties`; None where the file says nothing. Raises :class:`ModelFileError` on nonsense."""
        given = {key.removeprefix(_PREFIX): value for key, value in properties.items() if key.startswith(_PREFIX)}
        if "channel_order" not in given:
            return None
        try:
            return cls(
                channel_order=given["channel_order"],
                mean_values=tuple(float(value) for value in json.loads(given.get("mean", "[]"))),
                mean_image=_mean_image(given),
                scale=float(given.get("scale", "1")),
                resize=_pair(json.loads(given["resize"])) if "resize" in given else None,
                labels=tuple(str(label) for label in json.loads(given.get("labels", "[]"))),
            )
        except (ValueError, TypeError, KeyError, binascii.Error) as error:
            raise ModelFileError(f"the preprocessing in the ONNX file's metadata cannot be read: {error}") from None


def _mean_image(given: Mapping[str, str]) -> Array | None:
    if "mean_image" not in given:
        return None
    data = np.frombuffer(base64.b64decode(given["mean_image"], validate=True), "<f4")
    channels, height, width = json.loads(given["mean_image_shape"])
    return data.reshape(int(channels), int(height), int(width)).astype(np.float32)


def _pair(value: Any) -> tuple[int, int]:
    width, height = value
    return int(width), int(height)
