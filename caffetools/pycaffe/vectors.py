"""The lists that pycaffe's nets and solvers have, under the names of Caffe's C++ module: ``StringVec``, ``DtypeVec``, ``LayerVec`` …"""

from __future__ import annotations

from typing import Any

from caffetools.layers.blob_view import BlobVec


class StringVec(list[str]):
    """A list of texts: names of layers or blobs."""


class DtypeVec(list[float]):
    """A list of numbers: the loss weights of blobs."""


class BoolVec(list[bool]):
    """A list of booleans."""


class LayerVec(list[Any]):
    """The layers of a net, in order."""


class NetVec(list[Any]):
    """The test nets of a solver."""


class RawBlobVec(BlobVec):
    """A list of blobs, as Caffe passes bottoms and tops to layers written in Python."""
