"""Simulated int8 in torch: values are rounded to what int8 can hold and stay float32; gradients pass straight through.

Weights are symmetric, -127 to 127, with a scale for each output channel; activations are uint8 with a scale and a zero point. That is
what the ONNX model computes with. The gradient is that of the identity inside the range and 0 outside (straight-through estimator;
Bengio et al., 2013).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from caffetools.errors import DataError
from caffetools.layers.base import Layer
from caffetools.layers.convolution import Convolution
from caffetools.layers.inner_product import InnerProduct
from caffetools.net.net import Net
from caffetools.util.files import write_text

PathLike = str | os.PathLike[str]
# The lowest and the highest value.
Bounds = tuple[float, float]

_SMALLEST = 1e-12


def quantizable(net: Net) -> list[Layer]:
    """Return the layers whose products are computed in int8: convolutions and inner products, in the net's order."""
    return [layer for layer in net.layers if isinstance(layer, Convolution | InnerProduct)]


def channel_axis(layer: Layer) -> int:
    """Return the axis of the weights along which each output has its own values."""
    axes = layer.traits(layer.param).class_axes
    return axes[0] or 0 if axes else 0


def weight_maxima(weight: Tensor, axis: int) -> Tensor:
    """Return the largest magnitude of each output channel: (channels,) float32."""
    others = [a for a in range(weight.dim()) if a != axis]
    return weight.detach().abs().amax(dim=others)


def quantized_weight(layer: Layer) -> Tensor:
    """Return the weights of ``layer``, float32 in their shape, rounded to int8 channel by channel."""
    weight, axis = layer.blobs[0], channel_axis(layer)
    scales = (weight_maxima(weight, axis) / 127).clamp_min(_SMALLEST)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, -127, 127)


def quantized_activation(x: Tensor, lowest: float, highest: float) -> Tensor:
    """Return ``x`` (any shape, float32) clipped to ``lowest`` … ``highest`` (which hold 0) and rounded to 256 levels."""
    scale = max((max(highest, 0.0) - min(lowest, 0.0)) / 255, _SMALLEST)
    zero = min(max(round(-min(lowest, 0.0) / scale), 0), 255)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


@contextmanager
def replaced_weight(layer: Layer, weight: Tensor) -> Iterator[None]:
    """Let ``layer`` compute with ``weight``, of the same shape, in place of its first parameter while the block runs."""
    own = swap_weight(layer, weight)
    try:
        yield
    finally:
        swap_weight(layer, own)


def swap_weight(layer: Layer, weight: Tensor) -> Tensor:
    """Put ``weight`` in place of the layer's first parameter, which has its shape, and return that."""
    slots: dict[str, Tensor] = layer.blobs._parameters  # type: ignore[assignment]
    own, slots["0"] = slots["0"], weight
    return own


def ranges_path(snapshot: PathLike) -> Path:
    """Return the file of the trained ranges that belongs to a .solverstate or .caffemodel, or one in HDF5."""
    return Path(os.fspath(snapshot).removesuffix(".h5")).with_suffix(".ranges.json")


def write_ranges(path: PathLike, ranges: Mapping[str, Bounds]) -> None:
    """Write layer → (lowest, highest) of its input."""
    write_text(path, json.dumps(ranges, indent=1) + "\n")


def read_ranges(path: PathLike) -> dict[str, Bounds]:
    """Return what :func:`write_ranges` wrote. Raises :class:`DataError` if it cannot be read."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): (float(low), float(high)) for name, (low, high) in values.items()}
    except FileNotFoundError:
        raise DataError("no such file: the ranges of quantization-aware training are PREFIX_iter_N.ranges.json", path=path) from None
    except (OSError, ValueError, TypeError, AttributeError):
        hint = "remove it to measure them again"
        raise DataError("the ranges of quantization-aware training are damaged", path=path, hint=hint) from None
