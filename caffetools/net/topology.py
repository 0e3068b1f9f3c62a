"""The names that hold a net together: tops that losses leave out, bottoms that must exist."""

from __future__ import annotations

from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.layers.registry import layer_class


def name_loss_tops(param: Any) -> None:
    """Give a loss layer without a top one called after the layer, in place, as Caffe adds it silently."""
    for layer in param.layer:
        if not layer.top and layer_class(layer.type, layer=layer.name).IS_LOSS:
            layer.top.append(layer.name)


def check_blob_graph(param: Any, whole: Any | None = None) -> None:
    """Hold every bottom against the tops before it.

    Args:
        whole: The net that ``param`` is one phase of, to tell what only the other one makes.

    Raises:
        NetError: a bottom is unknown, or is made only further down (a cycle); a top is made twice.
    """
    made: dict[str, str] = {}
    makers = {top: layer.name for layer in param.layer for top in layer.top}
    for layer in param.layer:
        for bottom in layer.bottom:
            if bottom in made:
                continue
            if bottom in layer.top or bottom not in makers:
                other = next((maker for maker in whole.layer if bottom in maker.top and maker.name != layer.name), None) if whole else None
                if other is not None and bottom not in makers:
                    raise NetError(
                        f"its bottom '{bottom}' is made in another phase or stage only, by layer '{other.name}'", layer=layer.name
                    )
                raise NetError(f"its bottom '{bottom}' is made by no layer before it{did_you_mean(bottom, made)}", layer=layer.name)
            raise NetError(
                f"its bottom '{bottom}' is made only later, by layer '{makers[bottom]}': layers must stand in order, without a cycle",
                layer=layer.name,
            )
        for top in layer.top:
            if top in made and top not in layer.bottom:
                raise NetError(f"its top '{top}' is already made by layer '{made[top]}', and it does not work in place", layer=layer.name)
            made[top] = layer.name
