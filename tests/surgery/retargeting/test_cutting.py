"""Nets cut off after a layer."""

from __future__ import annotations

from typing import Any

import pytest

from caffetools.errors import NetError
from caffetools.graph.graph import phases
from caffetools.graph.summary import summarize
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.surgery.truncation import drop_after
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, layer_of, net_of


def names(net: Any) -> list[str]:
    return [layer.name for layer in net.layer]


def parameter_shapes(net: Any) -> dict[str, Any]:
    return {row.name: row.parameters for row in summarize(net).layers}


def test_the_classifier_reads_the_layers_blob_and_all_between_is_removed() -> None:
    net = build("bvlc_alexnet")
    changes = drop_after(net, "pool5")
    assert names(net)[-4:] == ["pool5", "fc8", "accuracy", "loss"]
    assert list(layer_of(net, "fc8").bottom) == ["pool5"]
    assert [str(change) for change in changes] == [
        f"{name}: layer {kind} removed"
        for index in (6, 7)
        for name, kind in ((f"fc{index}", "InnerProduct"), (f"relu{index}", "ReLU"), (f"drop{index}", "Dropout"))
    ]
    assert parameter_shapes(net)["fc8"] == [(1000, 256 * 6 * 6), (1000,)]


def test_what_works_in_place_on_the_blob_is_part_of_it() -> None:
    net = build("bvlc_alexnet")
    drop_after(net, "fc6")
    assert names(net)[-6:] == ["fc6", "relu6", "drop6", "fc8", "accuracy", "loss"]


def test_the_pooling_of_the_whole_picture_is_kept_and_takes_in_pictures_of_any_size() -> None:
    net = build("bvlc_googlenet")
    changes = drop_after(net, "inception_4a/output")
    pool = layer_of(net, "pool5/7x7_s1")
    assert (list(pool.bottom), pool.pooling_param.global_pooling, pool.pooling_param.HasField("kernel_size")) == (
        ["inception_4a/output"],
        True,
        False,
    )
    assert "pool5/drop_7x7_s1" in names(net)
    assert "pool5/7x7_s1: kernel 7 x 7 → global" in map(str, changes)
    assert parameter_shapes(net)["loss3/classifier"] == [(1000, 512), (1000,)]


def test_a_second_classifier_is_kept_where_its_input_is_kept_and_removed_otherwise() -> None:
    net = build("bvlc_googlenet")
    drop_after(net, "inception_4a/output")
    assert "loss1/classifier" in names(net) and "loss1/loss" in names(net)
    assert not any(name.startswith("loss2/") for name in names(net))
    drop_after(net, "inception_3b/output")
    assert not any(name.startswith("loss1/") for name in names(net))


def test_of_a_module_with_branches_only_what_is_read_is_kept() -> None:
    net = build("bvlc_googlenet")
    drop_after(net, "inception_4b/1x1")
    assert [name for name in names(net) if name.startswith("inception_4b/")] == ["inception_4b/1x1", "inception_4b/relu_1x1"]


def test_a_shortcut_past_the_cut_is_removed_too() -> None:
    net = build("resnet18")
    drop_after(net, "bn4a_branch2a")
    assert "scale4a_branch2a" in names(net) and "res4a_branch2a_relu" in names(net)
    assert not any(name in names(net) for name in ("res4a_branch1", "bn4a_branch1", "res4a", "res5b"))


def test_two_branches_that_meet_after_the_cut_keep_their_classifiers() -> None:
    two = net_of(
        'layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 2 dim: 5 } shape { dim: 2 } } }'
        'layer { name: "stem" type: "InnerProduct" bottom: "x" top: "stem" inner_product_param { num_output: 6 } }'
        + "".join(
            f'layer {{ name: "mid{i}" type: "InnerProduct" bottom: "stem" top: "mid{i}" inner_product_param {{ num_output: {i} }} }}'
            f'layer {{ name: "fc{i}" type: "InnerProduct" bottom: "mid{i}" top: "fc{i}" inner_product_param {{ num_output: 4 }} }}'
            for i in (7, 8)
        )
        + 'layer { name: "sum" type: "Eltwise" bottom: "fc7" bottom: "fc8" top: "sum" }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }'
    )
    drop_after(two, "stem")
    assert names(two) == ["in", "stem", "fc7", "fc8", "sum", "loss"]
    assert parameter_shapes(two)["fc7"] == parameter_shapes(two)["fc8"] == [(4, 6), (4,)]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("pool9", "the net 'AlexNet' has no layer 'pool9'; did you mean 'pool5'? (--drop-after)"),
        ("fc7", "layer 'fc7': there are no layers between it and the classifier 'fc8', so there is nothing to drop"),
        ("fc8", "layer 'fc8': the main classifier 'fc8' does not depend on it; name a layer before the classifier"),
        ("loss", "layer 'loss': the main classifier 'fc8' does not depend on it"),
        ("data", "layer 'data': has 2 tops; name a layer that has one (--drop-after)"),
    ],
)
def test_what_cannot_be_cut_is_reported_and_the_net_is_unchanged(layer: str, message: str) -> None:
    net = build("bvlc_alexnet")
    before = net.SerializeToString(deterministic=True)
    with pytest.raises(NetError) as caught:
        drop_after(net, layer)
    assert message in str(caught.value)
    assert net.SerializeToString(deterministic=True) == before


