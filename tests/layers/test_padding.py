"""Padding in its three definitions, MaxUnpool and Shift of OpenCV."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.onnx.export import to_onnx
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse
from tests.layers.helpers import input_layer
from tests.layers.test_forks import Array, Reference, agree, exported, numbers
from tests.layers.test_forks_maps import places, unpooled


def net_of(text: str, *shape: int) -> Net:
    return Net(parse(input_layer("x", *shape) + f'layer {{ name: "l" bottom: "x" top: "y" {text} }}', NetParameter))


def run(net: Net, x: Array) -> tuple[Array, Tensor]:
    bottom = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    y = net.layer("l")(bottom)
    (gradient,) = torch.autograd.grad((y * y).sum(), [bottom])
    return y.detach().numpy(), gradient


PADDINGS: list[tuple[str, Reference]] = [
    ("padding_param { pad_beg: 1 pad_end: 2 }", lambda x: np.pad(x, [(0, 0), (0, 0), (1, 2), (1, 2)])),
    ("padding_param { pad_beg: -1 pad_end: -1 }", lambda x: x[:, :, 1:-1, 1:-1]),
    (
        "padding_param { pad_t: 1 pad_b: 2 pad_l: 0 pad_r: 3 pad_value: 1.5 }",
        lambda x: np.pad(x, [(0, 0), (0, 0), (1, 2), (0, 3)], constant_values=1.5),
    ),
    (
        "padding_param { paddings: 0 paddings: 1 paddings: 2 paddings: 0 input_dims: 3 value: -2 }",
        lambda x: np.pad(x, [(0, 0), (0, 1), (2, 0), (0, 0)], constant_values=-2),
    ),
    ("padding_param { paddings: 1 paddings: 1 }", lambda x: np.pad(x, [(1, 1), (0, 0), (0, 0), (0, 0)])),
    (
        'padding_param { paddings: [0, 0, 0, 0, 1, 2, 2, 1] type: "reflect" }',
        lambda x: np.pad(x, [(0, 0), (0, 0), (1, 2), (2, 1)], mode="reflect"),
    ),
]


@pytest.mark.parametrize(("text", "reference"), PADDINGS)
def test_padding(text: str, reference: Reference) -> None:
    x = numbers(2, 3, 4, 5)
    net = net_of(f'type: "Padding" {text}', *x.shape)
    y, gradient = run(net, x)
    expected = reference(x)
    assert net.layer("l").top_shapes == [expected.shape]
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    counts = reference(np.arange(x.size).reshape(x.shape) + 1000.0)
    inside = counts[counts >= 1000].astype(int) - 1000
    np.testing.assert_allclose(gradient.numpy().ravel(), 2 * x.ravel() * np.bincount(inside, minlength=x.size), rtol=1e-5)
    model = to_onnx(net, opset=17)
    got = OnnxRuntimeEngine.load(model.SerializeToString()).predict({"x": x.astype(np.float32)})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "padding_param is missing"),
        ("padding_param { pad_beg: 1 pad_end: -1 }", "must both be positive or both be negative"),
        ("padding_param { pad_beg: -2 pad_end: -2 }", "nothing is left"),
        ("padding_param { pad_beg: 1 pad_t: 1 }", "fields of no one definition: pad_beg, pad_t"),
        ("padding_param { paddings: 1 }", "paddings must be pairs"),
        ("padding_param { pad_beg: 1.5 }", "pad_beg must be a whole number"),
        ("padding_param { pad_t: 1 pad_method: REFLECT }", "pad_method other than CONSTANT"),
        ("padding_param { pad_t: 1 } margin_param { x: 1 }", r"not known here \(margin_param\)"),
    ],
)
def test_padding_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        net_of(f'type: "Padding" {text}', 1, 1, 4, 4)


def test_the_settings_survive_printing() -> None:
    text = 'layer { name: "l" type: "Padding" bottom: "x" top: "y" padding_param { pad_beg: 1 pad_end: 2 } }'
    assert "pad_end: 2" in format_text(parse(text, NetParameter))


UNPOOL = "max_unpool_param { pool_k_h: 2 pool_k_w: 3 pool_stride_h: 2 pool_stride_w: 3 pool_pad_h: 0 pool_pad_w: 0 }"


def test_max_unpool_puts_values_where_the_mask_points() -> None:
    x, mask = numbers(2, 2, 2, 3), places(2, 2, 2, 3, among=36)
    bottoms = input_layer("x", *x.shape) + input_layer("m", *mask.shape)
    net = Net(parse(bottoms + f'layer {{ name: "l" type: "MaxUnpool" bottom: "x" bottom: "m" top: "y" {UNPOOL} }}', NetParameter))
    y = net({"x": torch.tensor(x, dtype=torch.float32), "m": torch.tensor(mask, dtype=torch.float32)})["y"]
    np.testing.assert_allclose(y, unpooled(x, mask, 4, 9), rtol=1e-6)
    with pytest.raises(NetError, match="needs whole numbers for pool_k_w"):
        text = f'layer {{ name: "l" type: "MaxUnpool" bottom: "x" bottom: "m" top: "y" {UNPOOL.replace("pool_k_w: 3", "")} }}'
        Net(parse(bottoms + text, NetParameter))


def test_shift_adds_one_value_a_channel() -> None:
    x, shift = numbers(2, 3, 4, 2), numbers(3, seed=1)
    agree('type: "Shift"', lambda x, s: x + s.reshape(1, 3, 1, 1), x, params=[shift])
    exported('type: "Shift"', (2, 3, 4, 2), opset=17, params=[shift])


def test_shifts_of_channels_are_other_layers() -> None:
    with pytest.raises(NetError, match=r"has fields that are not known here \(shift_param\)"):
        net_of('type: "Shift" shift_param { kernel_size: 3 }', 1, 9, 4, 4)
