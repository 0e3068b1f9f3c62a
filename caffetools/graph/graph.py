"""Index a ``NetParameter``: which layer produces each blob, and which layers consume it; no layer type need be known."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from caffetools.layers.base import Shape
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import TEST, TRAIN, NetParameter

# A blob at one layer: (index of the layer in the net, name of the blob). Layers that work in place produce the blob again.
Use = tuple[int, str]


class Graph:
    """The layers of one phase, indexed by the blobs that they produce and consume, in linear time.

    The index is built when it is first used; build another graph after blobs were renamed or layers moved.

    Args:
        param: A ``NetParameter`` in today's form; files for training hold the layers of both phases.
        phase: ``TRAIN`` or ``TEST``; None takes every layer, without regard to its rules.
        layers: Index to ``LayerParameter`` of the layers to take, where they are known already.

    Attributes:
        layers: Index in ``param.layer`` → ``LayerParameter`` of the layers of the phase, in order.

    Raises:
        NetError: A layer has both include and exclude rules.
    """

    def __init__(self, param: NetParameter, phase: int | None = None, *, layers: Mapping[int, Any] | None = None):
        self.param = param
        if layers is None:
            state = None if phase is None else make_state(phase)
            layers = {index: layer for index, layer in enumerate(param.layer) if state is None or layer_included(layer, state)}
        self.layers: dict[int, Any] = dict(layers)

    @cached_property
    def _producers(self) -> dict[str, list[int]]:
        return self._indexed("top")

    @cached_property
    def _consumers(self) -> dict[str, list[int]]:
        return self._indexed("bottom")

    def _indexed(self, side: str) -> dict[str, list[int]]:
        """Return the layers that have each blob as a top or as a bottom, in order."""
        found: dict[str, list[int]] = {}
        for index, layer in self.layers.items():
            for blob in getattr(layer, side):
                places = found.setdefault(blob, [])
                if not places or places[-1] != index:
                    places.append(index)
        return found

    def without(self, indices: Collection[int]) -> Graph:
        """Return the graph of the layers that are not in ``indices``."""
        return Graph(self.param, layers={index: layer for index, layer in self.layers.items() if index not in indices})

    def producer(self, index: int, blob: str) -> int | None:
        """Return the index of the last layer before ``index`` that has ``blob`` as a top; None for an input of the net."""
        producers = self._producers.get(blob, [])
        place = bisect_left(producers, index)
        return producers[place - 1] if place else None

    def consumers(self, index: int, blob: str) -> list[int]:
        """Return the layers that read ``blob`` as layer ``index`` produces it: up to and with the next one that produces it again."""
        producers, consumers = self._producers.get(blob, []), self._consumers.get(blob, [])
        following = bisect_right(producers, index)
        last = bisect_right(consumers, producers[following]) if following < len(producers) else len(consumers)
        return consumers[bisect_right(consumers, index) : last]

    def is_produced_after(self, index: int, blob: str) -> bool:
        """Return whether a layer after ``index`` has ``blob`` as a top."""
        producers = self._producers.get(blob, [])
        return bool(producers) and producers[-1] > index

    def outputs(self) -> list[Use]:
        """Return (index of the last layer that produces it, blob) of every blob that no layer reads, in order."""
        unread: dict[Use, None] = {}
        producers: dict[str, int] = {}
        for i, layer in self.layers.items():
            for bottom in layer.bottom:
                unread.pop((producers.get(bottom, -1), bottom), None)
            for top in layer.top:
                producers[top] = i
                unread[i, top] = None
        return list(unread)

    def needed(self, uses: Iterable[Use]) -> set[int]:
        """Return the indices of all layers that ``uses`` depend on, directly or through others."""
        pending, found, seen = list(uses), set[int](), set[Use]()
        while pending:
            use = pending.pop()
            producer = None if use in seen else self.producer(*use)
            seen.add(use)
            if producer is not None and producer not in found:
                found.add(producer)
                pending += [(producer, bottom) for bottom in self.layers[producer].bottom]
        return found

    def descendants(self, uses: Iterable[Use]) -> set[int]:
        """Return the indices of all layers that depend on ``uses``: (index of the producer, blob)."""
        pending, found = list(uses), set[int]()
        while pending:
            for consumer in self.consumers(*pending.pop()):
                if consumer not in found:
                    found.add(consumer)
                    pending += [(consumer, top) for top in self.layers[consumer].top]
        return found

    def walk_up(self, index: int, blob: str) -> Iterator[int]:
        """Yield the producer of ``blob`` as layer ``index`` reads it, then that of the producer's first bottom, and so on to an input."""
        while (producer := self.producer(index, blob)) is not None:
            yield producer
            if not self.layers[producer].bottom:
                return
            index, blob = producer, self.layers[producer].bottom[0]


def phases(param: NetParameter) -> list[Graph]:
    """Return the graphs of ``param`` in the TRAIN and in the TEST phase."""
    states = make_state(TRAIN), make_state(TEST)
    layers: tuple[dict[int, Any], dict[int, Any]] = {}, {}
    for index, layer in enumerate(param.layer):
        ruled = layer.include or layer.exclude
        for state, included in zip(states, layers, strict=True):
            if not ruled or layer_included(layer, state):
                included[index] = layer
    return [Graph(param, layers=included) for included in layers]


def phases_present(param: NetParameter) -> list[int]:
    """Return the phases, TRAIN and TEST, in which ``param`` has data or input layers; both where it has none."""
    return list(graphs_present(param))


def graphs_present(param: NetParameter) -> dict[int, Graph]:
    """Return the graphs of the phases that :func:`phases_present` returns, by phase."""
    graphs = dict(zip((TRAIN, TEST), phases(param), strict=True))
    present = {phase: graph for phase, graph in graphs.items() if any(not layer.bottom and layer.top for layer in graph.layers.values())}
    return present or graphs


def shapes_in(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Select the ``shapes`` (by blob; ``""`` is the first input) of inputs of the graph's phase."""
    inputs = {top for layer in graph.layers.values() if not layer.bottom for top in layer.top}
    return {name: shape for name, shape in shapes.items() if not name or name in inputs}


def unused_name(param: NetParameter, name: str) -> str:
    """Return ``name``, or ``name_2`` and so on where a layer or a blob of ``param`` has that name."""
    used, again, found = names_in_use(param), 1, name
    while found in used:
        again += 1
        found = f"{name}_{again}"
    return found


def names_in_use(param: NetParameter) -> set[str]:
    """Return all names of layers and blobs of all phases."""
    used = set(param.input)
    for layer in param.layer:
        used.add(layer.name)
        used.update(layer.bottom, layer.top)
    return used


def rename_blob(param: NetParameter, old: str, new: str) -> None:
    """Rename a blob in all layers, in place.

    Args:
        param: A ``NetParameter`` in today's form.
        old: The blob's name.
        new: Its new name, which must not be in use.
    """
    for layer in param.layer:
        for blobs in (layer.bottom, layer.top):
            for position, blob in enumerate(blobs):
                if blob == old:
                    blobs[position] = new
