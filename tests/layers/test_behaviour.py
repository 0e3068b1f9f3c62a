"""What the golden cases can't pin: random layers, labels out of range, in-place work, state between passes, counts."""

from __future__ import annotations

import math

import pytest
import torch

from caffetools.errors import ExportError, NetError
from caffetools.layers.recurrent import Recurrent
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer, net_of, one_layer

LABELLED = [
    ('type: "SoftmaxWithLoss"', "classes"),
    ('type: "Accuracy"', "classes"),
    ('type: "HingeLoss"', "classes"),
    ('type: "MultinomialLogisticLoss"', "classes"),
]


@pytest.mark.parametrize(("text", "what"), LABELLED)
@pytest.mark.parametrize("label", [5, -1, math.nan, math.inf])
def test_a_label_outside_of_the_classes_is_named(text: str, what: str, label: float) -> None:
    layer = one_layer(text, (4, 5), (4,))
    with pytest.raises(NetError, match=rf"layer 'l': .*label {label} of bottom 'b1' is outside of 0 to 4: there are 5 {what}"):
        layer(torch.rand(4, 5), torch.tensor([0.0, 1.0, float(label), 2.0]))


def test_an_index_outside_of_an_embedding_is_named() -> None:
    layer = one_layer('type: "Embed" embed_param { num_output: 2 input_dim: 3 }', (2,))
    with pytest.raises(NetError, match="index 3 of bottom 'b0' is outside of 0 to 2: there are 3 rows"):
        layer(torch.tensor([0.0, 3.0]))


def test_an_ignored_label_may_be_out_of_range() -> None:
    layer = one_layer('type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }', (2, 3), (2,))
    loss = layer(torch.zeros(2, 3), torch.tensor([255.0, 1.0]))
    assert loss.item() == pytest.approx(1.0986123)


@pytest.mark.parametrize(
    ("text", "scores", "loss", "gradient"),
    [
        # Values of BVLC Caffe 1.0.
        ('type: "SoftmaxWithLoss"', [[-1e10, 0.0], [0.0, 3e38]], 87.3365447505531, [[-0.5, 0.5], [-0.5, 0.5]]),
        ('type: "MultinomialLogisticLoss"', [[-0.5, 1.0], [0.5, 0.5]], 23.3724, [[-5e19, 0.0], [-1.0, 0.0]]),
        ('type: "MultinomialLogisticLoss"', [[0.0, 1.0], [0.25, 0.5]], 23.7190, [[-5e19, 0.0], [-2.0, 0.0]]),
    ],
)
def test_a_loss_of_a_probability_of_zero_is_bounded(text: str, scores: list[list[float]], loss: float, gradient: list[list[float]]) -> None:
    layer = one_layer(text, (2, 2), (2,))
    x = torch.tensor(scores, requires_grad=True)
    value = layer(x, torch.zeros(2))
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(x.grad, torch.tensor(gradient))


def test_softmax_loss_gives_the_probabilities_as_second_top() -> None:
    layer = one_layer('type: "SoftmaxWithLoss"', (4, 5, 2), (4, 2), tops=2)
    scores = torch.randn(4, 5, 2, requires_grad=True)
    loss, probabilities = layer(scores, torch.zeros(4, 2))
    torch.testing.assert_close(probabilities, torch.softmax(scores.detach(), 1))
    assert loss.requires_grad
    assert not probabilities.requires_grad


def test_stochastic_pooling_draws_in_proportion_in_training() -> None:
    layer = one_layer('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }', (1, 1, 2, 2), phase=TRAIN)
    torch.manual_seed(4)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    drawn = torch.stack([layer(x).detach().reshape(()) for _ in range(4000)])
    for value in (1.0, 2.0, 3.0, 4.0):
        assert (drawn == value).float().mean().item() == pytest.approx(value / 10, abs=0.03)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 1
    assert x[x.grad == 1] == y.reshape(())


