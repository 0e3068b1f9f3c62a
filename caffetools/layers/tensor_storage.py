"""``TensorStorage``: the data or the diff of a blob, alone in its memory or in that of another blob."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Shape

Array = NDArray[np.float32]


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of any shape lie in one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0


class _Memory:
    """What storages of one number of values lie in, each under a shape of its own.

    Attributes:
        device: Device of the tensor.
        shared: Whether several storages lie, or lay, in it.
        tensor: The values, of the shape of the storage that stored them; None: zeros.
        owned: Whether nothing else shares the tensor's memory: results of layers may be views of other blobs.
        views: The arrays of it that were given out.
        beyond: The values behind the last one, in one row: those that a larger shape had before.
        host: On a GPU, what was given out as an array: it stands for the tensor.
        deferred: Computes the values when they are first needed, and stores them.
        lent: Copies the values for somebody who borrowed them, before they may change.
    """

    __slots__ = ("beyond", "deferred", "device", "host", "lent", "owned", "shared", "tensor", "views")

    def __init__(self, device: torch.device):
        self.device = device
        self.shared = False
        self.tensor: Tensor | None = None
        self.owned = True
        self.views: list[weakref.ref[Any]] = []
        self.beyond: Tensor | None = None
        self.host: Tensor | None = None
        self.deferred: Callable[[], None] | None = None
        self.lent: Callable[[], None] | None = None

    def is_viewed(self) -> bool:
        """Return whether an array of it is alive."""
        return any(view() is not None for view in self.views)

    def recall(self) -> None:
        """Let who borrowed the values copy them."""
        call, self.lent = self.lent, None
        if call is not None:
            call()


class TensorStorage:
    """One float32 tensor of a blob: its data or its diff.

    Results of layers are rebound, not copied. :meth:`array` returns the values as a live array in C order, as Caffe does; while such
    an array (or a view of it) is alive, results are copied into its memory. So reading a blob costs one copy, and a blob that
    nobody reads costs nothing.

    Storages that :meth:`share` their memory hold the same values in the same order, each under its own shape: what is stored in one, or written
    to its array, is in all of them.

    On a GPU the array is a copy on the host: reading it again updates it, and values written to it reach the device before the
    next layer runs, as with Caffe's SyncedMemory.

    Args:
        shape: Shape of the blob.
        device: Device of the tensor; None: the CPU.
    """

    def __init__(self, shape: Shape, device: torch.device | None = None):
        self.shape = tuple(shape)
        self._memory = _Memory(device or torch.device("cpu"))
        self._view: weakref.ref[Any] | None = None
        # The memory's tensor and the same values under this storage's shape, where that takes a copy (as of channels-last values).
        self._reshaped: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the tensor; another one takes effect at the next use."""
        return self._memory.device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._memory.device = device

    # ---- one memory for several storages ----

    def share(self, other: TensorStorage, shape: Shape, value: Tensor | None = None, *, keep: bool = False) -> None:
        """Use the memory of ``other`` from now on.

        Args:
            other: A storage of as many values.
            shape: The shape of this storage.
            value: The values of ``other`` under that shape, float32, for later readers; None: not at hand.
            keep: The values remain those of this storage, also for ``other``; so do its arrays. Otherwise arrays of this storage that are alive go on
                showing its values only where there are none of ``other``.
        """
        into, memory = other._memory, self._memory
        if into.deferred is not None and into.deferred == memory.deferred:
            return  # who computes both joins them then
        if memory is not into:
            viewed = self.has_live_view and self.shape == tuple(shape) and memory.device.type == "cpu"
            if viewed and not keep and not into.is_viewed():
                self._value().copy_(other.value().reshape(self.shape))
                keep = True
            if keep:
                into.recall()
                into.tensor, into.owned, into.views, into.host, into.deferred = self._value(), memory.owned, memory.views, memory.host, None
            else:
                self._view = None
            self._memory, into.shared = into, True
        self.shape = tuple(shape)
        if value is not None and into.tensor is not None and value.dtype == torch.float32 and value.device == into.tensor.device:
            self._reshaped = into.tensor, value.detach()

    def lies_with(self, other: TensorStorage) -> bool:
        """Return whether both use one memory."""
        return self._memory is other._memory

    def lie_in(self, tensor: Tensor) -> None:
        """Use the memory of ``tensor`` (float32, in C order, on the CPU) from now on, while others read and write it, too."""
        if not self.owns_storage(tensor):
            self.clear()
            self.shape, memory = tuple(tensor.shape), self._memory
            # As if an array of it were alive: results are copied into it, and readers that keep it get copies.
            memory.tensor, memory.owned, memory.views = tensor.detach(), True, [weakref.ref(tensor)]

    def _leave(self) -> None:
        """Take a memory of its own, without values."""
        if not self._memory.shared:
            self._memory.recall()
        self._memory, self._view, self._reshaped = _Memory(self._memory.device), None, None

    # ---- values that are not there yet, or lent ----

    def defer(self, shape: Shape, compute: Callable[[], None]) -> None:
        """Let ``compute`` store the values, of ``shape``, when they are first read; values stored before that replace them.

        Args:
            shape: The values' shape.
            compute: Called once without arguments; it calls :meth:`store`.
        """
        self.clear()
        self.shape, self._memory.deferred = tuple(shape), compute

    def is_deferred_by(self, compute: Callable[[], None]) -> bool:
        """Return whether the values are still to be computed by ``compute``."""
        return self._memory.deferred == compute

    def peek(self) -> Tensor:
        """Return the tensor of :meth:`value` for a reader that neither keeps nor changes it."""
        return self._value()

    def lend(self, recall: Callable[[], None]) -> bool:
        """Let a reader of :meth:`peek` keep the tensor; return False where it may change unseen, since an array of it is alive.

        Args:
            recall: Called once, before the values are given to anybody else or are replaced: the last moment to copy them.
        """
        memory = self._memory
        if memory.device.type != "cpu" or memory.is_viewed():
            return False
        memory.lent = recall
        return True

    @property
    def has_live_view(self) -> bool:
        """Whether an array of this storage is alive."""
        view = self._view
        return view is not None and view() is not None and any(known is view for known in self._memory.views)

    @property
    def is_set(self) -> bool:
        """Whether values were ever stored here; otherwise all are zero."""
        return self._memory.tensor is not None or self._memory.deferred is not None

    # ---- reading ----

    def value(self) -> Tensor:
        """Return the float32 tensor of the blob's shape, detached and on the device; its version counter is its own, so autograd ignores edits through NumPy."""
        if self._memory.lent is not None:
            self._memory.recall()
        return self._value()

    def _value(self) -> Tensor:
        if self._memory.deferred is not None:
            self._memory.deferred()
        memory = self._memory
        if memory.tensor is None:
            memory.tensor, memory.owned = torch.zeros(self.shape, device=memory.device), True
        if memory.host is not None:
            memory.tensor, memory.owned = memory.host.to(memory.device), True
            memory.host = None
        if memory.tensor.device != memory.device:
            memory.tensor, memory.owned = memory.tensor.to(memory.device), True
            memory.views = []
        if tuple(memory.tensor.shape) != self.shape:
            return self._under_shape(memory.tensor)
        return memory.tensor.data

    def _under_shape(self, tensor: Tensor) -> Tensor:
        """Return the memory's values under this storage's shape."""
        if tensor.is_contiguous():
            return tensor.data.view(self.shape)
        if self._reshaped is None or self._reshaped[0] is not tensor or tuple(self._reshaped[1].shape) != self.shape:
            self._reshaped = tensor, tensor.data.reshape(self.shape)
        return self._reshaped[1].data

    def shared_value(self) -> Tensor:
        """Return the float32 tensor of the blob's shape for a reader that keeps it: later edits of the blob do not reach it."""
        value = self.value()
        if self._memory.is_viewed():
            return value.clone()
        self._memory.owned = False
        return value

    def array(self) -> Array:
        """Return the values as a writable float32 array of the blob's shape in C order that shares their memory (on a GPU: see the class)."""
        known = self._view() if self.has_live_view and self._view is not None else None
        if self.device.type != "cpu":
            return self._host_array(known)
        if known is not None:
            return known  # type: ignore[no-any-return]
        tensor, memory = self.value(), self._memory
        if not (memory.owned and memory.tensor is not None and memory.tensor.is_contiguous()):
            memory.tensor, memory.owned = tensor.clone(memory_format=torch.contiguous_format), True
            tensor = self.value()
        array: Array = tensor.numpy()
        self._remember_view(array)
        return array

    def _remember_view(self, array: Array) -> None:
        self._view = weakref.ref(array)
        self._memory.views = [*(view for view in self._memory.views if view() is not None), self._view]

    def _host_array(self, known: Array | None) -> Array:
        tensor = self.value()
        array: Array
        if known is not None and known.shape == self.shape:
            array = known
            torch.from_numpy(array).copy_(tensor)
        else:
            array = tensor.to("cpu", memory_format=torch.contiguous_format).numpy()
            self._remember_view(array)
        self._memory.host = torch.from_numpy(array)
        return array

    # ---- writing ----

    def clear(self) -> None:
        """Set all values to zero and release the memory, as before anything was stored; other storages keep theirs."""
        self._memory.recall()
        self._leave()

    def store(self, result: Tensor, maybe_aliased_by: Iterable[TensorStorage] = (), *, owned: bool = False) -> None:
        """Store the result of a layer.

        Args:
            result: The values, of any float dtype; the storage takes their shape.
            maybe_aliased_by: Storages whose memory ``result`` may be a view of; it is copied then.
            owned: Nobody else has or gets a tensor of this memory.
        """
        memory, shape = self._memory, tuple(result.shape)
        if memory.lent is not None:
            memory.recall()
        result = result.detach()
        if result.dtype != torch.float32:
            result = result.float()
        if memory.shared and shape != self.shape:
            self._leave()
            memory = self._memory
        memory.deferred, memory.host = None, None
        if memory.tensor is not None and shape == self.shape and memory.device.type == "cpu" and memory.is_viewed():
            self._value().copy_(result)
            return
        if any(other.owns_storage(result) for other in maybe_aliased_by):
            result = result.clone()
        memory.tensor, memory.owned = result, owned
        if shape != self.shape:
            memory.beyond = None
        self.shape = shape
        if memory.device.type == "cpu":
            memory.views = []

    def write(self, values: Tensor) -> None:
        """Copy ``values``, of this storage's shape, into the present memory; into new memory where another reader keeps that."""
        memory = self._memory
        spread = memory.shared and memory.tensor is not None and not memory.tensor.is_contiguous()
        if spread or (not memory.owned and not memory.is_viewed()):
            memory.recall()
            memory.tensor, memory.owned = torch.empty(self.shape, device=memory.device), True
        self.value().copy_(values)

    def drop_views(self) -> None:
        """Leave the arrays given out so far with their present values; later results do not reach them."""
        if self.device.type == "cpu" and self._memory.is_viewed():
            self._memory.owned, self._memory.views = False, []

    def owns_storage(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` (any shape) lies in memory that belongs to this blob, or to blobs that share it, alone."""
        memory = self._memory
        return memory.owned and memory.tensor is not None and shares_memory(memory.tensor, tensor)

    def reshape(self, shape: Shape) -> None:
        """Set the shape. As in Caffe the memory remains, with the values behind a smaller shape; a shape larger than any before gets zeros.

        With another number of values the storage has a memory of its own from then on.
        """
        shape = tuple(shape)
        if shape == self.shape:
            return
        if self._memory.deferred is not None:
            self._memory.deferred()
        size = math.prod(shape)
        if math.prod(self.shape) != size and self._memory.shared:
            value = self.value().clone(memory_format=torch.contiguous_format)
            self._leave()
            self._memory.tensor = value
        memory = self._memory
        if memory.tensor is not None and not memory.shared:
            values = self.value().reshape(-1)
            if values.numel() != size:
                values, memory.owned = self._resized(values, size), True
            memory.tensor = values.reshape(shape)
        self.shape, self._view, memory.host = shape, None, None

    def _resized(self, values: Tensor, size: int) -> Tensor:
        """Return the first ``size`` of the values in memory, (size), and keep the others; zeros where that are fewer."""
        memory = self._memory
        if memory.beyond is not None:
            values = torch.cat([values, memory.beyond.to(values.device)])
        if values.numel() < size:
            memory.beyond = None
            return torch.zeros(size, device=memory.device)
        memory.beyond = values[size:] if values.numel() > size else None
        return values[:size].clone()


_deferred_by = attrgetter("_memory.deferred")


def all_deferred_by(storages: Collection[TensorStorage], compute: Callable[[], None]) -> bool:
    """Return whether the values of all ``storages`` are still to be computed by ``compute``: then no array of them is alive."""
    return list(map(_deferred_by, storages)) == [compute] * len(storages)
