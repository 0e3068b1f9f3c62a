"""FlowNet's layers against plain NumPy, written here from their CUDA and CPU definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.proto.schema import TRAIN
from tests.layers.helpers import one_layer
from tests.layers.test_forks import Array, agree, distinct, exported, numbers


def test_channel_norm_is_the_length_of_each_pixels_vector() -> None:
    agree('type: "ChannelNorm"', lambda x: np.sqrt((x**2).sum(1, keepdims=True)), numbers(2, 3, 4, 5))
    layer = one_layer('type: "ChannelNorm"', (1, 2, 1, 1))
    x = torch.zeros(1, 2, 1, 1, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[[[0.0]], [[0.0]]]]


def warped(image: Array, flow: Array, fill: float = 0.0) -> Array:
    n, c, h, w = image.shape
    y = np.full(image.shape, fill)
    for item, row, column in np.ndindex(n, h, w):
        x2, y2 = column + flow[item, 0, row, column], row + flow[item, 1, row, column]
        if not (0 <= x2 < w and 0 <= y2 < h):
            continue
        left, top = int(x2), int(y2)
        right, bottom = min(left + 1, w - 1), min(top + 1, h - 1)
        a, b = x2 - left, y2 - top
        for channel in range(c):
            maps = image[item, channel]
            y[item, channel, row, column] = (1 - a) * (1 - b) * maps[top, left] + a * (1 - b) * maps[top, right]
            y[item, channel, row, column] += (1 - a) * b * maps[bottom, left] + a * b * maps[bottom, right]
    return y


def a_flow(n: int, h: int, w: int) -> Array:
    """Pixels inside, outside, behind the last one; none where the value jumps or bends within a small step."""
    return np.round(numbers(n, 2, h, w, seed=4) * 2, 1) + 0.03


def test_flow_warp_reads_where_the_flow_points() -> None:
    agree('type: "FlowWarp"', warped, numbers(2, 3, 4, 5), a_flow(2, 4, 5), gradients=(0, 1))


def test_flow_warp_of_places_outside() -> None:
    layer = one_layer('type: "FlowWarp" flow_warp_param { fill_value: NOT_A_NUMBER }', (1, 1, 2, 2), (1, 2, 2, 2))
    flow = torch.tensor([[[[0.0, 2.0], [float("nan"), 0.0]], [[0.0, 0.0], [0.0, -0.5]]]], requires_grad=True)
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    top = layer(image, flow)
    assert top.isnan().tolist() == [[[[False, True], [True, False]]]]
    assert top[0, 0, 1, 1].item() == 3.0
    top.nansum().backward()
    assert image.grad is not None and flow.grad is not None
    assert image.grad.isfinite().all() and flow.grad.isfinite().all()
    with pytest.raises(NetError, match=r"the flow 'b1' must be 1 x 2 x 2 x 2, not 1 x 1 x 2 x 2"):
        one_layer('type: "FlowWarp"', (1, 1, 2, 2), (1, 1, 2, 2))


def correlated(a: Array, b: Array, kernel: int, reach: int, pad: int, stride: int, step: int, *, multiply: bool = True) -> Array:
    n, c, h, w = a.shape
    a, b = (np.pad(m, [(0, 0), (0, 0), (pad, pad), (pad, pad)]) for m in (a, b))
    radius, border = reach // step, reach + (kernel - 1) // 2
    size = [math.ceil((m + 2 * pad - 2 * border) / stride) for m in (h, w)]
    width = 2 * radius + 1
    y = np.zeros((n, width * width, *size))
    for item, channel, row, column in np.ndindex(*y.shape):
        dx, dy = (channel % width - radius) * step, (channel // width - radius) * step
        y1, x1 = row * stride + reach, column * stride + reach
        one = a[item, :, y1 : y1 + kernel, x1 : x1 + kernel]
        two = b[item, :, y1 + dy : y1 + dy + kernel, x1 + dx : x1 + dx + kernel]
        y[item, channel, row, column] = (one * two if multiply else np.abs(one - two)).sum() / (kernel * kernel * c)
    return y


CORRELATIONS = [
    ("pad: 2 kernel_size: 1 max_displacement: 2 stride_1: 1 stride_2: 1", (1, 2, 2, 1, 1)),
    ("pad: 3 kernel_size: 1 max_displacement: 3 stride_1: 2 stride_2: 2 do_abs: true", (1, 3, 3, 2, 2)),
    ("pad: 2 kernel_size: 3 max_displacement: 1 stride_1: 2", (3, 1, 2, 2, 1)),
]


@pytest.mark.parametrize(("fields", "values"), CORRELATIONS)
@pytest.mark.parametrize("kind", ["MULTIPLY", "SUBTRACT"])
def test_correlation(fields: str, values: tuple[int, ...], kind: str) -> None:
    text = f'type: "Correlation" correlation_param {{ {fields} correlation_type: {kind} }}'
    agree(
        text,
        lambda a, b: correlated(a, b, *values, multiply=kind == "MULTIPLY"),
        numbers(2, 2, 4, 5),
        numbers(2, 2, 4, 5, seed=1),
        gradients=(0, 1),
    )


def test_the_gradient_of_a_difference_of_equal_values_is_that_of_a_positive_one() -> None:
    layer = one_layer(
        'type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 0 correlation_type: SUBTRACT }',
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    )
    a, b = (torch.ones(1, 1, 1, 1, requires_grad=True) for _ in range(2))
    layer(a, b).sum().backward()
    assert a.grad is not None and b.grad is not None
    assert (a.grad.item(), b.grad.item()) == (1.0, -1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("kernel_size: 2 max_displacement: 1", "kernel_size must be odd"),
        ("kernel_size: 1", "needs kernel_size and max_displacement"),
        ("kernel_size: 1 max_displacement: 9", "do not fit maps of 4 x 4"),
        ("kernel_size: 1 max_displacement: 1 single_direction: 1", "single_direction is Correlation1D's"),
    ],
)
def test_correlations_without_a_meaning_are_refused(fields: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        one_layer(f'type: "Correlation" correlation_param {{ {fields} }}', (1, 1, 4, 4), (1, 1, 4, 4))


def resampled(x: Array, height: int, width: int, kind: str, *, antialias: bool) -> Array:
    """The CUDA kernel, pixel by pixel."""
    fx, fy = np.float32(x.shape[3] / width), np.float32(x.shape[2] / height)
    antialias = antialias and max(fx, fy) > 1
    away = lambda v: int(math.copysign(math.floor(abs(v) + 0.5), v))  # noqa: E731
    y = np.zeros((*x.shape[:2], height, width))
    for row, column in np.ndindex(height, width):
        px, py = column * fx + fy / 2 - 0.5, row * fy + fx / 2 - 0.5
        ax, ay = (1 / fx, 1 / fy) if antialias else (1.0, 1.0)
        support = 4 if kind == "CUBIC" else 2
        rx = 2 if fx < 1 else math.ceil(support / ax)
        ry = 2 if fy < 1 else math.ceil(support / ay)
        total = 0.0
        for yy in range(max(0, away(py) - ry), min(x.shape[2], away(py) + ry + 1)):
            for xx in range(max(0, away(px) - rx), min(x.shape[3], away(px) + rx + 1)):
                weight = ax * kernel(kind, ax * (px - xx)) * ay * kernel(kind, ay * (py - yy))
                y[:, :, row, column] += weight * x[:, :, yy, xx]
                total += weight
        y[:, :, row, column] = y[:, :, row, column] / total if total else 0
    return y


def kernel(kind: str, t: float) -> float:
    t = abs(t)
    if kind == "LINEAR":
        return max(0.0, 1 - t)
    if t <= 1:
        return t * t * (1.5 * t - 2.5) + 1
    return t * (t * (-0.5 * t + 2.5) - 4) + 2 if t < 2 else 0.0


@pytest.mark.parametrize("size", [(8, 12), (2, 3), (3, 5), (5, 4)])
@pytest.mark.parametrize("kind", ["LINEAR", "CUBIC"])
@pytest.mark.parametrize("antialias", [True, False])
def test_resample(size: tuple[int, int], kind: str, antialias: bool) -> None:
    fields = f"height: {size[0]} width: {size[1]} type: {kind} antialias: {str(antialias).lower()}"
    text = f'type: "Resample" resample_param {{ {fields} }}'
    agree(text, lambda x: resampled(x, *size, kind, antialias=antialias), numbers(1, 2, 4, 6), tolerance=1e-4)


def test_resample_nearest_and_of_a_second_bottom() -> None:
    agree(
        'type: "Resample" resample_param { type: NEAREST height: 8 width: 12 }', lambda x: x.repeat(2, 2).repeat(2, 3), numbers(1, 2, 4, 6)
    )
    agree(
        'type: "Resample" resample_param { type: LINEAR }',
        lambda x, like: resampled(x, 8, 12, "LINEAR", antialias=True),
        numbers(1, 2, 4, 6),
        numbers(1, 1, 8, 12),
    )
    with pytest.raises(NetError, match="reads outside of the maps"):
        one_layer('type: "Resample" resample_param { type: NEAREST height: 1 width: 12 }', (1, 1, 4, 6))
    with pytest.raises(NetError, match="type AREA has no definition"):
        one_layer('type: "Resample" resample_param { type: AREA height: 1 width: 1 }', (1, 1, 4, 6))
    with pytest.raises(NetError, match="needs height and width"):
        one_layer('type: "Resample"', (1, 1, 4, 6))


def accumulated(height: int, width: int, *bottoms: Array) -> Array:
    parts = []
    for x in bottoms:
        part = np.zeros((*x.shape[:2], height, width))
        for row, column in np.ndindex(height, width):
            px, py = column / (width - 1) * (x.shape[3] - 1), row / (height - 1) * (x.shape[2] - 1)
            left, top = int(px), int(py)
            right, bottom = min(left + 1, x.shape[3] - 1), min(top + 1, x.shape[2] - 1)
            a, b = px - left, py - top
            upper = (1 - a) * x[:, :, top, left] + a * x[:, :, top, right]
            part[:, :, row, column] = (1 - b) * upper + b * ((1 - a) * x[:, :, bottom, left] + a * x[:, :, bottom, right])
        parts.append(part)
    return np.concatenate(parts, 1)


@pytest.mark.parametrize(
    ("fields", "size", "used"),
    [
        ("", (4, 6), 2),
        ("size_divisible_by: 4", (4, 6), 2),
        ("size_divisible_by: 5", (5, 10), 2),
        ("top_height: 7 top_width: 9", (7, 9), 2),
        ("top_height: 3 top_width: 9", (4, 6), 2),
        ("have_reference: true", (3, 2), 1),
    ],
)
def test_accum_joins_maps_of_one_size(fields: str, size: tuple[int, int], used: int) -> None:
    text = f'type: "Accum" accum_param {{ {fields} }}'
    agree(text, lambda *xs: accumulated(*size, *xs[:used]), numbers(2, 1, 4, 6), numbers(2, 2, 3, 2, seed=1), gradients=tuple(range(used)))


def flow_l1(d: Array, **fields: Any) -> Array:
    """FlowNet's loss of the differences d (N, C, H, W)."""
    known = ~np.isnan(d)
    divisor = known.sum() / d.shape[1] if fields.get("entries") else len(d)
    d = np.where(known, d, 0)
    plateau = fields.get("plateau", 0)
    if fields.get("l2"):
        squares = (d * d).sum(1) / (d.shape[1] if fields.get("prescale") else 1)
        return np.array(np.sqrt(np.where(squares < plateau**2, 0, squares) + 1e-2).sum() / divisor)
    return np.array(np.where(np.abs(d) < plateau, 0, np.abs(d)).sum() / divisor)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("plateau: 0.5", {"plateau": 0.5}),
        ("l2_per_location: true", {"l2": True}),
        ("l2_per_location: true l2_prescale_by_channels: true plateau: 0.7", {"l2": True, "prescale": True, "plateau": 0.7}),
        ("normalize_by_num_entries: true", {"entries": True}),
    ],
)
def test_l1_loss_of_flownet(text: str, fields: dict[str, Any]) -> None:
    layer = f'type: "L1Loss" l1_loss_param {{ {text} }}'
    a, b = numbers(2, 3, 2, 2), numbers(2, 3, 2, 2, seed=1)
    agree(layer, lambda x, y: flow_l1(x - y, **fields), a, b, gradients=(0, 1), phase=TRAIN)
    agree(layer, lambda x: flow_l1(x, **fields), a, phase=TRAIN)
    holes = a.copy()
    holes[0, 1] = np.nan
    loss = one_layer(layer, a.shape, b.shape, phase=TRAIN)
    x = torch.tensor(holes, dtype=torch.float32, requires_grad=True)
    top = loss(x, torch.tensor(b, dtype=torch.float32))
    assert top.item() == pytest.approx(float(flow_l1(holes - b, **fields)), rel=1e-5)
    top.backward()
    assert x.grad is not None and x.grad[0, 1].abs().sum() == 0


