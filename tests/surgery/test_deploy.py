"""Deploy nets made from nets for training are the published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, to_caffemodel
from caffetools.proto.schema import TEST
from caffetools.proto.upgrade import upgrade_net
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.inputs import data_layers_to_inputs
from caffetools.zoo.networks import MODELS, build
from tests.surgery.nets import TINY, layer_of, net_of, with_head


def wiring(net: Any) -> list[tuple[str, str, list[str], list[str]]]:
    return [(layer.name, layer.type, list(layer.bottom), list(layer.top)) for layer in net.layer]


@pytest.mark.parametrize("model", MODELS)
def test_the_deploy_net_has_the_published_layers(model: str) -> None:
    published = build(model, "deploy")
    batch, *picture = {"lenet": (64, 1, 28, 28), "bvlc_googlenet": (10, 3, 224, 224)}.get(model, (10, 3, 227, 227))
    # LeNet's data layer does not say how large digits are; the others crop.
    made = deploy_from(build(model), batch=batch, input_shape=tuple(picture) if model == "lenet" else None)
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
    for part in (copy.convolution_param, copy.inner_product_param):
        part.ClearField("weight_filler")
        part.ClearField("bias_filler")
    return [(field.name, str(value)) for field, value in copy.ListFields() if field.name.endswith("_param") and str(value)]


def test_what_only_training_needs_is_gone() -> None:
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


def test_names_of_shared_parameters_stay() -> None:
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


def test_a_deploy_net_stays_as_it_is() -> None:
    made = deploy_from(net_of(TINY))
    assert deploy_from(made) == made


def test_a_net_of_losses_only_and_an_unknown_size_are_errors() -> None:
    with pytest.raises(NetError, match="nothing can be deployed"):
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
    with pytest.raises(NetError, match="layer 'loss': what it reads, 'fc', is not made in the TEST phase"):
        deploy_from(net_of(text))
