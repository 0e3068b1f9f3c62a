"""The graph of blobs that holds a net together: tops that losses leave out, bottoms that must exist."""

from __future__ import annotations

from collections.abc import Iterable

from caffetools.errors import NetError, did_you_mean
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import LayerParameter, NetParameter


def name_loss_tops(param: NetParameter) -> None:
    """Give a loss layer without a top one named after the layer, in place; Caffe adds one without a name.

    Where another blob has that name, or the layer has none, the top is called ``(automatic)``, as in Caffe's lists of blobs.
    """
    taken = {top for layer in param.layer for top in layer.top}
    for layer in param.layer:
        if layer.top or not layer_class(layer.type, layer=layer.name).IS_LOSS:
            continue
        name, number = layer.name or "(automatic)", 1
        while name in taken:
            name, number = f"(automatic)_{number}" if number > 1 else "(automatic)", number + 1
        taken.add(name)
        layer.top.append(name)


def check_blob_graph(layers: Iterable[LayerParameter], whole: NetParameter | None = None) -> None:
    """Check that every bottom is a top of a layer before it.

    Args:
        layers: The layers of one phase, in order.
        whole: The net that they are one phase of, to name what only the other phase produces.

    Raises:
        NetError: A bottom is unknown, or is produced only further down (a cycle); a top is produced twice.
    """
    layers = list(layers)
    produced: dict[str, str] = {}
    for layer in layers:
        for bottom in layer.bottom:
            if bottom in produced:
                continue
            producers = {top: other.name for other in layers for top in other.top}
            if bottom in layer.top or bottom not in producers:
                other = next((known for known in whole.layer if bottom in known.top and known.name != layer.name), None) if whole else None
                if other is not None and bottom not in producers:
                    raise NetError(
                        f"its bottom '{bottom}' is made in another phase or stage only, by layer '{other.name}'", layer=layer.name
                    )
                raise NetError(f"its bottom '{bottom}' is made by no layer before it{did_you_mean(bottom, produced)}", layer=layer.name)
            raise NetError(
                f"its bottom '{bottom}' is produced only later, by layer '{producers[bottom]}': list the layers in the order in which they run, without a cycle",
                layer=layer.name,
            )
        for top in layer.top:
            if top in produced and top not in layer.bottom:
                raise NetError(
                    f"its top '{top}' is already made by layer '{produced[top]}', and it does not work in place", layer=layer.name
                )
            produced[top] = layer.name
