"""``Layer``, the base class of layers that users write in Python, and the layer type ``Python`` that runs them."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import caffetools
from caffetools.errors import CaffeToolsError, mark_user_error
from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer as EngineLayer
from caffetools.layers.base import Shape, Shapes
from caffetools.layers.blob_storage import BlobStorage, ParameterStorage
from caffetools.layers.blob_view import Blob, BlobVec, checked_shape
from caffetools.layers.plugin import find_class
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import TEST, TRAIN, FillerParameter, LayerParameter


class Phase(int):
    """TRAIN (0) or TEST (1): an int, as BVLC Caffe gives it, whose text is the name, as in Fast R-CNN's fork."""

    def __str__(self) -> str:
        return "TRAIN" if self == TRAIN else "TEST"


class Layer:
    """The base class of layers written in Python, as ``caffe.Layer``.

    A subclass defines ``setup(bottom, top)``, ``reshape(bottom, top)``, ``forward(bottom, top)`` and
    ``backward(top, propagate_down, bottom)``; ``bottom`` and ``top`` are lists of blobs with ``data`` and ``diff``.

    Attributes:
        param_str: The text given in the prototxt.
        phase: TRAIN or TEST.
        type: ``"Python"``.
        blobs: The layer's parameters; ``blobs.add_blob(...)`` in ``setup`` adds one.
    """

    type = "Python"
    param_str = ""
    phase: int = Phase(TEST)

    def __init__(self, *arguments: object):
        """Caffe constructs the class with the layer's parameter; nothing is done with it here."""

    @property
    def blobs(self) -> UserBlobs:
        """The layer's parameters."""
        found: UserBlobs = self.__dict__["blobs"]
        return found

    @blobs.setter
    def blobs(self, blobs: UserBlobs) -> None:
        self.__dict__["blobs"] = blobs

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Called once, when the net is built."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Called before every forward pass: set the shapes of the tops."""

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Compute the data of the tops."""

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Compute the diffs of the bottoms where ``propagate_down`` is true, and add to those of ``blobs``."""


