"""Blobs that lie in one memory: those before and after a Flatten, Reshape or Split, as Caffe's ``ShareData`` and ``ShareDiff`` join them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch

from caffetools.layers.base import Layer
from caffetools.layers.blob_storage import BlobStorage
from caffetools.net.blob_versions import Step
from caffetools.net.net import Net
from caffetools.net.param_sharing import owner_of

Blobs = Mapping[str, BlobStorage]


def shares_data(layer: Layer) -> bool:
    """Return whether after a forward pass Caffe's tops all lie in the memory of the one bottom: what is written to one blob is in the others."""
    return layer.SHARES == "data" or layer.shares_memory()


def shares_diff(layer: Layer) -> bool:
    """Return whether in Caffe the diffs of the one top and the one bottom lie in one memory; that of a Split's bottom is the sum of its tops'."""
    return layer.SHARES != "data" and layer.shares_memory()


def share_with_shapes(step: Step, blobs: Blobs) -> None:
    """Join the blobs of a layer that does so when it gets its shapes (Reshape).

    Where several layers read the bottom, the layer has the bottom of Caffe's Split, which shares no data before its forward pass.

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
    if not step.reads[0].reader_diffs:
        top.data.share(bottom.data, shape)
    diff = step.bottom_diff(0, blobs)
    diff.reshape(bottom.shape)
    top.diff.share(diff, shape)


def share_with_parameter(layer: Layer, blobs: Blobs) -> bool:
    """Let the top of a Parameter layer lie in the memory of the parameter, as from Caffe's forward pass on; return whether that could be done."""
    storage, owner = blobs[layer.tops[0]].data, owner_of(layer.blobs[0])
    if storage.device.type != "cpu" or owner.dtype != torch.float32 or owner.shape != layer.blobs[0].shape or not owner.is_contiguous():
        return False
    storage.lie_in(owner)
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
        if step.layer.TRAITS.role == "parameter":
            share_with_parameter(step.layer, blobs)
        if shares_data(step.layer):
            bottom = blobs[step.layer.bottoms[0]].data
            for name in step.layer.tops:
                top = blobs[name].data
                if math.prod(top.shape) == math.prod(bottom.shape):
                    top.share(bottom, top.shape, keep=name in stored or step.covered)


def overwrites_seen_blobs(net: Net) -> bool:
    """Return whether a layer in place behind a Flatten overwrites an input of ``net``, or a blob that a later layer reads."""
    for index, plan in net.overwriting.items():
        seen = {*net.inputs, *(bottom for layer in net.layers[index + 1 :] for bottom in layer.bottoms)}
        if not seen.isdisjoint(plan.also):
            return True
    return False


def overwrites_inputs(net: Net) -> bool:
    """Return whether a layer in place writes to an input of ``net``, or to a blob in its memory: the next pass begins with what it left there."""
    inside = set(net.inputs)
    for layer in net.layers:
        if layer.IS_DATA or not layer.bottoms:
            continue
        inner = layer.bottoms[0] in inside
        if inner and len(layer.bottoms) == 1 and layer.tops == layer.bottoms and not layer.shares_memory():
            return True
        inside.difference_update(layer.tops)
        if inner and shares_data(layer):
            inside.update(layer.tops)
    return False
