"""Blobs that lie in one memory: those before and after a Flatten, Reshape or Split, as Caffe's ``ShareData`` and ``ShareDiff`` join them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from caffetools.layers.base import Layer, Shape, format_shape
from caffetools.layers.blob_storage import BlobStorage
from caffetools.net.blob_versions import Step
from caffetools.net.net import Net
from caffetools.net.overwriting import is_in_place
from caffetools.net.param_sharing import owner_of
from caffetools.proto.schema import TEST

Blobs = Mapping[str, BlobStorage]


def shares_diff(layer: Layer) -> bool:
    """Return whether in Caffe the diffs of the one top and the one bottom lie in one memory; that of a Split's bottom is the sum of its tops'."""
    return layer.SHARES != "data" and layer.shares_memory()


def share_with_shapes(step: Step, blobs: Blobs) -> None:
    """Join the blobs of a layer that does so when it gets its shapes (Reshape).

    Where several layers read the bottom, the layer has a top of Caffe's Split, which shares no data with the blob before its forward pass.

    Args:
        step: The layer, as configured for its bottoms.
        blobs: The blobs by name.
    """
    layer = step.layer
    if not (layer.SHARES == "shapes" and layer.shares_memory()):
        return
    bottom, top = blobs[layer.bottoms[0]], blobs[layer.tops[0]]
    shape = layer.top_shapes[0]
    if math.prod(shape) != math.prod(bottom.shape):
        return
    if not step.reads[0].reader_diffs or step.reads[0].unshared:
        top.data.share(step.bottom_data(0, blobs), shape)
    diff = step.bottom_diff(0, blobs)
    diff.reshape(bottom.shape)
    top.diff.share(diff, shape)


def lies_in_parameter(layer: Layer, blobs: Blobs) -> bool:
    """Return whether ``layer`` is a Parameter layer whose top can lie in the memory of its parameter: on the CPU, in C order, of one shape."""
    if layer.TRAITS.role != "parameter":
        return False
    owner = owner_of(layer.blobs[0])
    on_cpu = blobs[layer.tops[0]].data.device.type == "cpu" and owner.dtype == torch.float32
    return on_cpu and owner.shape == layer.blobs[0].shape and owner.is_contiguous()


def share_with_parameter(layer: Layer, blobs: Blobs) -> bool:
    """Let data and diff of a Parameter layer's top lie in the parameter's memory, as from Caffe's forward pass on; return whether that could be done.

    So the layers above write the parameter's gradient themselves, and the last of several Parameter layers over it leaves its own.

    Raises:
        NetError: The top was given a shape of another number of values.
    """
    if layer.TRAITS.role == "parameter" and math.prod(blobs[layer.tops[0]].shape) != layer.blobs[0].numel():
        given, own = format_shape(blobs[layer.tops[0]].shape), format_shape(layer.blobs[0].shape)
        raise layer.error(f"its top '{layer.tops[0]}' was reshaped to {given}, but lies in the layer's parameter of {own}")
    if not lies_in_parameter(layer, blobs):
        return False
    owner, top = owner_of(layer.blobs[0]), blobs[layer.tops[0]]
    if owner.grad is None or not owner.grad.is_contiguous():
        owner.grad = torch.zeros_like(owner) if owner.grad is None else owner.grad.contiguous()
    top.data.lie_in(owner)
    top.diff.lie_in(owner.grad)
    return True


def share_diff_back(step: Step, blobs: Blobs) -> bool:
    """Run the backward pass of a layer whose bottom and top have one diff; return whether that could be done.

    Args:
        step: The layer.
        blobs: The blobs by name.
    """
    bottom, top = blobs[step.layer.bottoms[0]], blobs[step.layer.tops[0]]
    if math.prod(top.shape) != math.prod(bottom.shape):
        return False
    if step.needs[0]:
        top.diff.reshape(top.shape)
        diff = step.bottom_diff(0, blobs)
        diff.reshape(bottom.shape)
        diff.share(top.diff, bottom.shape)
    return True


def share_after_pass(steps: Sequence[Step], blobs: Blobs, stored: Collection[str]) -> None:
    """Join the blobs of all layers that share data, after a forward pass that stored them apart.

    Args:
        steps: The layers of the pass.
        blobs: The blobs by name.
        stored: Blobs whose values are of the pass, or were edited since; the others were computed just now, layer by layer.
    """
    for step in steps:
        share_with_parameter(step.layer, blobs)
        if step.layer.shares_data():
            bottom = blobs[step.layer.bottoms[0]].data
            for name in step.layer.tops:
                top = blobs[name].data
                if math.prod(top.shape) == math.prod(bottom.shape):
                    top.share(bottom, top.shape, keep=name in stored or name in step.covered)


def overwrites_seen_blobs(net: Net) -> bool:
    """Return whether a layer in place behind a Flatten overwrites an input of ``net``, or a blob that a later layer reads."""
    for index, plan in net.overwriting.items():
        seen = {*net.inputs, *(bottom for layer in net.layers[index + 1 :] for bottom in layer.bottoms)}
        if not seen.isdisjoint(plan.also):
            return True
    return False


def overwritten_inputs(net: Net) -> list[str] | None:
    """Return the inputs of ``net`` that a layer in place writes to: the next pass begins with what it left there.

    None where another blob lies in the memory of such an input, too: then only a pass layer by layer leaves the right values.
    """
    holders = {name: name for name in net.inputs}
    overwritten: set[str] = set()
    shared: set[str] = set()
    for layer in net.layers:
        if layer.IS_DATA or not layer.bottoms:
            continue
        holder = holders.get(layer.bottoms[0])
        if holder is not None and is_in_place(layer) and not layer.shares_memory():
            overwritten.add(holder)
            continue
        for top in layer.tops:
            holders.pop(top, None)
        if holder is not None and layer.shares_data():
            shared.add(holder)
            holders.update(dict.fromkeys(layer.tops, holder))
    if overwritten & (shared | set(net.outputs)):
        return None
    return [name for name in net.inputs if name in overwritten]


@dataclass(frozen=True)
class OutputMemory:
    """The memory of outputs of a net that other blobs lie in, too (below a Flatten, above a Split): after a pass all have the same values.

    Attributes:
        outputs: The outputs in it.
        others: The inner blobs in it.
    """

    outputs: tuple[str, ...]
    others: tuple[str, ...]

    def is_joined(self, blobs: Blobs, shapes: Mapping[str, Shape]) -> bool:
        """Return whether all of its ``blobs`` lie in one memory, under ``shapes``."""
        first = blobs[self.outputs[0]].data
        return all(blobs[name].data.lies_with(first) and blobs[name].shape == tuple(shapes[name]) for name in (*self.outputs, *self.others))

    def may_join(self, blobs: Blobs, shapes: Mapping[str, Shape]) -> bool:
        """Return whether :meth:`join` leaves no array behind that shows one of the blobs."""
        return self.is_joined(blobs, shapes) or not any(blobs[name].data.has_live_view for name in (*self.outputs[1:], *self.others))

    def join(self, blobs: Blobs, shapes: Mapping[str, Shape]) -> None:
        """Give all of its ``blobs`` the memory and the values of the first output, under ``shapes``."""
        if not self.is_joined(blobs, shapes):
            first = blobs[self.outputs[0]].data
            for name in (*self.outputs[1:], *self.others):
                blobs[name].data.share(first, tuple(shapes[name]))


def output_memories(net: Net) -> list[OutputMemory]:
    """Return the memories of outputs of ``net`` that inner blobs or other outputs lie in, too."""
    found: list[OutputMemory] = []
    for names in _memories(net):
        outputs = tuple(name for name in names if name in net.outputs)
        if outputs:
            found.append(OutputMemory(outputs, tuple(name for name in names if name not in net.outputs)))
    return found


def deferrable(net: Net, memories: Sequence[OutputMemory]) -> list[str] | None:
    """Return the blobs that a pass by an inference plan need not make; None where losses or the memory of the blobs ask for a pass layer by layer.

    Args:
        net: The net.
        memories: What :func:`output_memories` gave for it.
    """
    inputs = set(net.inputs)
    # Who writes to an output in the memory of an input writes to the input.
    if (
        net.phase != TEST
        or net.loss_weights
        or overwrites_seen_blobs(net)
        or any(not inputs.isdisjoint(memory.others) for memory in memories)
    ):
        return None
    made = {*net.inputs, *net.outputs, *(name for memory in memories for name in memory.others)}
    return [name for name in net.blob_shapes if name not in made]


def _memories(net: Net) -> list[list[str]]:
    """Return the blobs of ``net`` that lie in one memory after a forward pass, where these are several; in order."""
    memory: dict[str, list[str]] = {}
    for layer in net.layers:
        shared = memory[layer.bottoms[0]] if layer.bottoms and layer.shares_data() else None
        for top in layer.tops:
            if top not in memory:
                memory[top] = shared if shared is not None else []
                memory[top].append(top)
    return [names for name, names in memory.items() if name == names[0] and len(names) > 1]
