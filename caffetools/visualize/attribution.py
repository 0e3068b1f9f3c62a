"""Attribution: how much each value of the input contributes to a unit of the net.

All functions take a net in the TEST phase and one preprocessed picture, and return NumPy arrays. A *unit* is named as follows:

- an index ``c`` into a blob (N, C): that value;
- ``(c, y, x)`` into a blob (N, C, H, W): that value;
- ``c`` or ``(c,)`` into a blob (N, C, H, W): the sum over all positions of channel ``c``;
- None: the unit with the largest value (of channel sums, for a blob with positions).

A blob's name stands for its last value: after an in-place ReLU, if there is one. The scores are differentiated as they are; name the
blob before the softmax to explain logits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.errors import DataError, NetError
from caffetools.layers.activation import ReLU
from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, format_shape
from caffetools.layers.fork_activation import ReLU6
from caffetools.net.net import Net
from caffetools.net.probe import Activations, Rule, picture_input, run_probe
from caffetools.proto.schema import TEST

Unit = int | tuple[int, ...] | None
Image = NDArray[Any] | Tensor
Attribution = NDArray[np.float32]

_RECTIFIERS = (ReLU, ReLU6)


def saliency(net: Net, image: Image, *, blob: str | None = None, unit: Unit = None, absolute: bool = False) -> Attribution:
    """Return the gradient of a unit with respect to the input. Simonyan, Vedaldi, Zisserman (2014).

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output.
        unit: See the module's description.
        absolute: Return absolute values; their maximum over the channels is the map of the paper.

    Returns:
        (C, H, W) float32, signed unless ``absolute``.

    Raises:
        NetError: the net has no such blob, the picture does not fit, or there is no gradient.
        DataError: the blob has no such unit.
    """
    gradient = _gradient_of_one(net, image, blob, unit)
    return np.abs(gradient) if absolute else gradient


def guided_backprop(net: Net, image: Image, *, blob: str | None = None, unit: Unit = None) -> Attribution:
    """Return the guided gradient: each ReLU passes back only positive gradients of positive inputs. Springenberg et al. (2015).

    The arguments, the result and the errors are those of :func:`saliency`.
    """
    return _gradient_of_one(net, image, blob, unit, rule=_guided)


def deconvnet(net: Net, image: Image, *, blob: str | None = None, unit: Unit = None) -> Attribution:
    """Return the deconvnet signal: each ReLU rectifies the gradient instead of masking it by its input. Zeiler, Fergus (2014).

    Max pooling passes the signal back to the position of its maximum. The arguments, the result and the errors are those of
    :func:`saliency`.
    """
    return _gradient_of_one(net, image, blob, unit, rule=_deconvnet)


def integrated_gradients(
    net: Net,
    image: Image,
    *,
    blob: str | None = None,
    unit: Unit = None,
    baseline: float | Image = 0.0,
    steps: int = 50,
    batch: int = 8,
) -> Attribution:
    """Return integrated gradients along the line from ``baseline`` to the picture. Sundararajan, Taly, Yan (2017).

    The integral is a Gauss–Legendre sum, as in Captum. The values add up to score(image) - score(baseline) within its error.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output.
        unit: See the module's description; None is resolved on the picture itself.
        baseline: One value, or (C, H, W).
        steps: Points of the sum.
        batch: Points computed at once.

    Returns:
        (C, H, W) float32, signed.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit, or fewer than one step.
    """
    if steps < 1:
        raise DataError(f"integrated gradients need at least 1 step, not {steps}")
    _check_batch(batch)
    blob = target_blob(net, blob)
    x = picture_batch(net, image)
    start = as_batch(np.full(tuple(x.shape[1:]), baseline) if np.ndim(baseline) == 0 else np.asarray(baseline))
    if start.shape != x.shape:
        raise DataError(f"the baseline is {format_shape(start.shape[1:])}, the picture {format_shape(x.shape[1:])}")
    unit = resolve_unit(net, x, blob, unit)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    positions = torch.from_numpy((nodes + 1) / 2).float().reshape(-1, 1, 1, 1)
    total = np.zeros(tuple(x.shape[1:]), np.float64)
    for first in range(0, steps, batch):
        points = start + positions[first : first + batch] * (x - start)
        gradients = _gradient(net, points, blob, unit)
        total += np.tensordot(weights[first : first + batch] / 2, gradients.astype(np.float64), 1)
    return np.asarray(total * (x - start)[0].numpy(), np.float32)


def smooth_grad(
    net: Net,
    image: Image,
    *,
    blob: str | None = None,
    unit: Unit = None,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    batch: int = 8,
) -> Attribution:
    """Return the mean gradient over copies of the picture with Gaussian noise. Smilkov et al. (2017).

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output.
        unit: See the module's description; None is resolved on the picture without noise.
        samples: Noisy copies.
        noise: Standard deviation as a share of the picture's range (max - min), as in the paper.
        seed: Of the noise.
        batch: Copies computed at once.

    Returns:
        (C, H, W) float32, signed.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit, no samples, or negative noise.
    """
    if samples < 1 or not noise >= 0:
        raise DataError(f"SmoothGrad needs at least 1 sample and noise of at least 0, not {samples} and {noise}")
    _check_batch(batch)
    blob = target_blob(net, blob)
    x = picture_batch(net, image)
    unit = resolve_unit(net, x, blob, unit)
    deviation = noise * float(x.max() - x.min())
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(tuple(x.shape[1:]), np.float64)
    for first in range(0, samples, batch):
        count = min(batch, samples - first)
        # Drawn one by one, so that the result does not depend on the batch.
        noisy = torch.cat([x + deviation * torch.randn(x.shape, generator=generator) for _ in range(count)])
        total += _gradient(net, noisy, blob, unit).astype(np.float64).sum(0)
    return np.asarray(total / samples, np.float32)


def occlusion(
    net: Net,
    image: Image,
    *,
    blob: str | None = None,
    unit: Unit = None,
    window: int | tuple[int, int] = 16,
    stride: int | tuple[int, int] | None = None,
    value: float = 0.0,
    batch: int = 8,
) -> Attribution:
    """Return how much the unit falls when a window over the picture is covered. Zeiler, Fergus (2014).

    Each position gets the mean of score(image) - score(covered image) over all windows that cover it, as in Captum's Occlusion
    with windows over all channels.

    Args:
        net: A net in the TEST phase, with its weights.
        image: (C, H, W), preprocessed as the net's training did it.
        blob: The blob of the unit; None takes the net's output.
        unit: See the module's description; None is resolved on the uncovered picture.
        window: Side, or (height, width), of the window.
        stride: Its step; None takes half a window.
        value: What the window is filled with; 0 is the mean where a mean was subtracted.
        batch: Pictures computed at once.

    Returns:
        (H, W) float32: positive where the picture supports the unit.

    Raises:
        NetError: as for :func:`saliency`.
        DataError: the blob has no such unit, or window or stride do not fit the picture.
    """
    blob = target_blob(net, blob)
    x = picture_batch(net, image)
    _check_batch(batch)
    height, width = x.shape[2:]
    window_h, window_w = (window, window) if isinstance(window, int) else window
    step_h, step_w = (stride, stride) if isinstance(stride, int) else stride or (max(1, window_h // 2), max(1, window_w // 2))
    if not (1 <= window_h <= height and 1 <= window_w <= width and 1 <= step_h <= window_h and 1 <= step_w <= window_w):
        raise DataError(
            f"a window of {window_h} x {window_w} with stride {step_h} x {step_w} does not fit a picture of {height} x {width}: "
            "the window must be within the picture, and the stride at most the window"
        )
    unit = resolve_unit(net, x, blob, unit)
    base = float(unit_score(_forward(net, x, blob), blob, unit)[0])
    corners = [(top, left) for top in _starts(height, window_h, step_h) for left in _starts(width, window_w, step_w)]
    total, cover = np.zeros((height, width)), np.zeros((height, width))
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        covered = x.repeat(len(part), 1, 1, 1)
        for index, (top, left) in enumerate(part):
            covered[index, :, top : top + window_h, left : left + window_w] = value
        scores = unit_score(_forward(net, covered, blob), blob, unit).double().cpu().numpy()
        for score, (top, left) in zip(scores, part, strict=True):
            total[top : top + window_h, left : left + window_w] += base - score
            cover[top : top + window_h, left : left + window_w] += 1
    return np.asarray(total / np.maximum(cover, 1), np.float32)


METHODS: dict[str, Callable[..., Attribution]] = {
    "saliency": saliency,
    "guided-backprop": guided_backprop,
    "deconvnet": deconvnet,
    "integrated-gradients": integrated_gradients,
    "smooth-grad": smooth_grad,
    "occlusion": occlusion,
}


def unit_score(values: Tensor, blob: str, unit: Unit) -> Tensor:
    """Return the score of ``unit`` for each item of a batch: (N,).

    Args:
        values: The blob, (N, C) or (N, C, H, W) or of any other number of axes.
        blob: Its name, for the message.
        unit: See the module's description; None takes the largest unit of the first item.

    Raises:
        DataError: the blob has no such unit.
    """
    if values.dim() < 2:
        raise DataError(f"blob '{blob}' is {format_shape(values.shape)}: it has no units")
    sums = values.flatten(2).sum(2) if values.dim() > 2 else values
    index = (int(sums[0].argmax()),) if unit is None else _unit_index(unit)
    shape = tuple(values.shape[1:])
    fits = len(index) in (1, len(shape)) and all(0 <= i < n for i, n in zip(index, shape, strict=False))
    if not fits:
        raise DataError(f"blob '{blob}' has units {format_shape(shape)}, so it has no unit {index if len(index) > 1 else index[0]}")
    return sums[:, index[0]] if len(index) == 1 else values.flatten(1)[:, int(np.ravel_multi_index(index, shape))]


def probe_unit(
    net: Net,
    batch: Tensor,
    blob: str,
    unit: Unit,
    *,
    layers: Sequence[str] = (),
    blobs: Sequence[str] = (),
    rule: Rule | None = None,
) -> tuple[Activations, Tensor]:
    """Run a batch with a graph and return its values and the sum over the batch of the unit's scores.

    Args:
        net: A net in the TEST phase.
        batch: (N, C, H, W).
        blob: The blob of the unit.
        unit: See the module's description.
        layers: Layers whose tops are wanted too.
        blobs: Further blobs that are wanted.
        rule: See :data:`~caffetools.net.probe.Rule`.

    Raises:
        NetError, DataError: as for :func:`saliency`.
    """
    values = run_probe(net, batch, blobs=[blob, *blobs], layers=layers, record=True, rule=rule)
    return values, unit_score(values.blobs[blob], blob, unit).sum()


def as_batch(image: Image) -> Tensor:
    """Return one picture (C, H, W), array or tensor, as (1, C, H, W) float32 on the CPU.

    Raises:
        DataError: it has another shape, values that are not real numbers, or NaN or infinite ones.
    """
    array = image.detach().cpu() if isinstance(image, Tensor) else _array(image)
    if array.is_complex():
        raise DataError("one preprocessed picture (C, H, W) of real numbers is expected, not of complex ones")
    x = array.float()
    if x.dim() == 4 and x.shape[0] == 1:
        x = x[0]
    if x.dim() != 3:
        raise DataError(f"one preprocessed picture (C, H, W) is expected, not an array of {format_shape(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise DataError("the picture has values that are NaN or infinite")
    return x[None]


def picture_batch(net: Net, image: Image) -> Tensor:
    """Return a picture as :func:`as_batch` for a net in the TEST phase that takes pictures with so many channels.

    Raises:
        NetError: the net is in the TRAIN phase, where dropout is random, or its input takes another number of channels.
        DataError: as :func:`as_batch`.
    """
    if net.phase != TEST:
        raise NetError(f"the net '{net.name}' is in the TRAIN phase; load it in the TEST phase to look into it")
    batch, name = as_batch(image), picture_input(net)
    wanted, given = net.blob_shapes[name], tuple(batch.shape[1:])
    if len(wanted) == 4 and wanted[1] != given[0]:
        hint = "; transpose the picture from (H, W, C)" if wanted[1] == given[2] else ""
        raise NetError(f"the picture is {format_shape(given)}, but input '{name}' takes {format_shape(wanted[1:])} (C x H x W){hint}")
    return batch


def target_blob(net: Net, blob: str | None) -> str:
    """Return ``blob``, or the net's single output for None. Raises :class:`NetError` where it has several."""
    if blob is not None:
        return blob
    if len(net.outputs) != 1:
        raise NetError(f"the net '{net.name}' has {len(net.outputs)} outputs ({', '.join(net.outputs)}); name the blob to explain")
    return net.outputs[0]


