"""The names that hold a net together: inputs written the old way, tops that losses leave out, bottoms that must exist."""

from __future__ import annotations

from typing import Any

from caffetools.errors import NetError
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import NetParameter


def legacy_inputs(param: Any) -> Any:
    """``param`` with its net-level ``input`` fields (and their shapes or dims) turned into an Input layer, as Caffe upgrades them."""
    if not param.input:
        return param
    count = len(param.input)
    shapes = [list(shape.dim) for shape in param.input_shape]
    if not shapes:
        dims = list(param.input_dim)
        if len(dims) != 4 * count:
            raise NetError(f"{count} input(s) need {4 * count} input_dim values or {count} input_shape blocks, not {len(dims)}")
        shapes = [dims[i : i + 4] for i in range(0, len(dims), 4)]
    if len(shapes) != count:
        raise NetError(f"{count} input(s) but {len(shapes)} input_shape block(s)")
    upgraded = NetParameter()
    upgraded.CopyFrom(param)
    for field in ("input", "input_shape", "input_dim", "layer"):
        upgraded.ClearField(field)
    layer = upgraded.layer.add(name="input", type="Input", top=list(param.input))
    for shape in shapes:
        layer.input_param.shape.add(dim=shape)
    upgraded.layer.extend(param.layer)
    return upgraded


def name_loss_tops(param: Any) -> None:
    """Give a loss layer without a top one called after the layer, in place, as Caffe adds it silently."""
    for layer in param.layer:
        if not layer.top and layer_class(layer.type, layer=layer.name).IS_LOSS:
            layer.top.append(layer.name)


def check_wiring(param: Any) -> None:
    """Hold every bottom against the tops before it.

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
                raise NetError(f"its bottom '{bottom}' is made by no layer before it{_close(bottom, made)}", layer=layer.name)
            raise NetError(
                f"its bottom '{bottom}' is made only later, by layer '{makers[bottom]}': layers must stand in order, without a cycle",
                layer=layer.name,
            )
        for top in layer.top:
            if top in made and top not in layer.bottom:
                raise NetError(f"its top '{top}' is already made by layer '{made[top]}', and it does not work in place", layer=layer.name)
            made[top] = layer.name


def _close(name: str, names: dict[str, str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
