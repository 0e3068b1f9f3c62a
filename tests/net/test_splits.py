"""Diffs of blobs that several layers read, which Caffe keeps in the tops of its Split layers, and those that nothing asks for."""

from __future__ import annotations

import pytest
import torch

from caffetools.errors import NetError
from caffetools.net.gradients import check_gradients
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse


def power(name: str, bottom: str, scale: int, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "Power" bottom: "{bottom}" top: "{name}" power_param {{ scale: {scale} }} {more} }} '


def run_of(text: str) -> Stepwise:
    return Stepwise(Net(parse(text, NetParameter), TEST))


def first_diffs(run: Stepwise, names: str) -> list[float]:
    return [float(run.blobs[name].diff.value().flatten()[0]) for name in names]


def test_readers_of_a_blob_keep_their_diffs_until_caffes_split_adds_them() -> None:
    # What real Caffe gives for these passes, whose Split of a stands between a and b.
    run = run_of(
        'force_backward: true input: "x" input_shape { dim: 1 dim: 2 } ' + power("a", "x", 2) + power("b", "a", 3) + power("c", "a", 5)
    )
    run.forward()
    for name in "bc":
        run.blobs[name].diff.store(torch.ones(1, 2))
    run.backward(3, 2)
    assert first_diffs(run, "xabc") == [0, 0, 1, 1]
    run.backward(1, 1)
    assert first_diffs(run, "xabc") == [0, 0, 1, 1]
    run.backward(2, 1)
    assert first_diffs(run, "xabc") == [16, 8, 1, 1]
    run.blobs["b"].diff.store(torch.full((1, 2), 7.0))
    run.backward(2, 2)
    run.forward()
    run.backward(3, 3)
    assert first_diffs(run, "xabc") == [16, 8, 7, 1]
    run.backward()
    assert first_diffs(run, "xabc") == [52, 26, 7, 1]


def test_a_blob_with_a_loss_weight_and_a_reader_gets_its_diff_from_both_on_the_way_back() -> None:
    run = run_of(
        'force_backward: true input: "x" input_shape { dim: 1 dim: 2 } ' + power("a", "x", 2, "loss_weight: 4") + power("b", "a", 3)
    )
    assert first_diffs(run, "xab") == [0, 0, 0]
    run.blobs["x"].data.store(torch.ones(1, 2))
    # The Split behind a has the loss weight, and a range that ends with a leaves it out.
    assert run.forward(0, 1) == 0 and run.forward() == 16
    run.blobs["b"].diff.store(torch.ones(1, 2))
    run.backward()
    assert first_diffs(run, "xab") == [14, 7, 1]


LOSS = (
    'input: "x" input_shape { dim: 2 dim: 3 } input: "t" input_shape { dim: 2 dim: 2 } '
    'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "i" inner_product_param { num_output: 2 weight_filler { value: 0.1 } } } '
    'layer { name: "loss" type: "EuclideanLoss" bottom: "i" bottom: "t" top: "l" %s } '
)
# The layers above the loss, its loss_weight, its diff at first, the losses of two passes, and the first gradient, as real Caffe gives them.
READ_LOSSES = [
    (power("p", "l", 3, "loss_weight: 1"), "", 1, (1.06, 1.59), 3.15),
    (power("p", "l", 3, "loss_weight: 1"), "loss_weight: 2", 1, (1.59, 2.65), 5.25),
    (power("p", "l", 3, "loss_weight: 1"), "loss_weight: 0", 0, (0.795, 0.795), 3.15),
    (power("p", "l", 3), "", 1, (0.265, 0.265), 0),
    (power("p", "l", 3), "loss_weight: 2", 1, (0.795, 1.06), 2.1),
    ('layer { name: "p" type: "Silence" bottom: "l" }', "", 1, (0.265, 0.265), 0),
    ('layer { name: "p" type: "Silence" bottom: "l" }', "loss_weight: 2", 1, (0.795, 1.06), 2.1),
    (power("p", "l", 3, "loss_weight: 1") + power("q", "l", 2), "", 1, (1.06, 1.59), 3.15),
    (power("p", "l", 3, "loss_weight: 1") + power("q", "l", 2), "loss_weight: 2", 1, (1.59, 2.65), 5.25),
    (power("p", "l", 3, "loss_weight: 1") + power("q", "l", 2, "loss_weight: 2"), "", 1, (2.12, 3.71), 7.35),
    (power("p", "l", 3).replace('top: "p"', 'top: "l"'), "", 1, (0.265, 0.265), 0),
    ("", "", 1, (0.265, 0.265), 1.05),
    ("", "loss_weight: 2", 2, (0.53, 0.53), 2.1),
]