def resolve_unit(net: Net, batch: Tensor, blob: str, unit: Unit) -> Unit:
    """Return ``unit``, or for None the unit (channel) of ``blob`` with the largest value for the first item of ``batch``."""
    if unit is not None:
        return unit
    values = _forward(net, batch[:1], blob)
    unit_score(values, blob, None)
    return int((values.flatten(2).sum(2) if values.dim() > 2 else values)[0].argmax())


def _array(image: NDArray[Any]) -> Tensor:
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise DataError(f"one preprocessed picture (C, H, W) is expected: {error}") from None
    if array.dtype.kind not in "fiubc":
        raise DataError(f"one preprocessed picture (C, H, W) of numbers is expected, not an array of type {array.dtype}")
    return torch.from_numpy(np.array(array, np.complex64 if array.dtype.kind == "c" else np.float32))


def _unit_index(unit: object) -> tuple[int, ...]:
    """Return a unit as indices. Raises :class:`DataError` where it is neither an integer nor a sequence of them."""
    parts = tuple(unit) if isinstance(unit, list | tuple) or (isinstance(unit, np.ndarray) and unit.ndim == 1) else (unit,)
    try:
        if not parts or any(isinstance(part, bool) for part in parts):
            raise TypeError
        return tuple(operator.index(part) for part in parts)
    except TypeError:
        raise DataError(f"a unit is an index c or (c, y, x), not {unit!r}") from None


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise DataError(f"at least 1 picture must be computed at once, not {batch}")


