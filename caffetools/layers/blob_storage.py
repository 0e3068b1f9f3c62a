"""Storage of blobs: tensors that the engine rebinds freely until a NumPy array of them is alive."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caffetools.errors import NetError
from caffetools.layers.base import Layer, Shape, format_shape

Array = NDArray[np.float32]


class TensorStorage:
    """One float32 tensor of a blob: its data or its diff.

    Results of layers are rebound, not copied. :meth:`array` returns the values as a live array in C order, as Caffe does; while such
    an array (or a view of it) is alive, results are copied into its memory. So reading a blob costs one copy, and a blob that
    nobody reads costs nothing.

    On a GPU the array is a copy on the host: reading it again updates it, and values written to it reach the device before the
    next layer runs, as with Caffe's SyncedMemory.

    Args:
        shape: Shape of the blob.
        device: Device of the tensor; None: the CPU.
    """

    def __init__(self, shape: Shape, device: torch.device | None = None):
        self.shape = tuple(shape)
        self.device = device or torch.device("cpu")
        self._tensor: Tensor | None = None
        # The values behind the last one, in one row: those that a larger shape had before.
        self._beyond: Tensor | None = None
        # Whether no other blob shares the tensor's memory: results of layers may be views of other blobs.
        self._owned = True
        self._view: weakref.ref[Any] | None = None
        self._host: Tensor | None = None
        # Computes the values when they are first needed, and stores them here.
        self._deferred: Callable[[], None] | None = None
        # Copies the values for somebody who borrowed them, before they may change.
        self._lent: Callable[[], None] | None = None

    def defer(self, shape: Shape, compute: Callable[[], None]) -> None:
        """Let ``compute`` store the values, of ``shape``, when they are first read; values stored before that replace them.

        Args:
            shape: The values' shape.
            compute: Called once without arguments; it calls :meth:`store`.
        """
        self.clear()
        self.shape, self._deferred = tuple(shape), compute

    def is_deferred_by(self, compute: Callable[[], None]) -> bool:
        """Return whether the values are still to be computed by ``compute``."""
        return self._deferred == compute

    def peek(self) -> Tensor:
        """Return the tensor of :meth:`value` for a reader that neither keeps nor changes it."""
        return self._value()

    def lend(self, recall: Callable[[], None]) -> bool:
        """Let a reader of :meth:`peek` keep the tensor; return False where it may change unseen, since an array of it is alive.

        Args:
            recall: Called once, before the values are given to anybody else or are replaced: the last moment to copy them.
        """
        if self.has_live_view or self.device.type != "cpu":
            return False
        self._lent = recall
        return True

    def _recall(self) -> None:
        recall, self._lent = self._lent, None
        if recall is not None:
            recall()

    @property
    def has_live_view(self) -> bool:
        """Whether an array of this storage is alive."""
        return self._view is not None and self._view() is not None

    @property
    def is_set(self) -> bool:
        """Whether values were ever stored here; otherwise all are zero."""
        return self._tensor is not None or self._deferred is not None

    def value(self) -> Tensor:
        """Return the float32 tensor of the blob's shape, detached and on the device; its version counter is its own, so autograd ignores edits through NumPy."""
        if self._lent is not None:
            self._recall()
        return self._value()

    def _value(self) -> Tensor:
        if self._deferred is not None:
            self._deferred()
        if self._tensor is None:
            self._tensor, self._owned = torch.zeros(self.shape, device=self.device), True
        if self._host is not None:
            self._tensor, self._owned = self._host.to(self.device), True
            self._host = None
        if self._tensor.device != self.device:
            self._tensor, self._owned, self._view = self._tensor.to(self.device), True, None
        return self._tensor.data

    def shared_value(self) -> Tensor:
        """Return the float32 tensor of the blob's shape for a reader that keeps it: later edits of the blob do not reach it."""
        value = self.value()
        if self.has_live_view:
            return value.clone()
        self._owned = False
        return value

    def clear(self) -> None:
        """Set all values to zero and release the memory, as before anything was stored."""
        self._recall()
        self._deferred, self._beyond = None, None
        self._tensor, self._view, self._host, self._owned = None, None, None, True

    def array(self) -> Array:
        """Return the values as a writable float32 array of the blob's shape in C order that shares their memory (on a GPU: see the class)."""
        known = self._view() if self._view is not None else None
        if self.device.type != "cpu":
            return self._host_array(known)
        if known is not None:
            return known  # type: ignore[no-any-return]
        tensor = self.value()
        if not (self._owned and tensor.is_contiguous()):
            self._tensor, self._owned = tensor.clone(memory_format=torch.contiguous_format), True
            tensor = self.value()
        array: Array = tensor.numpy()
        self._view = weakref.ref(array)
        return array

    def store(self, result: Tensor, maybe_aliased_by: Iterable[TensorStorage] = (), *, owned: bool = False) -> None:
        """Store the result of a layer.

        Args:
            result: The values, of any float dtype; the storage takes their shape.
            maybe_aliased_by: Storages whose memory ``result`` may be a view of; it is copied then.
            owned: Nobody else has or gets a tensor of this memory.
        """
        if self._lent is not None:
            self._recall()
        self._deferred = None
        result = result.detach()
        if result.dtype != torch.float32:
            result = result.float()
        self._host = None
        if self.has_live_view and self._tensor is not None and tuple(result.shape) == self.shape and self.device.type == "cpu":
            self._tensor.data.copy_(result)
            return
        if any(other.owns_storage(result) for other in maybe_aliased_by):
            result = result.clone()
        self._tensor, self._owned = result, owned
        if tuple(result.shape) != self.shape:
            self._beyond = None
        self.shape = tuple(result.shape)
        if self.device.type == "cpu":
            self._view = None

    def write(self, values: Tensor) -> None:
        """Copy ``values``, of this storage's shape, into the present memory; into new memory where another reader keeps that."""
        if not self._owned and not self.has_live_view:
            self._tensor, self._owned = torch.empty(self.shape, device=self.device), True
        self.value().copy_(values)

    def drop_views(self) -> None:
        """Leave the arrays given out so far with their present values; later results do not reach them."""
        if self.has_live_view and self.device.type == "cpu":
            self._owned, self._view = False, None

    def owns_storage(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` (any shape) lies in memory that belongs to this blob alone."""
        return self._owned and self._tensor is not None and shares_memory(self._tensor, tensor)

    def reshape(self, shape: Shape) -> None:
        """Set the shape. As in Caffe the memory remains, with the values behind a smaller shape; a shape larger than any before gets zeros."""
        shape = tuple(shape)
        if shape == self.shape:
            return
        if self._deferred is not None:
            self._deferred()
        if self._tensor is not None:
            values, size = self.value().reshape(-1), math.prod(shape)
            if values.numel() != size:
                values, self._owned = self._resized(values, size), True
            self._tensor = values.reshape(shape)
        self.shape, self._view, self._host = shape, None, None

    def _resized(self, values: Tensor, size: int) -> Tensor:
        """Return the first ``size`` of the values in memory, (size), and keep the others; zeros where that are fewer."""
        if self._beyond is not None:
            values = torch.cat([values, self._beyond.to(values.device)])
        if values.numel() < size:
            self._beyond = None
            return torch.zeros(size, device=self.device)
        self._beyond = values[size:] if values.numel() > size else None
        return values[:size].clone()

    def _host_array(self, known: Array | None) -> Array:
        tensor = self.value()
        array: Array
        if known is not None and known.shape == self.shape:
            array = known
            torch.from_numpy(array).copy_(tensor)
        else:
            array = tensor.to("cpu", memory_format=torch.contiguous_format).numpy()
            self._view = weakref.ref(array)
        self._host = torch.from_numpy(array)
        return array


_deferred_by = attrgetter("_deferred")


def all_deferred_by(storages: Collection[TensorStorage], compute: Callable[[], None]) -> bool:
    """Return whether the values of all ``storages`` are still to be computed by ``compute``: then no array of them is alive."""
    return list(map(_deferred_by, storages)) == [compute] * len(storages)


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


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of any shape lie in one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0
