"""The indexed graph against plain scans over the layers, for nets drawn at random, in-place layers and shared names included."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.graph.graph import Graph
from caffetools.proto.schema import NetParameter

BLOBS = st.sampled_from("abcde")


@st.composite
def nets(draw: st.DrawFn) -> Any:
    net = NetParameter()
    for index in range(draw(st.integers(0, 12))):
        net.layer.add(
            name=f"l{index}", type="ReLU", bottom=draw(st.lists(BLOBS, max_size=3)), top=draw(st.lists(BLOBS, max_size=2, unique=True))
        )
    return net


def scanned_producer(net: Any, index: int, blob: str) -> int | None:
    return next((i for i in reversed(range(index)) if blob in net.layer[i].top), None)


def scanned_consumers(net: Any, index: int, blob: str) -> list[int]:
    found = []
    for i in range(index + 1, len(net.layer)):
        if blob in net.layer[i].bottom:
            found.append(i)
        if blob in net.layer[i].top:
            break
    return found


@settings(max_examples=200, deadline=None)
@given(nets())
def test_producers_and_consumers_are_those_that_a_scan_finds(net: Any) -> None:
    graph = Graph(net)
    for index in range(len(net.layer) + 1):
        for blob in "abcde":
            assert graph.producer(index, blob) == scanned_producer(net, index, blob)
            assert graph.consumers(index, blob) == scanned_consumers(net, index, blob)
            assert graph.is_produced_after(index, blob) == any(blob in layer.top for layer in list(net.layer)[index + 1 :])


@settings(max_examples=100, deadline=None)
@given(nets())
def test_what_is_needed_and_what_depends_agree(net: Any) -> None:
    graph = Graph(net)
    for i, layer in enumerate(net.layer):
        for top in layer.top:
            for j in graph.descendants([(i, top)]):
                assert i in graph.needed([(j, bottom) for bottom in net.layer[j].bottom])
    read = {(graph.producer(i, bottom), bottom) for i, layer in enumerate(net.layer) for bottom in layer.bottom}
    assert set(graph.outputs()) == {(i, top) for i, layer in enumerate(net.layer) for top in layer.top} - read
