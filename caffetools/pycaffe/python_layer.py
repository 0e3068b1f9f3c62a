"""``Layer``, the base of layers that users write in Python, and the layer type ``Python`` that runs them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from caffetools.errors import CaffeToolsError
from caffetools.layers.base import Layer as EngineLayer
from caffetools.layers.base import Shape, Shapes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.net.blob_storage import Slot
from caffetools.proto.schema import TEST, FillerParameter
from caffetools.pycaffe.blob import NetBlob, ParameterBlob, checked_shape
from caffetools.pycaffe.user_modules import find_class

log = logging.getLogger("caffetools.pycaffe")


class Layer:
    """The base class of layers written in Python, as ``caffe.Layer``.

    A subclass defines ``setup(bottom, top)``, ``reshape(bottom, top)``, ``forward(bottom, top)`` and
    ``backward(top, propagate_down, bottom)``; ``bottom`` and ``top`` are lists of blobs with ``data`` and ``diff``.

    Attributes:
        param_str: the text given in the prototxt. phase: TRAIN or TEST. type: ``"Python"``.
        blobs: the layer's parameters; ``blobs.add_blob(...)`` in ``setup`` adds one.
    """

    type = "Python"
    param_str = ""
    phase = TEST
    blobs: UserBlobs

    def __init__(self, *ignored: Any):
        """Nothing to do; a subclass that has an ``__init__`` of its own may pass anything on."""

    def setup(self, bottom: Sequence[NetBlob], top: Sequence[NetBlob]) -> None:
        """Called once, when the net is built."""

    def reshape(self, bottom: Sequence[NetBlob], top: Sequence[NetBlob]) -> None:
        """Called before every pass: give the tops their shapes."""

    def forward(self, bottom: Sequence[NetBlob], top: Sequence[NetBlob]) -> None:
        """Compute the tops' data."""

    def backward(self, top: Sequence[NetBlob], propagate_down: Sequence[bool], bottom: Sequence[NetBlob]) -> None:
        """Compute the bottoms' diffs, where ``propagate_down`` is true, and add to those of ``blobs``."""


