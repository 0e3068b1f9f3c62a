"""The graph of blobs that holds a net together: tops that losses leave out, bottoms that must exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    """Check that every bottom is a top of a layer before it, and that Caffe builds the layers that work in place.

    Args:
        layers: The layers of one phase, in order.
        whole: The net that they are one phase of, to name what only the other phase produces.

    Raises:
        NetError: A bottom is unknown, or is produced only further down (a cycle); a top is produced twice, or is written over after
            another layer has read it.
    """
    layers = list(layers)
    produced: dict[str, str] = {}
    readers: dict[str, str] = {}
    for layer in layers:
        # Lists of Python: each access to a repeated field costs as much as the whole check of one name.
        name, bottoms, tops, weights = layer.name, list(layer.bottom), list(layer.top), layer.loss_weight
        for bottom in bottoms:
            if bottom not in produced:
                raise _unknown_bottom(layer, bottom, layers, produced, whole)
        for place, top in enumerate(tops):
            if tops.count(top) > 1 or (top in produced and top not in bottoms):
                raise NetError(
                    f"its top '{top}' is already made by layer '{produced.get(top, name)}', and it does not work in place", layer=name
                )
            if top in produced:
                _check_in_place(name, top, place, bottoms, readers)
        readers.update(dict.fromkeys(bottoms, f"layer '{name}' reads"))
        for place, top in enumerate(tops):
            produced[top] = name
            readers.pop(top, None)
            if weights and any(weights[place : place + 1]):
                readers[top] = f"the loss weight of layer '{name}' reads"


def _check_in_place(layer: str, top: str, place: int, bottoms: Sequence[str], readers: Mapping[str, str]) -> None:
    """Refuse what Caffe refuses, which gives the readers of a blob copies by a Split: a layer that reads one of these writes no blob in place."""
    if top in readers:
        raise NetError(
            f"it writes its top '{top}' in place, which {readers[top]} before; Caffe refuses that (the top is \"produced by multiple sources\"): "
            "give it a top of its own",
            layer=layer,
        )
    if bottoms.count(top) > 1 or list(bottoms[place : place + 1]) != [top]:
        raise NetError(
            f"its top '{top}' is its bottom too, in another place or twice, and Caffe refuses that (the top is \"produced by multiple sources\"): "
            "give it a top of its own",
            layer=layer,
        )


def _unknown_bottom(
    layer: LayerParameter, bottom: str, layers: Sequence[LayerParameter], produced: Mapping[str, str], whole: NetParameter | None
) -> NetError:
    producers = {top: other.name for other in layers for top in other.top}
    if bottom not in layer.top and bottom in producers:
        return NetError(
            f"its bottom '{bottom}' is produced only later, by layer '{producers[bottom]}': list the layers in the order in which they run, without a cycle",
            layer=layer.name,
        )
    other = next((known for known in whole.layer if bottom in known.top and known.name != layer.name), None) if whole else None
    if other is not None and bottom not in producers:
        return NetError(f"its bottom '{bottom}' is made in another phase or stage only, by layer '{other.name}'", layer=layer.name)
    return NetError(f"its bottom '{bottom}' is made by no layer before it{did_you_mean(bottom, produced)}", layer=layer.name)
