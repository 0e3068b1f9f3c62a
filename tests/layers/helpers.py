"""Building one layer, or a small net, from prototxt text."""

from __future__ import annotations

from typing import Any

import torch
from google.protobuf import text_format

from caffetools.layers.base import Layer
from caffetools.layers.registry import layer_class
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, LayerParameter, NetParameter


def one_layer(text: str, *shapes: tuple[int, ...], phase: int = TEST, tops: int = 1) -> Layer:
    """A configured and filled layer called ``l`` over bottoms ``b0``, ``b1``, … of ``shapes``, with tops ``t0``, ``t1``, …"""
    param = text_format.Parse(text, LayerParameter())
    param.name = "l"
    param.bottom.extend(f"b{i}" for i in range(len(shapes)))
    param.top.extend(f"t{i}" for i in range(tops))
    layer = layer_class(param.type)(param, phase)
    layer.configure(list(shapes))
    torch.manual_seed(3)
    layer.allocate()
    return layer


def net_of(text: str, phase: int = TEST, **options: Any) -> Net:
    """A net from prototxt text."""
    torch.manual_seed(3)
    return Net(text_format.Parse(text, NetParameter()), phase, **options)


def input_layer(name: str, *shape: int) -> str:
    """The prototxt of an Input layer with one blob."""
    dims = " ".join(f"dim: {n}" for n in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'
