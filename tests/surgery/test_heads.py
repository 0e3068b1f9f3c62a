"""Classifiers are found from what the losses read, whatever they are called."""

from __future__ import annotations

import pytest

from caffetools.errors import NetError
from caffetools.graph.classifiers import find_heads, primary_classifier
from caffetools.zoo.networks import MODELS, build
from tests.surgery.nets import TINY, net_of, with_head

HEADS = {
    "lenet": ["ip2"],
    "bvlc_alexnet": ["fc8"],
    "bvlc_reference_caffenet": ["fc8"],
    "bvlc_googlenet": ["loss1/classifier", "loss2/classifier", "loss3/classifier"],
    "squeezenet_v1.0": ["conv10"],
    "squeezenet_v1.1": ["conv10"],
    "bvlc_reference_rcnn_ilsvrc13": ["fc8_ilsvrc13"],
    "cifar10_quick": ["ip2"],
    "cifar10_full": ["ip1"],
    "nin_imagenet": ["cccp8-1024"],
    "vgg16": ["fc8"],
    "vgg19": ["fc8"],
    "resnet10": ["score"],
    "resnet18": ["fc1000"],
    "resnet50": ["fc1000"],
    "resnet101": ["fc1000"],
    "resnet152": ["fc1000"],
    "se_resnet50": ["classifier"],
    "densenet121": ["fc6"],
    "mobilenet_v1": ["fc7"],
    "mobilenet_v2": ["fc7"],
    "mtcnn_pnet": ["conv4-1"],
    "mtcnn_rnet": ["conv5-1"],
    "mtcnn_onet": ["conv6-1"],
}


@pytest.mark.parametrize("model", MODELS)
def test_the_classifiers_of_the_zoo_are_found_in_training_and_in_deploy_nets(model: str) -> None:
    assert [head.layer for head in find_heads(build(model))] == HEADS[model]
    if model != "bvlc_reference_rcnn_ilsvrc13":  # its deploy net gives scores, not probabilities
        assert [head.layer for head in find_heads(build(model, "deploy"))] == HEADS[model][-1:]


def test_of_googlenets_classifiers_the_last_is_the_main_one() -> None:
    heads = find_heads(build("bvlc_googlenet"))
    assert [round(head.weight, 6) for head in heads] == [0.3, 0.3, 1.0]
    assert primary_classifier(heads).layer == "loss3/classifier"


@pytest.mark.parametrize(
    "between",
    [
        'layer { name: "p" type: "ReLU" bottom: "fc" top: "fc" } layer { name: "q" type: "Flatten" bottom: "fc" top: "y" }',
        'layer { name: "d" type: "Dropout" bottom: "fc" top: "y" }',
        'layer { name: "s" type: "Softmax" bottom: "fc" top: "y" }',
    ],
)
def test_layers_that_keep_the_classes_apart_are_passed(between: str) -> None:
    assert [head.layer for head in find_heads(with_head(between))] == ["fc"]


def test_layers_with_parameters_for_each_class_follow_their_classifier() -> None:
    between = 'layer { name: "bn" type: "BatchNorm" bottom: "fc" top: "y" } layer { name: "sc" type: "Scale" bottom: "y" top: "y" }'
    [head] = find_heads(with_head(between))
    assert set(head.followers) == {"bn", "sc"}


@pytest.mark.parametrize(
    "layer", ['type: "Reshape" bottom: "fc"', 'type: "Eltwise" bottom: "fc" bottom: "x"', 'type: "Sorcery" bottom: "fc"']
)
def test_what_might_mix_the_classes_is_refused_and_named(layer: str) -> None:
    net = with_head(f'layer {{ name: "mixer" {layer} top: "y" }}')
    with pytest.raises(NetError, match=r"layer 'mixer': no classifier was found above SoftmaxWithLoss 'loss'.*InnerProduct or Convolution"):
        find_heads(net)
    assert [head.layer for head in find_heads(net, ["fc"])] == ["fc"]


def test_a_net_without_a_classifier_is_an_error_that_names_what_was_looked_for() -> None:
    with pytest.raises(NetError, match="no classifier was found in the net 'x': it has no SoftmaxWithLoss.*and no Softmax"):
        find_heads(net_of('name: "x" layer { name: "in" type: "Input" top: "x" }'))
    with pytest.raises(NetError, match="layer 'loss': no classifier was found above SoftmaxWithLoss 'loss': .* are an input of the net"):
        find_heads(net_of('input: "y" input: "label" layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" }'))
    with pytest.raises(NetError, match="come from this Input layer"):
        find_heads(with_head("", reads="x"))


def test_a_softmax_inside_of_the_net_is_not_a_loss() -> None:
    net = net_of("""
      layer { name: "in" type: "Input" top: "x" }
      layer { name: "gate" type: "InnerProduct" bottom: "x" top: "gate" inner_product_param { num_output: 3 } }
      layer { name: "soft" type: "Softmax" bottom: "gate" top: "soft" }
      layer { name: "fc" type: "InnerProduct" bottom: "soft" top: "fc" inner_product_param { num_output: 9 } }
      layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
    """)
    assert [head.layer for head in find_heads(net)] == ["fc"]


def test_named_layers_must_be_there_and_be_classifiers() -> None:
    with pytest.raises(NetError, match="the net 'tiny' has no layer 'fc8'"):
        find_heads(net_of(TINY), ["fc8"])
    with pytest.raises(NetError, match="layer 'relu': is a ReLU layer; a classifier is"):
        find_heads(net_of(TINY), ["relu"])
