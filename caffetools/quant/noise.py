"""Signal-to-noise ratio of each layer when it alone is quantized: which layers lose most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caffetools.cancel import CancelToken
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.quant.calibration import Images
from caffetools.quant.fake import quantizable, quantized_activation, quantized_weight, replaced_weight

# Enough for a ratio of powers: each image has thousands of values a layer.
_MOST_IMAGES = 32


@dataclass
class _Power:
    signal: float = 0.0
    noise: float = 0.0


def layer_noise(
    net: Net, images: Images, ranges: Mapping[str, tuple[float, float]], *, batch: int = 8, cancel: CancelToken | None = None
) -> dict[str, float]:
    """Measure the signal-to-quantization-noise ratio (SQNR) of each convolution and inner product.

    Each layer gets the float input; its output with quantized input and weights is compared with its float output.

    Args:
        net: The float net in the TEST phase.
        images: Calibration images; at most 32 are used.
        ranges: Layer → (lowest, highest) of its input.
        batch: Images a run.
        cancel: Checked before each batch.

    Returns:
        Layer → 10 log10(signal power / noise power) in dB; infinite where nothing is lost.
    """
    powers = {layer.name: _Power() for layer in quantizable(net) if layer.name in ranges}
    handles = [
        layer.register_forward_hook(_comparing(ranges[layer.name], powers[layer.name]))
        for layer in quantizable(net)
        if layer.name in powers
    ]
    count = min(len(images), _MOST_IMAGES)
    try:
        with torch.no_grad():
            for start in range(0, count, batch):
                if cancel is not None:
                    cancel.raise_if_cancelled("quantization")
                net({images.blob: torch.from_numpy(images.read(start, min(start + batch, count)))})
    finally:
        for handle in handles:
            handle.remove()
    return {name: _decibels(power) for name, power in powers.items()}


def _comparing(bounds: tuple[float, float], power: _Power) -> Any:
    def hook(layer: Layer, bottoms: tuple[Tensor, ...], tops: Tensor | tuple[Tensor, ...]) -> None:
        with replaced_weight(layer, quantized_weight(layer)):
            again = layer.forward(*(quantized_activation(x, *bounds) for x in bottoms))
        exact, rounded = (made if isinstance(made, tuple) else (made,) for made in (tops, again))
        for a, b in zip(exact, rounded, strict=True):
            power.signal += float(a.double().square().sum())
            power.noise += float((a.double() - b.double()).square().sum())

    return hook


def _decibels(power: _Power) -> float:
    if not power.noise:
        return math.inf
    return 10 * math.log10(power.signal / power.noise) if power.signal else -math.inf
