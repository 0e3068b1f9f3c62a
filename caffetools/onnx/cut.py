"""A part of a net: from some of its blobs to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caffetools.errors import CaffeToolsError, ExportError, did_you_mean
from caffetools.layers.base import Shape
from caffetools.layers.inputs import Input
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, LayerParameter, NetParameter


def cut_net(
    net: NetParameter, outputs: Sequence[str] = (), sources: Sequence[str] = (), shapes: Mapping[str, Shape] | None = None
) -> NetParameter:
    """Return the part of ``net`` that makes ``outputs`` from ``sources``. Layers that it does not need are never built.

    So a part can be had of a net whose other layers cannot be, such as Python layers whose module is not here.

    Args:
        net: The whole net in its phase, with Input layers.
        outputs: Blobs that become the outputs; those that no layer reads when empty.
        sources: Blobs that become inputs, as their last layer leaves them.
        shapes: Shapes of sources and of the net's inputs, in place of the net's own.

    Raises:
        ExportError: A blob is unknown, ``outputs`` do not depend on ``sources``, or a source's shape is not known.
    """
    blobs = list(dict.fromkeys(top for layer in net.layer for top in layer.top))
    for blob in (*outputs, *sources):
        if blob not in blobs:
            raise ExportError(f"the net '{net.name}' has no blob '{blob}'{did_you_mean(blob, blobs)}")
    wanted = set(outputs) or _unused_blobs(net)
    kept, used = _layers_between(net, wanted, set(sources))
    if unused := [blob for blob in sources if blob not in used]:
        raise ExportError(f"none of {', '.join(sorted(wanted))} depends on '{unused[0]}'")
    part = NetParameter(name=net.name)
    found = _source_shapes(net, sources, shapes or {}) if sources else {}
    for blob in sources:
        made = part.layer.add(name=blob, type=Input.TYPE, top=[blob])
        made.input_param.shape.add(dim=found[blob])
    part.layer.extend(kept)
    return part


def _unused_blobs(net: NetParameter) -> set[str]:
    """Return the net's outputs: blobs that no layer reads after the last one that makes them."""
    unread: set[str] = set()
    for layer in net.layer:
        unread = (unread - set(layer.bottom)) | set(layer.top)
    return unread


def _layers_between(net: NetParameter, wanted: set[str], known: set[str]) -> tuple[list[LayerParameter], set[str]]:
    """Return the layers that make ``wanted`` from ``known`` blobs, and the known blobs that they read."""
    needed, used, kept = wanted - known, wanted & known, []
    for layer in reversed(net.layer):
        if not needed & set(layer.top):
            continue
        kept.append(layer)
        needed -= set(layer.top)
        used |= set(layer.bottom) & known
        needed |= set(layer.bottom) - known
    return kept[::-1], used


def _source_shapes(net: NetParameter, sources: Sequence[str], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the sources' shapes: the given ones, or those that the layers before them give."""
    found = {}
    for blob in sources:
        if blob in shapes:
            found[blob] = tuple(shapes[blob])
            continue
        before = NetParameter(name=net.name)
        before.layer.extend(_layers_between(net, {blob}, set())[0])
        try:
            found[blob] = Net(before, TEST, fill=False, input_shapes=shapes).blob_shapes[blob]
        except CaffeToolsError as error:
            advice = f"give the shape of '{blob}' with --input-shape {blob}=N,…"
            error.hint = f"{error.hint}; or {advice}" if error.hint else advice
            raise
    return found
