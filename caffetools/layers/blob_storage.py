"""Storage of blobs, named or of a layer's parameters, as live NumPy arrays; and a note of what was written through these."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Collection, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.tensor_storage import Array, TensorStorage


class BlobStorage:
    """A named blob: ``data`` and ``diff``, both float32 of ``shape`` (N, C, H, W).

    Args:
        name: Name of the blob.
        shape: Its shape.
        device: Device of its tensors; None: the CPU.
    """

    def __init__(self, name: str, shape: Shape, device: torch.device | None = None):
        self.name = name
        self.data = TensorStorage(shape, device)
        self.diff = TensorStorage(shape, device)

    @property
    def shape(self) -> Shape:
        """The blob's shape."""
        return self.data.shape

    def reshape(self, shape: Shape) -> None:
        """Reshape data and diff; see :meth:`TensorStorage.reshape`."""
        self.data.reshape(shape)
        self.diff.reshape(shape)

    def data_array(self) -> Array:
        """Return the values as a live float32 array of the blob's shape; see :meth:`TensorStorage.array`."""
        return self.data.array()

    def diff_array(self) -> Array:
        """Return the diff, of the shape of the data, as a live array."""
        self.diff.reshape(self.shape)
        return self.diff.array()

    def to(self, device: torch.device) -> None:
        """Move data and diff to ``device`` at their next use."""
        self.data.device = self.diff.device = device


class ParameterStorage:
    """Parameter blob ``index`` of ``layer``: data, and diff in ``.grad``, as live arrays in C order.

    It follows the layer where the parameter object is replaced (by sharing, or by a move to another device). Parameters are
    channels-last until they are read as an array; then they move to C order, once. On a GPU the arrays are copies on the host, which
    stand for the parameter until :meth:`sync` copies them to the device.
    """

    def __init__(self, layer: Layer, index: int):
        self.layer, self.index = layer, index
        self._known: nn.Parameter | None = None
        self._host: dict[bool, Array] = {}

    @property
    def shape(self) -> Shape:
        """The parameter's shape."""
        return tuple(self._parameter().shape)

    def data_array(self) -> Array:
        """Return the values as a live float32 array of the blob's shape."""
        return self._array(is_diff=False)

    def diff_array(self) -> Array:
        """Return the gradient accumulated since it was last cleared, as a live float32 array of the blob's shape; zeros where none was computed."""
        return self._array(is_diff=True)

    def reshape(self, shape: Shape) -> None:
        """Set other axes with the same number of values. Raises :class:`NetError` for another number."""
        parameter = self._parameter()
        if math.prod(shape) != parameter.numel():
            raise NetError(
                f"parameter blob {self.index} of {format_shape(self.shape)} cannot become {format_shape(shape)}; change the layer's prototxt instead",
                layer=self.layer.name,
            )
        parameter.data = parameter.data.reshape(shape)
        if parameter.grad is not None:
            parameter.grad = parameter.grad.reshape(shape)

    def sync(self) -> None:
        """Copy values written on the host to the device; does nothing on the CPU."""
        for is_diff, array in self._host.items():
            self._tensor(is_diff).copy_(torch.from_numpy(array))
        self._host.clear()

    def _parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = self.layer.blobs[self.index]
        if parameter is not self._known:
            self._known = parameter
            self._host.clear()
        return parameter

    def _tensor(self, is_diff: bool) -> Tensor:
        parameter = self._parameter()
        if not is_diff:
            return parameter.data
        # A parameter that is shared in another shape has the gradient of its owner.
        owner = getattr(parameter, "shared_owner", None)
        if owner is not None:
            if owner.grad is None:
                owner.grad = torch.zeros_like(owner, memory_format=torch.contiguous_format)
            owner.grad = owner.grad.contiguous()
            return owner.grad.data.view(parameter.shape)  # type: ignore[no-any-return]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return parameter.grad.data

    def _array(self, *, is_diff: bool) -> Array:
        tensor = self._tensor(is_diff)
        if tensor.device.type != "cpu":
            if is_diff not in self._host:
                self._host[is_diff] = tensor.to("cpu", memory_format=torch.contiguous_format).numpy()
            return self._host[is_diff]
        if not is_diff:
            _settle_watchers(tensor)
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            if is_diff:
                self._parameter().grad = tensor
            else:
                self._parameter().data = tensor
        if is_diff:
            array: Array = tensor.numpy()
            return array
        return _expose(tensor)


class Watcher(Protocol):
    """Something that depends on the present values of parameters: it is notified before they are given out as an array.

    Attributes:
        memories: Addresses of the parameters' memory.
    """

    memories: Collection[int]

    def settle(self) -> None:
        """Use the present values: they may change from now on."""


# Memory of a parameter → how often it was given out as an array, and the last of these: writes to it leave no trace in torch's version
# counters. An entry of memory that was released and taken again only makes packed weights be packed once more.
_exposed: dict[int, tuple[int, weakref.ref[Array] | None]] = {}
_watchers: weakref.WeakSet[Any] = weakref.WeakSet()
_changes = itertools.count(1)
_last_change = 0


def watch(watcher: Watcher) -> None:
    """Call ``watcher.settle()`` before one of its memories is given out as an array; ends when the watcher is released."""
    _watchers.add(watcher)


def exposure(parameter: Tensor) -> tuple[int, weakref.ref[Array] | None]:
    """Return (how often the memory of ``parameter`` was given out as an array or marked as written, the last such array); any shape."""
    return _exposed.get(parameter.untyped_storage().data_ptr(), (0, None))


def last_exposure() -> int:
    """Return a number that differs after each change of what :func:`exposure` gives, but for arrays that were released."""
    return _last_change


def mark_written(parameters: Iterable[Tensor]) -> None:
    """Note that ``parameters`` were changed in a way that torch's version counters do not show: through NumPy, or by a fused kernel.

    Args:
        parameters: The changed tensors; others that lie in the same memory count as changed, too.
    """
    for parameter in parameters:
        memory = parameter.untyped_storage().data_ptr()
        times, array = _exposed.get(memory, (0, None))
        _note_exposure(memory, times + 1, array)


def _settle_watchers(tensor: Tensor) -> None:
    memory = tensor.untyped_storage().data_ptr()
    for watcher in list(_watchers):
        if memory in watcher.memories:
            watcher.settle()


def _expose(tensor: Tensor) -> Array:
    memory = tensor.untyped_storage().data_ptr()
    array: Array = tensor.numpy()
    _note_exposure(memory, _exposed.get(memory, (0, None))[0] + 1, weakref.ref(array))
    return array


def _note_exposure(memory: int, times: int, array: weakref.ref[Array] | None) -> None:
    global _last_change
    _exposed[memory] = (times, array)
    _last_change = next(_changes)
