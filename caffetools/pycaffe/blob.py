"""``Blob``: what pycaffe calls a blob, as a view of the engine's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape, count, format_shape
from caffetools.net.blob_storage import ParameterMemory, Slot

Array = NDArray[np.float32]


class _Values(Protocol):
    def array(self) -> Array: ...


class Blob:
    """``data`` and ``diff`` of a blob as writable float32 arrays in C order that share the engine's memory."""

    def __init__(self, data: _Values, diff: _Values):
        self._data, self._diff = data, diff

    @property
    def data(self) -> Array:
        """The values (N, C, H, W): reading and writing act on the net."""
        return self._data.array()

    @property
    def diff(self) -> Array:
        """The gradient, of the shape of ``data``."""
        return self._diff.array()

    @property
    def shape(self) -> Shape:
        """The axes."""
        raise NotImplementedError

    def reshape(self, *shape: int) -> None:
        """Give the blob other axes; a net follows when it next runs, or at once with ``net.reshape()``."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """The number of values."""
        return count(self.shape)

    @property
    def num(self) -> int:
        """Axis 0 of at most four; 1 where there is none, as for the other three names."""
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
        if len(self.shape) > 4:
            raise NetError(
                f"num, channels, height and width are of blobs with at most 4 axes; this one is {format_shape(self.shape)}; use shape"
            )
        return self.shape[axis] if axis < len(self.shape) else 1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {format_shape(self.shape)}>"


class NetBlob(Blob):
    """A blob of a net, or of a layer that runs on its own."""

    def __init__(self, slot: Slot):
        super().__init__(slot.data, slot.diff)
        self.slot = slot

    @property
    def diff(self) -> Array:
        """The gradient, of the shape of ``data``."""
        self.slot.diff.reshape(self.slot.shape)
        return self.slot.diff.array()

    @property
    def shape(self) -> Shape:
        """The axes."""
        return self.slot.shape

    def reshape(self, *shape: int) -> None:
        """Give the blob other axes; see :meth:`Blob.reshape`. Raises :class:`NetError` for a negative one."""
        self.slot.reshape(checked_shape(shape))


class ParameterBlob(Blob):
    """Parameter blob ``index`` of a layer. It stays that of the layer when parameters are shared or replaced."""

    def __init__(self, layer: Layer, index: int):
        self.layer, self.index = layer, index
        super().__init__(self._memory(False), self._memory(True))

    def _memory(self, diff: bool) -> ParameterMemory:
        return ParameterMemory(self.layer.blobs[self.index], diff)

    def _refresh(self) -> None:
        if self._data.parameter is not self.layer.blobs[self.index]:  # type: ignore[attr-defined]
            self._data, self._diff = self._memory(False), self._memory(True)

    @property
    def data(self) -> Array:
        """The values: reading and writing act on the net."""
        self._refresh()
        return self._data.array()

    @property
    def diff(self) -> Array:
        """The gradient that has added up since it was last cleared."""
        self._refresh()
        return self._diff.array()

    @property
    def shape(self) -> Shape:
        """The axes."""
        return tuple(self.layer.blobs[self.index].shape)

    def reshape(self, *shape: int) -> None:
        """Give the parameter other axes with the same number of values. Raises :class:`NetError` where that is not so."""
        wanted = checked_shape(shape)
        if count(wanted) != self.count:
            raise NetError(
                f"parameter blob {self.index} of {format_shape(self.shape)} cannot become {format_shape(wanted)}; change the layer's prototxt instead",
                layer=self.layer.name,
            )
        parameter = self.layer.blobs[self.index]
        parameter.data = parameter.data.reshape(wanted)
        if parameter.grad is not None:
            parameter.grad = parameter.grad.reshape(wanted)

    def sync(self) -> None:
        """Bring what was written on the host to a GPU; nothing to do on the CPU."""
        for memory in (self._data, self._diff):
            memory.sync()  # type: ignore[attr-defined]


class BlobVec(Sequence[ParameterBlob]):
    """The parameter blobs of a layer: a sequence, whose length follows the layer."""

    def __init__(self, layer: Layer):
        self._layer = layer
        self._made: list[ParameterBlob] = []

    def _blobs(self) -> list[ParameterBlob]:
        self._made += [ParameterBlob(self._layer, index) for index in range(len(self._made), len(self._layer.blobs))]
        return self._made

    def __len__(self) -> int:
        return len(self._layer.blobs)

    def __getitem__(self, index: Any) -> Any:
        return self._blobs()[index]

    def __iter__(self) -> Iterator[ParameterBlob]:
        return iter(self._blobs())


def checked_shape(shape: Sequence[Any]) -> Shape:
    """``shape`` as a tuple of ints. Raises :class:`NetError` for negative axes."""
    axes = tuple(int(n) for n in shape)
    if any(n < 0 for n in axes):
        raise NetError(f"a blob cannot have the shape {format_shape(axes)}: axes are 0 or more")
    return axes
