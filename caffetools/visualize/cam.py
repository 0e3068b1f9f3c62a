"""Class activation maps by gradients: which positions of a layer's output support a unit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caffetools.errors import DataError, NetError
from caffetools.layers.base import format_shape
from caffetools.net.net import Net
from caffetools.visualize.attribution import Attribution
from caffetools.visualize.units import Image, Inputs, Unit, UnitProbe, check_net


def grad_cam(
    net: Net, image: Image, *, layer: str, blob: str | None = None, unit: Unit = None, inputs: Inputs | None = None
) -> Attribution:
    """Return the Grad-CAM map: max(0, Σ_k mean(dy/dA_k) · A_k) over the channels A_k of a layer. Selvaraju et al. (2017).

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        layer: A layer with a top (N, K, H, W). With ``conv5`` followed by an in-place ``relu5``, ``conv5`` is the convolution's own
            output, and ``relu5`` what follows it. A blob's name, where no layer has it, is its last value.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: As in :mod:`caffetools.visualize.units`.
        inputs: Values of the net's other inputs that the blob depends on, by name.

    Returns:
        (H, W) float32 at the layer's resolution, not normalized.

    Raises:
        NetError: the net has no such layer or blob, several layers of this name, or the unit does not depend on the layer.
        DataError: there is no such unit, or the layer's top has no positions.
    """
    features, gradient = _features(net, image, layer, blob, unit, inputs)
    return _combine(features, gradient.mean(axis=(1, 2)))


def grad_cam_plus_plus(
    net: Net, image: Image, *, layer: str, blob: str | None = None, unit: Unit = None, inputs: Inputs | None = None
) -> Attribution:
    """Return the Grad-CAM++ map, whose channel weights are Σ α · max(0, dy/dA) with α from higher derivatives.

    α = g² / (2 g² + ΣA · g³), as Chattopadhay et al. (2018) derive it for the score exp(y).

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        layer: A layer with a top (N, K, H, W), or a blob, named as for :func:`grad_cam`.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: As in :mod:`caffetools.visualize.units`.
        inputs: Values of the net's other inputs that the blob depends on, by name.

    Returns:
        (H, W) float32 at the layer's resolution, not normalized.

    Raises:
        NetError: the net has no such layer or blob, several layers of this name, or the unit does not depend on the layer.
        DataError: there is no such unit, or the layer's top has no positions.
    """
    features, g = _features(net, image, layer, blob, unit, inputs)
    denominator = 2 * g**2 + features.sum(axis=(1, 2), keepdims=True) * g**3
    alpha = np.divide(g**2, denominator, out=np.zeros_like(g), where=denominator != 0)
    return _combine(features, (alpha * np.maximum(g, 0)).sum(axis=(1, 2)))


def _features(
    net: Net, image: Image, layer: str, blob: str | None, unit: Unit, inputs: Inputs | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the layer's top and the unit's gradient with respect to it, (K, H, W) each."""
    named = [item for item in check_net(net).layers if item.name == layer]
    several = len({top for item in named for top in item.tops[:1]}) > 1
    if several and layer not in net.blob_shapes:
        tops = ", ".join(f"'{item.tops[0]}'" for item in named)
        raise NetError(f"the net '{net.name}' has {len(named)} layers '{layer}'; name the blob that one of them makes: {tops}")
    is_layer = bool(named) and not several
    if not is_layer and layer not in net.blob_shapes:
        raise NetError(f"the net '{net.name}' has no layer '{layer}'; it has {', '.join(dict.fromkeys(item.name for item in net.layers))}")
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    ((values, score, _),) = probe.recorded(probe.picture, layers=(layer,) if is_layer else (), blobs=() if is_layer else (layer,))
    top = values.tops[layer] if is_layer else values.blobs[layer]
    if top.dim() != 4:
        raise DataError(f"layer '{layer}' gives {format_shape(top.shape)}; Grad-CAM needs channels with positions (N x C x H x W)")
    gradient = values.gradient(score, top, what=f"blob '{probe.blob}', unit {probe.unit},")
    return _array(top), _array(gradient)


def _combine(features: NDArray[np.float64], weights: NDArray[np.float64]) -> Attribution:
    return np.asarray(np.maximum(np.tensordot(weights, features, 1), 0), np.float32)


def _array(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values[0].detach().double().cpu().contiguous().numpy())
