"""A part of a net: from some of its blobs to others."""

from __future__ import annotations

from collections.abc import Sequence

from caffetools.errors import ExportError, did_you_mean
from caffetools.layers.inputs import Input
from caffetools.net.net import Net
from caffetools.proto.schema import NetParameter


def cut_net(net: Net, outputs: Sequence[str] = (), sources: Sequence[str] = ()) -> NetParameter:
    """Return the part of ``net`` that makes ``outputs`` from ``sources``.

    Args:
        net: The whole net.
        outputs: Blobs that become the outputs; the net's own outputs when empty.
        sources: Blobs that become inputs, as their last layer leaves them.

    Raises:
        ExportError: A blob is unknown, or ``outputs`` do not depend on ``sources``.
    """
    for blob in (*outputs, *sources):
        if blob not in net.blob_shapes:
            raise ExportError(f"the net '{net.name}' has no blob '{blob}'{did_you_mean(blob, net.blob_shapes)}")
    wanted = set(outputs or net.outputs)
    known, kept = set(sources), []
    needed = wanted - known
    used = wanted & known
    for layer in reversed(net.layers):
        if not needed & set(layer.tops):
            continue
        kept.append(layer)
        needed -= set(layer.tops)
        used |= set(layer.bottoms) & known
        needed |= set(layer.bottoms) - known
    if unused := [blob for blob in sources if blob not in used]:
        raise ExportError(f"none of {', '.join(sorted(wanted))} depends on '{unused[0]}'")
    part = NetParameter(name=net.name)
    for blob in sources:
        made = part.layer.add(name=blob, type=Input.TYPE, top=[blob])
        made.input_param.shape.add(dim=net.blob_shapes[blob])
    for layer in reversed(kept):
        copy = part.layer.add()
        copy.CopyFrom(layer.param)
    return part