@pytest.mark.parametrize(("above", "weight", "diff", "losses", "gradient"), READ_LOSSES)
def test_a_loss_without_a_given_weight_gets_its_diff_from_its_readers_alone(
    above: str, weight: str, diff: float, losses: tuple[float, float], gradient: float
) -> None:
    run = run_of(LOSS % weight + above)
    inputs = {"x": torch.arange(6.0).reshape(2, 3), "t": torch.full((2, 2), 0.5)}
    run.feed(inputs)
    assert first_diffs(run, "l") == [diff]
    found = []
    for _ in losses:
        found.append(run.forward())
        run.clear_param_diffs()
        run.backward()
    weights = next(layer for layer in run.net.layers if layer.name == "ip").blobs[0]
    assert found == pytest.approx(losses)
    assert (0.0 if weights.grad is None else float(weights.grad[0, 0])) == pytest.approx(gradient)

    net = Net(parse(LOSS % weight + above, NetParameter), TRAIN)
    loss = net.total_loss(net(inputs))
    if loss.requires_grad:
        loss.backward()
    learned = next(layer for layer in net.layers if layer.name == "ip").blobs[0].grad
    assert (0.0 if learned is None else float(learned[0, 0])) == pytest.approx(gradient)


def test_a_scale_leaves_its_products_in_the_diff_that_nothing_asks_for() -> None:
    run = run_of(
        'input: "x" input_shape { dim: 1 dim: 2 dim: 3 } layer { name: "s" type: "Scale" bottom: "x" top: "s" scale_param { filler { value: 2 } } } '
        'layer { name: "l" type: "Reduction" bottom: "s" top: "l" loss_weight: 4 }'
    )
    run.blobs["x"].data.store(torch.arange(6.0).reshape(1, 2, 3))
    run.forward()
    run.backward()
    assert run.blobs["x"].diff.value().flatten().tolist() == [0, 4, 8, 12, 16, 20]
    assert run.net.layers[1].blobs[0].grad is not None and run.net.layers[1].blobs[0].grad.tolist() == [12, 48]


def first_values(run: Stepwise, names: str) -> list[float]:
    return [float(run.blobs[name].data.value().flatten()[0]) for name in names]


def test_readers_of_a_blob_read_zeros_until_caffes_split_runs() -> None:
    # What real Caffe gives: the tops of its Splits have zeros of their own before their first pass, and again when they get larger.
    run = run_of(
        'input: "x" input_shape { dim: 1 dim: 2 } ' + power("a", "x", 2) + power("b", "a", 3) + power("c", "a", 5) + power("d", "x", 7)
    )
    for name, value in (("x", 1.0), ("a", 10.0)):
        run.blobs[name].data.store(torch.full((1, 2), value))
    run.forward(start=2)
    assert first_values(run, "xabcd") == [1, 10, 0, 0, 0]
    run.forward(start=1)
    assert first_values(run, "xabcd") == [1, 0, 0, 0, 0]
    run.forward()
    assert first_values(run, "xabcd") == [1, 2, 6, 10, 7]
    run.blobs["x"].data.store(torch.full((1, 2), 3.0))
    run.forward(start=1)
    assert first_values(run, "xabcd") == [3, 6, 18, 30, 21]
    run.feed({"x": torch.full((2, 2), 5.0)})
    run.reshape()
    run.forward(start=1)
    assert first_values(run, "xabcd") == [5, 0, 0, 0, 0]
    run.forward()
    run.reshape()
    run.forward(start=1)
    assert first_values(run, "xabcd") == [5, 10, 30, 50, 35]


def test_a_reshape_of_a_blob_that_others_read_lies_in_the_splits_memory() -> None:
    run = run_of(
        'input: "x" input_shape { dim: 1 dim: 4 } layer { name: "r" type: "Reshape" bottom: "x" top: "r" '
        "reshape_param { shape { dim: 2 dim: 2 } } } " + power("p", "x", 2) + power("q", "r", 3)
    )
    run.blobs["x"].data.store(torch.ones(1, 4))
    run.forward(start=1)
    assert first_values(run, "xrpq") == [1, 0, 0, 0]
    run.forward()
    run.blobs["r"].data.write(torch.full((2, 2), 4.0))
    assert first_values(run, "xrpq") == [4, 4, 2, 3]


def test_labels_that_two_layers_read_are_zeros_in_a_backward_pass_before_any_forward_pass() -> None:
    # As in Caffe, whose Split of the labels has not run yet; its probabilities are zeros, too.
    labels = 'bottom: "s" bottom: "y"'
    run = run_of(
        'input: "x" input_shape { dim: 1 dim: 3 } input: "y" input_shape { dim: 1 } layer { name: "s" type: "Scale" bottom: "x" top: "s" } '
        f'layer {{ name: "l" type: "SoftmaxWithLoss" {labels} top: "l" }} layer {{ name: "acc" type: "Accuracy" {labels} top: "acc" }}'
    )
    run.blobs["y"].data.store(torch.tensor([2.0]))
    run.backward(keep=True)
    assert run.blobs["s"].diff.value().tolist() == [[-1, 0, 0]]
    run.forward()
    run.backward()
    torch.testing.assert_close(run.blobs["s"].diff.value(), torch.tensor([[1 / 3, 1 / 3, -2 / 3]]))
    run.blobs["y"].reshape((2,))
    with pytest.raises(NetError, match="needs 1 labels"):
        run.backward()


