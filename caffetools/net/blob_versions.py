"""Where values flow in a net: which layer produces each version of a blob, which layers read it, and which of them return gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caffetools.layers.base import Layer
from caffetools.layers.blob_storage import BlobStorage, TensorStorage
from caffetools.net.gradients import plan_gradients
from caffetools.net.net import Net
from caffetools.net.shape_plans import layer_view


@dataclass
class BlobVersion:
    """One version of a blob, from the layer that produces it to those that read it; a layer that works in place makes a new one.

    Attributes:
        blob: The blob's name.
        loss_weight: What Caffe calls the loss weight of the top; 0 of most.
        num_consumers: How many bottoms return a gradient to this version.
        partial_grads: The gradients that have come back, by layer and bottom index.
        total: Their sum, with the loss weight.
    """

    blob: str
    loss_weight: float = 0.0
    num_consumers: int = 0
    partial_grads: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    total: Tensor | None = None

    def accumulate(self, consumer: tuple[int, int], gradient: Tensor) -> Tensor:
        """Add the gradient (of the blob's shape) of ``consumer`` (layer and bottom index); return the sum so far, as Caffe's Split layers compute it."""
        if self.num_consumers == 1 and not self.loss_weight:
            return gradient
        if any(part.shape != gradient.shape for part in self.partial_grads.values()):
            # Left by a partial pass before the blob was reshaped.
            self.clear()
        again = consumer in self.partial_grads
        self.partial_grads[consumer] = gradient
        if again or self.total is None:
            parts = list(self.partial_grads.values())
            self.total = torch.full_like(parts[0], self.loss_weight) if self.loss_weight else parts.pop(0)
            for part in parts:
                self.total = self.total + part
        else:
            self.total = self.total + gradient
        return self.total

    def clear(self) -> None:
        """Drop the gradients: the layer that produces this version has used them, or has made a new one."""
        self.partial_grads.clear()
        self.total = None


@dataclass
class Step:
    """A layer in a run, and what its backward pass computes.

    Attributes:
        layer: The layer, as a view whose shapes are this run's own.
        index: Its number in the net.
        needs: Which bottoms get a gradient.
        needs_backward: Whether the layer has a backward pass at all.
        reads: The versions of its bottoms.
        produces: The versions of its tops.
        overwritten: Which bottoms' blobs are overwritten by this layer or a later one.
        covered: Whether a later layer overwrites a top's blob.
        inplace_ok: Whether it may overwrite its bottom's memory where no backward pass follows.
        inputs: The bottoms of the last forward pass as leaves of the layer's own autograd graph; None without one.
        tops: The tops of that pass.
        updates: How often each parameter had been changed in place by then.
        ran: Whether there was a forward pass yet, with a graph or without.
        kept: Where the layer keeps the values of KEEPS_IN_DIFF: in a diff of its own, as of Caffe's Split, where several layers read the
            first bottom; None: in that bottom's diff, or it keeps none.
    """

    layer: Layer
    index: int
    needs: list[bool]
    needs_backward: bool
    reads: list[BlobVersion]
    produces: list[BlobVersion]
    overwritten: list[bool]
    covered: bool = False
    inplace_ok: bool = False
    inputs: list[Tensor] | None = None
    tops: tuple[Tensor, ...] = ()
    updates: list[int] = field(default_factory=list)
    ran: bool = False
    kept: TensorStorage | None = None

    def record(self, inputs: list[Tensor], tops: tuple[Tensor, ...]) -> None:
        """Keep the leaves and the tops of a forward pass for going back."""
        self.inputs, self.tops = inputs, tops
        self.updates = [blob._version for blob in self.layer.blobs]

    def is_outdated(self, blobs: Mapping[str, BlobStorage]) -> bool:
        """Return whether a bottom, of ``blobs`` by name, has another shape than in the recorded pass, or the parameters were updated since."""
        if self.updates != [blob._version for blob in self.layer.blobs]:
            return True
        return any(blobs[name].shape != tuple(leaf.shape) for name, leaf in zip(self.layer.bottoms, self.inputs or (), strict=False))

    def release(self) -> None:
        """Release what the last forward pass kept for going back."""
        self.inputs, self.tops = None, ()


def plan_steps(net: Net) -> list[Step]:
    """Return the steps of ``net``. As in Caffe, only layers below a loss have a backward pass, unless the net has ``force_backward``."""
    force = bool(net.param.force_backward)
    gradients = plan_gradients(net.layers, force=force, above_statistics=True)
    steps: list[Step] = []
    current: dict[str, BlobVersion] = {}
    for index, layer in enumerate(net.layers):
        reads = [current[b] for b in layer.bottoms]
        weights = _loss_weights(layer)
        produces = [BlobVersion(top, weight) for top, weight in zip(layer.tops, weights, strict=True)]
        current.update((version.blob, version) for version in produces)
        steps.append(Step(layer_view(layer), index, gradients[index], False, reads, produces, [], inplace_ok=layer.inplace_ok))
    readers = Counter(id(version) for step in steps for version in step.reads)
    overwritten: set[str] = set()
    for step in reversed(steps):
        below_loss = force or any(version.loss_weight or version.num_consumers for version in step.produces)
        step.needs = [need and below_loss for need in step.needs]
        step.needs_backward = below_loss and (any(step.needs) or any(p.requires_grad or force for p in step.layer.blobs))
        for version, need in zip(step.reads, step.needs, strict=True):
            version.num_consumers += need
        if step.layer.KEEPS_IN_DIFF and readers[id(step.reads[0])] > 1:
            step.kept = TensorStorage(net.blob_shapes[step.layer.bottoms[0]], net.device)
        step.covered = not overwritten.isdisjoint(step.layer.tops)
        overwritten.update(step.layer.tops)
        step.overwritten = [bottom in overwritten for bottom in step.layer.bottoms]
    return steps


def _loss_weights(layer: Layer) -> list[float]:
    given = [float(weight) for weight in layer.param.loss_weight]
    if not given and layer.IS_LOSS:
        given = [1.0]
    return given + [0.0] * (len(layer.tops) - len(given))


def kept_tops(layer: Layer, blobs: Mapping[str, BlobStorage]) -> set[str]:
    """Return the tops that keep their values: those of Input layers, and DummyData's constants, which Caffe fills once."""
    if layer.TRAITS.role == "input":
        return set(layer.tops)
    if layer.TRAITS.role != "constant":
        return set()
    fillers = list(layer.param.dummy_data_param.data_filler)
    fillers = fillers * len(layer.tops) if len(fillers) == 1 else fillers
    drawn = {top for top, filler in zip(layer.tops, fillers, strict=False) if filler.type != "constant"}
    return {top for top in layer.tops if top not in drawn and blobs[top].data.is_set}
