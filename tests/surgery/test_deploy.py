"""Deploy nets made from nets for training are the published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, to_caffemodel
from caffetools.proto.schema import TEST
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.deploy import deploy_from
from caffetools.zoo.networks import MODELS, build
from tests.surgery.nets import TINY, layer_of, net_of, with_head


def wiring(net: Any) -> list[tuple[str, str, list[str], list[str]]]:
    return [(layer.name, layer.type, list(layer.bottom), list(layer.top)) for layer in net.layer]


# R-CNN's deploy net is not the one that is trained, MTCNN's has several outputs.
CLASSIFIERS = [model for model in MODELS if "rcnn" not in model and "mtcnn" not in model]
BATCHES = {"lenet": 64, "bvlc_googlenet": 10, "vgg16": 10, "vgg19": 10, "nin_imagenet": 10} | dict.fromkeys(
    ("bvlc_alexnet", "bvlc_reference_caffenet", "squeezenet_v1.0", "squeezenet_v1.1"), 10
)


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_the_deploy_net_has_the_published_layers(model: str) -> None:
    published = build(model, "deploy")
    # The data layers of LeNet and of the nets for CIFAR-10 do not say how large pictures are; the others crop.
    picture = {"lenet": (1, 28, 28), "cifar10_quick": (3, 32, 32), "cifar10_full": (3, 32, 32)}.get(model)
    made = deploy_from(build(model), batch=BATCHES.get(model, 1), input_shape=picture)
    expected = wiring(upgrade_net(published))
    if model == "squeezenet_v1.0":
        # It has its input as a field of the net, which becomes a layer of a name of its own.
        expected[0] = ("data", *expected[0][1:])
    assert wiring(made) == expected
    for ours, theirs in zip(made.layer, upgrade_net(published).layer, strict=True):
        assert numbers(ours) == numbers(theirs), ours.name


def numbers(layer: Any) -> list[tuple[str, str]]:
    """The parameters of a layer without what only training uses: published nets keep some learning rates and fillers, ours none."""
    copy = type(layer)()
    copy.CopyFrom(layer)
    copy.ClearField("param")
    # In a deploy net it is what BatchNorm does by itself.
    copy.batch_norm_param.ClearField("use_global_stats")
    for part in (copy.convolution_param, copy.inner_product_param):
        part.ClearField("weight_filler")
        part.ClearField("bias_filler")
    return [(field.name, str(value)) for field, value in copy.ListFields() if field.name.endswith("_param") and str(value)]


def test_what_only_training_needs_is_removed() -> None:
    made = deploy_from(net_of(TINY))
    assert wiring(made) == [
        ("data", "Input", [], ["data"]),
        ("conv", "Convolution", ["data"], ["conv"]),
        ("relu", "ReLU", ["conv"], ["conv"]),
        ("fc", "InnerProduct", ["conv"], ["fc"]),
        ("prob", "Softmax", ["fc"], ["prob"]),
    ]
    assert list(made.layer[0].input_param.shape[0].dim) == [1, 3, 8, 8]
    for layer in made.layer:
        assert not (layer.param or layer.include or layer.loss_weight)
    assert not layer_of(made, "conv").convolution_param.HasField("weight_filler")


def test_the_deployed_net_gives_the_scores_of_the_trained_one() -> None:
    torch.manual_seed(3)
    trained = Net(data_layers_to_inputs(net_of(TINY), batch=2), TEST)
    deployed = Net(deploy_from(net_of(TINY), batch=2), TEST)
    assert load_weights(deployed, to_caffemodel(trained)).loaded == ["conv", "fc"]
    data = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32))
    scores = trained({"data": data, "label": torch.zeros(2)}, keep=["fc"])["fc"]
    torch.testing.assert_close(deployed({"data": data})["prob"], torch.softmax(scores, 1))


def test_names_of_shared_parameters_are_kept() -> None:
    text = TINY.replace("param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }", 'param { lr_mult: 1 } param { name: "b" lr_mult: 2 }')
    specs = layer_of(deploy_from(net_of(text)), "conv").param
    assert [(spec.name, spec.HasField("lr_mult")) for spec in specs] == [("", False), ("b", False)]


def test_the_softmax_keeps_the_axis_of_the_loss() -> None:
    text = TINY.replace('bottom: "label" top: "loss" }', 'bottom: "label" top: "loss" softmax_param { axis: 0 } }')
    assert layer_of(deploy_from(net_of(text)), "prob").softmax_param.axis == 0


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    made = deploy_from(net_of(TINY.replace('"conv"', '"prob"')))
    assert wiring(made)[-1] == ("prob_2", "Softmax", ["fc"], ["prob_2"])


@pytest.mark.parametrize(("loss", "answer"), [("SigmoidCrossEntropyLoss", "Sigmoid"), ("EuclideanLoss", None), ("HingeLoss", None)])
def test_other_losses_get_their_own_answer(loss: str, answer: str | None) -> None:
    made = deploy_from(with_head("", loss, reads="fc"))
    assert [layer.type for layer in made.layer] == ["Input", "InnerProduct", *([answer] if answer else [])]
    assert list(made.layer[0].top) == ["x"]
    assert [list(shape.dim) for shape in made.layer[0].input_param.shape] == [[2, 5]]


def test_a_deploy_net_is_unchanged() -> None:
    made = deploy_from(net_of(TINY))
    assert deploy_from(made) == made


def test_a_net_of_losses_only_and_an_unknown_size_are_errors() -> None:
    with pytest.raises(NetError, match="there is nothing to deploy"):
        deploy_from(with_head("", reads="x"))
    with pytest.raises(NetError, match="layer 'data': the size of its data is not known.*--input-shape"):
        deploy_from(net_of(TINY.replace("crop_size: 8", "")))
    assert deploy_from(net_of(TINY.replace("crop_size: 8", "")), input_shape=(3, 9, 9), batch=5).layer[0].input_param.shape[0].dim == [
        5,
        3,
        9,
        9,
    ]


def test_what_the_loss_reads_must_exist_in_the_test_phase() -> None:
    text = TINY.replace('layer { name: "fc" type: "InnerProduct"', 'layer { name: "fc" include { phase: TRAIN } type: "InnerProduct"')
    with pytest.raises(NetError, match="layer 'loss': its bottom 'fc' is not produced in the TEST phase"):
        deploy_from(net_of(text))


TWO_LOSSES = (
    TINY
    + """
