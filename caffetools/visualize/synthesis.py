"""Pictures made by gradient descent on the pixels: what a unit prefers, deep dreams, style transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from caffetools.cancel import CancelToken
from caffetools.errors import DataError
from caffetools.events import EventSink, ignore, reporter, reporting
from caffetools.net.device import one_thread
from caffetools.net.net import Net
from caffetools.net.probe import Activations, needed_layers, picture_input, run_items, run_probe
from caffetools.visualize.picture_net import PictureNet
from caffetools.visualize.receptive_field import receptive_fields
from caffetools.visualize.units import Unit, unit_score

Pixels = NDArray[np.uint8]
# Of a batch's blobs, a number to increase.
Objective = Callable[[Mapping[str, Tensor]], Tensor]
_MOST_OCTAVES, _MOST_JITTER, _MOST_BLUR = 64, 1024, 100


@reporting("synthesize", "Synthesize a unit's picture")
def synthesize(
    model: PictureNet,
    *,
    blob: str,
    unit: Unit,
    steps: int = 200,
    rate: float = 6.0,
    jitter: int = 4,
    blur: float = 0.5,
    decay: float = 0.01,
    octaves: int = 1,
    seed: int = 0,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Pixels:
    """Make a picture that activates a unit, by regularized gradient ascent (Yosinski et al. 2015; Mordvintsev et al. 2015).

    Args:
        model: The net.
        blob: Of the unit; name the blob before a softmax.
        unit: As in :mod:`caffetools.visualize.units`.
        steps: Of ascent, in all octaves together.
        rate: Mean absolute change of the pixels (0 to 255) in the first step; it falls to a tenth.
        jitter: Random shift of up to so many pixels before each step.
        blur: Standard deviation, in pixels, of the blur that every
            fourth step ends with; falls to 0.
        decay: Share of the distance to the mean that each step takes back (L2).
        octaves: Sizes from small to full, each 1.4 times the one before.
        seed: Of start and jitter.
        events: Receives the progress in steps.
        cancel: Stops between steps.

    Returns:
        (H, W, 3) uint8 RGB of the input's size.

    Raises:
        NetError, DataError: the net has no such blob or unit, it has no gradient, or an argument is out of range.
        Cancelled: ``cancel`` was called.
    """
    _check(steps, octaves, jitter, blur)
    generator = torch.Generator().manual_seed(seed)
    shape = model.preprocessor.shape
    x = 8.0 * torch.randn((1, *shape[1:]), generator=generator)
    sizes = _octave_sizes(shape[2], shape[3], octaves)
    objective = _unit_objective(blob, unit)
    done, report = 0, reporter(events, "synthesize", "steps", cancel)
    for number, size in enumerate(sizes):
        x = _resized(x, size)
        count = steps // octaves + (number < steps % octaves)
        for step in range(count):
            left = 1 - step / max(count - 1, 1)
            full = _resized(x, (shape[2], shape[3])) if size != (shape[2], shape[3]) else x
            gradient = _pixel_gradient(model, full, [blob], objective, jitter, generator)
            if full is not x:
                gradient = _resized(gradient, size)
            x = x + rate * (0.1 + 0.9 * left) * gradient / _mean_size(gradient)
            x = x * (1 - decay)
            if blur and step % 4 == 3:
                x = _blurred(x, blur * left)
            x = _clipped(model, x)
            done += 1
            report(done, steps)
    return _to_rgb(model, _resized(x, (shape[2], shape[3])))


def preferred_part(model: PictureNet, pixels: Pixels, blob: str, unit: Unit) -> Pixels:
    """Return the part of a picture of :func:`synthesize` that the unit sees, its receptive field: the rest is the gray of the start.

    Args:
        model: The net.
        pixels: (H, W, 3) uint8, of the input's size.
        blob: Of the unit.
        unit: As in :mod:`caffetools.visualize.units`; a channel's value is the one in the middle of the map.
    """
    field = receptive_fields(model.net).get(blob)
    if field is None or not field.located or unit is None:
        return pixels
    index = (unit,) if isinstance(unit, int) else unit
    y, x = index[1:] if len(index) == 3 else (field.positions[0] // 2, field.positions[1] // 2)
    top, left, bottom, right = field.box(y, x, pixels.shape[:2])
    return np.ascontiguousarray(pixels[top:bottom, left:right])


@reporting("deepdream", "Amplify what a net sees in a picture")
def deep_dream(
    model: PictureNet,
    pixels: Pixels,
    *,
    blob: str,
    unit: Unit = None,
    steps: int = 10,
    rate: float = 1.5,
    jitter: int = 8,
    octaves: int = 4,
    seed: int = 0,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Pixels:
    """Exaggerate in a picture what a blob sees in it: ascent on half its squared values (Mordvintsev, Olah, Tyka 2015).

    The net must take pictures of any size; others get the picture at the input's size.

    Args:
        model: The net.
        pixels: (H, W, 3) uint8 RGB.
        blob: Whose values to increase.
        unit: Only this one; None is all of the blob.
        steps: In each octave.
        rate: Mean absolute change of the pixels in a step.
        jitter: As for :func:`synthesize`.
        octaves: Sizes, each 1.4 times the one before, as far as the net's input fits into them.
        seed: Of the jitter.
        events: Receives the progress in steps.
        cancel: Stops between steps.

    Returns:
        (H, W, 3) uint8 RGB of the picture's size (at least the input's), or of the input's where the net is bound to that.

    Raises:
        NetError, DataError, Cancelled: as :func:`synthesize`.
    """
    _check(steps, octaves, jitter)
    generator = torch.Generator().manual_seed(seed)
    base = _fitting(model, pixels, blob)
    least = _input_size(model)
    sizes = _octave_sizes(base.shape[2], base.shape[3], octaves)
    sizes = [size for size in sizes if size[0] >= least[0] and size[1] >= least[1]] or [(base.shape[2], base.shape[3])]
    objective = _unit_objective(blob, unit) if unit is not None else lambda blobs: 0.5 * (blobs[blob] ** 2).sum()
    detail = torch.zeros(1, base.shape[1], *sizes[0])
    total, report = steps * len(sizes), reporter(events, "deepdream", "steps", cancel)
    for number, size in enumerate(sizes):
        start = _resized(base, size)
        x = start + _resized(detail, size)
        for step in range(steps):
            gradient = _pixel_gradient(model, x, [blob], objective, jitter, generator)
            x = _clipped(model, x + rate * gradient / _mean_size(gradient))
            report(number * steps + step + 1, total)
        detail = x - start
    return _to_rgb(model, x)


@reporting("style", "Draw a picture in another's style")
def style_transfer(
    model: PictureNet,
    content: Pixels,
    style: Pixels,
    *,
    content_blob: str | None = None,
    style_blobs: Sequence[str] | None = None,
    weight: float = 10.0,
    smooth: float = 1e-4,
    steps: int = 150,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Pixels:
    """Draw one picture in the style of another (Gatys, Ecker, Bethge 2016), with L-BFGS from the content picture.

    Args:
        model: A net whose convolutions take pictures of any size.
        content: (H, W, 3) uint8 RGB, the image to draw.
        style: (H, W, 3) uint8 RGB, the image whose style is taken.
        content_blob: Whose values are kept; None takes the blob at four fifths of the convolutions' depth.
        style_blobs: Whose Gram matrices are matched; None takes five blobs over the depth.
        weight: Of style against content; both are relative squared errors.
        smooth: Of the squared differences of neighbouring pixels.
        steps: Evaluations.
        events: Receives the progress in steps.
        cancel: Stops between steps.

    Returns:
        (H, W, 3) uint8 RGB of the content's size, or of the input's where the net is bound to that.

    Raises:
        NetError, DataError: a blob is unknown or has no positions, or an argument is out of range.
        Cancelled: ``cancel`` was called.
    """
    _check(steps, 1)
    spatial = rectified_blobs(model.net)
    if not spatial and (content_blob is None or not style_blobs):
        raise DataError(f"the net '{model.net.name}' has no blobs with positions after a ReLU; name the blobs of content and style")
    kept = content_blob or spatial[max(0, (4 * len(spatial)) // 5 - 1)]
    matched = list(style_blobs or [spatial[round(i * (len(spatial) - 1) / 4)] for i in range(5)])
    matched = list(dict.fromkeys(matched))
    base, other = _fitting(model, content, kept), _fitting(model, style, kept)
    scale = model.preprocessing.scale
    target = _run(model, base * scale, [kept]).blobs[kept]
    styled = _run(model, other * scale, matched).blobs
    grams = {name: _gram(styled[name]) for name in matched}
    x = base.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([x], max_iter=steps, max_eval=steps, tolerance_grad=0.0, tolerance_change=0.0)
    done, report = 0, reporter(events, "style", "steps", cancel)

    def loss() -> Tensor:
        nonlocal done
        optimizer.zero_grad()
        values = _run(model, x.detach() * scale, [kept, *matched], record=True)
        source = values.inputs[picture_input(model.net, [kept, *matched])]
        cost = _relative(values.blobs[kept], target)
        for name, gram in grams.items():
            cost = cost + weight / len(grams) * _relative(_gram(values.blobs[name]), gram)
        rough = (source.diff(dim=2).square().mean() + source.diff(dim=3).square().mean()) / scale**2
        # A scale at which L-BFGS's first steps change pixels visibly.
        cost = 1e4 * (cost + smooth * rough)
        x.grad = (values.gradient(cost, source, what="the style loss") * scale).detach().contiguous()
        done += 1
        report(min(done, steps), steps)
        return cost.detach()

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return _to_rgb(model, x.detach())


def rectified_blobs(net: Net) -> list[str]:
    """Return the blobs with positions that a rectifier (ReLU, ReLU6) makes, in the net's order."""
    found = [layer.tops[0] for layer in net.layers if layer.traits(layer.param).rectifier and len(layer.top_shapes[0]) == 4]
    return [name for name in dict.fromkeys(found) if net.blob_shapes[name][2] * net.blob_shapes[name][3] > 1]


