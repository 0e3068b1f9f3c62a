"""Shapes, parameters, operations and memory from the shape rules, also of nets that are not all known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from caffetools.errors import NetError
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.graph.summary import summarize
from caffetools.graph.weights_diff import compare_weights
from caffetools.net.net import Net
from caffetools.net.weights import to_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, net_of

# As published: parameters, and multiply–accumulates for one picture.
PUBLISHED = {
    "bvlc_alexnet": (60965224, 724406816),
    "bvlc_googlenet": (6998552, 1582671872),
    "squeezenet_v1.0": (1248424, 861339936),
    "squeezenet_v1.1": (1235496, 387747520),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_zoos_networks_have_their_published_sizes(model: str) -> None:
    shape = (1, 3, 224, 224) if model == "bvlc_googlenet" else (1, 3, 227, 227)
    summary = summarize(build(model, "deploy"), shapes={"data": shape})
    assert (summary.parameters, summary.macs) == PUBLISHED[model]
    assert not summary.unknown


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_a_summary_agrees_with_the_net_that_is_built(phase: int) -> None:
    summary = summarize(net_of(TINY), phase)
    net = Net(data_layers_to_inputs(net_of(TINY)), phase)
    assert {top: shape for row in summary.layers for top, shape in zip(row.tops, row.shapes, strict=True)} == net.blob_shapes
    assert summary.parameters == sum(p.numel() for p in net.parameters())
    assert summary.blob_bytes == sum(4 * int(np.prod(shape)) for shape in net.blob_shapes.values())
    assert [row.parameters for row in summary.layers if row.parameters] == [
        [tuple(p.shape) for p in x.blobs] for x in net.layers if len(x.blobs)
    ]


def test_a_layer_of_an_unknown_type_is_listed_and_what_is_below_it_has_no_shape() -> None:
    net = net_of(TINY.replace('"ReLU"', '"Sorcery"'))
    summary = summarize(net)
    rows = {row.name: row for row in summary.layers}
    assert rows["conv"].shapes == [(2, 6, 6, 6)]
    assert (rows["relu"].shapes, rows["relu"].parameters, rows["relu"].note) == ([None], None, "the type Sorcery is not known here")
    assert rows["fc"].shapes == [None]
    assert [row.name for row in summary.unknown] == ["relu", "fc", "loss", "accuracy", "top-5"]
    assert summary.parameters == 6 * 3 * 9 + 6


def test_data_of_unknown_size_is_not_an_error() -> None:
    summary = summarize(build("lenet"))
    assert summary.layers[0].note.startswith("the size of its data is not known")
    assert summarize(build("lenet"), shapes={"": (1, 1, 28, 28)}).parameters == 431080


def test_shared_parameters_count_once() -> None:
    layer = (
        'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" param {{ name: "w" }} '
        "inner_product_param {{ num_output: 5 bias_term: false }} }}"
    )
    net = net_of(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 5 } } }'
        + layer.format("a", "x")
        + layer.format("b", "a")
    )
    summary = summarize(net)
    assert (summary.parameters, [row.parameter_count for row in summary.layers]) == (25, [0, 25, 25])


def test_shapes_that_do_not_fit_and_missing_bottoms_are_errors() -> None:
    with pytest.raises(NetError, match="layer 'conv': "):
        summarize(net_of(TINY), shapes={"": (1, 3, 2, 2)})
    with pytest.raises(NetError, match="layer 'relu': its bottom 'cnv' is made by no layer before it"):
        summarize(net_of(TINY.replace('bottom: "conv" top: "conv" }', 'bottom: "cnv" top: "conv" }')))


def test_weights_are_held_against_the_net_layer_by_layer() -> None:
    model = to_caffemodel(Net(data_layers_to_inputs(net_of(TINY)), TEST))
    other: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {
        "conv": [np.full((6, 3, 3, 3), -2, np.float32), np.zeros((1, 1, 1, 6), np.float32)],
        "fc": [np.zeros((9, 216), np.float32), np.zeros(9, np.float32)],
        "old": [np.zeros(1, np.float32)],
    }
    assert compare_weights(summarize(net_of(TINY)), model).named("fits") == ["conv", "fc"]
    comparison = compare_weights(summarize(net_of(TINY)), Caffemodel(NetParameter(), other))
    assert [(layer.layer, layer.status) for layer in comparison.layers] == [("conv", "fits"), ("fc", "differs")]
    assert comparison.unused == ["old"]
    blob = comparison.layers[0].blobs[0]
    assert (blob.shape, blob.mean, blob.std, blob.absmax) == ((6, 3, 3, 3), -2.0, 0.0, 2.0)
    fresh = compare_weights(summarize(net_of(TINY)), Caffemodel(NetParameter(), {"conv": other["conv"]}))
    assert fresh.named("fresh") == ["fc"]


def test_statistics_are_those_of_numpy_and_show_what_is_not_finite() -> None:
    values = np.random.default_rng(5).normal(3, 2, (3, 700_001)).astype(np.float32)
    net = net_of(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 700001 } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 3 bias_term: false } }'
    )
    [layer] = compare_weights(summarize(net), Caffemodel(NetParameter(), {"fc": [values]})).layers
    assert layer.status == "fits"
    assert (layer.blobs[0].mean, layer.blobs[0].std) == pytest.approx(
        (values.mean(dtype=np.float64), values.std(dtype=np.float64)), rel=1e-9
    )
    values[1, 5] = np.nan
    [layer] = compare_weights(summarize(net), Caffemodel(NetParameter(), {"fc": [values]})).layers
    assert np.isnan([layer.blobs[0].mean, layer.blobs[0].std, layer.blobs[0].absmax]).all()


def test_layers_of_one_name_are_compared_by_their_place() -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
        layer { name: "fc" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 3 } }
        layer { name: "fc" type: "ReLU" bottom: "a" top: "a" }
        layer { name: "fc" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 2 } }"""
    model = to_caffemodel(Net(net_of(text)))
    comparison = compare_weights(summarize(net_of(text)), model)
    assert [(layer.status, layer.blobs[0].shape) for layer in comparison.layers] == [("fits", (3, 4)), ("fits", (2, 3))]
    assert comparison.ambiguous == ["fc"]
    swapped = compare_weights(
        summarize(net_of(text)), replace(model, repeated=dict(zip((1, 3), (model.repeated[3], model.repeated[1]), strict=True)))
    )
    assert [layer.status for layer in swapped.layers] == ["differs", "differs"]
    one = compare_weights(summarize(net_of(text)), Caffemodel(NetParameter(), {"fc": model.repeated[1]}))
    assert [layer.status for layer in one.layers] == ["fits", "fresh"]


def test_a_number_of_outputs_that_is_left_to_digits_is_not_known() -> None:
    text = 'input: "x" input_shape { dim: 1 dim: 3 } layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" %s } layer { name: "s" type: "Softmax" bottom: "y" top: "s" }'
    rows = summarize(net_of(text % ""), TEST)
    assert [row.name for row in rows.unknown] == ["ip", "s"] and "DIGITS fills in the number of classes" in rows.unknown[0].note
    with pytest.raises(NetError, match="num_output must be at least 1"):
        summarize(net_of(text % "inner_product_param { num_output: 0 }"), TEST)
