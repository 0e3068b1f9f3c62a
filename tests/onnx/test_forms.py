"""ONNX forms that golden data does not hold: forks' layers, and sizes that are known at run time only, against the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from caffetools.engines.onnxruntime import newest_opset, open_session
from caffetools.errors import ExportError
from caffetools.layers.registry import layer_types
from caffetools.net.net import Net
from caffetools.onnx.export import build, to_onnx
from caffetools.onnx.verify import random_inputs, verify_model
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import parse
from tests.layers.helpers import input_layer

CONV = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 WEIGHTS } }'
IMAGE = input_layer("x", 1, 3, 20, 24)

# Layers behind a convolution of stride 2, on maps of any size.
FREE = {
    "deconvolution": 'layer { name: "l" type: "Deconvolution" bottom: "c" top: "y" convolution_param { num_output: 2 kernel_size: 4 stride: 2 pad: 1 WEIGHTS } }',
    "max 3/2": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { kernel_size: 3 stride: 2 } }',
    "max 2/2 pad 1": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { kernel_size: 2 stride: 2 pad: 1 } }',
    "max 2/3": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { kernel_size: 2 stride: 3 } }',
    "ave 3/2 pad 1": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }',
    "ave 3/2": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }',
    "ave 2/2 pad 1": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { pool: AVE kernel_size: 2 stride: 2 pad: 1 } }',
    "max floor": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { kernel_size: 3 stride: 2 round_mode: FLOOR } }',
    "global": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { pool: AVE global_pooling: true } }',
    "mask": 'layer { name: "l" type: "Pooling" bottom: "c" top: "p" top: "m" pooling_param { kernel_size: 2 stride: 2 } } '
    'layer { name: "u" type: "Upsample" bottom: "p" bottom: "m" top: "y" upsample_param { scale: 2 } }',
    "spp of one level": 'layer { name: "l" type: "SPP" bottom: "c" top: "y" spp_param { pyramid_height: 1 } }',
    "crop": 'layer { name: "l" type: "Crop" bottom: "x" bottom: "c" top: "y" crop_param { axis: 2 offset: 1 } }',
    "interp like": 'layer { name: "l" type: "Interp" bottom: "c" bottom: "x" top: "y" }',
    "interp zoom": 'layer { name: "l" type: "Interp" bottom: "c" top: "y" interp_param { zoom_factor: 2 pad_beg: -1 pad_end: -1 } }',
    "interp shrink": 'layer { name: "l" type: "Interp" bottom: "c" top: "y" interp_param { shrink_factor: 2 } }',
    "flatten maps": 'layer { name: "l" type: "Flatten" bottom: "c" top: "y" flatten_param { axis: 2 } }',
    "flatten channels": 'layer { name: "l" type: "Flatten" bottom: "c" top: "y" flatten_param { axis: 1 end_axis: 2 } }',
    "reshape": 'layer { name: "l" type: "Reshape" bottom: "c" top: "y" reshape_param { shape { dim: 0 dim: 2 dim: 2 } num_axes: 2 } }',
    "scale by a bottom": 'layer { name: "l" type: "Scale" bottom: "c" bottom: "c" top: "y" scale_param { axis: 0 } }',
    "slice": 'layer { name: "l" type: "Slice" bottom: "c" top: "y" top: "z" slice_param { axis: 2 slice_point: 3 } }',
    "arg max": 'layer { name: "l" type: "ArgMax" bottom: "c" top: "y" }',
    "arg max of a row": 'layer { name: "l" type: "ArgMax" bottom: "c" top: "y" argmax_param { axis: 3 } }',
    "lrn": 'layer { name: "l" type: "LRN" bottom: "c" top: "y" lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 } }',
    "mvn": 'layer { name: "l" type: "MVN" bottom: "c" top: "y" }',
    "shuffle": 'layer { name: "l" type: "ShuffleChannel" bottom: "c" top: "y" shuffle_channel_param { group: 2 } }',
    "batch statistics": 'layer { name: "l" type: "BatchNorm" bottom: "c" top: "y" batch_norm_param { use_global_stats: false } }',
    "squeeze and excitation": 'layer { name: "g" type: "Pooling" bottom: "c" top: "g" pooling_param { pool: AVE global_pooling: true } } '
    'layer { name: "f" type: "Flatten" bottom: "g" top: "f" } layer { name: "l" type: "Scale" bottom: "c" bottom: "f" top: "y" scale_param { axis: 0 } } '
    'layer { name: "b" type: "Bias" bottom: "y" bottom: "f" top: "z" bias_param { axis: 0 } }',
}

# Layers that are right for one size of maps only.
REFUSED = {
    "averages of far windows": 'layer { name: "l" type: "Pooling" bottom: "c" top: "y" pooling_param { pool: AVE kernel_size: 1 stride: 2 } }',
    "spp": 'layer { name: "l" type: "SPP" bottom: "c" top: "y" spp_param { pyramid_height: 2 } }',
    "inner product": 'layer { name: "l" type: "InnerProduct" bottom: "c" top: "y" inner_product_param { num_output: 2 } }',
    "prior box": 'layer { name: "l" type: "PriorBox" bottom: "c" bottom: "x" top: "y" prior_box_param { min_size: 4 } }',
}


def net_of(text: str, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(parse(text.replace("WEIGHTS", 'weight_filler { type: "uniform" min: -0.5 max: 0.5 }'), NetParameter), TEST)


def agree(net: Net, shapes: dict[str, tuple[int, ...]], session: Any) -> None:
    feed = random_inputs(net, shapes, 3)
    for layer in net.layers:
        if hasattr(layer, "reset"):
            layer.reset()
    expected = net({name: torch.tensor(value) for name, value in feed.items()})
    got = session.run({name: feed[name] for name in session.shapes})
    assert set(got) == set(expected)
    for blob, value in expected.items():
        assert got[blob].shape == tuple(value.shape), blob
        np.testing.assert_allclose(got[blob], value.detach().numpy(), rtol=1e-4, atol=2e-4, err_msg=blob)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("name", FREE)
def test_a_graph_is_right_at_sizes_that_it_was_not_exported_with(name: str, opset: int) -> None:
    net = net_of(IMAGE + CONV + FREE[name])
    model, shapes = build(net, opset=opset, dynamic_axes=("batch", "height", "width"))
    assert verify_model(model, net, shapes.cases).differences
    session = open_session(model.to_proto().SerializeToString())
    assert session.shapes["x"] == ["N", 3, "H", "W"]
    for size in ((1, 3, 20, 24), (2, 3, 33, 47), (3, 3, 21, 18)):
        agree(net, {"x": size}, session)


@pytest.mark.parametrize("name", [name for name in FREE if name.startswith("ave")])
def test_averages_stay_right_where_a_runtime_fuses_a_pad_into_them(name: str) -> None:
    # As onnxruntime 1.19 and 1.20 do, which are not what these tests run with everywhere.
    graph = build(net_of(IMAGE + CONV + FREE[name]), dynamic_axes=("height", "width"))[0].to_proto().graph
    padded = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    pools = [node for node in graph.node if node.op_type == "AveragePool"]
    assert pools
    for node in pools:
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        assert node.input[0] not in padded or (given["count_include_pad"] == 1 and not any(given["pads"]))


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_needs_one_size_is_named(name: str) -> None:
    net = net_of(IMAGE + CONV + REFUSED[name])
    with pytest.raises(ExportError, match="layer 'l'"):
        to_onnx(net, dynamic_axes=("height", "width"))
    assert net.blob_shapes["x"] == (1, 3, 20, 24)


STATIC: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "upsample by a mask": (
        'layer { name: "l" type: "Upsample" bottom: "x" bottom: "m" top: "y" upsample_param { scale: 3 pad_out_h: true } }',
        {"x": (2, 3, 4, 5), "m": (2, 3, 4, 5)},
    ),
    "unpooling": (
        'layer { name: "l" type: "Unpooling" bottom: "x" bottom: "m" top: "y" unpooling_param { unpool_size: 9 } }',
        {"x": (2, 3, 4, 4), "m": (2, 3, 4, 4)},
    ),
    "roi pooling": (
        'layer { name: "l" type: "ROIPooling" bottom: "x" bottom: "r" top: "y" roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 } }',
        {"x": (2, 4, 9, 11), "r": (7, 5)},
    ),
    "psroi pooling": (
        'layer { name: "l" type: "PSROIPooling" bottom: "x" bottom: "r" top: "y" psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.25 } }',
        {"x": (2, 18, 9, 11), "r": (7, 5)},
    ),
    "batch reindex": ('layer { name: "l" type: "BatchReindex" bottom: "x" bottom: "i" top: "y" }', {"x": (4, 3), "i": (6,)}),
    "filter": ('layer { name: "l" type: "Filter" bottom: "x" bottom: "s" top: "y" }', {"x": (5, 3), "s": (5, 1)}),
    "embed": (
        'layer { name: "l" type: "Embed" bottom: "x" top: "y" embed_param { num_output: 3 input_dim: 20 WEIGHTS } }',
        {"x": (2, 3, 4, 1)},
    ),
    "lstm": (
        'layer { name: "l" type: "LSTM" bottom: "x" bottom: "cont" bottom: "s" top: "y" recurrent_param { num_output: 5 WEIGHTS } }',
        {"x": (6, 3, 4), "cont": (6, 3), "s": (3, 2)},
    ),
    "rnn with its state outside": (
        'layer { name: "l" type: "RNN" bottom: "x" bottom: "cont" bottom: "h" top: "y" top: "h1" recurrent_param { expose_hidden: true num_output: 5 WEIGHTS } }',
        {"x": (6, 3, 4), "cont": (6, 3), "h": (1, 3, 5)},
    ),
    "convolution over 4 axes": (
        'layer { name: "l" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 4 group: 2 kernel_size: 2 pad: 1 stride: 2 WEIGHTS } }',
        {"x": (2, 4, 3, 4, 5, 3)},
    ),
    "stochastic pooling": (
        'layer { name: "a" type: "AbsVal" bottom: "x" top: "a" } '
        'layer { name: "l" type: "Pooling" bottom: "a" top: "y" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 } }',
        {"x": (2, 3, 6, 8)},
    ),
    "bn of segnet in training": (
        'layer { name: "l" type: "BN" bottom: "x" top: "y" bn_param { bn_mode: LEARN } }',
        {"x": (3, 2, 4, 5)},
    ),
}


# Python 3.10 has no onnxruntime that runs the newest.
NEWEST = min(25, newest_opset())


@pytest.mark.parametrize(
    ("name", "opset"), [(name, min(opset, 21) if name == "roi pooling" else opset) for name in STATIC for opset in (11, 17, NEWEST)]
)
def test_a_form_gives_the_numbers_of_the_engine(name: str, opset: int) -> None:
    text, shapes = STATIC[name]
    net = net_of("".join(input_layer(blob, *shape) for blob, shape in shapes.items()) + text)
    agree(net, shapes, open_session(to_onnx(net, opset=opset, dynamic_axes=()).SerializeToString()))


def detection(code: str, share: bool, keep: int, encoded: bool = False) -> Net:
    sets = 1 if share else 3
    said = (
        f"num_classes: 3 share_location: {str(share).lower()} keep_top_k: {keep} confidence_threshold: 0.3 code_type: {code} "
        f"variance_encoded_in_target: {str(encoded).lower()} nms_param {{ nms_threshold: 0.45 top_k: 8 }}"
    )
    inputs = input_layer("loc", 2, 12 * sets * 4) + input_layer("conf", 2, 12 * 3) + input_layer("prior", 1, 2, 48)
    layer = f'layer {{ name: "l" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "y" detection_output_param {{ {said} }} }}'
    return net_of(inputs + layer)


@pytest.mark.parametrize("code", ["CORNER", "CENTER_SIZE", "CORNER_SIZE"])
@pytest.mark.parametrize(("share", "keep", "encoded"), [(True, 7, False), (False, 5, False), (True, -1, True)])
def test_detections_are_those_of_the_engine(code: str, share: bool, keep: int, encoded: bool) -> None:
    net = detection(code, share, keep, encoded)
    session = open_session(to_onnx(net, dynamic_axes=()).SerializeToString())
    for seed in range(5):
        feed = random_inputs(net, dict(net.blob_shapes), seed)
        expected = net({name: torch.tensor(value) for name, value in feed.items()})["y"].numpy()
        np.testing.assert_allclose(session.run(feed)["y"], expected, rtol=1e-5, atol=1e-6)


def test_where_nothing_is_detected_each_item_has_its_row() -> None:
    net = detection("CENTER_SIZE", True, 7)
    session = open_session(to_onnx(net, dynamic_axes=()).SerializeToString())
    feed = random_inputs(net, dict(net.blob_shapes), 0)
    feed["conf"] *= 0
    expected = net({name: torch.tensor(value) for name, value in feed.items()})["y"].numpy()
    np.testing.assert_array_equal(session.run(feed)["y"], expected)
    assert expected.shape == (1, 1, 2, 7)


def test_layers_of_one_name_get_nodes_of_their_own() -> None:
    text = input_layer("x", 2, 3) + "".join(
        f'layer {{ name: "ip" type: "InnerProduct" bottom: "{a}" top: "{b}" inner_product_param {{ num_output: 3 WEIGHTS }} }} '
        f'layer {{ name: "relu" type: "ReLU" bottom: "{b}" top: "{b}" }}'
        for a, b in (("x", "y"), ("y", "z"))
    )
    net = net_of(text)
    model = to_onnx(net)
    assert [node.name for node in model.graph.node] == ["ip", "relu", "ip_2", "relu_2"]
    agree(net, {"x": (2, 3)}, open_session(model.SerializeToString()))


def test_a_recurrent_layer_notes_that_its_state_is_not_kept() -> None:
    text, shapes = STATIC["lstm"]
    net = net_of("".join(input_layer(blob, *shape) for blob, shape in shapes.items()) + text)
    assert "starts every run with a state of zeros" in build(net, dynamic_axes=())[0].notes[0]


def test_every_layer_type_has_a_decision() -> None:
    """Each type has a form, is an input, or a reason why not."""
    for kind, layer in layer_types().items():
        if not layer.IS_DATA:
            assert layer.has_onnx_form() != bool(layer.NO_ONNX), f"{kind} has neither an ONNX form nor a reason, or both"
