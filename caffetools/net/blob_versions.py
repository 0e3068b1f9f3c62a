"""Where values flow in a net: which layer produces each version of a blob, which layers read it, and which of them return gradients."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caffetools.layers.base import Layer, Shape
from caffetools.layers.blob_storage import BlobStorage
from caffetools.layers.tensor_storage import TensorStorage
from caffetools.net.gradients import Refusal, loss_weights, no_gradient, plan_backward, refused_gradients
from caffetools.net.net import Net
from caffetools.net.shape_plans import layer_view


@dataclass
class BlobVersion:
    """One version of a blob, from the layer that produces it to those that read it; a layer that works in place makes a new one.

    Where several bottoms, or a loss weight of the prototxt and a bottom, read it, Caffe inserts a Split layer right behind its producer. That layer is not
    here, but its effects on diffs are: each reader has a diff of its own, which lasts from pass to pass, and the version's diff becomes
    their sum only in backward passes that begin above its producer and reach it.

    Attributes:
        blob: The blob's name.
        loss_weight: The loss weight of the top, which its diff holds until a reader's backward pass overwrites it; 0 of most.
        split_weight: The loss weight that Caffe gives to the Split layer instead; 0 where there is none.
        num_readers: How many bottoms read this version.
        under_loss: Whether a layer that reads it leads to a loss.
        num_consumers: How many bottoms return a gradient to this version.
        reader_diffs: The diffs of the readers, by layer and bottom index, in order; empty where there is no Split.
        goes_back: Whether the layers below have a backward pass, and so the Split.
        unshared: What the Split's tops hold until the Split runs for the first time, by layer and bottom index: zeros, apart from the blob's data.
        capacity: The most values that the Split's tops had; with more they have a memory of their own again.
    """

    blob: str
    loss_weight: float = 0.0
    split_weight: float = 0.0
    num_readers: int = 0
    under_loss: bool = False
    num_consumers: int = 0
    reader_diffs: dict[tuple[int, int], TensorStorage] = field(default_factory=dict)
    goes_back: bool = False
    unshared: dict[tuple[int, int], TensorStorage] = field(default_factory=dict)
    capacity: int = 0

    def reshape_split(self, shape: Shape) -> None:
        """Give the Split's tops the shape of the blob: zeros in a memory of their own where that is larger than any before."""
        if self.reader_diffs and math.prod(shape) > self.capacity:
            self.capacity = math.prod(shape)
            self.unshared = {reader: TensorStorage(shape) for reader in self.reader_diffs}

    def run_split(self, shape: Shape) -> None:
        """Let the readers read the blob, which has ``shape`` now, as after the forward pass of Caffe's Split."""
        if self.reader_diffs:
            self.unshared, self.capacity = {}, max(self.capacity, math.prod(shape))

    @property
    def sums_diffs(self) -> bool:
        """Whether Caffe's Split has a backward pass."""
        return bool(self.reader_diffs) and self.goes_back and bool(self.split_weight or self.num_consumers)

    @property
    def is_skipped(self) -> bool:
        """Whether layers read it and none of them returns a gradient."""
        return bool(self.num_readers) and not (self.split_weight or self.num_consumers)

    def sum_of_diffs(self, shape: Shape) -> Tensor:
        """Return the sum of the readers' diffs and the loss weight, of the blob's ``shape``."""
        for diff in self.reader_diffs.values():
            diff.reshape(shape)
        first, *others = [diff.value() for diff in self.reader_diffs.values()]
        total = first + self.split_weight if self.split_weight else first
        for other in others:
            total = total + other
        return total


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
        covered: The tops whose blobs a later layer overwrites.
        inplace_ok: Whether it may overwrite its bottom's memory where no backward pass follows.
        inputs: The bottoms of the last forward pass as leaves of the layer's own autograd graph; None without one.
        tops: The tops of that pass.
        updates: How often each parameter had been changed in place by then, and where it lay.
        refused: The gradient that is asked for though the layer has none; None of most.
        ran: Whether there was a forward pass yet, with a graph or without.
    """

    layer: Layer
    index: int
    needs: list[bool]
    needs_backward: bool
    reads: list[BlobVersion]
    produces: list[BlobVersion]
    overwritten: list[bool]
    covered: frozenset[str] = frozenset()
    inplace_ok: bool = False
    inputs: list[Tensor] | None = None
    tops: tuple[Tensor, ...] = ()
    updates: list[tuple[int, int]] = field(default_factory=list)
    refused: Refusal | None = None
    ran: bool = False

    def check_gradient(self) -> None:
        """Raise :class:`NetError` where Caffe's backward pass of the layer ends the process."""
        if self.refused is not None:
            raise no_gradient(self.layer, self.refused)

    def record(self, inputs: list[Tensor], tops: tuple[Tensor, ...]) -> None:
        """Keep the leaves and the tops of a forward pass for going back."""
        self.inputs, self.tops = inputs, tops
        self.updates = self._state_of_parameters()

    def is_outdated(self, blobs: Mapping[str, BlobStorage]) -> bool:
        """Return whether a bottom, of ``blobs`` by name, has another shape than in the recorded pass, or the parameters were updated or replaced since."""
        if self.updates != self._state_of_parameters():
            return True
        return any(blobs[name].shape != tuple(leaf.shape) for name, leaf in zip(self.layer.bottoms, self.inputs or (), strict=False))

    def _state_of_parameters(self) -> list[tuple[int, int]]:
        # Other values may be written in place, or lie elsewhere: share_with puts another net's in their place.
        return [(blob._version, blob.data_ptr()) for blob in self.layer.blobs]

    def top_changed(self, blobs: Mapping[str, BlobStorage]) -> bool:
        """Return whether the top (or a bottom, of a layer that reads it too) holds other values than those of the recorded forward pass."""
        name = self.layer.tops[0]
        now = blobs[name].data.value()
        if now.shape != blobs[self.layer.bottoms[0]].shape:
            return False
        if self.inputs is None:
            return True
        made = self.tops[0].detach()
        same = name in self.covered or now.data_ptr() == made.data_ptr() or torch.equal(now, made)
        return not same or (self.layer.BACKWARD_READS_BOTTOMS and self.bottoms_changed(blobs))

    def bottoms_changed(self, blobs: Mapping[str, BlobStorage], among: Collection[int] | None = None) -> bool:
        """Return whether a bottom holds other values than the recorded forward pass read; a bottom overwritten since by a layer counts not.

        Args:
            blobs: The blobs by name.
            among: The bottoms to look at; None: all.
        """
        for index, (leaf, name) in enumerate(zip(self.inputs or (), self.layer.bottoms, strict=True)):
            if among is not None and index not in among:
                continue
            now = self.bottom_data(index, blobs).value()
            if self.overwritten[index]:
                # In place: the blob holds this layer's top. Where that was edited, the layer's mask comes from the new values.
                if name in self.layer.tops and self.layer.idempotent():
                    leaf = self.tops[self.layer.tops.index(name)].detach()
                else:
                    continue
            if now.data_ptr() == leaf.data_ptr() and now.shape == leaf.shape:
                continue
            if now.shape != leaf.shape or not torch.equal(now, leaf):
                return True
        return False

    def bottom_data(self, index: int, blobs: Mapping[str, BlobStorage]) -> TensorStorage:
        """Return what the layer reads as a bottom: its blob's data, or before the first forward pass of Caffe's Split the reader's own."""
        data = blobs[self.layer.bottoms[index]].data
        unshared = self.reads[index].unshared.get((self.index, index))
        if unshared is None:
            return data
        unshared.device = data.device
        unshared.reshape(data.shape)
        return unshared

    def bottom_values(self, blobs: Mapping[str, BlobStorage]) -> list[Tensor]:
        """Return the values of the bottoms, of ``blobs`` by name."""
        return [self.bottom_data(index, blobs).value() for index in range(len(self.layer.bottoms))]

    def bottom_diff(self, index: int, blobs: Mapping[str, BlobStorage]) -> TensorStorage:
        """Return where the gradient of a bottom is stored: its blob's diff, or the reader's own where several layers read the blob."""
        return self.reads[index].reader_diffs.get((self.index, index)) or blobs[self.layer.bottoms[index]].diff

    def begin(self) -> None:
        """Begin a forward pass: nothing of the last one is kept."""
        self.release()
        self.ran = True

    def reshape_splits(self, blobs: Mapping[str, BlobStorage]) -> None:
        """Give the tops of Caffe's Split layers behind the layer the shapes of ``blobs``."""
        for version in self.produces:
            version.reshape_split(blobs[version.blob].shape)

    def run_splits(self, blobs: Mapping[str, BlobStorage]) -> None:
        """Let the layers behind this one read its tops, of ``blobs``, as after the forward passes of Caffe's Split layers."""
        for version in self.produces:
            version.run_split(blobs[version.blob].shape)

    def release(self) -> None:
        """Release what the last forward pass kept for going back."""
        self.inputs, self.tops = None, ()


