"""Truncate a network: remove the layers between one layer and the classifier, so that a shallower net is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from caffetools.errors import NetError, did_you_mean
from caffetools.graph.classifiers import find_heads, flattens, primary_classifier
from caffetools.graph.graph import Graph, Use, phases, shapes_in
from caffetools.graph.merges import is_pointwise
from caffetools.graph.summary import summarize
from caffetools.layers.base import Shape
from caffetools.layers.concat import Silence
from caffetools.layers.registry import traits
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from caffetools.surgery.changes import Change


def drop_after(
    net: NetParameter, name: str, *, heads: Iterable[str] | None = None, shapes: Mapping[str, Shape] | None = None
) -> list[Change]:
    """Remove the layers between layer ``name`` and the primary classifier, in place; the classifier then reads the layer's blob.

    Layers that work in place on that blob (a ReLU) are kept. So are a pooling to 1 x 1 before the classifier (or behind one that
    produces maps) and the layers between the two; the pooling becomes global, since its input has another size. Layers that read a
    removed blob, such as a second classifier deeper in the net, are removed too, and so are layers whose tops become unused.

    Args:
        net: A ``NetParameter`` in today's form, for both phases.
        name: The last layer to keep.
        heads: The classifiers' names, where they are not found from the graph.
        shapes: Shapes of inputs by blob (``""`` is the first), where the data layers do not give them; they decide which pooling has a
            1 x 1 top.

    Returns:
        The changes, layer by layer.

    Raises:
        NetError: The net does not have the layer, it has several tops, the classifier does not depend on it or reads it already, or a
            kept layer reads a blob that would be removed.
    """
    if not any(layer.name == name for layer in net.layer):
        raise NetError(
            f"the net '{net.name}' has no layer '{name}'{did_you_mean(name, [layer.name for layer in net.layer])} (--drop-after)"
        )
    found = find_heads(net, heads)
    loss_layer = primary_classifier(found).loss_layer
    classifiers = {head.layer for head in found if head.loss_layer == loss_layer}
    removed: set[int] = set()
    entries: dict[int, str] = {}
    globalized: set[int] = set()
    changes: list[Change] = []
    for phase in (TRAIN, TEST):
        graph = Graph(net, phase)
        if any(layer.name == name for layer in graph.layers.values()):
            cut = _cut(graph, name, classifiers, _shapes(graph, phase, shapes or {}))
            removed |= cut.removed
            entries |= cut.entries
            globalized |= cut.globalized
    before = [(graph, set(graph.outputs())) for graph in phases(net)]
    for index, blob in entries.items():
        net.layer[index].bottom[0] = blob
    for index in sorted(globalized):
        changes += _make_global(net.layer[index])
    was_read = {i for graph, outputs in before for i, layer in graph.layers.items() if any((i, top) not in outputs for top in layer.top)}
    removed = _remove_dead_layers(net, removed, was_read)
    changes += [Change(net.layer[index].name, "layer", net.layer[index].type, "") for index in sorted(removed)]
    for index in sorted(removed, reverse=True):
        del net.layer[index]
    changes += _silence_dangling_tops(net, {top for _, outputs in before for _, top in outputs})
    return list(dict.fromkeys(changes))


def end_of_blob(graph: Graph, name: str, option: str) -> Use:
    """Return (index, blob) of the last layer that works in place on the top of layer ``name`` before another layer overwrites it.

    Args:
        graph: The graph of one phase.
        name: The layer.
        option: The command-line option that messages name.

    Raises:
        NetError: The layer does not have exactly one top.
    """
    index = next(i for i, layer in graph.layers.items() if layer.name == name)
    layer = graph.layers[index]
    if len(layer.top) != 1:
        raise NetError(f"has {len(layer.top)} tops; name a layer that has one ({option})", layer=name)
    blob = layer.top[0]
    for i, other in graph.layers.items():
        if i > index and blob in other.top:
            if blob not in other.bottom:
                break
            index = i
    return index, blob


@dataclass
class _Cut:
    """A truncation in one phase, by indices of layers.

    Attributes:
        removed: The layers to remove.
        entries: Layer → the blob that its first bottom becomes.
        globalized: The poolings that become global.
    """

    removed: set[int]
    entries: dict[int, str]
    globalized: set[int]


def _cut(graph: Graph, name: str, classifiers: Collection[str], shapes: Mapping[int, Shape]) -> _Cut:
    place, blob = end_of_blob(graph, name, "--drop-after")
    below = graph.descendants([(place, blob)])
    ends = [i for i, layer in graph.layers.items() if layer.name in classifiers and i in below]
    if not ends:
        listed = " and ".join(f"'{classifier}'" for classifier in sorted(classifiers))
        raise NetError(f"the main classifier {listed} does not depend on it; name a layer before the classifier (--drop-after)", layer=name)
    cut = _Cut(set(), {}, set())
    kept = set(ends)
    for end in ends:
        tail = _pooling_tail(graph, end, place, shapes)
        between = below & graph.needed([(end, bottom) for bottom in graph.layers[end].bottom]) - set(tail)
        if not between:
            raise NetError(
                f"there are no layers between it and {'the pooling before ' if tail else ''}the classifier '{graph.layers[end].name}', "
                "so there is nothing to drop (--drop-after)",
                layer=name,
            )
        cut.removed |= between
        kept.update(tail)
        cut.entries[tail[0] if tail else end] = blob
        cut.globalized.update(tail[:1])
    behind = graph.descendants([(i, top) for i in ends for top in graph.layers[i].top])
    cut.globalized |= {i for i in behind if traits(graph.layers[i]).role == "pooling" and shapes.get(i, ())[2:] == (1, 1)}
    kept |= behind
    _propagate_removal(graph, cut, kept)
    return cut


def _propagate_removal(graph: Graph, cut: _Cut, kept: Collection[int]) -> None:
    """Mark the layers that read a removed blob as removed too."""
    pending = list(cut.removed)
    while pending:
        index = pending.pop()
        for top in graph.layers[index].top:
            for reader in graph.consumers(index, top):
                if reader in cut.removed or (cut.entries.get(reader) is not None and graph.layers[reader].bottom[0] == top):
                    continue
                if reader in kept:
                    raise NetError(
                        f"reads '{top}', which is computed after the cut, so it cannot be dropped (--drop-after)",
                        layer=graph.layers[reader].name,
                    )
                cut.removed.add(reader)
                pending.append(reader)


def _pooling_tail(graph: Graph, end: int, start: int, shapes: Mapping[int, Shape]) -> list[int]:
    """Return the indices of a pooling to 1 x 1 behind ``start`` and of the layers from it to the classifier at ``end``; empty without one."""
    tail: list[int] = []
    if len(shapes.get(start, (0, 0, 0, 0))) != 4:
        return tail
    for index in graph.walk_up(end, graph.layers[end].bottom[0]):
        layer = graph.layers[index]
        if index <= start or not _may_stand_in_tail(layer):
            return []
        tail.insert(0, index)
        if traits(layer).role == "pooling" and (layer.pooling_param.global_pooling or shapes.get(index, ())[2:] == (1, 1)):
            return tail
    return []


def _may_stand_in_tail(layer: LayerParameter) -> bool:
    """Return whether ``layer`` may stand between a global pooling and the classifier: it pools, flattens or maps values one by one."""
    return traits(layer).role == "pooling" or is_pointwise(layer) or flattens(layer)


def _shapes(graph: Graph, phase: int, given: Mapping[str, Shape]) -> dict[int, Shape]:
    """Return the shape of each layer's first top by the layer's index, as far as it is known from the net, or else from ``given``."""
    known: dict[int, Shape] = {}
    for shapes in ({}, shapes_in(graph, given)):
        rows = summarize(graph.param, phase, shapes=shapes).layers
        for place, row in zip(graph.layers, rows, strict=True):
            if row.shapes and row.shapes[0]:
                known.setdefault(place, row.shapes[0])
        if not any(row.note for row in rows):
            break
    return known


def _make_global(layer: LayerParameter) -> list[Change]:
    """Make a pooling global."""
    param = layer.pooling_param
    if param.global_pooling:
        return []
    before = f"{param.kernel_h or param.kernel_size} x {param.kernel_w or param.kernel_size}"
    kept = type(param)(pool=param.pool, global_pooling=True, engine=param.engine if param.HasField("engine") else None)
    param.CopyFrom(kept)
    return [Change(layer.name, "kernel", before, "global")]


def _silence_dangling_tops(net: NetParameter, outputs: Collection[str]) -> list[Change]:
    """Consume the tops that became unused, of layers with other tops in use, by Silence layers, so that they are not outputs."""
    changes = []
    for phase in (TRAIN, TEST):
        graph = Graph(net, phase)
        for index, top in [(index, top) for index, top in graph.outputs() if top not in outputs]:
            maker = net.layer[index]
            if traits(maker).role == "split":
                maker.top.remove(top)
                continue
            name = f"{top}_unused"
            layer = net.layer.add(name=name, type=Silence.TYPE, bottom=[top], include=maker.include, exclude=maker.exclude)
            changes.append(Change(layer.name, "layer", "", f"{Silence.TYPE}, for '{top}' of {maker.name}"))
    return changes


def _remove_dead_layers(net: NetParameter, removed: Collection[int], was_read: Collection[int]) -> set[int]:
    """Return ``removed`` and the layers of which nothing is read once those are removed, though something was read before.

    Args:
        net: The net, in which the kept layers read their final bottoms.
        removed: The indices of the layers to remove.
        was_read: The indices of the layers of which something was read before.
    """
    graphs = phases(net)
    dead = set(removed)

    def is_dead(index: int) -> bool:
        tops = net.layer[index].top
        if not tops or index in dead or index not in was_read:
            return False
        here = [graph for graph in graphs if index in graph.layers]
        return all(consumer in dead for graph in here for top in tops for consumer in graph.consumers(index, top))

    pending = [index for index in range(len(net.layer)) if is_dead(index)]
    while pending:
        index = pending.pop()
        if index in dead:
            continue
        dead.add(index)
        producers = {graph.producer(index, blob) for graph in graphs if index in graph.layers for blob in net.layer[index].bottom}
        pending += [producer for producer in producers if producer is not None and is_dead(producer)]
    return dead
