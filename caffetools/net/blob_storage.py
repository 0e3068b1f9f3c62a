"""The memory of blobs: tensors that the engine rebinds freely, until somebody looks at them as a NumPy array."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caffetools.layers.base import Shape, count

Array = NDArray[np.float32]


class Memory:
    """One float32 tensor of a blob: its data, or its diff.

    Results of layers are rebound, not copied. :meth:`array` gives the values as a live array in C order, as Caffe does; while such
    an array (or a view of it) is alive, results are copied into its memory. So looking costs a copy, and not looking costs nothing.

    On a GPU the array is a copy on the host: reading it again brings it up to date, and what is written to it reaches the
    device before the next layer runs, as with Caffe's SyncedMemory.

    Attributes:
        shape: the blob's shape. device: where the engine wants the tensor.
    """

    def __init__(self, shape: Shape, device: torch.device | None = None):
        self.shape = tuple(shape)
        self.device = device or torch.device("cpu")
        self._tensor: Tensor | None = None
        # Whether the tensor is this memory's alone: results of layers may be views of other blobs.
        self._owned = True
        self._view: weakref.ref[Any] | None = None
        self._host: Tensor | None = None

    @property
    def looked_at(self) -> bool:
        """Whether an array of this memory is alive."""
        return self._view is not None and self._view() is not None

    @property
    def is_set(self) -> bool:
        """Whether anything was ever stored here; else the values are zeros."""
        return self._tensor is not None

    def value(self) -> Tensor:
        """The tensor, detached and on the device, with the version counter of its own: edits through NumPy are no matter to autograd."""
        if self._tensor is None:
            self._tensor, self._owned = torch.zeros(self.shape, device=self.device), True
        if self._host is not None:
            self._tensor.copy_(self._host)
            self._host = None
        if self._tensor.device != self.device:
            self._tensor, self._owned, self._view = self._tensor.to(self.device), True, None
        return self._tensor.data

    def array(self) -> Array:
        """The values as a writable array in C order that shares their memory (on a GPU: see the class)."""
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

    def store(self, result: Tensor, beside: Iterable[Memory] = ()) -> None:
        """Take a layer's result. ``beside``: memories that the result may be a view of."""
        result = result.detach()
        if result.dtype != torch.float32:
            result = result.float()
        self._host = None
        if self.looked_at and self._tensor is not None and tuple(result.shape) == self.shape and self.device.type == "cpu":
            self._tensor.data.copy_(result)
            return
        if any(other.owns(result) for other in beside):
            result = result.clone()
        self._tensor, self._owned = result, False
        self.shape = tuple(result.shape)
        if self.device.type == "cpu":
            self._view = None

    def write(self, values: Tensor) -> None:
        """Copy ``values`` (of this shape) into the memory there is."""
        self.value().copy_(values)

    def owns(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies in memory that is this blob's alone."""
        return self._owned and self._tensor is not None and shares_memory(self._tensor, tensor)

    def reshape(self, shape: Shape) -> None:
        """Give the memory another shape; as in Caffe the leading values stay, and what is new is zero."""
        shape = tuple(shape)
        if shape == self.shape:
            return
        if self._tensor is not None:
            old, size = self.value().reshape(-1), count(shape)
            if old.numel() != size:
                grown = torch.zeros(size, device=self.device)
                grown[: min(size, old.numel())] = old[:size]
                old, self._owned = grown, True
            self._tensor = old.reshape(shape)
        self.shape, self._view, self._host = shape, None, None

    def _host_array(self, known: Any) -> Array:
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


class Slot:
    """A named blob of a net: ``data`` and ``diff``, both float32 of ``shape`` (N, C, H, W)."""

    def __init__(self, name: str, shape: Shape, device: torch.device | None = None):
        self.name = name
        self.data = Memory(shape, device)
        self.diff = Memory(shape, device)

    @property
    def shape(self) -> Shape:
        """The blob's shape."""
        return self.data.shape

    def reshape(self, shape: Shape) -> None:
        """Reshape data and diff; see :meth:`Memory.reshape`."""
        self.data.reshape(shape)
        self.diff.reshape(shape)

    def to(self, device: torch.device) -> None:
        """Move data and diff at their next use."""
        self.data.device = self.diff.device = device


class ParameterMemory:
    """The data or the diff (``.grad``) of a parameter as a live array in C order.

    Parameters lie in channels-last memory until they are looked at; then they move into C order, once. On a GPU the array is a
    copy on the host, which stands for the parameter until :meth:`sync` brings it to the device.
    """

    def __init__(self, parameter: nn.Parameter, diff: bool = False):
        self.parameter, self.is_diff = parameter, diff
        self._host: Array | None = None

    def tensor(self) -> Tensor:
        """The parameter's values, or its gradient: zeros where none was computed yet."""
        if not self.is_diff:
            return self.parameter.data
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter, memory_format=torch.contiguous_format)
        return self.parameter.grad.data

    def array(self) -> Array:
        """The values as a writable array that shares their memory (on a GPU: see the class)."""
        tensor = self.tensor()
        if tensor.device.type != "cpu":
            if self._host is None:
                self._host = tensor.to("cpu", memory_format=torch.contiguous_format).numpy()
            return self._host
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            if self.is_diff:
                self.parameter.grad = tensor
            else:
                self.parameter.data = tensor
        array: Array = tensor.numpy()
        return array

    def sync(self) -> None:
        """Bring what was written to the host's copy to the device; nothing to do on the CPU."""
        if self._host is not None:
            self.tensor().copy_(torch.from_numpy(self._host))
            self._host = None


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0