def test_a_kept_layer_cannot_read_a_removed_one() -> None:
    def product(name: str, bottom: str) -> str:
        made = f'type: "InnerProduct" bottom: "{bottom}" top: "{name}" inner_product_param {{ num_output: 6 }}'
        return f'layer {{ name: "{name}" {made} }}'

    margin = 'type: "MarginInnerProduct" bottom: "mid" bottom: "late" top: "fc" margin_inner_product_param { num_output: 4 }'
    net = net_of(
        'layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 2 dim: 5 } shape { dim: 2 } } }'
        + product("stem", "x")
        + product("mid", "stem")
        + product("late", "mid").replace("num_output: 6", "num_output: 1")
        + f'layer {{ name: "fc" {margin} }}'
        + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    )
    with pytest.raises(NetError, match="layer 'fc': reads 'late', which is computed after the cut"):
        drop_after(net, "stem")


@pytest.mark.parametrize("model", ["bvlc_googlenet", "squeezenet_v1.1", "resnet18", "mobilenet_v2", "se_resnet50", "lenet"])
def test_after_any_layer_a_net_is_cut_and_the_rest_is_complete(model: str) -> None:
    whole = build(model)
    shape = {"": (2, 1, 28, 28)} if model == "lenet" else None
    shapes = {row.name: row.shapes for row in summarize(whole, shapes=shape).layers}
    outputs = [{top for _, top in graph.outputs()} for graph in phases(whole)]
    cut = 0
    for name in dict.fromkeys(names(whole)[:: 1 if len(whole.layer) < 100 else 7]):
        net = NetParameter()
        net.CopyFrom(whole)
        try:
            drop_after(net, name, shapes=shape)
        except NetError as error:
            assert "drop-after" in str(error), name
            continue
        cut += 1
        kept = iter(names(whole))
        assert all(layer in kept for layer in names(net)), "layers stay in their order"
        for phase, graph, before in zip((TRAIN, TEST), phases(net), outputs, strict=True):
            assert {top for _, top in graph.outputs()} <= before, f"{name}: something is made for nothing"
            rows = {row.name: row for row in summarize(net, phase, shapes=shape).layers}
            assert rows[name].shapes[0][1:] == shapes[name][0][1:]
    assert cut >= 4


@pytest.mark.parametrize(
    "between",
    [
        'layer { name: "relu2" type: "ReLU" bottom: "gp" top: "gp" }',
        'layer { name: "drop" type: "Dropout" bottom: "gp" top: "gp" }',
        'layer { name: "flat" type: "Reshape" bottom: "gp" top: "flat" reshape_param { shape { dim: 0 dim: -1 } } }',
    ],
)
def test_layers_between_the_pooling_and_the_classifier_are_kept_with_them(between: str) -> None:
    conv2 = 'layer { name: "conv2" type: "Convolution" bottom: "conv" top: "conv2" convolution_param { num_output: 7 kernel_size: 3 } }'
    pool = 'layer { name: "gp" type: "Pooling" bottom: "conv2" top: "gp" pooling_param { pool: AVE kernel_size: 4 } }'
    reads = "flat" if "flat" in between else "gp"
    text = TINY.replace('bottom: "conv" top: "fc"', f'bottom: "{reads}" top: "fc"')
    text = text.replace('layer { name: "fc"', conv2 + pool + between + ' layer { name: "fc"')
    for shapes in (None, {"": (2, 3, 16, 16)}):
        net = net_of(text)
        drop_after(net, "conv", shapes=shapes)
        assert parameter_shapes(net)["fc"] == [(10, 6), (10,)], shapes
        assert layer_of(net, "gp").pooling_param.global_pooling


def test_a_pooling_after_a_classifier_of_maps_takes_in_the_larger_maps() -> None:
    net = build("nin_imagenet")
    changes = drop_after(net, "pool3")
    assert any(change.what == "kernel" and change.after == "global" for change in changes)
    for phase in (TRAIN, TEST):
        assert summarize(net, phase).layers[-1].shapes == [()]


@pytest.mark.parametrize("kind", ["Slice", "Split"])
def test_a_top_that_nothing_reads_any_more_is_not_a_new_output(kind: str) -> None:
    parts = f'layer {{ name: "parts" type: "{kind}" bottom: "conv" top: "one" top: "two" }}'
    conv2 = 'layer { name: "conv2" type: "Convolution" bottom: "one" top: "conv2" convolution_param { num_output: 3 kernel_size: 1 } }'
    sums = 'layer { name: "both" type: "Concat" bottom: "conv2" bottom: "two" top: "both" }'
    text = TINY.replace('bottom: "conv" top: "fc"', 'bottom: "both" top: "fc"')
    net = net_of(text.replace('layer { name: "fc"', parts + conv2 + sums + 'layer { name: "fc"'))
    drop_after(net, "conv2")
    for graph, phase in zip(phases(net), (TRAIN, TEST), strict=True):
        assert {top for _, top in graph.outputs()} <= {"loss", "accuracy", "top-5"}
        assert summarize(net, phase).layers
    assert ("two_unused" in names(net)) == (kind == "Slice")
    assert list(layer_of(net, "parts").top) == (["one", "two"] if kind == "Slice" else ["one"])