def _gradient_of_one(net: Net, image: Image, blob: str | None, unit: Unit, *, rule: Rule | None = None) -> Attribution:
    name, batch = target_blob(net, blob), picture_batch(net, image)
    return np.asarray(_gradient(net, batch, name, resolve_unit(net, batch, name, unit), rule=rule)[0], np.float32)


def _gradient(net: Net, batch: Tensor, blob: str, unit: Unit, *, rule: Rule | None = None) -> Attribution:
    """Return (N, C, H, W): each item's gradient; items do not mix in the TEST phase, so that the sum of scores has all of them."""
    values, score = probe_unit(net, batch, blob, unit, rule=rule)
    source = values.inputs[picture_input(net)]
    return values.gradient(score, source, what=f"blob '{blob}'").detach().float().cpu().contiguous().numpy()


def _forward(net: Net, batch: Tensor, blob: str) -> Tensor:
    return run_probe(net, batch, blobs=[blob]).blobs[blob].detach()


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start: the last may reach over the edge, so that every position is covered."""
    return list(range(0, max(length - window + stride, 1), stride))


def _guided(layer: Layer, bottoms: tuple[Tensor, ...]) -> Tensor | None:
    if not isinstance(layer, _RECTIFIERS) or not bottoms[0].requires_grad:
        return None
    top: Tensor = layer(bottoms[0].clone())
    top.register_hook(lambda gradient: gradient.clamp(min=0))  # type: ignore[no-untyped-call]
    return top


def _deconvnet(layer: Layer, bottoms: tuple[Tensor, ...]) -> Tensor | None:
    if not isinstance(layer, _RECTIFIERS):
        return None
    top: Tensor = _RectifiedGradient.apply(bottoms[0], layer)
    return top


class _RectifiedGradient(torch.autograd.Function):
    """A rectifier whose backward pass gives the positive part of the gradient for every input."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, layer: Layer) -> Tensor:
        """Return the layer's top."""
        top: Tensor = layer(x.clone())
        return top

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> Any:
        """Return max(0, gradient)."""
        return gradients[0].clamp(min=0), None
