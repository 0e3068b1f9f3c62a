"""What learns, how fast, and from what."""

from __future__ import annotations

from typing import Any

import pytest

from caffetools.errors import CaffeToolsError, NetError
from caffetools.surgery.freezing import Tuning, freeze_upto, learned_blobs, parse_filler, scale_rates, set_dropout, tune
from caffetools.surgery.retarget import retarget
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, layer_of, net_of, with_head


def rates(net: Any, name: str) -> list[tuple[float, float]]:
    return [(spec.lr_mult, spec.decay_mult) for spec in layer_of(net, name).param]


def test_a_layer_and_all_that_it_is_made_from_freeze_and_nothing_after_it() -> None:
    net = build("bvlc_googlenet")
    freeze_upto(net, "inception_4a/output")
    frozen = {layer.name for layer in net.layer if layer.param and all(spec.lr_mult == 0 for spec in layer.param)}
    assert {"conv1/7x7_s2", "inception_3b/5x5", "inception_4a/pool_proj"} <= frozen
    assert not any(name.startswith(("inception_4b", "loss")) for name in frozen)
    assert rates(net, "inception_4a/1x1") == [(0, 0), (0, 0)] and rates(net, "inception_4b/1x1") == [(1, 1), (2, 0)]


def test_frozen_batch_norms_keep_their_statistics() -> None:
    net = build("resnet18")
    changes = freeze_upto(net, "res2b")
    assert layer_of(net, "bn2b_branch2b").batch_norm_param.use_global_stats
    assert not layer_of(net, "bn3a_branch1").batch_norm_param.HasField("use_global_stats")
    assert rates(net, "scale2a_branch1") == [(0, 0), (0, 0)] and rates(net, "conv1") == [(0, 0)]
    assert "conv1: lr_mult 1 → 0" in map(str, changes)


def test_a_head_cannot_be_frozen_and_a_layer_must_be_there() -> None:
    made = retarget(net_of(TINY), 7)
    with pytest.raises(NetError, match="layer 'fc_7': is reinitialized, so it cannot be frozen"):
        tune(made.train_val, Tuning(freeze="loss"), made.renamed.values())
    with pytest.raises(NetError, match="the net 'tiny' has no layer 'conv9' to freeze up to"):
        freeze_upto(net_of(TINY), "conv9")


def test_rates_of_all_but_the_heads_are_multiplied() -> None:
    made = retarget(net_of(TINY), 7)
    changes = tune(made.train_val, Tuning(lr_mult=0.5), made.renamed.values())
    assert rates(made.train_val, "conv") == [(0.5, 1), (1, 0)]
    assert rates(made.train_val, "fc_7") == [(10, 1), (20, 0)]
    assert list(map(str, changes)) == ["conv: lr_mult 1 / 2 → 0.5 / 1"]
    with pytest.raises(CaffeToolsError, match="not by -1"):
        scale_rates(net_of(TINY), -1)


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        ('type: "BatchNorm" bottom: "x"', 0),
        ('type: "BatchNorm" bottom: "x" batch_norm_param { scale_bias: true }', 5),
        ('type: "Convolution" bottom: "x" convolution_param { num_output: 6 kernel_size: 3 group: 3 }', 2),
        ('type: "Convolution" bottom: "x" convolution_param { num_output: 6 kernel_size: 3 bias_term: false }', 1),
        ('type: "Scale" bottom: "x"', 1),
        ('type: "Scale" bottom: "x" scale_param { bias_term: true }', 2),
        ('type: "Scale" bottom: "x" bottom: "y"', 0),
        ('type: "BatchNorm" bottom: "x" param { lr_mult: 0 }', 0),
        ('type: "PReLU" bottom: "x"', 1),
        ('type: "LSTM" bottom: "x" bottom: "cont" recurrent_param { num_output: 3 }', 3),
        ('type: "LSTM" bottom: "x" bottom: "cont" bottom: "static" recurrent_param { num_output: 3 }', 4),
        ('type: "ReLU" bottom: "x"', 0),
        ('type: "Sorcery" bottom: "x" param { lr_mult: 1 }', 1),
    ],
)
def test_the_blobs_that_a_layer_learns_are_counted(layer: str, count: int) -> None:
    assert learned_blobs(net_of(f'layer {{ name: "l" {layer} top: "y" }}').layer[0]) == count


def test_dropout_is_set_where_there_is_one() -> None:
    net = build("bvlc_alexnet")
    assert [str(change) for change in set_dropout(net, 0.7)] == ["drop6: dropout_ratio 0.5 → 0.7", "drop7: dropout_ratio 0.5 → 0.7"]
    with pytest.raises(NetError, match="has no Dropout layer"):
        set_dropout(net_of(TINY), 0.5)
    with pytest.raises(CaffeToolsError, match="not 1 "):
        set_dropout(net, 1)