class UserBlobs(BlobVec):
    """The parameters of a Python layer.

    Args:
        owner: The layer that runs the user's code.
    """

    def __init__(self, owner: Python):
        super().__init__()
        self._owner = owner
        self._bound = False

    def add_blob(self, *shape: int) -> None:
        """Add a parameter of that shape, zeros; to be called in ``setup``. Raises :class:`NetError` later."""
        if self._bound:
            raise self._owner.error("can add parameter blobs in setup only")
        self._list.append(Blob(BlobStorage(f"blob {len(self._list)}", checked_shape(shape))))

    def bind(self) -> None:
        """Make the layer's parameters of these blobs, with the values written so far."""
        with torch.no_grad():
            for parameter, blob in zip(self._owner.blobs, self._list, strict=True):
                parameter.copy_(torch.from_numpy(blob.data))
        self._list = [Blob(ParameterStorage(self._owner, index)) for index in range(len(self._list))]
        self._bound = True

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of the blobs."""
        return [tuple(blob.shape) for blob in self._list]


# A number of classes in the text for a user's class: 'num_classes': 21 of YAML, of JSON or of a dictionary, num_classes=21.
_CLASSES = re.compile(
    r"""\b((?:n|num|number_of)_?_?(?:classes|class|cls)|(?:class|cls)_?(?:num|count)|classes)(["']?\s*[:=]\s*)(\d+)\b""", re.IGNORECASE
)


def named_classes(param_str: str) -> list[int]:
    """Return the numbers of classes that a ``param_str`` names, such as 21 of ``'num_classes': 21``."""
    return [int(found[3]) for found in _CLASSES.finditer(param_str)]


def with_classes(param_str: str, before: int, classes: int) -> str:
    """Return a ``param_str`` in which each number of classes that is ``before`` is ``classes``."""
    return _CLASSES.sub(lambda found: f"{found[1]}{found[2]}{classes}" if int(found[3]) == before else found[0], param_str)


@register("Python")
class Python(EngineLayer):
    """Runs a class that a user wrote: ``python_param`` names the module, the class and the text it is given (python_layer.hpp).

    The module is searched on ``sys.path`` (and so in PYTHONPATH) and in the current directory; the log names the file. Shapes and
    numbers are those of the class; its code runs on the CPU, one thread at a time. An exception in it is passed on unchanged.
    """

    TRAITS = Traits(settings="python_param", user_code=True)
    BOTTOMS = (0, None)
    TOPS = (0, None)
    STATEFUL = True
    DRAWS_GLOBALLY = True
    DYNAMIC_SHAPE = True
    BACKWARD_READS_BOTTOMS = False

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return cls.TRAITS if param.bottom else replace(cls.TRAITS, role="data")

    def __new__(cls, param: LayerParameter | None = None, phase: int = TEST) -> Python:
        """Make a :class:`PythonData` where the layer has no bottoms; ``param`` is missing where the layer is copied."""
        return super().__new__(PythonData if cls is Python and param is not None and not param.bottom else cls)

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__(param, phase)
        self.bottom_blobs = [_blob(name, ()) for name in self.bottoms]
        # A layer that works in place has one and the same blob below and above.
        below = dict(zip(self.bottoms, self.bottom_blobs, strict=True))
        self.top_blobs = [below[name] if self.bottoms[i : i + 1] == [name] else _blob(name, ()) for i, name in enumerate(self.tops)]
        self._lock = threading.RLock()
        self.user_layer = self._make(phase)
        self._is_set_up = False

    def _make(self, phase: int) -> Any:
        python = self.param.python_param
        found = find_class(python.module, python.layer, self.name)
        layer = found.__new__(found)
        layer.param_str, layer.phase, layer.blobs = str(python.param_str), Phase(phase), UserBlobs(self)
        layer.param_str_ = layer.param_str
        self._call(layer.__init__, self.param)
        return layer

    def setup(self, bottoms: Shapes) -> Shapes:
        with self._lock:
            for blob, shape in zip(self.bottom_blobs, bottoms, strict=True):
                blob.reshape(*shape)
            if not self._is_set_up:
                self._call(self.user_layer.setup, self.bottom_blobs, self.top_blobs)
                self._is_set_up = True
            self._call(self.user_layer.reshape, self.bottom_blobs, self.top_blobs)
            for shape in self.user_layer.blobs.shapes:
                # Overwritten at once by the values that the user's setup wrote.
                self.declare_blob(shape, FillerParameter(value=0))
            return [tuple(blob.shape) for blob in self.top_blobs]

    def allocate(self, *, filled: bool = True) -> None:
        """Make the parameters, with the values that ``setup`` wrote."""
        fresh = not len(self.blobs)
        super().allocate(filled=filled)
        if fresh:
            self.user_layer.blobs.bind()

    NO_ONNX = "it runs code of the user"

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if not self.tops:
            self.compute(bottoms)
            return ()
        return tuple(_Run.apply(self, len(bottoms), *bottoms, *self.blobs))

    def compute(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call the user's ``reshape`` and ``forward``; return copies of the tops, of the shapes they then have."""
        with self._lock:
            self._load(bottoms)
            self._call(self.user_layer.reshape, self.bottom_blobs, self.top_blobs)
            self._call(self.user_layer.forward, self.bottom_blobs, self.top_blobs)
            return tuple(torch.from_numpy(blob.data.copy()) for blob in self.top_blobs)

    def backward_from_blobs(
        self, bottoms: Sequence[Tensor], tops: Sequence[Tensor], diffs: Sequence[Tensor], needs: Sequence[bool]
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """Call the user's ``backward`` on blobs that no forward pass of this layer made; gradients have the shapes of their blobs."""
        with self._lock:
            self._load(bottoms)
            for blob, x in zip(self.top_blobs, tops, strict=True):
                blob.reshape(*x.shape)
                blob.data[...] = x.detach().cpu().numpy()
            return self.compute_gradients(diffs, needs)

    def compute_gradients(self, diffs: Sequence[Tensor], needs: Sequence[bool]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Call the user's ``backward``.

        Args:
            diffs: Diffs of the tops.
            needs: Which bottoms need a gradient.

        Returns:
            The diffs of the bottoms (None where not needed), and what was added to the diffs of the parameters.
        """
        with self._lock:
            for blob, diff in zip(self.top_blobs, diffs, strict=True):
                blob.storage.diff.reshape(tuple(diff.shape))  # type: ignore[attr-defined]
                blob.diff[...] = diff.detach().cpu().numpy()
            parameters = list(self.user_layer.blobs)
            before = [blob.diff.copy() for blob in parameters]
            for blob in parameters:
                blob.diff[...] = 0
            self._call(self.user_layer.backward, self.top_blobs, list(needs), self.bottom_blobs)
            added = [torch.from_numpy(blob.diff.copy()) for blob in parameters]
            for blob, old in zip(parameters, before, strict=True):
                blob.diff[...] = old
            found = [torch.from_numpy(b.diff.copy()) if need else None for b, need in zip(self.bottom_blobs, needs, strict=True)]
            return found, added

    def _load(self, bottoms: Sequence[Tensor]) -> None:
        for blob, x in zip(self.bottom_blobs, bottoms, strict=True):
            blob.reshape(*x.shape)
            blob.data[...] = x.detach().cpu().numpy()

    def _call(self, method: Callable[..., object], *arguments: object) -> None:
        try:
            with caffetools.import_caffe_as_caffetools():
                method(*arguments)
        except CaffeToolsError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[1:]
            line = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
            python = self.param.python_param
            mark_user_error(error, f"layer '{self.name}': {python.module}.{python.layer}.{method.__name__} failed{line}")
            raise
        finally:
            if hasattr(self, "user_layer"):
                self.user_layer.blobs.sync()


class PythonData(Python):
    """A Python layer without bottoms, which makes the data of a net."""

    IS_DATA = True


class _Run(torch.autograd.Function):
    """The user's forward and backward as one operation of autograd."""

    @staticmethod
    def forward(ctx: Context, layer: Python, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        bottoms = tensors[:count]
        ctx.layer, ctx.count = layer, count
        device = bottoms[0].device if bottoms else torch.device("cpu")
        return tuple(top.to(device) for top in layer.compute(bottoms))

    @staticmethod
    def backward(ctx: Context, *diffs: Tensor) -> Any:
        needs = ctx.needs_input_grad[2 : 2 + ctx.count]
        found, added = ctx.layer.compute_gradients(diffs, needs)
        device = diffs[0].device if diffs else torch.device("cpu")
        return (None, None, *(g if g is None else g.to(device) for g in found), *(g.to(device) for g in added))


def _blob(name: str, shape: Shape) -> Blob:
    return Blob(BlobStorage(name, shape))
