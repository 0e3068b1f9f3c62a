"""Blobs of a fused forward pass that are computed when somebody looks at them.

An inference plan gives a net's outputs only. The other blobs of a :class:`~caffetools.net.stepwise.Stepwise` run are deferred: the
first look at one of them, or a change of the weights, computes them all layer by layer from the inputs that the pass had.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.blob_storage import BlobStorage, watch
from caffetools.net.net import Net
from caffetools.net.shape_plans import ShapePlan


class Deferred:
    """The inner blobs of one forward pass.

    Args:
        net: The net, in the TEST phase.
        plan: Its layers for the shapes of the pass.
        inputs: The input blobs as the pass read them; they are copied.
        storages: The blobs to compute on demand.
    """

    def __init__(self, net: Net, plan: ShapePlan, inputs: Mapping[str, Tensor], storages: Mapping[str, BlobStorage]):
        self._plan, self._storages = plan, dict(storages)
        self._inputs = {name: torch.from_numpy(value.numpy().copy()) for name, value in inputs.items()} if storages else {}
        # One object for all storages, by which each is recognised.
        self._settle = self.settle
        for name, storage in storages.items():
            storage.data.defer(plan.blob_shapes[name], self._settle)
        self.memories: Collection[int] = {
            p.untyped_storage().data_ptr() for layer in net.layers for p in layer.blobs._parameters.values() if p is not None
        }
        watch(self)

    def renew(self, plan: ShapePlan, inputs: Mapping[str, Tensor]) -> bool:
        """Take the inputs of the next pass with the same shapes, where no blob of the last one was looked at; return whether that was so."""
        if not self._storages or plan is not self._plan or not all(s.data.is_deferred_by(self._settle) for s in self._storages.values()):
            return False
        # By NumPy: torch would wake its own threads for it, which then keep the processors from those of the native library.
        for name, value in self._inputs.items():
            np.copyto(value.numpy(), inputs[name].numpy())
        return True

    def settle(self) -> None:
        """Compute the blobs that are still deferred; a second call does nothing."""
        storages, self._storages = self._storages, {}
        if not storages:
            return
        blobs = self._inputs
        with torch.no_grad():
            for layer in self._plan.layers:
                if layer.IS_DATA:
                    continue
                view = copy.copy(layer)
                view.inplace_ok = False
                blobs.update(zip(layer.tops, view.run(*(blobs[name] for name in layer.bottoms)), strict=True))
        for name, storage in storages.items():
            if storage.data.is_deferred_by(self._settle):
                storage.data.store(blobs[name])
