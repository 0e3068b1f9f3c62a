"""Datum, the record of Caffe's databases, to numpy and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffetools.data.images import Pixels, decode_image, to_planes
from caffetools.errors import DataError
from caffetools.proto.schema import Datum


def array_to_datum(array: NDArray[Any], label: int | None = None) -> Any:
    """A ``Datum`` of ``array`` (C, H, W): uint8 becomes ``data``, any other type ``float_data``, as caffe.io.array_to_datum does.

    Raises:
        DataError: the array does not have three axes.
    """
    if array.ndim != 3:
        raise DataError(f"a Datum holds three axes (channels, height, width), not {array.ndim}")
    datum = Datum(channels=array.shape[0], height=array.shape[1], width=array.shape[2])
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(np.float64).flat)
    if label is not None:
        datum.label = label
    return datum


def image_to_datum(image: Pixels, label: int) -> Any:
    """A ``Datum`` of a picture (H, W, C) or (H, W), uint8, BGR: field for field what convert_imageset stores."""
    datum = array_to_datum(to_planes(image), label)
    datum.encoded = False
    return datum


def encoded_to_datum(data: bytes, label: int) -> Any:
    """A ``Datum`` that holds a picture's file as it is, as ``convert_imageset --encoded`` stores it: without the size."""
    return Datum(data=data, label=label, encoded=True)


def parse_datum(value: bytes, what: str) -> Any:
    """The ``Datum`` in the record ``value``. Raises :class:`DataError` with ``what`` (database and key) when it is none."""
    if not value:
        raise DataError(f"{what}: the record is empty")
    try:
        datum = Datum.FromString(value)
    except DecodeError:
        raise DataError(f"{what}: the record is damaged: its {len(value)} bytes are not a Datum") from None
    if not (datum.data or datum.float_data):
        raise DataError(f"{what}: the record holds no pixels")
    return datum


def datum_to_array(datum: Any, *, color: bool | None = None, what: str = "the datum") -> NDArray[Any]:
    """The values of a ``Datum``.

    Args:
        color: How an encoded picture is decoded: True for BGR, False for grey, None for what is stored. No meaning for others.

    Returns:
        (C, H, W): uint8, or float32 where the Datum has ``float_data``. Not always writable.

    Raises:
        DataError: the picture inside cannot be decoded, or the sizes do not fit the values; ``what`` names the record.
    """
    if datum.encoded:
        return to_planes(decode_image(datum.data, color=color, what=what))
    shape = (datum.channels, datum.height, datum.width)
    array: NDArray[Any] = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
    if min(shape) < 1 or array.size != shape[0] * shape[1] * shape[2]:
        raise DataError(f"{what}: {array.size} values do not fill the stated size {shape[0]} x {shape[1]} x {shape[2]}")
    return array.reshape(shape)
