"""Weights that training makes fit the net that is tested and the one that is used, or nothing is written."""

from __future__ import annotations

from typing import Any

import pytest

from caffetools.errors import NetError
from caffetools.project.shape_check import check_parameter_shapes_match
from caffetools.surgery.deploy import deploy_from
from tests.surgery.nets import TINY, net_of


def agree(net: Any, shapes: dict[str, tuple[int, ...]] | None = None) -> None:
    check_parameter_shapes_match(net, deploy_from(net, input_shape=shapes), shapes or {})


def test_a_net_of_one_size_agrees_and_shapes_are_taken_where_it_has_none() -> None:
    agree(net_of(TINY))
    agree(net_of(TINY.replace("crop_size: 8", "")), {"": (1, 3, 9, 9)})


def test_a_size_that_only_the_deploy_net_has_is_refused() -> None:
    with pytest.raises(NetError, match=r"layer 'fc': has parameters of 10 x 216, 10 in training, but of 10 x 294, 10 in use"):
        agree(net_of(TINY), {"": (1, 3, 9, 9)})


def test_phases_of_different_sizes_are_refused() -> None:
    with pytest.raises(NetError, match=r"layer 'fc': has parameters of 10 x 216, 10 in training, but of 10 x 294, 10 in testing"):
        agree(net_of(TINY.replace("transform_param { crop_size: 8 mean_file", "transform_param { crop_size: 9 mean_file")))


@pytest.mark.parametrize(("mode", "outputs", "fits"), [("", 6, True), ("", 5, False), ("share_mode: PERMISSIVE", 6, True)])
def test_layers_that_share_a_parameter_have_it_in_one_shape(mode: str, outputs: int, fits: bool) -> None:
    twin = f'bottom: "conv" top: "twin" param {{ name: "w" {mode} }} inner_product_param {{ num_output: {outputs} bias_term: false }}'
    text = TINY + (
        'layer { name: "first" type: "InnerProduct" bottom: "conv" top: "first" param { name: "w" }'
        " inner_product_param { num_output: 6 bias_term: false } }"
        f'layer {{ name: "twin" type: "InnerProduct" {twin} }}'
    )
    if fits:
        return agree(net_of(text))
    with pytest.raises(NetError, match="layer 'twin': shares its parameter 'w' with layer 'first', but has 5 x 216 values, and that has"):
        agree(net_of(text))
    return None


def test_layers_of_one_name_are_compared_in_their_order() -> None:
    text = TINY.replace('name: "fc"', 'name: "conv"')
    assert text != TINY
    agree(net_of(text))
