"""Layers of forks against plain NumPy, written here from their definitions: forward, gradient by differences, and through ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ExportError, NetError
from caffetools.layers.base import Layer
from caffetools.net.net import Net
from caffetools.onnx.export import to_onnx
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer, one_layer

Array = NDArray[Any]
Reference = Callable[..., Array]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.RandomState(seed).randn(*shape)


def distinct(*shape: int, seed: int = 0) -> Array:
    """Values no two of which are near each other, so that small steps leave a maximum where it is."""
    return np.random.RandomState(seed).permutation(math.prod(shape)).reshape(shape) / 7.0


def agree(
    text: str,
    reference: Reference,
    *bottoms: Array,
    params: Sequence[Array] = (),
    gradients: Sequence[int] = (0,),
    phase: int = TEST,
    tolerance: float = 1e-5,
) -> Layer:
    """Hold a layer's top and gradients against ``reference(*bottoms, *params)``, which computes in float64."""
    layer = one_layer(text, *(b.shape for b in bottoms), phase=phase)
    for blob, value in zip(layer.blobs, params, strict=False):
        blob.data = torch.tensor(value, dtype=torch.float32)
    tensors = [torch.tensor(b, dtype=torch.float32, requires_grad=i in gradients) for i, b in enumerate(bottoms)]
    top = layer(*tensors)
    top = top[0] if isinstance(top, tuple) else top
    expected = reference(*bottoms, *params)
    assert top.shape == expected.shape
    if len(layer.top_shapes[0]) == len(expected.shape):
        assert list(layer.top_shapes[0]) == list(expected.shape)
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-4, atol=tolerance)
    if gradients:
        weight = numbers(*expected.shape, seed=9)
        inputs = [tensors[i] for i in gradients] + list(layer.blobs[: len(params)])
        got = torch.autograd.grad((top * torch.tensor(weight, dtype=torch.float32)).sum(), inputs)
        arrays = [*bottoms, *params]
        places = [*gradients, *range(len(bottoms), len(arrays))]
        for place, gradient in zip(places, got, strict=True):
            np.testing.assert_allclose(gradient, differences(reference, arrays, place, weight), rtol=2e-3, atol=2e-4)
    return layer


def differences(reference: Reference, arrays: list[Array], place: int, weight: Array, step: float = 1e-5) -> Array:
    gradient = np.zeros(arrays[place].shape)
    for index in np.ndindex(*gradient.shape):
        values = []
        for sign in (1, -1):
            moved = [a.astype(np.float64).copy() for a in arrays]
            moved[place][index] += sign * step
            values.append((reference(*moved) * weight).sum())
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


def exported(text: str, *shapes: tuple[int, ...], opset: int, params: Sequence[Array] = ()) -> None:
    """onnxruntime gives the layer's numbers, with the batch left free."""
    names = [f"x{i}" for i in range(len(shapes))]
    bottoms = " ".join(f'bottom: "{name}"' for name in names)
    inputs = "".join(input_layer(name, *shape) for name, shape in zip(names, shapes, strict=True))
    net = Net(parse(f'{inputs} layer {{ name: "l" top: "y" {bottoms} {text} }}', NetParameter), TEST)
    for blob, value in zip(net.layer("l").blobs, params, strict=False):
        blob.data = torch.tensor(value, dtype=torch.float32)
    engine = OnnxRuntimeEngine.load(to_onnx(net, opset=opset).SerializeToString())
    for batch in (shapes[0][0], 3):
        given = enumerate(zip(names, shapes, strict=True))
        feed = {name: numbers(batch, *shape[1:], seed=i).astype(np.float32) for i, (name, shape) in given}
        net.reshape({name: x.shape for name, x in feed.items()})
        expected = net({name: torch.tensor(x) for name, x in feed.items()})["y"].detach()
        np.testing.assert_allclose(engine.predict(feed)["y"], expected, rtol=1e-4, atol=1e-5)


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


