"""Who makes and who reads each blob, over a ``NetParameter`` as it stands: nothing is built and no layer type need be known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from caffetools.layers.base import Shape
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import TEST, TRAIN

# A blob as the bottom of one layer: (the layer's place in the net, the blob's name). Layers that work in place make it anew.
Use = tuple[int, str]


class Graph:
    """The layers of one phase, in order, by their places in ``param.layer``; files for training hold the layers of both phases.

    Args:
        param: A ``NetParameter`` in today's form.
        phase: ``TRAIN`` or ``TEST``; None takes every layer, whatever its rules say.

    Attributes:
        layers: place → ``LayerParameter``, of the layers that belong to the phase.

    Raises:
        NetError: a layer has both include and exclude rules.
    """

    def __init__(self, param: Any, phase: int | None = None):
        self.param = param
        state = None if phase is None else make_state(phase)
        self.layers: dict[int, Any] = {
            index: layer for index, layer in enumerate(param.layer) if state is None or layer_included(layer, state)
        }

    def without(self, places: Collection[int]) -> Graph:
        """The same graph with the layers at ``places`` left out."""
        rest = Graph(self.param)
        rest.layers = {index: layer for index, layer in self.layers.items() if index not in places}
        return rest

    def maker(self, index: int, blob: str) -> int | None:
        """The place of the last layer before ``index`` that has ``blob`` as a top; None for an input of the net."""
        return next((i for i in reversed(self.layers) if i < index and blob in self.layers[i].top), None)

    def readers(self, index: int, blob: str) -> list[int]:
        """The layers that read ``blob`` as layer ``index`` made it: those up to and with the next one that makes it anew."""
        found = []
        for i, layer in self.layers.items():
            if i <= index:
                continue
            if blob in layer.bottom:
                found.append(i)
            if blob in layer.top:
                break
        return found

    def outputs(self) -> list[Use]:
        """(place of the last layer that makes it, blob) of every blob that no layer reads, in the order of their making."""
        unread: dict[Use, None] = {}
        makers: dict[str, int] = {}
        for i, layer in self.layers.items():
            for bottom in layer.bottom:
                unread.pop((makers.get(bottom, -1), bottom), None)
            for top in layer.top:
                makers[top] = i
                unread[i, top] = None
        return list(unread)

    def needed(self, uses: Iterable[Use]) -> set[int]:
        """The places of all layers that ``uses`` come from, directly or through others."""
        pending, found, seen = list(uses), set[int](), set[Use]()
        while pending:
            use = pending.pop()
            maker = None if use in seen else self.maker(*use)
            seen.add(use)
            if maker is not None and maker not in found:
                found.add(maker)
                pending += [(maker, bottom) for bottom in self.layers[maker].bottom]
        return found

    def walk_up(self, index: int, blob: str) -> Iterator[int]:
        """The makers of ``blob`` as layer ``index`` reads it: its own, then that one's first bottom's, and so on to an input."""
        while (maker := self.maker(index, blob)) is not None:
            yield maker
            if not self.layers[maker].bottom:
                return
            index, blob = maker, self.layers[maker].bottom[0]


def phases(param: Any) -> list[Graph]:
    """The graphs of ``param`` in training and in testing."""
    return [Graph(param, TRAIN), Graph(param, TEST)]


def phases_present(param: Any) -> list[int]:
    """The phases, TRAIN and TEST, in which ``param`` has layers that data comes from; both where none has."""
    present = [phase for phase in (TRAIN, TEST) if any(layer.top and not layer.bottom for layer in Graph(param, phase).layers.values())]
    return present or [TRAIN, TEST]


def shapes_in(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Those of ``shapes`` (by blob; ``""`` is the first input) that are of inputs of the graph's phase."""
    inputs = {top for layer in graph.layers.values() if not layer.bottom for top in layer.top}
    return {name: shape for name, shape in shapes.items() if not name or name in inputs}


def unused_name(param: Any, name: str) -> str:
    """``name``, or ``name_2`` and so on where a layer or a blob has that."""
    used, again, found = names_in_use(param), 1, name
    while found in used:
        again += 1
        found = f"{name}_{again}"
    return found


def names_in_use(param: Any) -> set[str]:
    """Every name of a layer or a blob, whatever the phase."""
    layers = {layer.name for layer in param.layer}
    return layers | {blob for layer in param.layer for blob in (*layer.bottom, *layer.top)} | set(param.input)


def rename_blob(param: Any, old: str, new: str) -> None:
    """Rename a blob wherever it is made or read, in place. ``new`` must not be in use."""
    for layer in param.layer:
        for blobs in (layer.bottom, layer.top):
            for position, blob in enumerate(blobs):
                if blob == old:
                    blobs[position] = new
