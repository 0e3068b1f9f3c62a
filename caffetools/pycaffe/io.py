"""``caffe.io``: pictures and arrays for nets, as Caffe's Python module makes them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.data import datum as datums
from caffetools.errors import DataError
from caffetools.layers.base import format_shape
from caffetools.proto import blobs as protos
from caffetools.proto import wire
from caffetools.proto.schema import BlobProto, BlobProtoVector, Datum
from caffetools.pycaffe.errors import also, raised_also_as
from caffetools.pycaffe.pictures import load_image
from caffetools.pycaffe.proto import caffe_pb2
from caffetools.pycaffe.resize import resize, resize_image, zoom
from caffetools.pycaffe.transformer import Transformer

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "caffe_pb2",
    "datum_to_array",
    "flip_image",
    "load_image",
    "np",
    "oversample",
    "resize",
    "resize_image",
    "zoom",
]

PathLike = str | os.PathLike[str]
Array = NDArray[np.float32]


def __getattr__(name: str) -> Any:
    """Return scikit-image as ``caffe.io.skimage``, which Caffe's module imports; without it, its reader and resizing only."""
    if name == "skimage":
        try:
            return importlib.import_module("skimage.io") and importlib.import_module("skimage")
        except ImportError:
            return importlib.import_module("caffetools.pycaffe.skimage_names")
    raise AttributeError(f"module 'caffe.io' has no attribute '{name}'")


def flip_image(im: NDArray[Any], scale: float = 128, is_flow: bool = False) -> NDArray[Any]:
    """Mirror a picture (H, W, C) from left to right, as LRCN's fork does.

    Args:
        im: The picture.
        scale: What the first channel of optical flow is subtracted from: the values' range.
        is_flow: It is optical flow, whose first channel, along x, changes its sign.
    """
    flipped = np.array(im[:, ::-1])
    if is_flow:
        flipped[..., 0] = scale - flipped[..., 0]
    return flipped


def oversample(images: Sequence[NDArray[Any]] | NDArray[Any], crop_dims: Sequence[int] | NDArray[Any]) -> Array:
    """Crop each picture ten times: the four corners and the centre, then the same mirrored.

    Args:
        images: Pictures (H, W, C) of one size.
        crop_dims: (height, width) of the crops.

    Returns:
        float32 (10 · pictures, height, width, C).

    Raises:
        DataError: A crop is larger than the pictures.
    """
    shape = np.array(images[0].shape)
    height, width = (int(n) for n in crop_dims)
    room = shape[:2] - (height, width)
    if room.min() < 0:
        raise DataError(f"crops of {height} x {width} do not fit in pictures of {format_shape(shape[:2].tolist())}")
    corners = [(y, x) for y in (0, int(room[0])) for x in (0, int(room[1]))]
    centre = (int(shape[0] / 2.0 - height / 2.0), int(shape[1] / 2.0 - width / 2.0))
    crops = np.empty((len(images), 2, 5, height, width, int(shape[-1])), np.float32)
    for index, image in enumerate(images):
        for place, (y, x) in enumerate([*corners, centre]):
            crops[index, 0, place] = image[y : y + height, x : x + width]
        crops[index, 1] = crops[index, 0, :, :, ::-1]
    return crops.reshape(-1, height, width, int(shape[-1]))


def blobproto_to_array(blob: BlobProto, return_diff: bool = False) -> NDArray[np.float64]:
    """Return the data (or the diff) of a ``BlobProto`` message as an array of its shape, float64 as Caffe's.

    Args:
        blob: The message.
        return_diff: The diff in place of the data.

    Raises:
        DataError: It has another number of values than its shape; also a ValueError.
    """
    try:
        return np.array(protos.blob_to_array(blob, diff=return_diff), np.float64)
    except wire.WireError as error:
        raise also(DataError(f"the BlobProto is not well formed: {error}"), ValueError) from None


def array_to_blobproto(arr: NDArray[Any], diff: NDArray[Any] | None = None) -> BlobProto:
    """Return a ``BlobProto`` message of an array of any shape (stored as float32), and of its diff where one is given."""
    blob = BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        blob.diff.extend(diff.astype(float).flat)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Sequence[NDArray[Any]]) -> bytes:
    """Return arrays of any shape (stored as float32) as a serialized ``BlobProtoVector``."""
    vector = BlobProtoVector()
    vector.blobs.extend([array_to_blobproto(array) for array in arraylist])
    serialized: bytes = vector.SerializeToString()
    return serialized


def blobprotovector_str_to_arraylist(str: bytes) -> list[NDArray[np.float64]]:
    """Return the arrays, in their stored shapes, of a serialized ``BlobProtoVector``."""
    return [blobproto_to_array(blob) for blob in BlobProtoVector.FromString(str).blobs]


def array_to_datum(arr: NDArray[Any], label: int | None = None) -> Datum:
    """Return a ``Datum`` of an array.

    Args:
        arr: (C, H, W); uint8 is stored as bytes, other types as floats.
        label: Its label.

    Raises:
        DataError: The array has another number of axes; also a ValueError.
    """
    with raised_also_as(ValueError):
        return datums.array_to_datum(arr, int(label) if isinstance(label, (bool, np.bool_)) else label)


def datum_to_array(datum: Datum) -> NDArray[Any]:
    """Return the values of a ``Datum``: uint8 or float64 (C, H, W). Raises :class:`DataError` where they do not fit its size."""
    with raised_also_as(ValueError):
        array = np.array(datums.datum_to_array(datum))
    return array if array.dtype == np.uint8 else array.astype(float)


# NVCaffe's and older Caffes' spelling.
arraylist_to_blobprotovecor_str = arraylist_to_blobprotovector_str