ACTIVATIONS: dict[str, Reference] = {
    "ReLU6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "Mish": lambda x: x * np.tanh(softplus(x)),
    "HSigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "HSwish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str) -> None:
    agree(f'type: "{kind}"', ACTIVATIONS[kind], 4 * numbers(2, 3, 4))


def test_permute() -> None:
    agree('type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }', lambda x: x.transpose(0, 2, 3, 1), numbers(2, 3, 4, 5))
    agree('type: "Permute" permute_param { order: 2 }', lambda x: x.transpose(2, 0, 1), numbers(2, 3, 4))


def test_shuffle_channel() -> None:
    def shuffled(x: Array) -> Array:
        y = np.empty_like(x)
        for group in range(3):
            for place in range(2):
                y[:, place * 3 + group] = x[:, group * 2 + place]
        return y

    agree('type: "ShuffleChannel" shuffle_channel_param { group: 3 }', shuffled, numbers(2, 6, 2, 2))


def darknet_reorg(x: Array, stride: int, reverse: bool) -> Array:
    """reorg_cpu of Darknet, index by index."""
    n, c, h, w = x.shape
    small = c // stride**2
    flat, out = x.reshape(n, -1), np.empty((n, x[0].size))
    for k in range(c):
        for j in range(h):
            for i in range(w):
                offset = k // small
                here = i + w * (j + h * k)
                there = i * stride + offset % stride + w * stride * (j * stride + offset // stride + h * stride * (k % small))
                if reverse:
                    out[:, there] = flat[:, here]
                else:
                    out[:, here] = flat[:, there]
    return out.reshape((n, small, h * stride, w * stride) if reverse else (n, c * stride**2, h // stride, w // stride))


@pytest.mark.parametrize("reverse", [False, True])
def test_reorg(reverse: bool) -> None:
    text = f'type: "Reorg" reorg_param {{ stride: 2 reverse: {str(reverse).lower()} }}'
    agree(text, lambda x: darknet_reorg(x, 2, reverse), numbers(2, 8, 4, 6), gradients=())
    agree(text, lambda x: darknet_reorg(x, 2, reverse), numbers(1, 4, 2, 4))


def test_axpy() -> None:
    agree(
        'type: "Axpy"',
        lambda a, x, y: a * x + y,
        numbers(2, 3, 1, 1),
        numbers(2, 3, 2, 2, seed=1),
        numbers(2, 3, 2, 2, seed=2),
        gradients=(0, 1, 2),
    )


@pytest.mark.parametrize("kind", ["DepthwiseConvolution", "ConvolutionDepthwise"])
def test_depthwise_convolution(kind: str) -> None:
    def convolved(x: Array, weight: Array, bias: Array) -> Array:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = np.zeros((x.shape[0], 6, 2, 2))
        for out in range(6):
            for i in range(2):
                for j in range(2):
                    part = padded[:, out // 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                    y[:, out, i, j] = (part * weight[out, 0]).sum((1, 2)) + bias[out]
        return y

    text = f'type: "{kind}" convolution_param {{ num_output: 6 kernel_size: 3 stride: 2 pad: 1 }}'
    layer = agree(text, convolved, numbers(2, 3, 4, 4), params=(numbers(6, 1, 3, 3, seed=1), numbers(6, seed=2)))
    assert layer.macs() == 2 * 6 * 4 * 9
    with pytest.raises(NetError, match="group must be the number of input channels, 3"):
        one_layer(f'type: "{kind}" convolution_param {{ num_output: 6 kernel_size: 3 group: 2 }}', (1, 3, 4, 4))


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_normalize(across: bool, shared: bool) -> None:
    def normalized(x: Array, scale: Array) -> Array:
        axes = (1, 2, 3) if across else (1,)
        return x / np.sqrt((x**2).sum(axes, keepdims=True) + 1e-10) * scale.reshape(1, -1, 1, 1)

    text = f'type: "Normalize" norm_param {{ across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} }}'
    layer = agree(text, normalized, numbers(2, 3, 2, 2), params=(np.array(1.7) if shared else numbers(3, seed=4),))
    assert one_layer(text, (2, 3, 2, 2)).blobs[0].detach().unique().tolist() == [1.0] and layer.type_name == "Normalize"


def test_l2_normalization_leaves_zeros_alone() -> None:
    x = numbers(3, 4, 2)
    agree('type: "L2Normalization"', lambda x: x / np.sqrt((x**2).sum((1, 2), keepdims=True)), x)
    layer = one_layer('type: "L2Normalization"', (2, 3))
    y = layer(torch.zeros(2, 3, requires_grad=True))
    assert y.tolist() == [[0.0] * 3] * 2


def test_bn_of_pspnet_keeps_running_statistics() -> None:
    x, slope, bias = numbers(3, 2, 2, 2), 1 + 0.3 * numbers(1, 2, 1, 1, seed=1), numbers(1, 2, 1, 1, seed=2)

    def of_batch(x: Array, slope: Array, bias: Array) -> Array:
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        return slope * (x - mean) / np.sqrt(variance + 1e-5) + bias

    layer = agree('type: "BN" bn_param { momentum: 0.8 }', of_batch, x, params=(slope, bias), phase=TRAIN)
    np.testing.assert_allclose(layer.array(2), 0.2 * x.mean((0, 2, 3), keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(layer.array(3), 0.8 + 0.2 * x.var((0, 2, 3), keepdims=True), rtol=1e-4)
    mean, variance = layer.array(2), layer.array(3)
    layer.eval()
    got = layer(torch.tensor(x, dtype=torch.float32)).detach()
    np.testing.assert_allclose(got, slope * (x - mean) / np.sqrt(variance + 1e-5) + bias, rtol=1e-4, atol=1e-5)
    frozen = one_layer('type: "BN" bn_param { frozen: true }', (3, 2, 2, 2), phase=TRAIN)
    before = frozen.array(2)
    frozen(torch.tensor(x, dtype=torch.float32))
    assert (frozen.array(2) == before).all()


def test_bn_of_segnet_learns_by_the_batch_and_infers_by_scale_and_shift() -> None:
    x, scale, shift = numbers(3, 2, 2, 2), numbers(1, 2, 1, 1, seed=1), numbers(1, 2, 1, 1, seed=2)

    def of_batch(x: Array, scale: Array, shift: Array) -> Array:
        return scale * (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-9) + shift

    for phase in (TRAIN, TEST):
        layer = agree('type: "BN" bn_param { bn_mode: LEARN }', of_batch, x, params=(scale, shift), phase=phase)
        assert len(layer.blobs) == 2
    inferring = 'type: "BN" bn_param { bn_mode: INFERENCE scale_filler { type: "constant" value: 1 } }'
    agree(inferring, lambda x, scale, shift: scale * x + shift, x, params=(scale, shift))


def test_batch_norm_of_nvcaffe_has_a_scale_and_a_bias() -> None:
    def normalized(x: Array, mean: Array, variance: Array, weight: Array, scale: Array, bias: Array) -> Array:
        y = (x - mean.reshape(1, -1, 1, 1) / weight) / np.sqrt(variance.reshape(1, -1, 1, 1) / weight + 1e-3)
        return y * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)

    params = (numbers(3), 1 + numbers(3, seed=1) ** 2, np.array([2.0]), numbers(3, seed=2), numbers(3, seed=3))
    text = 'type: "BatchNorm" batch_norm_param { scale_bias: true eps: 1e-3 }'
    layer = agree(text, normalized, numbers(2, 3, 2, 2, seed=5), params=params, gradients=())
    assert [blob.requires_grad for blob in layer.blobs] == [False, False, False, True, True]

    def of_batch(x: Array, scale: Array, bias: Array) -> Array:
        y = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-3)
        return y * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)

    x = numbers(3, 2, 2, 2)
    trained = one_layer(text, x.shape, phase=TRAIN)
    trained.blobs[3].data, trained.blobs[4].data = torch.tensor([1.5, -2.0]), torch.tensor([0.5, 0.25])
    expected = of_batch(x, np.array([1.5, -2.0]), np.array([0.5, 0.25]))
    np.testing.assert_allclose(trained(torch.tensor(x, dtype=torch.float32)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_nvcaffe_averages_its_statistics_and_keeps_their_weight_at_1() -> None:
    text = 'type: "BatchNorm" param { lr_mult: 1 } batch_norm_param { scale_bias: true eps: 1e-9 moving_average_fraction: 0.9 }'
    layer = one_layer(text, (4, 2, 3, 3), phase=TRAIN)
    first, second = numbers(4, 2, 3, 3, seed=1), 3 + 2 * numbers(4, 2, 3, 3, seed=2)
    for x in (first, second):
        layer(torch.tensor(x, dtype=torch.float32))
    axes = (0, 2, 3)
    np.testing.assert_allclose(layer.blobs[0], 0.9 * first.mean(axes) + 0.1 * second.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(layer.blobs[1], 0.9 * first.var(axes) + 0.1 * second.var(axes), rtol=1e-5)
    assert layer.blobs[2].item() == 1
    used = one_layer(text, (1, 2, 1, 1))
    for blob, value in zip(used.blobs, layer.blobs, strict=True):
        blob.data = value.data
    x = numbers(1, 2, 1, 1)
    expected = (x - layer.blobs[0].numpy().reshape(1, 2, 1, 1)) / np.sqrt(layer.blobs[1].numpy().reshape(1, 2, 1, 1) + 1e-5)
    np.testing.assert_allclose(used(torch.tensor(x, dtype=torch.float32)).detach(), expected, rtol=1e-5)


def test_ceil_mode_false_rounds_pooled_sizes_down() -> None:
    def pooled(x: Array) -> Array:
        return np.stack([np.stack([x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((2, 3)) for j in range(2)], -1) for i in range(2)], 2)

    x = distinct(1, 2, 6, 6)
    agree('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 ceil_mode: false }', pooled, x)
    for said in ("", "ceil_mode: true"):
        assert one_layer(f'type: "Pooling" pooling_param {{ kernel_size: 3 stride: 2 {said} }}', x.shape).top_shapes == [(1, 2, 3, 3)]


def test_dropout_of_rfcn_may_scale_in_test_rather_than_in_training() -> None:
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 scale_train: false }'
    agree(text, lambda x: 0.75 * x, numbers(2, 3))
    y = one_layer(text, (100, 100), phase=TRAIN)(torch.ones(100, 100))
    assert set(y.unique().tolist()) == {0.0, 1.0} and y.mean().item() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("normalize", [True, False])
def test_segnet_weights_the_loss_by_class(normalize: bool) -> None:
    weights = np.array([1.0, 2.0, 0.5])
    labels = np.array([[[0, 2], [1, 9]], [[2, 2], [0, 1]]], float)[:, np.newaxis]

    def loss(scores: Array, _: Array) -> Array:
        scores, given = scores.transpose(0, 2, 3, 1).reshape(-1, 3), labels.reshape(-1).astype(int)
        kept = given != 9
        logarithms = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        items = -(logarithms[kept, given[kept]] * weights[given[kept]])
        return items.sum() / (kept.sum() if normalize else len(labels))

    text = 'type: "SoftmaxWithLoss" loss_param { weight_by_label_freqs: true class_weighting: 1 class_weighting: 2 class_weighting: 0.5 '
    text += f"ignore_label: 9 normalize: {str(normalize).lower()} }}"
    agree(text, loss, numbers(2, 3, 2, 2), labels)
    layer = one_layer(text, (2, 3, 2, 2), (2, 1, 2, 2))
    scores, given = torch.zeros(2, 3, 2, 2), torch.tensor(labels)
    expected = math.log(3) * weights[[0, 2, 1, 2, 2, 0, 1]].sum() / (7 if normalize else 2)
    assert layer(scores, given).item() == pytest.approx(expected)
    with pytest.raises(NetError, match="class_weighting has 3 weights for 4 classes"):
        one_layer(text, (2, 4, 2, 2), (2, 1, 2, 2))


def test_dropout_of_bayesian_segnet_samples_in_test_too() -> None:
    torch.manual_seed(1)
    layer = one_layer('type: "Dropout" dropout_param { dropout_ratio: 0.25 sample_weights_test: true }', (100, 100))
    x = torch.ones(100, 100, requires_grad=True)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert np.allclose(first.unique().tolist(), [0.0, 4 / 3]) and first.mean().item() == pytest.approx(1, abs=0.03)
    second.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, second.detach())
    text = 'layer { name: "l" type: "Dropout" bottom: "x" top: "y" dropout_param { sample_weights_test: true } }'
    net = Net(parse(input_layer("x", 2, 300) + text, NetParameter), TEST)
    assert not torch.equal(net({"x": torch.ones(2, 300)})["y"], net({"x": torch.ones(2, 300)})["y"])
    with pytest.raises(ExportError, match="layer 'l': dropout_param: sample_weights_test drops values at random in use"):
        to_onnx(net)


def test_a_field_that_changes_what_a_layer_computes_is_refused_where_it_is_not_honoured() -> None:
    with pytest.raises(NetError, match=r"layer 'l': \(Convolution\) has relu, negative_slope, which changes what a fork's layer computes"):
        one_layer('type: "Convolution" convolution_param { num_output: 1 kernel_size: 1 relu: true negative_slope: 0.1 }', (1, 1, 2, 2))
    one_layer(
        'type: "Convolution" convolution_param { num_output: 1 kernel_size: 1 relu: false conv_algos_override: "0,1,1" }', (1, 1, 2, 2)
    )


FORMS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    **{kind: (f'type: "{kind}"', ((2, 3, 4),)) for kind in ACTIVATIONS},
    "Permute": ('type: "Permute" permute_param { order: 0 order: 2 order: 3 }', ((2, 3, 4, 5),)),
    "ShuffleChannel": ('type: "ShuffleChannel" shuffle_channel_param { group: 3 }', ((2, 6, 2, 2),)),
    "Reorg": ('type: "Reorg" reorg_param { stride: 2 }', ((2, 8, 4, 6),)),
    "Reorg back": ('type: "Reorg" reorg_param { stride: 2 reverse: true }', ((2, 8, 4, 6),)),
    "Axpy": ('type: "Axpy"', ((2, 3, 1, 1), (2, 3, 4, 4), (2, 3, 4, 4))),
    "Depthwise": (
        'type: "DepthwiseConvolution" convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } }',
        ((2, 3, 5, 5),),
    ),
    "Normalize": ('type: "Normalize" norm_param { across_spatial: false channel_shared: false }', ((2, 3, 4, 4),)),
    "L2Normalization": ('type: "L2Normalization"', ((2, 7),)),
    "BN": ('type: "BN"', ((2, 3, 4, 4),)),
    "BN of SegNet": ('type: "BN" bn_param { bn_mode: INFERENCE }', ((2, 3, 4, 4),)),
    "BatchNorm": ('type: "BatchNorm" batch_norm_param { scale_bias: true }', ((2, 3, 4, 4),)),
    "Interp": ('type: "Interp" interp_param { zoom_factor: 3 pad_beg: -1 }', ((2, 3, 5, 4),)),
    "Interp to a size": ('type: "Interp" interp_param { height: 33 width: 7 }', ((2, 3, 6, 60),)),
    "Interp down": ('type: "Interp" interp_param { shrink_factor: 2 }', ((2, 3, 7, 9),)),
    "Upsample": ('type: "Upsample" upsample_param { scale: 2 }', ((2, 3, 3, 4),)),
    "Dropout": ('type: "Dropout" dropout_param { dropout_ratio: 0.25 scale_train: false }', ((2, 3),)),
    "Pooling": ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 ceil_mode: false }', ((2, 3, 6, 6),)),
}
PARAMS = {
    "BN": [numbers(1, 3, 1, 1, seed=i) ** 2 + 0.5 for i in range(4)],
    "BatchNorm": [numbers(n, seed=n) ** 2 + 0.5 for n in (3, 3, 1, 3, 3)],
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", FORMS)
def test_onnxruntime_gives_the_same_numbers(name: str, opset: int) -> None:
    text, shapes = FORMS[name]
    exported(text, *shapes, opset=opset, params=PARAMS.get(name, ()))


def test_batch_norm_of_nvcaffe_continues_from_sums_as_averages() -> None:
    layer = one_layer('type: "BatchNorm" batch_norm_param { scale_bias: true moving_average_fraction: 0.9 }', (4, 2, 3, 3), phase=TRAIN)
    for blob, value in zip(layer.blobs, ([40.0, 80.0], [20.0, 10.0], [10.0]), strict=False):
        blob.data = torch.tensor(value)
    x = numbers(4, 2, 3, 3, seed=1)
    layer(torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(layer.blobs[0], 0.9 * np.array([4.0, 8.0]) + 0.1 * x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(layer.blobs[1], 0.9 * np.array([2.0, 1.0]) + 0.1 * x.var((0, 2, 3)), rtol=1e-5)
    assert layer.blobs[2].item() == 1


def test_intels_batch_norm_takes_the_statistics_of_a_part_of_the_batch_at_a_time() -> None:
    def grouped(x: Array) -> Array:
        parts = [(part - part.mean((0, 2, 3), keepdims=True), part.var((0, 2, 3), keepdims=True)) for part in np.split(x, 2)]
        return np.concatenate([part / np.sqrt(variance + 1e-5) for part, variance in parts])

    text = 'type: "BatchNorm" batch_norm_param { stats_batch_size: 3 moving_average_fraction: 0.9 }'
    x = numbers(6, 2, 4, 3)
    layer = agree(text, grouped, x, phase=TRAIN)
    sums, weight = np.zeros(2), 0.0
    # Each part renews the sums (batch_norm_layer.cpp of Intel's fork).
    for part in np.split(x, 2):
        sums, weight = 0.9 * sums + part.mean((0, 2, 3)), 0.9 * weight + 1
    np.testing.assert_allclose(layer.blobs[0].detach(), sums, atol=1e-5)
    assert layer.blobs[2].item() == pytest.approx(weight)
    with pytest.raises(NetError, match="stats_batch_size 3 does not divide the batch of 4"):
        one_layer(text, (4, 2, 3, 3), phase=TRAIN)
    # In use the layer's own statistics are taken.
    assert one_layer(text, (4, 2, 3, 3)).global_stats


def test_a_net_gives_its_size_for_statistics_to_every_batch_norm() -> None:
    layers = input_layer("in", 4, 2, 3, 3) + 'layer { name: "bn" type: "BatchNorm" bottom: "in" top: "bn" }'
    layers += 'layer { name: "s" type: "Scale" bottom: "bn" top: "s" }'
    split, whole = (Net(parse(f"{more} {layers}", NetParameter), TRAIN) for more in ("bn_stats_batch_size: 2", ""))
    x = torch.tensor(numbers(4, 2, 3, 3), dtype=torch.float32)
    found = split({"in": x})["s"].detach()
    parts = [whole({"in": part})["s"].detach() for part in x.split(2)]
    np.testing.assert_allclose(found, torch.cat(parts), atol=1e-5)
    assert (found - whole({"in": x})["s"]).abs().max() > 0.01