PREDICTED = (
    'input: "x" input_shape { dim: 2 dim: 4 } layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3 } %s } '
    'layer { name: "best" type: "ArgMax" bottom: "ip" top: "best" argmax_param { axis: 1 } } '
    'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "best" top: "l" %s }'
)


def test_a_gradient_of_labels_that_depend_on_parameters_is_refused_where_caffe_ends_the_process() -> None:
    run = run_of(PREDICTED % ("", ""))
    run.forward()
    with pytest.raises(
        NetError, match="layer 'l': .* its bottom 'best' depends on parameters that learn.*'propagate_down: true propagate_down: false'"
    ):
        run.backward()
    with pytest.raises(NetError, match="layer 'best'"):
        check_gradients(run.net.layers)
    for text in (
        PREDICTED % ("", "propagate_down: true propagate_down: false"),
        PREDICTED % ("param { lr_mult: 0 } param { lr_mult: 0 }", ""),
    ):
        run = run_of(text)
        check_gradients(run.net.layers)
        run.forward()
        run.backward()


# What real Caffe gives for the weights of c, which the layer and another one read, where propagate_down is false: most layers give c no
# gradient then, but some do not look at it, and the Split adds theirs.
UNASKED = {
    "Softmax": ("", [0.6849, -0.2868, 1.9955, 2.6434, -0.696, 0.3152]),
    "LRN": ("lrn_param { local_size: 3 alpha: 0.5 }", [1.6503, -0.5, 3.2771, 4.8444, -1.1842, 0.9477]),
    "MVN": ("mvn_param { normalize_variance: false }", [2.0729, -0.6771, 4.25, 5.8958, -1.8229, 0.9896]),
    "Im2col": ("convolution_param { kernel_size: 2 }", [2.9531, 0.0156, 7.3438, 8.7969, -1.8906, 0.9844]),
    "Flatten": ("", [2.3906, -0.2812, 5.2031, 7.0781, -1.6406, 1.2188]),
    "Reshape": ("reshape_param { shape { dim: 0 dim: -1 } }", [2.3906, -0.2812, 5.2031, 7.0781, -1.6406, 1.2188]),
    "Permute": ("permute_param { order: 0 order: 2 order: 3 order: 1 }", [2.3906, -0.2812, 5.2031, 7.0781, -1.6406, 1.2188]),
    "BatchNorm": ("batch_norm_param { use_global_stats: true eps: 1 }", [2.3906, -0.2812, 5.2031, 7.0781, -1.6406, 1.2188]),
    "TanH": ("", [0.7969, -0.0938, 1.7344, 2.3594, -0.5469, 0.4062]),
    "LRN within": ("lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }", [0.7969, -0.0938, 1.7344, 2.3594, -0.5469, 0.4062]),
}


@pytest.mark.parametrize("kind", UNASKED)
def test_layers_that_do_not_look_at_propagate_down_give_their_gradient_to_a_shared_blob(kind: str) -> None:
    settings, expected = UNASKED[kind]
    text = (
        'input: "x" input_shape { dim: 2 dim: 2 dim: 2 dim: 3 } '
        'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 3 kernel_size: 1 } } '
        f'layer {{ name: "l" type: "{kind.split()[0]}" bottom: "c" top: "t" propagate_down: false {settings} }} '
        'layer { name: "a" type: "Power" bottom: "t" top: "a" power_param { power: 2 } loss_weight: 0.5 } '
        'layer { name: "b" type: "Power" bottom: "c" top: "b" power_param { power: 2 } loss_weight: 0.25 } '
    )
    net = Net(parse(text, NetParameter), TEST)
    weights, bias = net.layers[1].blobs
    with torch.no_grad():
        weights.copy_(torch.tensor([0.5, -0.25, 0.75, 1, -0.5, 0.25]).reshape(weights.shape))
        bias.fill_(0.125)
    x = (torch.arange(24.0).reshape(2, 2, 2, 3) % 7 - 2) / 4
    blobs = net({"x": x})
    (0.5 * blobs["a"].sum() + 0.25 * blobs["b"].sum()).backward()
    torch.testing.assert_close(weights.grad.flatten(), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    weights.grad = None
    run = Stepwise(net)
    run.feed({"x": x})
    run.forward()
    run.backward()
    torch.testing.assert_close(weights.grad.flatten(), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_range_that_ends_with_a_blobs_producer_does_not_run_caffes_split() -> None:
    run = run_of('input: "x" input_shape { dim: 2 } ' + power("a", "x", 2) + power("b", "x", 3))
    run.blobs["x"].data.store(torch.ones(2))
    run.forward(0, 0)
    run.forward(1)
    assert [float(run.blobs[name].data.value()[0]) for name in "ab"] == [0, 0]
    run.forward()
    run.blobs["x"].data.store(torch.full((2,), 2.0))
    run.forward(0, 0)
    run.forward(1)
    assert [float(run.blobs[name].data.value()[0]) for name in "ab"] == [4, 6]
