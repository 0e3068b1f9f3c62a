"""When a net's forward pass may run by an inference plan, and the plans that it keeps."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_

import torch
from torch import Tensor
from torch.nn import Parameter

from caffetools.layers import native_conv
from caffetools.layers.base import Layer
from caffetools.layers.blob_storage import exposure, last_exposure
from caffetools.layers.observed import last_observation
from caffetools.layers.tensor_storage import Array
from caffetools.net.inference_plan import InferencePlan
from caffetools.net.inference_run import ShapeChanged
from caffetools.net.shape_plans import ShapePlan, ShapePlans, is_exclusive, runs_unobserved

# Plans that are kept, each with memory for all blobs of its shapes.
_MAX_PLANS = 4

# Read from many layers and weights at every pass.
_version = attrgetter("_version")


@dataclass(frozen=True)
class _Exposed:
    """Which weights were given out as arrays.

    Attributes:
        change: :func:`~caffetools.layers.blob_storage.last_exposure` when this was found out.
        addresses: Of the weights' memory. times: How often each was given out.
        arrays: Those that may be alive.
    """

    change: int
    addresses: tuple[int, ...]
    times: tuple[int, ...]
    arrays: tuple[weakref.ref[Array], ...]

    @classmethod
    def of(cls, parameters: Sequence[Tensor], addresses: tuple[int, ...]) -> _Exposed:
        change = last_exposure()
        exposed = [exposure(parameter) for parameter in parameters]
        return cls(change, addresses, tuple(times for times, _ in exposed), tuple(array for _, array in exposed if array is not None))


class InferencePlans:
    """The inference plans of a net by input shapes and wanted blobs.

    Weights are packed when a plan is made. Changes by torch (optimizers, ``load_weights``, ``load_state_dict``) are seen through the
    tensors' version counters, those through pycaffe's arrays through :func:`~caffetools.layers.blob_storage.exposure`, and the plans
    are made again. Who changes weights in another way (an array of ``parameter.detach().numpy()``) calls :meth:`clear`.

    Args:
        layers: The net's layers in order.
        shape_plans: Of the same net.
        possible: Whether the net's blobs are made as a plan makes them: no layer in place overwrites one that another layer reads.

    Attributes:
        enabled: False runs every pass layer by layer. Set from the environment variable ``CAFFETOOLS_FUSE`` (0: False).
    """

    def __init__(self, layers: Sequence[Layer], shape_plans: ShapePlans, *, possible: bool = True):
        self.enabled = os.environ.get("CAFFETOOLS_FUSE") != "0"
        self._layers, self._shape_plans = layers, shape_plans
        self._possible = possible and not shape_plans.dynamic and not any(is_exclusive(layer) for layer in layers if not layer.IS_DATA)
        self._plans: OrderedDict[tuple[object, ...], InferencePlan | None] = OrderedDict()
        self._weights: tuple[object, ...] = ()
        self._storages: list[dict[str, Parameter | None]] = []
        # The parameters that were found last, and what they were recognized by.
        self._found: list[Tensor] = []
        self._known: list[Parameter | None] = []
        # last_observation() when no layer was found to be observed.
        self._unobserved = -1
        self._exposed = _Exposed.of((), ())
        self._lock = threading.Lock()

    def run(self, plan: ShapePlan, blobs: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor] | None:
        """Run by a plan.

        Args:
            plan: The layers configured for the shapes of ``blobs``.
            blobs: Tops of the data layers, by name; float32 on the CPU.
            wanted: Names of the blobs to return.

        Returns:
            The wanted blobs, in tensors of their own; None where the pass has to run layer by layer.
        """
        if not self._may_run(blobs):
            return None
        fused = self._plan(plan, blobs, tuple(wanted))
        if fused is None:
            return None
        try:
            return fused.run(blobs)
        except ShapeChanged:
            self._possible = False
            return None

    def wake(self) -> None:
        """Wake the threads of a pass that follows at once: they need as long as this process needs to prepare it."""
        if self._plans and self.enabled and native_conv.available():
            native_conv.wake_threads()

    def clear(self) -> None:
        """Drop all plans: the layers or their weights were changed."""
        with self._lock:
            self._plans.clear()
            self._storages = []

    def _may_run(self, blobs: Mapping[str, Tensor]) -> bool:
        if not self.enabled or not self._possible or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if not native_conv.available() or torch.is_autocast_enabled("cpu"):
            return False
        if not all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() for t in blobs.values()):
            return False
        observation = last_observation()
        if observation != self._unobserved:
            if not runs_unobserved(self._layers):
                return False
            self._unobserved = observation
        return True

    def _parameters(self) -> list[Tensor]:
        storages = self._storages
        if not storages:
            self._storages = storages = [layer.blobs._parameters for layer in self._layers]
        found = list(chain.from_iterable(map(dict.values, storages)))
        if len(found) != len(self._known) or not all(map(is_, found, self._known)):
            self._found = [p for p in found if p is not None]
            self._known = found
        return self._found

    def _plan(self, plan: ShapePlan, blobs: Mapping[str, Tensor], wanted: tuple[str, ...]) -> InferencePlan | None:
        shapes = {name: tuple(blob.shape) for name, blob in blobs.items()}
        threads = torch.get_num_threads()
        key = (tuple(shapes.items()), wanted, threads)
        parameters = self._parameters()
        addresses = tuple(map(Tensor.data_ptr, parameters))
        exposed = self._exposed
        if exposed.change != last_exposure() or exposed.addresses != addresses:
            exposed = self._exposed = _Exposed.of(parameters, addresses)
        if exposed.arrays and any(array() is not None for array in exposed.arrays):
            return None  # somebody holds an array of weights and may write to it at any time
        # The tuples of ``exposed`` are mostly those of the last pass, which are equal without a look at their values.
        weights = (exposed.addresses, exposed.times, tuple(map(_version, parameters)))
        with self._lock:
            if weights != self._weights:
                self._plans.clear()
                self._weights = weights
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
            like = next((kept for kept in self._plans.values() if kept is not None), None)
        made = None
        if all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters):
            with torch.no_grad():
                made = InferencePlan(plan.layers, shapes, wanted, threads, like)
        with self._lock:
            self._plans[key] = made
            if len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
        return made

    def __deepcopy__(self, memo: dict[int, object]) -> InferencePlans:
        return InferencePlans(copy.deepcopy(self._layers, memo), copy.deepcopy(self._shape_plans, memo))

    def __reduce__(self) -> tuple[type[InferencePlans], tuple[Sequence[Layer], ShapePlans]]:
        return InferencePlans, (self._layers, self._shape_plans)
