"""Layers of forks in files of the old form, ``layers { type: CROP }``, read as their new forms."""

from __future__ import annotations

import pytest

from caffetools.errors import PrototxtError
from caffetools.graph.summary import summarize
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse
from caffetools.proto.upgrades.v1 import upgrade_net

INPUT = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8\n'


def layers(text: str) -> list[tuple[str, str]]:
    net = upgrade_net(parse(INPUT + text, NetParameter))
    return [(row.type_name, row.note) for row in summarize(net).layers[1:]]


def test_old_layers_of_forks_are_their_new_forms() -> None:
    net = parse(
        INPUT
        + """
        layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
        layers { name: "bn" type: BN bottom: "conv" top: "conv" blobs_lr: 1 blobs_lr: 1 bn_param { scale_filler { value: 1 } } }
        layers { name: "crop" bottom: "conv" bottom: "conv" top: "crop" type: CROP crop_param { axis: 2 offset: 0 } }
        """,
        NetParameter,
    )
    new = upgrade_net(net)
    assert [layer.type for layer in new.layer] == ["Input", "Convolution", "BN", "Crop"]
    assert new.layer[2].bn_param.scale_filler.value == 1 and [spec.lr_mult for spec in new.layer[2].param] == [1, 1]
    assert new.layer[3].crop_param.axis == 2 and list(new.layer[3].crop_param.offset) == [0]
    assert summarize(new).layers[-1].shapes == [(1, 4, 6, 6)]
    # In the old form it is printed as it was read.
    assert "type: BN" in format_text(net) and "type: CROP" in format_text(net)
    assert parse(format_text(net), NetParameter) == net


def test_types_that_nobody_computes_are_kept_as_in_the_new_form() -> None:
    text = (
        'layers { name: "c" type: CONVOLUTION3D bottom: "data" top: "c" convolution_param { num_output: 4 kernel_depth: 3 } temporal: 3 }'
    )
    ((kind, note),) = layers(text)
    assert kind == "Convolution3D"
    assert "not known here" in note or "kernel_depth" in note


def test_a_misspelled_type_is_an_error() -> None:
    with pytest.raises(PrototxtError, match="LayerType has no value 'CONVOLUTOIN'"):
        layers('layers { name: "c" type: CONVOLUTOIN bottom: "data" top: "c" }')