def _unit_objective(blob: str, unit: Unit) -> Objective:
    def score(blobs: Mapping[str, Tensor]) -> Tensor:
        values = blobs[blob]
        if isinstance(unit, int) and values.dim() == 4 and values.shape[2] * values.shape[3] > 1:
            # One position shows what the channel prefers; the sum over all would fill the picture with a texture.
            return unit_score(values, blob, (unit, values.shape[2] // 2, values.shape[3] // 2)).sum()
        return unit_score(values, blob, unit).sum()

    return score


def _pixel_gradient(
    model: PictureNet, x: Tensor, blobs: Sequence[str], objective: Objective, jitter: int, generator: torch.Generator
) -> Tensor:
    """Return the objective's gradient with respect to the pixels ``x`` (distance from the mean, 0 to 255), with a random shift."""
    dy, dx = (int(torch.randint(-jitter, jitter + 1, (1,), generator=generator)) for _ in range(2)) if jitter else (0, 0)
    moved = torch.roll(x, (dy, dx), (2, 3)) * model.preprocessing.scale
    (items,) = run_items(model.net, moved, others=model.others, blobs=blobs, record=True)
    values = items.values
    gradient = values.gradient(objective(values.blobs), values.inputs[picture_input(model.net, blobs)], what=f"blob '{blobs[0]}'")
    return torch.roll(gradient[:1].detach().float().cpu(), (-dy, -dx), (2, 3))


def _mean_size(gradient: Tensor) -> float:
    """Return the mean absolute value, above 0; NumPy's sum does not depend on the number of threads, torch's does."""
    return float(np.abs(gradient.numpy()).mean(dtype=np.float64)) + 1e-12


def _run(model: PictureNet, x: Tensor, blobs: Sequence[str], *, record: bool = False) -> Activations:
    return run_probe(model.net, {picture_input(model.net, blobs): x, **model.others}, blobs=blobs, record=record)


def _relative(values: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(values, target) / (target.square().mean() + 1e-12)


def _gram(values: Tensor) -> Tensor:
    flat = values.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[1] / flat.shape[2]


def _fitting(model: PictureNet, pixels: Pixels, blob: str) -> Tensor:
    """Return the picture as distance from the mean, at its own size where the layers below ``blob`` take it, else at the input's."""
    bgr = pixels[..., ::-1] if model.preprocessor.channels == 3 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    height, width = _input_size(model)
    if any(layer.TRAITS.role == "classifier" and len(layer.top_shapes[0]) == 2 for layer in needed_layers(model.net, [blob])):
        bgr = np.asarray(cv2.resize(np.ascontiguousarray(bgr), (width, height), interpolation=cv2.INTER_AREA)).reshape(height, width, -1)
    factor = max(height / bgr.shape[0], width / bgr.shape[1], 1.0)
    if factor > 1:
        # Deep layers need at least the input's size.
        size = (round(bgr.shape[1] * factor), round(bgr.shape[0] * factor))
        bgr = np.asarray(cv2.resize(np.ascontiguousarray(bgr), size, interpolation=cv2.INTER_LINEAR)).reshape(size[1], size[0], -1)
    planes = np.ascontiguousarray(bgr.transpose(2, 0, 1), np.float32)
    mean = model.mean()
    mean = mean if planes.shape[1:] == mean.shape[1:] or mean.shape[1:] == (1, 1) else mean.mean((1, 2), keepdims=True)
    return torch.from_numpy(np.ascontiguousarray(planes - mean))[None]


def _input_size(model: PictureNet) -> tuple[int, int]:
    return model.preprocessor.height, model.preprocessor.width


def _to_rgb(model: PictureNet, x: Tensor) -> Pixels:
    planes = x[0].numpy()
    if not np.isfinite(planes).all():
        raise DataError("the picture has values that are not finite; take another scale, weight, blob or unit")
    mean = model.mean()
    mean = mean if planes.shape[1:] == mean.shape[1:] or mean.shape[1:] == (1, 1) else mean.mean((1, 2), keepdims=True)
    pixels = np.rint(np.clip(planes + mean, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., ::-1])


def _clipped(model: PictureNet, x: Tensor) -> Tensor:
    mean = torch.from_numpy(np.array(model.mean(), np.float32)).mean((1, 2)).reshape(1, -1, 1, 1)
    return torch.minimum(torch.maximum(x, -mean), 255 - mean)


def _octave_sizes(height: int, width: int, octaves: int) -> list[tuple[int, int]]:
    return [(max(8, round(height / 1.4**i)), max(8, round(width / 1.4**i))) for i in range(octaves - 1, -1, -1)]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    # In several threads torch's rounding differs.
    with one_thread():
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _blurred(x: Tensor, deviation: float) -> Tensor:
    if deviation < 0.05:
        return x
    reach = max(1, int(3 * deviation + 0.5))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    taps = (taps / taps.sum()).reshape(1, 1, -1)
    flat = x.reshape(-1, 1, *x.shape[2:])
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), taps[:, :, None, :])
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), taps[..., None])
    return flat.reshape(x.shape)


def _check(steps: int, octaves: int, jitter: int = 0, blur: float = 0.0) -> None:
    if steps < 1 or octaves < 1:
        raise DataError(f"at least 1 step and 1 octave are needed, not {steps} and {octaves}")
    for name, value, most in (("octaves", octaves, _MOST_OCTAVES), ("jitter", jitter, _MOST_JITTER), ("blur", blur, _MOST_BLUR)):
        if not 0 <= value <= most:
            raise DataError(f"{name} must be from 0 to {most}, not {value}")
