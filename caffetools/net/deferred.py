"""Blobs of a fused forward pass that are computed when somebody looks at them.

An inference plan gives a net's outputs only. The other blobs of a :class:`~caffetools.net.stepwise.Stepwise` run are deferred: the
first look at one of them, or a change of the weights, computes them all layer by layer from the inputs that the pass had.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.blob_storage import watch
from caffetools.layers.tensor_storage import TensorStorage, all_deferred_by
from caffetools.net.net import Net
from caffetools.net.shape_plans import ShapePlan


class Deferred:
    """The inner blobs of one forward pass.

    The inputs are read where they are, and copied only before they may change: who looks at no inner blob pays for no copy of a batch.

    Args:
        net: The net, in the TEST phase.
        plan: Its layers for the shapes of the pass.
        inputs: The input blobs of the pass.
        storages: The blobs to compute on demand.
        join: Called when they have their values: joins the blobs that lie in one memory.
    """

    def __init__(
        self,
        net: Net,
        plan: ShapePlan,
        inputs: Mapping[str, TensorStorage],
        storages: Mapping[str, TensorStorage],
        join: Callable[[], None],
    ):
        self._plan, self._lenders, self._storages, self._join = plan, inputs, dict(storages), join
        self._inputs: dict[str, Tensor] = {}
        self._copies: dict[str, Tensor] = {}
        self._borrowed: set[str] = set()
        # One object for all storages, by which each is recognized.
        self._settle, self._recall = self.settle, self.copy_inputs
        for name, storage in storages.items():
            storage.defer(plan.blob_shapes[name], self._settle)
        self._deferred = list(storages.values())
        self.memories: Collection[int] = {
            p.untyped_storage().data_ptr() for layer in net.layers for p in layer.blobs._parameters.values() if p is not None
        }
        watch(self)

    def is_whole(self) -> bool:
        """Return whether none of the blobs was looked at or stored to; so no array of one is alive, either."""
        return bool(self._storages) and all_deferred_by(self._deferred, self._settle)

    def stands_for(self, plan: ShapePlan) -> bool:
        """Return whether a pass by ``plan`` may use this object, which :meth:`is_whole`."""
        return plan is self._plan and bool(self._storages)

    def borrow_inputs(self, replaced: Mapping[str, Tensor]) -> None:
        """Take the present values of the inputs as those of the pass, but for those that it ``replaced``, whose former values are given."""
        if not self._storages:
            return
        for name, storage in self._lenders.items():
            if name in replaced:
                self._inputs[name] = replaced[name]
                continue
            self._inputs[name] = storage.peek()
            self._borrowed.add(name)
            if not storage.lend(self._recall):
                self._copy(name)

    def copy_inputs(self) -> None:
        """Copy the inputs that were read where they are: they may change from now on."""
        for name in list(self._borrowed) if self._storages else ():
            self._copy(name)

    def _copy(self, name: str) -> None:
        # By NumPy: torch would wake its own threads for it, which then keep the processors from those of the native library.
        values, kept = self._inputs[name].numpy(), self._copies.get(name)
        if kept is None or kept.shape != values.shape:
            kept = self._copies[name] = torch.from_numpy(values.copy())
        else:
            np.copyto(kept.numpy(), values)
        self._inputs[name] = kept
        self._borrowed.discard(name)

    def settle(self) -> None:
        """Compute the blobs that are still deferred; a second call does nothing."""
        storages, self._storages = self._storages, {}
        if not storages:
            return
        blobs, self._inputs, self._copies = self._inputs, {}, {}
        with torch.no_grad():
            for layer in self._plan.layers:
                if layer.IS_DATA:
                    continue
                view = copy.copy(layer)
                view.inplace_ok = False
                blobs.update(zip(layer.tops, view.run(*(blobs[name] for name in layer.bottoms)), strict=True))
        for name, storage in storages.items():
            if storage.is_deferred_by(self._settle):
                # A blob may be a view of an input, as of a Flatten, whose memory the next values are written to.
                storage.store(blobs[name], self._lenders.values())
        self._join()