def plan_steps(net: Net) -> list[Step]:
    """Return the steps of ``net``. As in Caffe, only layers below a loss have a backward pass, unless the net has ``force_backward``."""
    force = bool(net.param.force_backward)
    gradients, goes_back = plan_backward(net.layers, force=force, above_statistics=True)
    steps: list[Step] = []
    current: dict[str, BlobVersion] = {}
    for index, layer in enumerate(net.layers):
        reads = [current[b] for b in layer.bottoms]
        weights = loss_weights(layer)
        produces = [BlobVersion(top, weight, goes_back=goes_back[index]) for top, weight in zip(layer.tops, weights, strict=True)]
        current.update((version.blob, version) for version in produces)
        steps.append(Step(layer_view(layer), index, gradients[index], False, reads, produces, [], inplace_ok=layer.inplace_ok))
    for index, refusal in refused_gradients(net.layers, force=force).items():
        steps[index].refused = refusal
    _give_readers_diffs(net, steps)
    overwritten: set[str] = set()
    for step in reversed(steps):
        leads_to_loss = any(version.loss_weight or version.split_weight or version.under_loss for version in step.produces)
        below_loss = force or (leads_to_loss and not all(version.is_skipped for version in step.produces))
        step.needs = [need and below_loss for need in step.needs]
        step.needs_backward = below_loss and (any(step.needs) or any(p.requires_grad or force for p in step.layer.blobs))
        for version, need in zip(step.reads, step.needs, strict=True):
            version.num_consumers += need
            version.under_loss |= leads_to_loss
        if step.layer.BACKWARD_IS_UNASKED:
            step.needs_backward = step.needs_backward or (below_loss and goes_back[step.index])
            step.needs = [step.needs_backward] * len(step.needs)
        step.covered = frozenset(overwritten.intersection(step.layer.tops))
        overwritten.update(step.layer.tops)
        step.overwritten = [bottom in overwritten for bottom in step.layer.bottoms]
    return steps


def _give_readers_diffs(net: Net, steps: list[Step]) -> None:
    """Give each reader of a version that several read a diff of its own. A Split takes the loss weight that the prototxt gives its producer."""
    readers: dict[int, list[tuple[int, int]]] = {}
    for step in steps:
        for index, version in enumerate(step.reads):
            readers.setdefault(id(version), []).append((step.index, index))
    for step in steps:
        given = len(step.layer.param.loss_weight) > 0
        for place, version in enumerate(step.produces):
            found = readers.get(id(version), [])
            version.num_readers = len(found)
            if found and given and version.loss_weight:
                # The layer itself is left without a weight, so a loss has the one that it has by itself.
                version.split_weight, version.loss_weight = version.loss_weight, float(step.layer.IS_LOSS and not place)
            if len(found) + bool(version.split_weight) > 1:
                version.reader_diffs = {reader: TensorStorage(net.blob_shapes[version.blob], net.device) for reader in found}


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
