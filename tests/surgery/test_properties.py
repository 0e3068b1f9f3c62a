"""Properties of surgery over generated classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.project.retargeting import prepare_retarget, starting_weights
from caffetools.project.trainable import trainable_from
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import format_text, parse
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.retarget import retarget
from tests.surgery.generated import SIDE, classifiers

QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
IMAGE = (1, 3, SIDE, SIDE)


def restored(made: Any) -> NetParameter:
    """The retargeted net with the old names of its classifiers, and of their blobs."""
    back = {new: old for old, new in made.renamed.items()}
    net = NetParameter()
    net.CopyFrom(made.train_val)
    for layer in net.layer:
        layer.name = back.get(layer.name, layer.name)
        for blobs in (layer.bottom, layer.top):
            blobs[:] = [back.get(blob, blob) for blob in blobs]
    return net


def filled(net: Any) -> Caffemodel:
    """Random weights for a net."""
    rng = np.random.default_rng(3)
    rows = [row for row in summarize(net, TEST).layers if row.parameters]
    return Caffemodel(net, {row.name: [rng.standard_normal(shape, np.float32) for shape in row.parameters or ()] for row in rows})


@QUICK
@given(classifiers())
def test_a_generated_net_prints_to_itself(net: Any) -> None:
    assert parse(format_text(net), NetParameter) == net


@QUICK
@given(classifiers(), st.integers(2, 300))
def test_retarget_leaves_every_other_layer_byte_for_byte(net: Any, classes: int) -> None:
    before = net.SerializeToString(deterministic=True)
    made = retarget(net, classes)
    assert net.SerializeToString(deterministic=True) == before
    assert made.renamed
    for old, new in zip(net.layer, restored(made).layer, strict=True):
        if old.name in made.renamed:
            assert new.inner_product_param.num_output == classes
        else:
            assert new.SerializeToString(deterministic=True) == old.SerializeToString(deterministic=True)


@QUICK
@given(classifiers())
def test_retarget_keeps_the_weights_of_every_other_layer_bit_for_bit(net: Any) -> None:
    weights = filled(net)
    project = prepare_retarget(net, 9, Path("not written"), weights=weights)
    kept = starting_weights(project, weights)
    assert kept.blobs.keys() == weights.blobs.keys() - project.retargeted.renamed.keys()
    for name, blobs in kept.blobs.items():
        for got, wanted in zip(blobs, weights.blobs[name], strict=True):
            assert got.tobytes() == wanted.tobytes() and got.shape == wanted.shape


@QUICK
@given(classifiers())
def test_a_deploy_net_that_is_made_trainable_deploys_to_itself(net: Any) -> None:
    deploy = deploy_from(net)
    before = deploy.SerializeToString(deterministic=True)
    train, _, _ = trainable_from(deploy)
    assert deploy.SerializeToString(deterministic=True) == before
    once = deploy_from(train, input_shape=IMAGE)
    assert once == deploy
    again, _, _ = trainable_from(once)
    assert again == train


@QUICK
@given(classifiers())
def test_deploying_a_deploy_net_changes_nothing(net: Any) -> None:
    deploy = deploy_from(net)
    assert deploy_from(deploy) == deploy
    assert deploy_from(retarget(net, 4, keep_names=True).train_val) == deploy


@settings(QUICK, max_examples=15)
@given(classifiers())
def test_shapes_are_known_before_anything_runs_and_are_those_of_the_blobs(net: Any) -> None:
    deploy = deploy_from(net)
    expected = {top: shape for row in summarize(deploy, TEST).layers for top, shape in zip(row.tops, row.shapes, strict=True)}
    built = Net(deploy, TEST)
    with torch.no_grad():
        blobs = built({"data": torch.zeros(IMAGE)}, keep=list(expected))
    assert {name: tuple(blob.shape) for name, blob in blobs.items()} == expected
    assert torch.allclose(blobs["prob"].sum(1), torch.ones(1))
