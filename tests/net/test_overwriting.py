"""Gradients where layers in place overwrite what an earlier layer's backward pass reads: BVLC Caffe 1.0's, in both ways of running a net.

``overwritten_blobs.json`` holds nets, values of their inputs, a diff of the output, and what Caffe gave for them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from caffetools.errors import NetError
from caffetools.net.checkpointing import checkpoint_memory
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.proto.schema import TEST, TRAIN, NetParameter

CASES = cast("dict[str, dict[str, list[float]]]", json.loads((Path(__file__).parent / "overwritten_blobs.json").read_text()))


def _net(text: str, phase: int = TEST) -> Net:
    net = Net(text_format.Parse(text, NetParameter()), phase)
    for layer in net.layers:
        if layer.type_name == "BatchNorm":
            for blob, value in zip(layer.blobs, (0.4, 2.0, 1.0), strict=True):
                blob.data.fill_(value)
    return net


def _inputs(case: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(case[name]).reshape(1, 3, 2, 2) for name in ("a", "b")}


@pytest.mark.parametrize("name", CASES)
def test_layer_by_layer_blobs_and_gradients_are_those_of_caffe(name: str) -> None:
    case = CASES[name]
    run = Stepwise(_net(cast("str", case["net"])))
    run.feed(_inputs(case))
    run.forward()
    for blob in ("p", "out"):
        np.testing.assert_allclose(run.blobs[blob].data_array().ravel(), case[blob], rtol=1e-4, atol=1e-5, err_msg=blob)
    run.blobs["out"].diff_array().reshape(-1)[:] = case["diff"]
    run.backward()
    np.testing.assert_allclose(run.blobs["a"].diff_array().ravel(), case["gradient"], rtol=1e-4, atol=1e-5)
    if "gradient_b" in case:
        np.testing.assert_allclose(run.blobs["b"].diff_array().ravel(), case["gradient_b"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_under_autograd_gradients_are_those_of_caffe(name: str) -> None:
    case = CASES[name]
    net = _net(cast("str", case["net"]))
    inputs = {blob: values.requires_grad_() for blob, values in _inputs(case).items()}
    out = net.compute(dict(inputs), ["out"])["out"]
    out.backward(torch.tensor(case["diff"]).reshape(out.shape))
    assert inputs["a"].grad is not None
    np.testing.assert_allclose(inputs["a"].grad.ravel(), case["gradient"], rtol=1e-4, atol=1e-5)


DROPOUT = (
    'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 4 dim: 6 } } } layer { name: "ip" type: "InnerProduct" bottom: "a" top: "x" '
    'inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 1 } } } layer { name: "t" type: "TanH" bottom: "x" top: "t" } '
    'layer { name: "d" type: "Dropout" bottom: "t" top: "t" } layer { name: "end" type: "InnerProduct" bottom: "t" top: "y" '
    'inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } } '
    'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 reduction_param { operation: SUMSQ } }'
)


def test_tanh_below_a_dropout_in_place_goes_back_over_the_dropped_values() -> None:
    torch.manual_seed(3)
    run = Stepwise(_net(DROPOUT, TRAIN))
    run.feed({"a": torch.randn(4, 6)})
    run.forward()
    kept = run.blobs["t"].data_array().copy()
    run.backward()
    above = (2 * run.blobs["y"].data_array()) @ run.net.layers[4].blobs[0].detach().numpy()
    # Values that were kept are twice tanh(x), and that is what Caffe's 1 - y² takes.
    np.testing.assert_allclose(run.blobs["x"].diff_array(), above * 2 * (kept != 0) * (1 - kept * kept), rtol=1e-4, atol=1e-5)
    assert np.abs(kept).max() > 1


def test_training_passes_that_recompute_activations_give_the_same_gradients() -> None:
    batch = torch.randn(4, 6)
    found = []
    for recompute in (False, True):
        torch.manual_seed(3)
        net = _net(DROPOUT, TRAIN)
        if recompute:
            checkpoint_memory(net)
        torch.manual_seed(5)
        net.total_loss(net.forward({"a": batch})).backward()
        found.append(cast("torch.Tensor", net.layers[1].blobs[0].grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_warning_names_the_layer_whose_gradient_is_not_the_derivative(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _net(DROPOUT, TRAIN)
    assert [record.getMessage() for record in caplog.records if "derivative" in record.getMessage()] == [
        "layer 't' (TanH): its gradient is computed, as in Caffe, from its blob 't' after a layer in place has overwritten it, "
        "so it is not the derivative of the loss; give the layer in place a top of its own to train with that"
    ]


def test_the_usual_chains_run_as_before() -> None:
    text = (
        'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } } '
        'layer { name: "c" type: "Convolution" bottom: "a" top: "c" convolution_param { num_output: 4 kernel_size: 3 } } '
        'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" } layer { name: "s" type: "Scale" bottom: "c" top: "c" } '
        'layer { name: "r" type: "ReLU" bottom: "c" top: "c" } layer { name: "d" type: "Dropout" bottom: "c" top: "c" } '
        'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 } } layer { name: "pd" type: "Dropout" bottom: "p" top: "p" } '
        'layer { name: "sg" type: "Sigmoid" bottom: "p" top: "s" } layer { name: "f" type: "Flatten" bottom: "s" top: "f" } '
        'layer { name: "ip" type: "InnerProduct" bottom: "f" top: "ip" inner_product_param { num_output: 2 } } layer { name: "sp" type: "Sigmoid" bottom: "ip" top: "ip" }'
    )
    assert _net(text, TRAIN).overwriting == {}


@pytest.mark.parametrize("second", ["ReLU", "TanH"])
def test_a_layer_in_place_on_one_top_of_a_slice_leaves_the_others(second: str) -> None:
    net = _net(
        'input: "x" input_shape { dim: 2 dim: 4 dim: 3 dim: 3 } force_backward: true '
        'layer { name: "s" type: "Slice" bottom: "x" top: "p" top: "q" } '
        f'layer {{ name: "r" type: "{second}" bottom: "q" top: "q" }} layer {{ name: "r2" type: "BNLL" bottom: "q" top: "q" }}'
        'layer { name: "f" type: "Flatten" bottom: "p" top: "f" } layer { name: "e" type: "Concat" bottom: "p" bottom: "q" top: "e" }'
    )
    x = torch.linspace(-1, 1, 72).reshape(2, 4, 3, 3)
    run = Stepwise(net)
    run.feed({"x": x})
    for record in (True, False):
        run.forward(record=record)
        torch.testing.assert_close(run.blobs["p"].data.value(), x[:, :2])
        torch.testing.assert_close(run.blobs["f"].data.value(), x[:, :2].flatten(1))
        q = x[:, 2:].relu() if second == "ReLU" else x[:, 2:].tanh()
        torch.testing.assert_close(run.blobs["e"].data.value(), torch.cat([x[:, :2], torch.nn.functional.softplus(q)], 1))


IN_PLACE = (
    'layer {{ name: "in" type: "Input" top: "x" top: "b" input_param {{ shape {{ dim: 1 dim: 3 dim: 4 dim: 4 }} }} }} '
    'layer {{ name: "here" bottom: "x" {} top: "x" }}'
)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ('type: "AbsVal"', "Caffe refuses"),
        ('type: "Flatten"', "Caffe refuses"),
        ('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }', "Caffe refuses"),
        ('type: "Split"', "Caffe refuses"),
        ('type: "Pooling" pooling_param { kernel_size: 3 stride: 1 pad: 1 }', "Caffe overwrites"),
        ('type: "Convolution" convolution_param { num_output: 3 kernel_size: 1 }', "Caffe overwrites"),
        ('type: "Deconvolution" convolution_param { num_output: 3 kernel_size: 1 }', "Caffe overwrites"),
        ('type: "DepthwiseConvolution" convolution_param { num_output: 3 kernel_size: 3 pad: 1 }', "Caffe overwrites"),
        ('type: "InnerProduct" inner_product_param { num_output: 3 }', "Caffe overwrites"),
        ('type: "LRN"', "Caffe overwrites"),
        ('type: "SPP" spp_param { pyramid_height: 1 }', "Caffe overwrites"),
        ('type: "Im2col" convolution_param { kernel_size: 1 }', "Caffe overwrites"),
        ('type: "Crop" bottom: "b"', "Caffe overwrites"),
        ('type: "Concat" bottom: "b"', "Caffe overwrites"),
        ('type: "Eltwise" bottom: "b"', "Caffe overwrites"),
        ('type: "Eltwise" bottom: "b" eltwise_param { operation: MAX }', "Caffe overwrites"),
    ],
)
def test_layers_that_caffe_cannot_run_in_place_are_refused(layer: str, why: str) -> None:
    with pytest.raises(NetError, match=f"layer 'here': .*its top 'x' is its bottom too, which {why}.*; give it a top of its own"):
        _net(IN_PLACE.format(layer))


def test_products_in_place_run_where_the_overwritten_blob_is_read_in_time() -> None:
    prod = 'type: "Eltwise" bottom: "b" {}eltwise_param {{ operation: PROD }}'
    assert _net(IN_PLACE.format(prod.format(""))).layers[1].tops == ["x"]
    third = IN_PLACE.replace('bottom: "x" ', "").format(prod.format('bottom: "b" bottom: "x" '))
    with pytest.raises(NetError, match="its top 'x' is its bottom too, in another place or twice, and Caffe refuses that"):
        _net(third)


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }',
        'type: "Permute" permute_param { order: 0 }',
        'type: "ShuffleChannel" shuffle_channel_param { group: 4 }',
        'type: "Reorg" reorg_param { stride: 1 }',
        'type: "Identity"',
    ],
)
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_a_layer_in_place_behind_one_that_moves_nothing_leaves_that_ones_bottom_alone(layer: str, phase: int) -> None:
    # A convolution's top is channels-last, so that Permute's contiguous result is a view of it.
    net = _net(
        'input: "x" input_shape { dim: 2 dim: 3 dim: 6 dim: 5 } layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param '
        f'{{ num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }} layer {{ name: "p" bottom: "c" top: "p" {layer} }} '
        'layer { name: "r" type: "ReLU" bottom: "p" top: "p" } '
        'layer { name: "q" type: "Power" bottom: "c" top: "q" power_param { scale: 2 } }',
        phase,
    )
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(3))
    conv = net.layers[1]
    with torch.no_grad():
        expected = 2 * torch.nn.functional.conv2d(x, *conv.blobs)
        torch.testing.assert_close(net({"x": x})["q"], expected)
    run = Stepwise(net)
    run.feed({"x": x})
    run.forward(record=False)
    torch.testing.assert_close(run.blobs["q"].data.value(), expected)
    torch.testing.assert_close(run.blobs["c"].data.value(), expected / 2)