def test_one_bottom_or_equal_values_differ_between_the_forks() -> None:
    with pytest.raises(NetError, match="one is for FlowNet's"):
        one_layer('type: "L1Loss"', (2, 3), phase=TRAIN)
    layer = one_layer('type: "L1Loss" l1_loss_param { }', (1, 1, 1, 1), (1, 1, 1, 1), phase=TRAIN)
    a = torch.ones(1, 1, 1, 1, requires_grad=True)
    layer(a, torch.ones(1, 1, 1, 1)).backward()
    assert a.grad is not None and a.grad.item() == -1.0


@pytest.mark.parametrize("opset", [11, 17, 21])
@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ('type: "ChannelNorm"', [(2, 3, 4, 5)]),
        ('type: "FlowWarp"', [(2, 3, 4, 5), (2, 2, 4, 5)]),
        ('type: "Correlation" correlation_param { pad: 2 kernel_size: 3 max_displacement: 2 stride_1: 2 stride_2: 2 }', [(1, 4, 5, 6)] * 2),
        ('type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 1 correlation_type: SUBTRACT }', [(1, 4, 5, 6)] * 2),
        ('type: "Resample" resample_param { height: 3 width: 4 }', [(1, 2, 6, 8)]),
        ('type: "Resample" resample_param { height: 12 width: 16 type: CUBIC }', [(1, 2, 6, 8)]),
        ('type: "Accum" accum_param { top_height: 9 top_width: 9 }', [(1, 2, 6, 8), (1, 1, 3, 4)]),
    ],
)
def test_exact_onnx_forms(text: str, shapes: list[tuple[int, ...]], opset: int) -> None:
    exported(text, *shapes, opset=opset)


def test_a_maximum_moves_with_the_flow() -> None:
    x = distinct(1, 1, 4, 4)
    flow = np.zeros((1, 2, 4, 4))
    flow[:, 0] = 1
    layer = one_layer('type: "FlowWarp"', x.shape, flow.shape)
    top = layer(torch.tensor(x), torch.tensor(flow)).numpy()
    np.testing.assert_allclose(top[..., :-1], x[..., 1:])
    np.testing.assert_allclose(top[..., -1], 0)
