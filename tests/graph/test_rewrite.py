"""Passes that rewrite a net: what they insert, remove, rename and replace, and what they leave as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caffetools.errors import NetError
from caffetools.graph.passes.remove_dropout import remove_dropout
from caffetools.graph.rewrite import Rewriter, run_passes
from caffetools.proto.schema import LayerParameter
from tests.surgery.nets import net_of

CHAIN = """
layer { name: "in" type: "Input" top: "x" }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" }
layer { name: "d" type: "Dropout" bottom: "a" top: "d" }
layer { name: "b" type: "InnerProduct" bottom: "d" top: "b" }
layer { name: "e" type: "Dropout" bottom: "b" top: "b" }
"""


def wiring(net: Any) -> list[tuple[str, list[str], list[str]]]:
    return [(layer.name, list(layer.bottom), list(layer.top)) for layer in net.layer]


def test_layers_are_inserted_replaced_and_removed_by_the_indices_of_the_net_given() -> None:
    net = net_of(CHAIN)
    rewriter = Rewriter(net, {"a": [np.ones(3, np.float32)], "b": [np.zeros(2, np.float32)]})
    relu = LayerParameter(name="r", type="ReLU", bottom=["a"], top=["a"])
    rewriter.insert(2, [relu])
    rewriter.bypass(2)
    rewriter.replace(3, [LayerParameter(name="c", type="InnerProduct", bottom=["a"], top=["b"])])
    rewriter.rename_layer("a", "first")
    rewriter.rename_blob("b", "out")
    made = rewriter.result()
    assert wiring(made) == [
        ("in", [], ["x"]),
        ("first", ["x"], ["a"]),
        ("r", ["a"], ["a"]),
        ("c", ["a"], ["out"]),
        ("e", ["out"], ["out"]),
    ]
    assert list(rewriter.weights) == ["first"]
    assert net == net_of(CHAIN)


def test_names_that_are_taken_or_not_there_are_refused() -> None:
    rewriter = Rewriter(net_of(CHAIN))
    with pytest.raises(NetError, match="layer 'zz': is not in the net"):
        rewriter.rename_layer("zz", "y")
    with pytest.raises(NetError, match="layer 'a': cannot be renamed 'b'"):
        rewriter.rename_layer("a", "b")


def test_passes_run_on_what_the_one_before_made() -> None:
    def append(rewriter: Rewriter) -> dict[str, list[str]]:
        count = len(rewriter.net.layer)
        rewriter.insert(count, [LayerParameter(name=f"s{count}", type="Silence", bottom=["b"])])
        return {f"s{count}": []}

    net, _, done = run_passes(net_of(CHAIN), [append, remove_dropout, append])
    assert done == [{"s5": []}, {"d": [], "e": []}, {"s4": []}]
    assert [layer.name for layer in net.layer] == ["in", "a", "b", "s5", "s4"]


def test_dropout_is_removed_only_where_the_net_computes_the_same_without_it() -> None:
    net, _, done = run_passes(net_of(CHAIN), [remove_dropout])
    assert done == [{"d": [], "e": []}]
    assert wiring(net)[2] == ("b", ["a"], ["b"])
    # R-FCN's scales its input in the TEST phase.
    scaling = CHAIN.replace('top: "d" }', 'top: "d" dropout_param { scale_train: false } }')
    assert run_passes(net_of(scaling), [remove_dropout])[2] == [{"e": []}]
    # SegNet's drops values in the TEST phase.
    sampling = CHAIN.replace('top: "d" }', 'top: "d" dropout_param { sample_weights_test: true } }')
    assert run_passes(net_of(sampling), [remove_dropout])[2] == [{"e": []}]
    # Its top is an output, or its bottom is overwritten before its top is read.
    output = CHAIN.replace('name: "b" type: "InnerProduct" bottom: "d"', 'name: "b" type: "InnerProduct" bottom: "a"')
    assert run_passes(net_of(output), [remove_dropout])[2] == [{"e": []}]
    overwritten = CHAIN.replace('layer { name: "b"', 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" } layer { name: "b"')
    assert run_passes(net_of(overwritten), [remove_dropout])[2] == [{"e": []}]
