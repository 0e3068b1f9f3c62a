"""Attribution: how much each value of the input contributes to a unit of the net.

All functions take a net in the TEST phase and one preprocessed picture, and return NumPy arrays. :mod:`caffetools.visualize.units`
describes how a *unit* is named. The scores are differentiated as they are; name the blob before the softmax to explain logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.cancel import CancelToken
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reporter, reporting
from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, format_shape
from caffetools.net.net import Net
from caffetools.net.probe import Rule
from caffetools.visualize.units import Image, Inputs, Unit, UnitProbe, as_batch

Attribution = NDArray[np.float32]

_WINDOW = 16


def saliency(
    net: Net, image: Image, *, blob: str | None = None, unit: Unit = None, inputs: Inputs | None = None, absolute: bool = False
) -> Attribution:
    """Return the gradient of a unit with respect to the input. Simonyan, Vedaldi, Zisserman (2014).

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`.
        inputs: Values of the net's other inputs that the blob depends on, by name.
        absolute: Return absolute values; their maximum over the channels is the map of the paper.

    Returns:
        (C, H, W) float32, signed unless ``absolute``.

    Raises:
        NetError: the net has no such blob, the picture does not fit, or there is no gradient.
        DataError: the blob has no such unit.
    """
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    gradient = np.asarray(probe.gradients(probe.picture)[0], np.float32)
    return np.abs(gradient) if absolute else gradient


def guided_backprop(net: Net, image: Image, *, blob: str | None = None, unit: Unit = None, inputs: Inputs | None = None) -> Attribution:
    """Return the guided gradient: each ReLU passes back only positive gradients of positive inputs. Springenberg et al. (2015).

    A rectifier is a layer whose trait ``rectifier`` says so: ReLU, ReLU6, and those of plugins; others pass back their gradient.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`.
        inputs: Values of the net's other inputs that the blob depends on, by name.

    Returns:
        (C, H, W) float32, signed.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit.
    """
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    return np.asarray(probe.gradients(probe.picture, rule=_guided)[0], np.float32)


def deconvnet(net: Net, image: Image, *, blob: str | None = None, unit: Unit = None, inputs: Inputs | None = None) -> Attribution:
    """Return the deconvnet signal: each ReLU rectifies the gradient instead of masking it by its input. Zeiler, Fergus (2014).

    Max pooling passes the signal back to the position of its maximum. Rectifiers are those of :func:`guided_backprop`.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`.
        inputs: Values of the net's other inputs that the blob depends on, by name.

    Returns:
        (C, H, W) float32, signed.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit.
    """
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    return np.asarray(probe.gradients(probe.picture, rule=_deconvnet)[0], np.float32)


def backward_signal(
    net: Net, image: Image, *, at: str, method: str = "saliency", blob: str | None = None, unit: Unit = None, inputs: Inputs | None = None
) -> Attribution:
    """Return what the backward pass from a unit carries at another blob.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        at: A blob that the unit depends on.
        method: ``"saliency"`` for the gradient, ``"guided-backprop"`` or ``"deconvnet"``.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`.
        inputs: Values of the net's other inputs that the blob depends on, by name.

    Returns:
        Float32, of the shape of one item of ``at``.

    Raises:
        NetError: as for :func:`saliency`, or the unit does not depend on the blob ``at``.
        DataError: the blob has no such unit, or the method has no backward pass.
    """
    if method not in BACKWARD_RULES:
        raise DataError(f"method '{method}' has no backward pass to show; it is one of {', '.join(BACKWARD_RULES)}")
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    ((values, score, _),) = probe.recorded(probe.picture, blobs=(at,), rule=BACKWARD_RULES[method])
    gradient = values.gradient(score, values.blobs[at], what=f"blob '{probe.blob}', unit {probe.unit},")
    return np.asarray(gradient[0].detach().float().cpu().contiguous().numpy())


@reporting("integrated-gradients", "Integrate gradients up to a picture")
def integrated_gradients(
    net: Net,
    image: Image,
    *,
    blob: str | None = None,
    unit: Unit = None,
    inputs: Inputs | None = None,
    baseline: float | Image = 0.0,
    steps: int = 50,
    batch: int = 8,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Attribution:
    """Return integrated gradients along the line from ``baseline`` to the picture. Sundararajan, Taly, Yan (2017).

    The integral is a Gauss–Legendre sum, as in Captum. The values add up to score(image) - score(baseline) within its error.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`; None is resolved on the picture itself.
        inputs: Values of the net's other inputs that the blob depends on, by name.
        baseline: One value, or (C, H, W).
        steps: Points of the sum.
        batch: Points computed at once.
        events: Receives the progress in points.
        cancel: Stops between batches.

    Returns:
        (C, H, W) float32, signed.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit, or fewer than one step.
        Cancelled: ``cancel`` was called.
    """
    if steps < 1:
        raise DataError(f"integrated gradients need at least 1 step, not {steps}")
    _check_batch(batch)
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    x = probe.picture
    start = as_batch(np.full(tuple(x.shape[1:]), baseline) if np.ndim(baseline) == 0 else np.asarray(baseline))
    if start.shape != x.shape:
        raise DataError(f"the baseline is {format_shape(start.shape[1:])}, the picture {format_shape(x.shape[1:])}")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    positions = torch.from_numpy((nodes + 1) / 2).float().reshape(-1, 1, 1, 1)
    total = np.zeros(tuple(x.shape[1:]), np.float64)
    report = reporter(events, "integrated-gradients", "points", cancel)
    for first in range(0, steps, batch):
        points = start + positions[first : first + batch] * (x - start)
        total += np.tensordot(weights[first : first + batch] / 2, probe.gradients(points).astype(np.float64), 1)
        report(min(first + batch, steps), steps)
    return np.asarray(total * (x - start)[0].numpy(), np.float32)


@reporting("smooth-grad", "Average gradients of noisy copies of a picture")
def smooth_grad(
    net: Net,
    image: Image,
    *,
    blob: str | None = None,
    unit: Unit = None,
    inputs: Inputs | None = None,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    batch: int = 8,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Attribution:
    """Return the mean gradient over copies of the picture with Gaussian noise. Smilkov et al. (2017).

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`; None is resolved on the picture without noise.
        inputs: Values of the net's other inputs that the blob depends on, by name.
        samples: Noisy copies.
        noise: Standard deviation as a share of the picture's range (max - min), as in the paper.
        seed: Of the noise.
        batch: Copies computed at once.
        events: Receives the progress in samples.
        cancel: Stops between batches.

    Returns:
        (C, H, W) float32, signed.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit, no samples, or negative noise.
        Cancelled: ``cancel`` was called.
    """
    if samples < 1 or not noise >= 0:
        raise DataError(f"SmoothGrad needs at least 1 sample and noise of at least 0, not {samples} and {noise}")
    _check_batch(batch)
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    x = probe.picture
    deviation = noise * float(x.max() - x.min())
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(tuple(x.shape[1:]), np.float64)
    report = reporter(events, "smooth-grad", "samples", cancel)
    for first in range(0, samples, batch):
        count = min(batch, samples - first)
        # Drawn one by one, so that the result does not depend on the batch.
        noisy = torch.cat([x + deviation * torch.randn(x.shape, generator=generator) for _ in range(count)])
        total += probe.gradients(noisy).astype(np.float64).sum(0)
        report(min(first + batch, samples), samples)
    return np.asarray(total / samples, np.float32)


@reporting("occlusion", "Cover parts of a picture")
def occlusion(
    net: Net,
    image: Image,
    *,
    blob: str | None = None,
    unit: Unit = None,
    inputs: Inputs | None = None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    value: float = 0.0,
    batch: int = 8,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Attribution:
    """Return how much the unit falls when a window over the picture is covered. Zeiler, Fergus (2014).

    Each position gets the mean of score(image) - score(covered image) over all windows that cover it, as in Captum's Occlusion
    with windows over all channels.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output, of a net with a loss its scores.
        unit: See :mod:`caffetools.visualize.units`; None is resolved on the uncovered picture.
        inputs: Values of the net's other inputs that the blob depends on, by name.
        window: Side, or (height, width), of the window; None takes 16, or a quarter of a picture below 64 pixels.
        stride: Its step; None takes half a window.
        value: What the window is filled with; 0 is the mean where a mean was subtracted.
        batch: Pictures computed at once.
        events: Receives the progress in windows.
        cancel: Stops between batches.

    Returns:
        (H, W) float32: positive where the picture supports the unit.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit, or window or stride do not fit the picture.
        Cancelled: ``cancel`` was called.
    """
    _check_batch(batch)
    probe = UnitProbe.of(net, image, blob, unit, inputs)
    x = probe.picture
    height, width = x.shape[2:]
    if window is None:
        window = min(_WINDOW, max(1, height // 4)), min(_WINDOW, max(1, width // 4))
    window_h, window_w = (window, window) if isinstance(window, int) else window
    step_h, step_w = (stride, stride) if isinstance(stride, int) else stride or (max(1, window_h // 2), max(1, window_w // 2))
    if not (1 <= window_h <= height and 1 <= window_w <= width and 1 <= step_h <= window_h and 1 <= step_w <= window_w):
        raise DataError(
            f"a window of {window_h} x {window_w} with stride {step_h} x {step_w} does not fit a picture of {height} x {width}: "
            "the window must be within the picture, and the stride at most the window"
        )
    base = float(probe.scores(x)[0])
    corners = [(top, left) for top in _starts(height, window_h, step_h) for left in _starts(width, window_w, step_w)]
    total, cover = np.zeros((height, width)), np.zeros((height, width))
    report = reporter(events, "occlusion", "windows", cancel)
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        covered = x.repeat(len(part), 1, 1, 1)
        for index, (top, left) in enumerate(part):
            covered[index, :, top : top + window_h, left : left + window_w] = value
        for score, (top, left) in zip(probe.scores(covered), part, strict=True):
            total[top : top + window_h, left : left + window_w] += base - score
            cover[top : top + window_h, left : left + window_w] += 1
        report(min(first + batch, len(corners)), len(corners))
    return np.asarray(total / np.maximum(cover, 1), np.float32)


METHODS: dict[str, Callable[..., Attribution]] = {
    "saliency": saliency,
    "guided-backprop": guided_backprop,
    "deconvnet": deconvnet,
    "integrated-gradients": integrated_gradients,
    "smooth-grad": smooth_grad,
    "occlusion": occlusion,
}


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise DataError(f"at least 1 picture must be computed at once, not {batch}")


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start: the last may reach over the edge, so that every position is covered."""
    return list(range(0, max(length - window + stride, 1), stride))


def _guided(layer: Layer, bottoms: tuple[Tensor, ...]) -> Tensor | None:
    if not layer.traits(layer.param).rectifier or not bottoms[0].requires_grad:
        return None
    (top,) = layer.run(bottoms[0].clone())
    top.register_hook(lambda gradient: gradient.clamp(min=0))  # type: ignore[no-untyped-call]
    return top


def _deconvnet(layer: Layer, bottoms: tuple[Tensor, ...]) -> Tensor | None:
    if not layer.traits(layer.param).rectifier:
        return None
    top: Tensor = _RectifiedGradient.apply(bottoms[0], layer)
    return top


class _RectifiedGradient(torch.autograd.Function):
    """A rectifier whose backward pass gives the positive part of the gradient for every input."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, layer: Layer) -> Tensor:
        """Return the layer's top."""
        (top,) = layer.run(x.clone())
        return top

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> Any:
        """Return max(0, gradient)."""
        return gradients[0].clamp(min=0), None


# Methods that are one backward pass, with what they change in it.
BACKWARD_RULES: dict[str, Rule | None] = {"saliency": None, "guided-backprop": _guided, "deconvnet": _deconvnet}