def test_stochastic_pooling_gives_the_expected_value_in_test() -> None:
    layer = one_layer('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }', (1, 1, 2, 3))
    y = layer(torch.tensor([[[[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]]]))
    torch.testing.assert_close(y, torch.tensor([[[[3.0, 0.0]]]]))


def test_average_pooling_over_an_empty_window_divides_by_zero_as_caffe_does() -> None:
    layer = one_layer('type: "Pooling" pooling_param { pool: AVE kernel_size: 1 stride: 2 }', (1, 1, 1, 4))
    y = layer(torch.ones(1, 1, 1, 4))
    assert layer.top_shapes == [(1, 1, 1, 3)]
    assert y[0, 0, 0, :2].tolist() == [1, 1]
    assert y[0, 0, 0, 2].isnan()


IN_PLACE = """
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "a" type: "%s" bottom: "y" top: "y" %s }
layer { name: "d" type: "Dropout" bottom: "y" top: "y" dropout_param { dropout_ratio: 0.5 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ReLU", ""),
        ("ReLU", "relu_param { negative_slope: 0.2 }"),
        ("ReLU", "relu_param { negative_slope: -0.2 }"),
        ("Sigmoid", ""),
        ("TanH", ""),
        ("ELU", ""),
        ("PReLU", ""),
        ("Scale", "scale_param { bias_term: true }"),
        ("BatchNorm", ""),
        ("Power", "power_param { power: 2 }"),
        ("Dropout", ""),
    ],
)
def test_layers_in_place_give_the_numbers_of_layers_with_tops_of_their_own(kind: str, options: str) -> None:
    text = input_layer("x", 5, 4) + input_layer("t", 5, 6) + IN_PLACE % (kind, options)
    apart = text.replace('bottom: "y" top: "y" dropout', 'bottom: "z" top: "w" dropout')
    apart = apart.replace(f'type: "{kind}" bottom: "y" top: "y"', f'type: "{kind}" bottom: "y" top: "z"').replace(
        'bottom: "y" bottom: "t"', 'bottom: "w" bottom: "t"'
    )
    torch.manual_seed(8)
    batch = {"x": torch.randn(5, 4), "t": torch.randn(5, 6)}
    results = []
    for source in (text, apart):
        net = net_of(source, TRAIN)
        torch.manual_seed(9)
        blobs = net(batch)
        weights = net.layer("ip").blobs[0]
        results.append((blobs["loss"].item(), torch.autograd.grad(net.total_loss(blobs), weights)[0]))
    assert results[0][0] == results[1][0]
    # The others' gradients are Caffe's from the overwritten blob: tests/net/test_overwriting.py.
    if kind in ("PReLU", "Scale", "BatchNorm", "Dropout") or (kind == "ReLU" and "-" not in options):
        torch.testing.assert_close(results[0][1], results[1][1])


def test_a_relu_in_place_really_overwrites_a_convolutions_top() -> None:
    net = net_of(
        input_layer("x", 1, 1, 4, 4)
        + 'layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 2 kernel_size: 3 } }\n'
        + 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }'
    )
    relu = net.layer("r")
    assert relu.inplace_ok
    x = torch.randn(1, 2, 2, 2)
    y = relu(x)
    assert y.data_ptr() == x.data_ptr()


def test_an_activation_leaves_a_watched_leaf_alone_even_where_it_may_overwrite() -> None:
    layer = one_layer('type: "ReLU"', (3,))
    layer.inplace_ok = True
    x = torch.tensor([-1.0, 2.0, 0.0], requires_grad=True)
    layer(x).sum().backward()
    assert x.tolist() == [-1, 2, 0]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0]


def test_dropout_in_test_is_the_identity() -> None:
    layer = one_layer('type: "Dropout"', (3,), phase=TEST)
    assert layer(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]


def test_a_recurrent_state_is_carried_over_until_it_is_reset() -> None:
    layer = one_layer('type: "RNN" recurrent_param { num_output: 2 weight_filler { type: "xavier" } }', (1, 3, 4), (1, 3))
    assert isinstance(layer, Recurrent)
    x, cont = torch.randn(1, 3, 4), torch.ones(1, 3)
    first = layer(x, cont)
    second = layer(x, cont)
    assert not torch.allclose(first, second)
    layer.reset()
    torch.testing.assert_close(layer(x, cont), first)
    layer.reset()
    layer(x, cont)
    torch.testing.assert_close(layer(x, torch.zeros(1, 3)), first)


def test_a_deconvolution_over_four_axes_is_the_transpose_of_the_convolution() -> None:
    shape = (2, 4, 3, 4, 3, 2)
    options = 'kernel_size: 2 stride: 2 stride: 1 stride: 1 stride: 1 pad: 1 group: 2 bias_term: false weight_filler { type: "xavier" }'
    forward = one_layer(f'type: "Convolution" convolution_param {{ num_output: 6 {options} }}', shape)
    back = one_layer(f'type: "Deconvolution" convolution_param {{ num_output: 4 {options} }}', forward.top_shapes[0])
    with torch.no_grad():
        back.blobs[0].copy_(forward.blobs[0])
    x = torch.randn(shape)
    y = torch.randn(forward.top_shapes[0])
    # <conv(x), y> = <x, deconv(y)>, up to what the stride leaves over at the ends.
    (z,) = back(y)
    inner = x[tuple(slice(n) for n in z.shape)]
    (convolved,) = forward(torch.zeros(shape).index_put(tuple(torch.meshgrid(*map(torch.arange, z.shape), indexing="ij")), inner))
    torch.testing.assert_close((convolved * y).sum(), (inner * z).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "shapes", "macs"),
    [
        ('type: "Convolution" convolution_param { num_output: 8 kernel_size: 3 }', [(2, 4, 6, 5)], 2 * 8 * 4 * 9 * 4 * 3),
        ('type: "Convolution" convolution_param { num_output: 8 kernel_size: 3 group: 2 }', [(2, 4, 6, 5)], 2 * 8 * 2 * 9 * 4 * 3),
        ('type: "Deconvolution" convolution_param { num_output: 8 kernel_size: 3 }', [(2, 4, 6, 5)], 2 * 8 * 4 * 9 * 6 * 5),
        ('type: "InnerProduct" inner_product_param { num_output: 7 }', [(2, 4, 3)], 2 * 12 * 7),
        ('type: "LSTM" recurrent_param { num_output: 2 }', [(4, 3, 5), (4, 3)], 4 * 3 * (8 * 5 + 8 * 2)),
        ('type: "LSTM" recurrent_param { num_output: 2 }', [(4, 3, 5), (4, 3), (3, 6)], 4 * 3 * (8 * 5 + 8 * 2) + 3 * 8 * 6),
        ('type: "RNN" recurrent_param { num_output: 2 }', [(4, 3, 5), (4, 3)], 4 * 3 * (2 * 5 + 2 * 2 + 2 * 2)),
        ('type: "ReLU"', [(2, 3)], 0),
    ],
)
def test_multiply_accumulates_are_counted(text: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    assert one_layer(text, *shapes).macs() == macs


def test_batch_norm_of_one_value_a_channel_gives_zero_and_remains_finite() -> None:
    layer = one_layer('type: "BatchNorm"', (1, 3), phase=TRAIN)
    x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[0, 0, 0]]
    assert layer.blobs[0].tolist() == [1, 2, 3]
    assert layer.blobs[1].tolist() == [0, 0, 0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 0]]


def test_a_layer_without_an_exact_onnx_form_reports_it() -> None:
    layer = one_layer('type: "SoftmaxWithLoss"', (4, 5), (4,))
    with pytest.raises(ExportError, match="layer 'l' of type SoftmaxWithLoss has no ONNX form"):
        layer.to_onnx(None)


def test_the_within_channel_gradient_of_lrn_and_the_across_one_agree_with_differences() -> None:
    for options in (
        "local_size: 3 alpha: 0.7 beta: 0.75",
        "local_size: 3 alpha: 0.7 beta: 0.6 k: 2",
        "local_size: 3 norm_region: WITHIN_CHANNEL",
    ):
        layer = one_layer(f'type: "LRN" lrn_param {{ {options} }}', (1, 4, 3, 3))
        x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize(("mode", "divisor"), [("VALID", 3), ("FULL", 3), ("BATCH_SIZE", 3), ("NONE", 1)])
def test_a_loss_after_a_filter_divides_by_the_items_that_came_through(mode: str, divisor: int) -> None:
    layer = one_layer(f'type: "SoftmaxWithLoss" loss_param {{ normalization: {mode} }}', (5, 4), (5,))
    loss = layer(torch.zeros(3, 4), torch.zeros(3))
    assert loss.item() == pytest.approx(3 * 1.3862944 / divisor)


def test_pooling_with_floor_and_leftovers_agrees_with_its_definition() -> None:
    options = "kernel_size: 3 stride: 2 round_mode: FLOOR"
    x = torch.randn(1, 2, 8, 6)
    windows = x.unfold(2, 3, 2).unfold(3, 3, 2).flatten(4)
    for method, expected in (("MAX", windows.amax(-1)), ("AVE", windows.mean(-1))):
        layer = one_layer(f'type: "Pooling" pooling_param {{ pool: {method} {options} }}', (1, 2, 8, 6))
        torch.testing.assert_close(layer(x), expected)


def test_softmax_with_loss_gives_the_loss_of_each_item_as_a_third_top() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" top: "label" input_param { shape { dim: 3 dim: 2 } shape { dim: 3 } } }
    layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "loss" top: "p" top: "items" loss_param { ignore_label: 1 } }
    """
    net = Net(parse(text, NetParameter), TRAIN)
    blobs = net({"x": torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 0.0]]), "label": torch.tensor([0.0, 1.0, 0.0])})
    expected = torch.tensor([math.log(1 + math.exp(2)), 0.0, math.log(1 + math.exp(-2))])
    torch.testing.assert_close(blobs["items"], expected)
    torch.testing.assert_close(blobs["loss"], expected.sum() / 2)
    assert blobs["p"].shape == (3, 2)