class UserBlobs(Sequence[Any]):
    """The parameters of a Python layer."""

    def __init__(self, owner: Python):
        self._owner = owner
        self._new: list[NetBlob] = []
        self._made: list[ParameterBlob] = []

    def add_blob(self, *shape: int) -> None:
        """Add a parameter of that shape, zeros; to be called in ``setup``."""
        if len(self._owner.blobs):
            raise self._owner.error("can add parameter blobs in setup only")
        self._new.append(_blob(f"blob {len(self._new)}", checked_shape(shape)))

    def bind(self) -> None:
        """From now on these are the layer's parameters, which begin with what was written here."""
        with torch.no_grad():
            for parameter, blob in zip(self._owner.blobs, self._new, strict=True):
                parameter.copy_(blob.slot.data.value())
        self._made = [ParameterBlob(self._owner, index) for index in range(len(self._new))]

    def sync(self) -> None:
        """Bring what the user's code wrote to where the parameters are."""
        for blob in self._made:
            blob.sync()

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of what was added."""
        return [blob.shape for blob in self._new]

    def __len__(self) -> int:
        return len(self._new)

    def __getitem__(self, index: Any) -> Any:
        return self._made[index] if self._made else self._new[index]


@register("Python")
class Python(EngineLayer):
    """Runs a class that a user wrote: ``python_param`` names the module, the class and the text it is given (python_layer.hpp).

    The module is looked for on ``sys.path`` (and so in PYTHONPATH) and in the current directory; the log says which file was run.
    Shapes and numbers are what the class makes of them; its code runs on the CPU.
    """

    TRAITS = Traits(settings="python_param", user_code=True)
    BOTTOMS = (0, None)
    TOPS = (0, None)

    @classmethod
    def traits(cls, param: Any) -> Traits:
        return cls.TRAITS if param.bottom else replace(cls.TRAITS, role="data")

    def __init__(self, param: Any, phase: int = TEST):
        super().__init__(param, phase)
        if not self.bottoms:
            self.IS_DATA = True  # type: ignore[misc]
        self.bottom_blobs = [_blob(name, ()) for name in self.bottoms]
        # A layer that works in place has one and the same blob below and above.
        below = dict(zip(self.bottoms, self.bottom_blobs, strict=True))
        self.top_blobs = [below[name] if self.bottoms[i : i + 1] == [name] else _blob(name, ()) for i, name in enumerate(self.tops)]
        self.user_layer = self._make(phase)
        self._is_set_up = False

    def _make(self, phase: int) -> Any:
        python = self.param.python_param
        found = find_class(python.module, python.layer, self.name)
        layer = found.__new__(found)
        layer.param_str, layer.phase, layer.blobs = str(python.param_str), phase, UserBlobs(self)
        layer.param_str_ = layer.param_str
        layer.__init__()
        return layer

    def setup(self, bottoms: Shapes) -> Shapes:
        for blob, shape in zip(self.bottom_blobs, bottoms, strict=True):
            blob.reshape(*shape)
        if not self._is_set_up:
            self._call("setup", self.bottom_blobs, self.top_blobs)
            self._is_set_up = True
        self._call("reshape", self.bottom_blobs, self.top_blobs)
        for shape in self.user_layer.blobs.shapes:
            # Overwritten at once by what the user's setup wrote.
            self.declare_blob(shape, FillerParameter(value=0))
        return [blob.shape for blob in self.top_blobs]

    def allocate(self, *, filled: bool = True) -> None:
        """Make the parameters; they begin with what ``setup`` wrote."""
        fresh = not len(self.blobs)
        super().allocate(filled=filled)
        if fresh:
            self.user_layer.blobs.bind()

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if not self.tops:
            self.compute(bottoms)
            return ()
        return tuple(_Run.apply(self, len(bottoms), *bottoms, *self.blobs))

    def compute(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Let the user's code compute the tops."""
        for blob, x in zip(self.bottom_blobs, bottoms, strict=True):
            blob.reshape(*x.shape)
            blob.slot.data.write(x)
        self._call("reshape", self.bottom_blobs, self.top_blobs)
        self._call("forward", self.bottom_blobs, self.top_blobs)
        # Copies: the next pass writes into the same arrays.
        return tuple(blob.slot.data.value().clone() for blob in self.top_blobs)

    def compute_gradients(self, diffs: Sequence[Tensor], needs: Sequence[bool]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Let the user's code compute the diffs of the bottoms that ``needs`` names, and of the parameters."""
        for blob, diff in zip(self.top_blobs, diffs, strict=True):
            blob.slot.diff.reshape(tuple(diff.shape))
            blob.slot.diff.write(diff)
        parameters = list(self.user_layer.blobs)
        before = [blob.diff.copy() for blob in parameters]
        for blob in parameters:
            blob.diff[...] = 0
        self._call("backward", self.top_blobs, list(needs), self.bottom_blobs)
        added = [torch.from_numpy(blob.diff.copy()) for blob in parameters]
        for blob, old in zip(parameters, before, strict=True):
            blob.diff[...] = old
        found = [torch.from_numpy(b.diff.copy()) if need else None for b, need in zip(self.bottom_blobs, needs, strict=True)]
        return found, added

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self.user_layer, method)(*arguments)
        except CaffeToolsError:
            raise
        except Exception as error:
            log.exception("layer '%s': the user's code failed", self.name)
            place = f"{self.param.python_param.module}.{self.param.python_param.layer}.{method}"
            raise self.error(f"{place} raised {type(error).__name__}: {error}") from error
        finally:
            self.user_layer.blobs.sync()


class _Run(torch.autograd.Function):
    """The user's forward and backward as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, layer: Python, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        bottoms = tensors[:count]
        ctx.layer, ctx.count = layer, count
        device = bottoms[0].device if bottoms else torch.device("cpu")
        return tuple(top.to(device) for top in layer.compute(bottoms))

    @staticmethod
    def backward(ctx: Any, *diffs: Tensor) -> Any:
        needs = ctx.needs_input_grad[2 : 2 + ctx.count]
        found, added = ctx.layer.compute_gradients(diffs, needs)
        device = diffs[0].device if diffs else torch.device("cpu")
        return (None, None, *(g if g is None else g.to(device) for g in found), *(g.to(device) for g in added))


def _blob(name: str, shape: Shape) -> NetBlob:
    return NetBlob(Slot(name, shape))
