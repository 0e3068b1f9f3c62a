"""Layers that add, multiply or average the scores of several classifiers, and what they read."""

from __future__ import annotations

from collections.abc import Iterable

from caffetools.errors import NetError
from caffetools.graph.graph import Graph
from caffetools.layers.registry import traits
from caffetools.proto.schema import LayerParameter

# Layers without parameters that may lie between a classifier and its loss: they keep the order of the classes.
TRANSPARENT = frozenset({"activation", "dropout", "pooling", "sampling", "reshape", "probability", "split"})


def is_classifier(layer: LayerParameter) -> bool:
    """Return whether each output of ``layer`` is a weighted sum of its input, so that it may give one score a class."""
    return traits(layer).role == "classifier"


def is_linear(layer: LayerParameter) -> bool:
    """Return whether ``layer`` is a classifier whose outputs depend on its input only, not on labels too."""
    return is_classifier(layer) and not traits(layer).label_bottoms


def is_pointwise(layer: LayerParameter) -> bool:
    """Return whether ``layer`` maps each value by itself, without parameters."""
    return traits(layer).role in ("activation", "dropout") and traits(layer).channels == "kept" and not traits(layer).class_axes


def averaged_probabilities(graph: Graph, index: int) -> list[int]:
    """Return the indices of the layers whose probabilities the layer at ``index`` adds or scales; empty where it reads anything else."""
    layer = graph.layers[index]
    if is_pointwise(layer):
        above = graph.producer(index, layer.bottom[0])
        return [] if above is None else averaged_probabilities(graph, above)
    if traits(layer).role != "merge":
        return []
    found = [graph.producer(index, blob) for blob in dict.fromkeys(layer.bottom)]
    known = [i for i in found if i is not None and traits(graph.layers[i]).role == "probability"]
    return known if len(known) == len(found) > 1 else []


def check_merges(graphs: Iterable[Graph]) -> None:
    """Raise :class:`NetError` where a layer adds scores of classifiers with different numbers of outputs."""
    for graph in graphs:
        for index, layer in graph.layers.items():
            if traits(layer).role != "merge":
                continue
            found = [graph.layers[i] for i in (_classifier_above(graph, index, blob) for blob in layer.bottom) if i is not None]
            outputs = {traits(above).num_output(above): above.name for above in found if traits(above).num_output(above)}
            if len(outputs) > 1:
                (one, first), (other, second) = list(outputs.items())[:2]
                raise NetError(
                    f"joins the {one} scores of '{first}' and the {other} of '{second}', which does not fit; name all of them (--head)",
                    layer=layer.name,
                )


def _classifier_above(graph: Graph, index: int, blob: str) -> int | None:
    """Return the index of the linear layer whose channels ``blob`` has, as the layer at ``index`` reads it; None where that is not known."""
    for maker in graph.walk_up(index, blob):
        layer = graph.layers[maker]
        if is_linear(layer):
            return maker
        # Behind a Flatten there are as many values as the maps hold, not as many as there are maps.
        if traits(layer).channels != "kept" or traits(layer).role not in TRANSPARENT - {"reshape"}:
            return None
    return None