def test_a_filler_is_read_as_people_write_it_and_reported() -> None:
    filler = parse_filler("gaussian:0.02")
    assert (filler.type, round(filler.std, 6)) == ("gaussian", 0.02)
    assert parse_filler("msra").type == "msra" and parse_filler(None) is None
    made = retarget(net_of(TINY), 7, filler=parse_filler("xavier"))
    assert layer_of(made.train_val, "fc_7").inner_product_param.weight_filler.type == "xavier"
    assert "fc_7: weight_filler gaussian → xavier" in map(str, made.changes)
    for text in ("magic", "xavier:1", "gaussian:a"):
        with pytest.raises(CaffeToolsError, match="--filler"):
            parse_filler(text)


def test_names_can_be_kept() -> None:
    made = retarget(net_of(TINY), 7, keep_names=True)
    assert made.renamed == {"fc": "fc"}
    assert [layer.name for layer in made.train_val.layer] == [layer.name for layer in net_of(TINY).layer]
    assert "fc: num_output 10 → 7" in map(str, made.changes)
    assert not any(change.what == "name" for change in made.changes)


def test_a_reshape_after_the_classifier_names_the_new_number_of_classes() -> None:
    reshape = 'layer {{ name: "r" type: "Reshape" bottom: "fc" top: "y" reshape_param {{ shape {{ {} }} }} }}'
    made = retarget(with_head(reshape.format("dim: 0 dim: 4")), 7)
    assert list(layer_of(made.train_val, "r").reshape_param.shape.dim) == [0, 7]
    assert "r: dim 4 → 7" in map(str, made.changes)
    made = retarget(with_head(reshape.format("dim: 0 dim: -1")), 7)
    assert list(layer_of(made.train_val, "r").reshape_param.shape.dim) == [0, -1]
    with pytest.raises(NetError, match="layer 'r': has 2 in its shape, but 'fc' has 4 outputs, so several of them belong to each class"):
        retarget(with_head(reshape.format("dim: 0 dim: 2 dim: 2")), 7)


def test_two_branches_whose_scores_meet_are_both_retargeted() -> None:
    branch = 'layer { name: "fc2" type: "InnerProduct" bottom: "x" top: "fc2" inner_product_param { num_output: 4 } }'
    meet = (
        'layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "fc2" top: "y" } layer { name: "s" type: "Scale" bottom: "y" top: "y" }'
    )
    made = retarget(with_head(branch + meet), 7)
    assert made.renamed == {"fc": "fc_7", "fc2": "fc2_7", "s": "s_7"}
    assert list(layer_of(made.train_val, "sum").bottom) == ["fc_7", "fc2_7"]


def test_a_net_with_several_labels_at_once_is_retargeted_but_an_autoencoder_is_not() -> None:
    assert retarget(with_head("", "SigmoidCrossEntropyLoss", reads="fc"), 7).renamed == {"fc": "fc_7"}
    autoencoder = """
    layer { name: "in" type: "Input" top: "x" }
    layer { name: "flat" type: "Flatten" bottom: "x" top: "flat" }
    layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc" inner_product_param { num_output: 9 } }
    layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "fc" bottom: "flat" top: "loss" }
    """
    with pytest.raises(NetError, match="no classifier was found"):
        retarget(net_of(autoencoder), 7)


def test_layers_of_forks_freeze_too_and_those_that_are_unknown_are_reported() -> None:
    def layer(name: str, kind: str, more: str = "") -> str:
        return f'layer {{ name: "{name}" type: "{kind}" bottom: "conv" top: "conv" {more} }}'

    forks = (
        layer("norm", "Normalize")
        + layer("bn", "BN")
        + layer("wonder", "Wonder")
        + layer("dw", "DepthwiseConvolution", "convolution_param { num_output: 6 kernel_size: 1 }").replace('top: "conv"', 'top: "deep"')
    )
    net = net_of(
        TINY.replace('bottom: "conv" top: "fc"', 'bottom: "deep" top: "fc"').replace('layer { name: "fc"', forks + 'layer { name: "fc"')
    )
    changes = list(map(str, freeze_upto(net, "dw", ["fc"])))
    assert rates(net, "norm") == [(0, 0)] and rates(net, "bn") == rates(net, "dw") == [(0, 0), (0, 0)]
    assert layer_of(net, "bn").bn_param.frozen
    assert "wonder: lr_mult not known → unchanged: whether this layer has parameters is not known here" in changes


def test_all_owners_of_a_shared_parameter_freeze() -> None:
    text = TINY.replace(
        "param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }", 'param { name: "w" lr_mult: 1 } param { name: "b" lr_mult: 2 }', 1
    )
    twin = text.split('layer { name: "conv"')[1].split('layer { name: "relu"')[0].replace('top: "conv"', 'top: "twin"')
    net = net_of(text + f'layer {{ name: "twin" {twin.split(" ", 1)[1]}')
    changes = freeze_upto(net, "conv", ["fc"])
    assert [rate for name in ("conv", "twin") for rate, _ in rates(net, name)] == [0, 0, 0, 0]
    assert [str(change) for change in changes] == ["conv: lr_mult 1 / 2 → 0 / 0", "twin: lr_mult 1 / 2 → 0 / 0"]
