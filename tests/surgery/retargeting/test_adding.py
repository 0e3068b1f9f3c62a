"""New layers in a net."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caffetools.errors import CaffeToolsError, NetError, PrototxtError
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.graph.summary import summarize
from caffetools.layers.registry import layer_types
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, FillerParameter, NetParameter
from caffetools.proto.text import format_text
from caffetools.surgery.insertion import add_layers
from caffetools.surgery.layer_spec import parse_added
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, layer_of, net_of


def with_added(net: Any, *texts: str, **options: Any) -> tuple[Any, list[str]]:
    copy = NetParameter()
    copy.CopyFrom(net)
    _, fresh = add_layers(copy, [parse_added(text) for text in texts], **options)
    return copy, fresh


def wiring(net: Any, *names: str) -> list[tuple[str, list[str], list[str]]]:
    return [(layer.type, list(layer.bottom), list(layer.top)) for layer in (layer_of(net, name) for name in names)]


def test_new_layers_come_before_the_classifier_in_their_order() -> None:
    net, fresh = with_added(build("bvlc_alexnet"), "InnerProduct:256", "ReLU", "Dropout:0.4", lr_mult=10)
    assert fresh == ["fc_new", "relu_new", "drop_new"]
    assert [layer.name for layer in net.layer][-6:] == [*fresh, "fc8", "accuracy", "loss"]
    assert wiring(net, *fresh, "fc8") == [
        ("InnerProduct", ["fc7"], ["fc_new"]),
        ("ReLU", ["fc_new"], ["fc_new"]),
        ("Dropout", ["fc_new"], ["fc_new"]),
        ("InnerProduct", ["fc_new"], ["fc8"]),
    ]
    new = layer_of(net, "fc_new")
    assert [(spec.lr_mult, spec.decay_mult) for spec in new.param] == [(10, 1), (20, 0)]
    assert (new.inner_product_param.num_output, new.inner_product_param.weight_filler.type) == (256, "xavier")
    assert round(layer_of(net, "drop_new").dropout_param.dropout_ratio, 6) == 0.4
    assert {row.name: row.parameters for row in summarize(net).layers}["fc8"] == [(1000, 256), (1000,)]


def test_a_layer_after_another_is_read_by_all_that_read_that_one() -> None:
    net, _ = with_added(build("bvlc_googlenet"), "inception_4a/output=BatchNorm", "inception_4a/output=Scale")
    assert wiring(net, "bn_new", "scale_new") == [
        ("BatchNorm", ["inception_4a/output"], ["bn_new"]),
        ("Scale", ["bn_new"], ["bn_new"]),
    ]
    readers = [layer.name for layer in net.layer if "bn_new" in layer.bottom and not layer.name.endswith("_new")]
    assert readers == ["loss1/ave_pool", "inception_4b/1x1", "inception_4b/3x3_reduce", "inception_4b/5x5_reduce", "inception_4b/pool"]
    assert [layer.name for layer in net.layer if "inception_4a/output" in layer.bottom] == ["bn_new"]
    assert [layer.name for layer in net.layer].index("bn_new") == [layer.name for layer in net.layer].index("inception_4a/output") + 1


def test_a_layer_comes_after_what_works_in_place_on_the_blob() -> None:
    net, _ = with_added(net_of(TINY), "conv=LRN")
    assert [layer.name for layer in net.layer][2:6] == ["conv", "relu", "lrn_new", "fc"]
    assert wiring(net, "lrn_new", "fc") == [("LRN", ["conv"], ["lrn_new"]), ("InnerProduct", ["lrn_new"], ["fc"])]


def test_a_layer_for_one_phase_is_followed_in_that_phase_only() -> None:
    net = net_of(TINY)
    extra = net.layer.add(name="scores", type="Softmax", bottom=["fc"], top=["scores"])
    extra.include.add(phase=TEST)
    net.layer.add(name="quiet", type="Silence", bottom=["scores"]).include.add(phase=TEST)
    net, _ = with_added(net, "scores=Power")
    assert [rule.phase for rule in layer_of(net, "power_new").include] == [TEST]


def test_the_main_classifier_gets_them_and_both_where_branches_meet() -> None:
    googlenet, _ = with_added(build("bvlc_googlenet"), "Dropout:0.6")
    assert list(layer_of(googlenet, "loss3/classifier").bottom) == ["drop_new"]
    assert list(layer_of(googlenet, "loss1/classifier").bottom) == ["loss1/fc"]
    two = net_of(
        'layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 2 dim: 5 } shape { dim: 2 } } }'
        'layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 4 } }'
        'layer { name: "b" type: "InnerProduct" bottom: "x" top: "b" inner_product_param { num_output: 4 } }'
        'layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }'
    )
    two, fresh = with_added(two, "InnerProduct:3")
    assert fresh == ["fc_new", "fc_new2"]
    assert (list(layer_of(two, "a").bottom), list(layer_of(two, "b").bottom)) == (["fc_new"], ["fc_new2"])


def test_names_of_the_weights_are_not_taken_by_chance() -> None:
    _, fresh = with_added(net_of(TINY), "InnerProduct:3", taken=["fc_new", "fc_new2"])
    assert fresh == ["fc_new3"]
    named, fresh = with_added(net_of(TINY), 'name: "mine" type: "ReLU"')
    assert fresh == ["mine"] and wiring(named, "mine") == [("ReLU", ["conv"], ["mine"])]
    with pytest.raises(
        NetError, match="the weights have something called 'mine'; give the new layer another name, since it is reinitialized"
    ):
        with_added(net_of(TINY), 'name: "mine" type: "ReLU"', taken=["mine"])


def test_prototxt_can_state_all_that_a_layer_can() -> None:
    text = (
        'conv=layer { name: "mine" type: "Convolution" param { lr_mult: 3 } convolution_param { num_output: 5 kernel_size: 1 group: 1 } }'
    )
    net, _ = with_added(net_of(TINY), text, lr_mult=2, filler=FillerParameter(type="msra"))
    mine = layer_of(net, "mine")
    assert (mine.convolution_param.num_output, mine.convolution_param.weight_filler.type) == (5, "msra")
    assert [spec.lr_mult for spec in mine.param] == [6, 2]
    unknown, _ = with_added(net_of(TINY), 'type: "Wonder" wonder_param { depth: 3 }')
    assert "wonder_param { depth: 3 }" in format_text(unknown)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("InnerProduct:9", (2, 9)),
        ("Convolution:9:3", (2, 9, 6, 6)),
        ("Convolution:9:1", (2, 9, 6, 6)),
        ("Pooling:MAX:3:2", (2, 6, 3, 3)),
        ("Pooling:AVE", (2, 6, 1, 1)),
        ("Pooling:max:2:2", (2, 6, 3, 3)),
        ("Dropout", (2, 6, 6, 6)),
        *((kind, (2, 6, 6, 6)) for kind in ("ReLU", "PReLU", "ELU", "Sigmoid", "TanH", "BatchNorm", "Scale", "LRN", "Softmax", "Power")),
        ("Flatten", (2, 216)),
    ],
)
def test_short_forms_make_layers_that_run(text: str, shape: tuple[int, ...]) -> None:
    net, (name,) = with_added(net_of(TINY), f"conv={text}")
    made = Net(data_layers_to_inputs(net, {"": (2, 3, 8, 8)}), TEST)
    assert made.blob_shapes[name] == shape
    assert all(torch.isfinite(blob).all() for blob in made({"data": torch.ones(2, 3, 8, 8), "label": torch.zeros(2)}).values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a layer: the type '' is not known here"),
        ("Relu", "'Relu' is not a layer: the type 'Relu' is not known here; did you mean ReLU?; write InnerProduct:256"),
        ("InnerProduct", "'InnerProduct' does not give the numbers that a InnerProduct layer needs; write InnerProduct:256"),
        ("InnerProduct:0", "'InnerProduct:0' does not give"),
        ("InnerProduct:many", "'InnerProduct:many' does not give"),
        ("InnerProduct:3:3", "'InnerProduct:3:3' does not give"),
        ("Convolution:3", "'Convolution:3' does not give"),
        ("Convolution:3:2", "'Convolution:3:2' does not give"),
        ("Pooling:MIN", "'Pooling:MIN' does not give"),
        ("Pooling:MAX:3", "'Pooling:MAX:3' does not give"),
        ("Dropout:1", "'Dropout:1' does not give"),
        ("Dropout:nan", "'Dropout:nan' does not give"),
        ("ReLU:3", "'ReLU:3' does not give"),
        ("ArgMax", "a new ArgMax layer passes no gradient, so no layer below it would learn"),
        ("Python", "a new Python layer is written as prototxt, with its python_param"),
        ('type: "Python"', "--add-layer: a new Python layer needs python_param"),
        ('type: "ReLU" bottom: "x"', "--add-layer: bottoms and tops follow from the layer's position; leave them out"),
        ('name: "x"{}', "--add-layer:1:"),
        ('name: "x"', '--add-layer: the new layer has no type; write type: "ReLU"'),
        ('layer { type: "ReLU" } layer { type: "ReLU" }', "--add-layer: is not a single layer; give --add-layer once for each"),
        ('type: "ReLU" } name: "other" layer {', "--add-layer: is not a single layer"),
    ],
)
def test_what_is_not_a_layer_is_reported(text: str, message: str) -> None:
    with pytest.raises((CaffeToolsError, PrototxtError)) as caught:
        parse_added(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool9=ReLU", "the net 'tiny' has no layer 'pool9' to add one after"),
        ("con=ReLU", "did you mean 'conv'? (--add-layer)"),
        ('name: "fc" type: "ReLU"', "the net 'tiny' has something called 'fc'; give the new layer another name"),
        ("loss=ReLU", "layer 'loss': has a top that no layer reads; name a layer before the classifier"),
        ("fc=InnerProduct:9", "the new layers would come after the classifier fc; name a layer before it (--add-layer)"),
        ("data=ReLU", "layer 'data': has 2 tops; name a layer that has one (--add-layer)"),
    ],
)
def test_what_cannot_be_put_in_is_reported(text: str, message: str) -> None:
    with pytest.raises(NetError) as caught:
        with_added(net_of(TINY), text)
    assert message in str(caught.value)


def test_every_type_is_a_word_or_refused_by_its_shape_rules() -> None:
    for kind in layer_types():
        net = net_of(TINY)
        try:
            add_layers(net, [parse_added(f"conv={kind}")])
            summarize(net)
        except CaffeToolsError as error:
            assert kind in str(error) or (isinstance(error, NetError) and error.layer in ("fc", f"{kind.lower()}_new")), kind


def test_a_classifier_that_is_there_once_a_phase_gets_its_layers_in_each() -> None:
    def once(phase: str, *layers: str) -> str:
        return "".join(layer.replace("bottom:", f"include {{ phase: {phase} }} bottom:", 1) for layer in layers)

    relu = 'layer { name: "relu_PHASE" type: "ReLU" bottom: "conv" top: "conv" }'
    fc = 'layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 10 } }'
    head, rest = TINY.split('layer { name: "relu"')[0], 'layer { name: "loss"' + TINY.split('layer { name: "loss"')[1]
    twice = once("TRAIN", relu.replace("PHASE", "a"), fc) + once("TEST", relu.replace("PHASE", "b"), fc)
    net, fresh = with_added(net_of(head + twice + rest), "InnerProduct:9", "ReLU")
    assert fresh == ["fc_new", "relu_new"]
    for phase in (TRAIN, TEST):
        names = [row.name for row in summarize(net, phase).layers]
        assert names[2:6] == [f"relu_{'a' if phase == TRAIN else 'b'}", "fc_new", "relu_new", "fc"]
        assert {row.name: row.parameters for row in summarize(net, phase).layers}["fc"] == [(10, 9), (10,)]
    # Where both read the same, one chain does for both.
    net, _ = with_added(net_of(head + once("TRAIN", fc) + once("TEST", fc) + rest), "InnerProduct:9")
    assert [layer.name for layer in net.layer].count("fc_new") == 1