layer { name: "kind" type: "InnerProduct" bottom: "conv" top: "kind_scores" inner_product_param { num_output: 3 } }
layer { name: "kind_loss" type: "SigmoidCrossEntropyLoss" bottom: "kind_scores" bottom: "label" top: "kind_loss" loss_weight: 0.5 }
"""
)


@pytest.mark.parametrize(
    ("heads", "answers"),
    [
        (None, {"prob": "Softmax"}),
        (["kind_loss"], {"prob": "Sigmoid"}),
        (["kind_scores"], {"prob": "Sigmoid"}),
        (["kind"], {"prob": "Sigmoid"}),
        (["all"], {"prob_loss": "Softmax", "prob_kind_loss": "Sigmoid"}),
        (["fc", "kind"], {"prob_loss": "Softmax", "prob_kind_loss": "Sigmoid"}),
    ],
)
def test_heads_are_chosen_by_loss_scores_or_layer(heads: list[str] | None, answers: dict[str, str]) -> None:
    made = deploy_from(net_of(TWO_LOSSES), heads=heads)
    read = {bottom for layer in made.layer for bottom in layer.bottom}
    assert {layer.top[0]: layer.type for layer in made.layer if layer.top[0] not in read} == answers
    assert Net(made, TEST, fill=False)


def test_a_head_that_is_not_there_is_an_error_that_names_the_losses() -> None:
    with pytest.raises(NetError, match="has no loss 'x' to deploy for; its losses are loss, kind_loss"):
        deploy_from(net_of(TWO_LOSSES), heads=["x"])


def test_dropout_is_removed_on_request() -> None:
    drop = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "dropped" }'
    text = TINY.replace('layer { name: "fc"', drop + ' layer { name: "fc"').replace(
        'bottom: "conv" top: "fc"', 'bottom: "dropped" top: "fc"'
    )
    assert "drop" in [layer.name for layer in deploy_from(net_of(text)).layer]
    assert wiring(deploy_from(net_of(text), drop_dropout=True)) == wiring(deploy_from(net_of(TINY)))
    # What it reads is overwritten before the dropped blob has been read: Caffe refuses that.
    late = text.replace(drop, drop + ' layer { name: "late" type: "ReLU" bottom: "conv" top: "conv" }')
    late = late.replace('bottom: "dropped" top: "fc"', 'bottom: "mix" top: "fc"')
    mix = 'layer { name: "mix" type: "Eltwise" bottom: "dropped" bottom: "conv" top: "mix" } layer { name: "fc"'
    with pytest.raises(NetError, match="layer 'late': it writes its top 'conv' in place, which layer 'drop' reads before"):
        deploy_from(net_of(late.replace('layer { name: "fc"', mix)), drop_dropout=True)
    assert not any(layer.type == "Dropout" for layer in deploy_from(build("bvlc_alexnet"), drop_dropout=True).layer)


def test_dropout_is_kept_where_something_works_in_place_on_its_own_blob() -> None:
    drop = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "dropped" }'
    relu = 'layer { name: "late" type: "ReLU" bottom: "dropped" top: "dropped" }'
    mix = 'layer { name: "mix" type: "Eltwise" bottom: "dropped" bottom: "conv" top: "mix" }'
    text = TINY.replace('bottom: "conv" top: "fc"', 'bottom: "mix" top: "fc"').replace(
        'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }', ""
    )
    net = net_of(text.replace('layer { name: "fc"', drop + relu + mix + ' layer { name: "fc"'))
    assert wiring(deploy_from(net, drop_dropout=True)) == wiring(deploy_from(net))
