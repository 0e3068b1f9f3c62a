"""Retargeting reinitializes the classifiers and leaves everything else unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.errors import CaffeToolsError, NetError
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.net.net import Net
from caffetools.project.retargeting import prepare_retarget
from caffetools.proto.binary import write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.retarget import retarget
from caffetools.zoo.networks import MODELS, build, prototxt_path
from tests.surgery.nets import TINY, layer_of, net_of, with_head


def test_the_classifier_gets_a_name_a_number_of_outputs_and_a_faster_rate() -> None:
    net = net_of(TINY)
    made = retarget(net, 120)
    assert net == net_of(TINY)
    assert made.renamed == {"fc": "fc_120"}
    head = layer_of(made.train_val, "fc_120")
    assert (head.bottom, head.top) == (["conv"], ["fc_120"])
    assert head.inner_product_param.num_output == 120
    assert [(spec.lr_mult, spec.decay_mult) for spec in head.param] == [(10, 1), (20, 0)]
    assert head.inner_product_param.bias_filler.value == 0.5
    assert [list(layer.bottom) for layer in made.train_val.layer[5:]] == [["fc_120", "label"]] * 3
    assert [str(change) for change in made.changes] == [
        "fc_120: name fc → fc_120",
        "fc_120: num_output 10 → 120",
        "fc_120: lr_mult 1 / 2 → 10 / 20",
    ]


@settings(deadline=None, max_examples=30)
@given(model=st.sampled_from(MODELS), classes=st.integers(min_value=5, max_value=20000))
def test_every_other_layer_is_unchanged(model: str, classes: int) -> None:
    before, made = build(model), retarget(build(model), classes)
    back = {new: old for old, new in made.renamed.items()}
    if model == "nin_imagenet":
        back[f"cccp8_{classes}"] = "cccp8"  # the blob of layer cccp8-1024
    assert len(made.train_val.layer) == len(before.layer)
    for old, new in zip(before.layer, made.train_val.layer, strict=True):
        if new.name in back:
            assert (old.name, old.type) == (back[new.name], new.type)
            continue
        for blobs in (new.bottom, new.top):
            blobs[:] = [back.get(blob, blob) for blob in blobs]
        assert new == old
    assert len(made.renamed) == (3 if model == "bvlc_googlenet" else 1)


# MTCNN's nets read HDF5 files, whose shapes are not in the prototxt.
@pytest.mark.parametrize("model", [model for model in MODELS if "mtcnn" not in model])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_a_retargeted_network_builds_and_has_the_new_number_of_scores(model: str, phase: int) -> None:
    made = retarget(build(model), 7)
    (shape,) = [layer.input_param.shape[0].dim for layer in upgrade_net(build(model, "deploy")).layer if layer.type == "Input"]
    net = Net(data_layers_to_inputs(made.train_val, {"": (2, *shape[1:])}, batch=2), phase, fill=False)
    for name in made.renamed.values():
        (layer,) = [layer for layer in net.layers if layer.name == name]
        assert layer.top_shapes[0][:2] == (2, 7)


def test_names_never_collide_and_contain_the_classes() -> None:
    twice = retarget(retarget(net_of(TINY), 7).train_val, 7)
    assert twice.renamed == {"fc_7": "fc_7_2"}
    assert retarget(twice.train_val, 7).renamed == {"fc_7_2": "fc_7_3"}
    assert retarget(twice.train_val, 12).renamed == {"fc_7_2": "fc_12"}
    assert retarget(net_of(TINY.replace('"conv"', '"fc_7"')), 7).renamed == {"fc": "fc_7_2"}
    assert retarget(net_of(TINY), 7, suffix="-pets").renamed == {"fc": "fc-pets"}


def test_rates_that_are_high_already_are_not_raised_again() -> None:
    once = retarget(net_of(TINY), 7).train_val
    assert [spec.lr_mult for spec in layer_of(retarget(once, 8).train_val, "fc_8").param] == [10, 20]


def test_rates_are_multiplied_added_where_there_are_none_and_a_frozen_head_learns() -> None:
    def rates(net: Any, **options: Any) -> list[float]:
        return [spec.lr_mult for spec in layer_of(retarget(net, 7, **options).train_val, "fc_7").param]

    assert rates(net_of(TINY), head_lr_mult=5) == [5, 10]
    assert rates(net_of(TINY), head_lr_mult=1) == [1, 2]
    assert rates(with_head("", reads="fc")) == [10, 10]
    assert rates(
        net_of(TINY.replace("param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay", "param { lr_mult: 0 } param { lr_mult: 0 decay"))
    ) == [
        10,
        10,
    ]


def test_a_head_without_a_filler_gets_one() -> None:
    made = retarget(with_head("", reads="fc"), 7)
    assert layer_of(made.train_val, "fc_7").inner_product_param.weight_filler.type == "gaussian"
    assert "fc_7: weight_filler set to gaussian, std 0.01" in map(str, made.changes)


def test_accuracies_of_more_places_than_classes_go() -> None:
    made = retarget(net_of(TINY), 4)
    assert [layer.name for layer in made.train_val.layer if layer.type == "Accuracy"] == ["accuracy"]
    assert "top-5: layer Accuracy of the top 5 removed" in map(str, made.changes)
    assert len(retarget(net_of(TINY), 5).train_val.layer) == len(net_of(TINY).layer)


def test_an_accuracy_that_has_no_better_sibling_becomes_an_ordinary_one() -> None:
    only = TINY.replace('layer { name: "accuracy" type: "Accuracy"', 'layer { name: "silence" type: "Silence"').replace(
        'top: "accuracy" ', ""
    )
    made = retarget(net_of(only), 3)
    assert layer_of(made.train_val, "top-5").accuracy_param.top_k == 1
    assert "top-5: top_k 5 → 1" in map(str, made.changes)


def test_parameters_for_each_class_after_the_classifier_are_reinitialized_too() -> None:
    made = retarget(with_head('layer { name: "scale" type: "Scale" bottom: "fc" top: "y" }'), 7)
    assert made.renamed == {"fc": "fc_7", "scale": "scale_7"}


def test_a_classifier_in_each_phase_counts_as_one() -> None:
    fc = TINY[TINY.index('layer { name: "fc"') : TINY.index('layer { name: "loss"')]
    both = "".join(fc.rstrip()[:-1] + f" include {{ phase: {phase} }} }}\n" for phase in ("TRAIN", "TEST"))
    made = retarget(net_of(TINY.replace(fc, both)), 7)
    heads = [layer for layer in made.train_val.layer if layer.name == "fc_7"]
    assert [head.inner_product_param.num_output for head in heads] == [7, 7]
    assert [list(head.top) for head in heads] == [["fc_7"], ["fc_7"]]
    assert [[spec.lr_mult for spec in head.param] for head in heads] == [[10, 20], [10, 20]]


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_too_few_classes_are_an_error(classes: int) -> None:
    with pytest.raises(CaffeToolsError, match=rf"{classes} class\(es\) are too few") as caught:
        retarget(net_of(TINY), classes)
    assert caught.value.exit_code == 2


def test_classifiers_of_different_classes_must_be_named() -> None:
    other = """
    layer { name: "kind" type: "InnerProduct" bottom: "conv" top: "kind" inner_product_param { num_output: 3 } }
    layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "kind" bottom: "label" top: "loss2" }
    """
    with pytest.raises(NetError, match="have different numbers of classes: 'fc' has 10, 'kind' has 3; name those"):
        retarget(net_of(TINY + other), 7)
    assert retarget(net_of(TINY + other), 7, heads=["kind"]).renamed == {"kind": "kind_7"}


def test_a_parameter_shared_with_another_layer_is_an_error() -> None:
    shared = TINY.replace('top: "fc" param { lr_mult: 1', 'top: "fc" param { name: "w" lr_mult: 1').replace(
        'top: "conv" param { lr_mult: 1 }', 'top: "conv" param { name: "w" lr_mult: 1 }'
    )
    with pytest.raises(NetError, match="layer 'fc': shares its parameter 'w' with layer 'conv', which is not a classifier"):
        retarget(net_of(shared), 7)


def test_a_net_of_caffes_first_years_is_upgraded_on_the_way() -> None:
    old = """
    layers { name: "data" type: DATA top: "data" top: "label" data_param { source: "x" batch_size: 2 crop_size: 8 } }
    layers { name: "fc" type: INNER_PRODUCT bottom: "data" top: "fc" blobs_lr: 1 blobs_lr: 2 inner_product_param { num_output: 10 } }
    layers { name: "loss" type: SOFTMAX_LOSS bottom: "fc" bottom: "label" }
    """
    made = retarget(net_of(old), 7)
    assert [(layer.name, layer.type) for layer in made.train_val.layer] == [
        ("data", "Data"),
        ("fc_7", "InnerProduct"),
        ("loss", "SoftmaxWithLoss"),
    ]
    assert [spec.lr_mult for spec in made.train_val.layer[1].param] == [10, 20]
    assert not made.train_val.layers


def test_a_new_classifier_never_gets_the_name_of_a_layer_in_the_weights(tmp_path: Path) -> None:
    source = prototxt_path("lenet")
    first = prepare_retarget(source, 5, tmp_path / "a", input_shape=(1, 28, 28))
    assert first.retargeted.renamed == {"ip2": "ip2_5"}
    weights = tmp_path / "a.caffemodel"
    write_caffemodel(weights, Caffemodel(first.retargeted.train_val, {"ip2_5": [np.zeros((5, 500), np.float32), np.zeros(5, np.float32)]}))
    again = prepare_retarget(source, 5, tmp_path / "b", input_shape=(1, 28, 28), weights=weights)
    assert again.retargeted.renamed == {"ip2": "ip2_5_2"}
