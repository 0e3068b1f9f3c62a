"""A net in float64: what the errors of float32 engines are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from caffetools.layers.base import Layer
from caffetools.layers.inner_product import InnerProduct
from caffetools.net.net import Net

# Weights of more values are converted in parts, so that memory grows by a part and not by twice the weights.
_PART = 2**22


def run_double(net: Net, inputs: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Run ``net`` layer by layer in float64, with float64 copies of one layer's weights at a time.

    Args:
        net: A net in the TEST phase; its own weights stay as they are.
        inputs: Every input blob, float32.

    Yields:
        The layer's index and its tops by name, float64; blobs that no later layer reads are released.
    """
    blobs = {name: value.double() for name, value in inputs.items()}
    net.reshape({name: tuple(value.shape) for name, value in inputs.items()})
    last = {name: index for index, layer in enumerate(net.layers) for name in (*layer.bottoms, *layer.tops)}
    with torch.no_grad():
        for index, layer in enumerate(net.layers):
            if not layer.IS_DATA:
                tops = run_layer_double(layer, [blobs[name] for name in layer.bottoms])
                blobs.update(zip(layer.tops, tops, strict=True))
                yield index, {name: blobs[name] for name in layer.tops}
            for name in {*layer.bottoms, *layer.tops}:
                if last[name] == index:
                    blobs.pop(name, None)


def run_layer_double(layer: Layer, bottoms: list[Tensor]) -> list[Tensor]:
    """Return the tops of one layer for float64 ``bottoms``, with its weights converted."""
    inplace, layer.inplace_ok = layer.inplace_ok, False
    try:
        if type(layer) is InnerProduct and layer.blobs[0].numel() > _PART:
            tops = _inner_product(layer, bottoms[0])
        else:
            parameters = {name: value.double() for name, value in layer.named_parameters()}
            tops = functional_call(layer, parameters, tuple(bottoms))
    finally:
        layer.inplace_ok = inplace
    outputs = (tops,) if isinstance(tops, Tensor) else tops
    return [top.double() if top.is_floating_point() else top for top in outputs]


def _inner_product(layer: InnerProduct, x: Tensor) -> Tensor:
    rows = x.reshape(*x.shape[: layer.outer_axes], layer.inputs)
    weight = layer.blobs[0].t() if layer.transposed else layer.blobs[0]
    step = max(1, _PART // layer.inputs)
    parts = [F.linear(rows, weight[start : start + step].double()) for start in range(0, layer.outputs, step)]
    y = torch.cat(parts, -1)
    return y + layer.blobs[1].double() if len(layer.blobs) > 1 else y
