"""Who makes and who reads a blob, in each phase, with layers that work in place."""

from __future__ import annotations

import pytest

from caffetools.errors import NetError
from caffetools.graph.graph import Graph, names_in_use, rename_blob
from caffetools.proto.schema import TEST, TRAIN
from tests.surgery.nets import TINY, net_of

IN_PLACE = net_of("""
input: "data"
layer { name: "a" type: "Convolution" bottom: "data" top: "a" }
layer { name: "side" type: "Pooling" bottom: "a" top: "side" }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Pooling" bottom: "a" top: "b" }
""")


def test_each_phase_has_its_own_layers_by_their_places_in_the_file() -> None:
    net = net_of(TINY)
    assert list(Graph(net, TRAIN).layers) == [0, 2, 3, 4, 5]
    assert list(Graph(net, TEST).layers) == [1, 2, 3, 4, 5, 6, 7]
    assert list(Graph(net).layers) == list(range(8))
    assert Graph(net, TRAIN).producer(2, "data") == 0
    assert Graph(net, TEST).producer(2, "data") == 1


def test_a_layer_in_place_makes_a_new_version_of_its_blob() -> None:
    graph = Graph(IN_PLACE)
    assert graph.producer(0, "data") is None
    assert (graph.producer(1, "a"), graph.producer(3, "a")) == (0, 2)
    assert graph.consumers(0, "a") == [1, 2]
    assert graph.consumers(2, "a") == [3]
    assert graph.outputs() == [(1, "side"), (3, "b")]


def test_what_a_blob_needs_leaves_out_the_rest() -> None:
    graph = Graph(IN_PLACE)
    assert graph.needed([(4, "side")]) == {0, 1}
    assert graph.needed([(4, "b")]) == {0, 2, 3}
    assert list(graph.walk_up(4, "b")) == [3, 2, 0]


def test_a_blob_is_renamed_wherever_it_is_named() -> None:
    net = net_of(TINY)
    rename_blob(net, "fc", "scores")
    assert [list(layer.bottom) for layer in net.layer[5:]] == [["scores", "label"]] * 3
    assert list(net.layer[4].top) == ["scores"]
    assert "scores" in names_in_use(net)


def test_include_and_exclude_together_are_an_error() -> None:
    with pytest.raises(NetError, match="layer 'x': has both include and exclude rules"):
        Graph(net_of('layer { name: "x" include { phase: TEST } exclude { phase: TRAIN } }'), TEST)
