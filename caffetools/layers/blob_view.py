"""``Blob``: a blob as pycaffe and layers written in Python see it, a view of the engine's memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.blob_storage import BlobStorage, ParameterStorage

Array = NDArray[np.float32]


class Storage(Protocol):
    """Memory of a blob: :class:`~caffetools.layers.blob_storage.BlobStorage` or ``ParameterStorage``."""

    @property
    def shape(self) -> Shape:
        """The blob's shape; () of a scalar."""

    def data_array(self) -> Array:
        """Return the values as a writable float32 array of :attr:`shape`, in C order."""

    def diff_array(self) -> Array:
        """Return the gradients as a writable float32 array of :attr:`shape`, in C order."""

    def reshape(self, shape: Shape) -> None:
        """Give data and diff another shape."""


class IntVec(list[int]):
    """A list of ints, as the shape of a blob is in pycaffe; also equal to a tuple of the same numbers, and added to one."""

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (list, tuple)) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return IntVec(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        return tuple(self) + other if isinstance(other, tuple) else IntVec(super().__add__(list(other)))

    def __radd__(self, other: Any) -> Any:
        return other + tuple(self) if isinstance(other, tuple) else IntVec([*other, *self])

    def __repr__(self) -> str:
        return f"({', '.join(map(str, self))}{',' if len(self) == 1 else ''})"


class Blob:
    """``data`` and ``diff`` of a blob as writable float32 arrays in C order that share the engine's memory.

    Args:
        storage: The memory of the blob.
    """

    def __init__(self, storage: Storage):
        self.storage = storage

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("data", "diff"):
            raise AttributeError(f"a blob's {name} cannot be replaced; write into it: blob.{name}[...] = values")
        super().__setattr__(name, value)

    @property
    def data(self) -> Array:
        """The values (N, C, H, W), float32: reading and writing act on the net."""
        return self.storage.data_array()

    @property
    def diff(self) -> Array:
        """The gradient, float32, of the shape of ``data``; of a parameter, accumulated since it was last cleared."""
        return self.storage.diff_array()

    # Intel Caffe's names of both for reading alone.
    data_ro = data
    diff_ro = diff

    @property
    def shape(self) -> IntVec:
        """The shape."""
        return IntVec(self.storage.shape)

    def reshape(self, *shape: int) -> None:
        """Set the shape; the net follows when it next runs, or at once with ``net.reshape()``.

        Raises:
            NetError: an axis is negative, or a parameter would have another number of values.
        """
        self.storage.reshape(checked_shape(shape))

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self.storage.shape)

    @property
    def num(self) -> int:
        """Axis 0 of at most four; 1 where there is none, as for ``channels``, ``height`` and ``width``."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """Axis 1."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """Axis 2."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """Axis 3."""
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        shape = self.storage.shape
        if len(shape) > 4:
            raise NetError(
                f"num, channels, height and width are of blobs with at most 4 axes; this one is {format_shape(shape)}; use shape"
            )
        return shape[axis] if axis < len(shape) else 1

    def __repr__(self) -> str:
        return f"<Blob {format_shape(self.storage.shape)}>"


class BlobVec(MutableSequence[Any]):
    """Blobs in a list: those of a net, or the parameter blobs of a layer, whose number follows the layer.

    Args:
        blobs: The blobs.
        layer: The layer whose parameters they are; ``blobs`` is then ignored.
    """

    def __init__(self, blobs: Iterable[Any] = (), *, layer: Layer | None = None):
        self._layer = layer
        self._list: list[Any] = [] if layer is not None else list(blobs)

    def _blobs(self) -> list[Any]:
        if self._layer is not None:
            missing = range(len(self._list), len(self._layer.blobs))
            self._list += [Blob(ParameterStorage(self._layer, index)) for index in missing]
        return self._list

    def sync(self) -> None:
        """Copy values written on the host to the device; does nothing on the CPU."""
        for blob in self._list:
            if isinstance(blob.storage, ParameterStorage):
                blob.storage.sync()

    def __len__(self) -> int:
        return len(self._blobs())

    def __getitem__(self, index: Any) -> Any:
        found = self._blobs()[index]
        return BlobVec(found) if isinstance(index, slice) else found

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check_editable()
        self._list[index] = value

    def __delitem__(self, index: Any) -> None:
        self._check_editable()
        del self._list[index]

    def insert(self, index: int, value: Any) -> None:
        """Insert a blob before ``index``. Raises :class:`NetError` for the parameters of a layer."""
        self._check_editable()
        self._list.insert(index, value)

    def add_blob(self, *shape: int) -> None:
        """Append a blob of that shape, zeros. Raises :class:`NetError` for the parameters of a layer."""
        self.append(Blob(BlobStorage(f"blob {len(self._list)}", checked_shape(shape))))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._blobs())

    def _check_editable(self) -> None:
        if self._layer is not None:
            raise NetError("the parameter blobs of a layer cannot be added or removed; change its prototxt", layer=self._layer.name)


def checked_shape(shape: Sequence[Any]) -> Shape:
    """Return ``shape`` as a tuple of ints. Raises :class:`NetError` for a negative axis, :class:`TypeError` for anything but an integer."""
    for n in shape:
        if not isinstance(n, (int, np.integer)) and not (isinstance(n, (float, np.floating)) and n == int(n)):
            raise TypeError(f"a blob's shape is given as integers, one argument an axis, not as {n!r}")
    axes = tuple(int(n) for n in shape)
    if any(n < 0 for n in axes):
        raise NetError(f"a blob cannot have the shape {format_shape(axes)}: axes are 0 or more")
    return axes
