"""Find the layers that give a box for each class next to a classifier, as in Fast R-CNN and R-FCN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caffetools.graph.classifiers import Head, collect_counters, compares_classes, detects, score_readers
from caffetools.graph.graph import Graph
from caffetools.graph.merges import is_linear
from caffetools.layers.registry import is_known, traits

# The numbers of a box: its centre and size, or its corners.
BOX = 4


@dataclass(frozen=True)
class BoxRegressor:
    """A layer that gives a box for each class.

    Attributes:
        layer: Its name.
        counters: (layer, ``settings.field``) of poolings of its maps that name ``4 × classes``.
        reshapes: (name, axis) of Reshape layers behind it that name ``4 × classes``.
    """

    layer: str
    counters: tuple[tuple[str, str], ...] = ()
    reshapes: tuple[tuple[str, int], ...] = ()


def box_regressors(graphs: Sequence[Graph], head: Head) -> list[BoxRegressor]:
    """Return the layers that give four values for each output of a classifier, from what the classifier reads.

    Nets without regions or boxes have none, and outputs that a loss over classes reads are none.

    Args:
        graphs: The graphs of both phases.
        head: The classifier.
    """
    names = dict.fromkeys(name for graph in graphs if _may_detect(graph) for name in _siblings(graph, head))
    return [_followed(graphs, name, BOX * head.classes) for name in names]


def _may_detect(graph: Graph) -> bool:
    """Return whether a net has layers for regions or boxes, or of types that may be for those, such as ROIWarping."""
    return detects(graph) or any(not is_known(layer.type) for layer in graph.layers.values())


def _siblings(graph: Graph, head: Head) -> list[str]:
    sources = {
        (graph.producer(index, layer.bottom[0]), layer.bottom[0])
        for index, layer in graph.layers.items()
        if layer.name == head.layer and layer.bottom
    }
    return [
        layer.name
        for index, layer in graph.layers.items()
        if is_linear(layer)
        and layer.bottom
        and (graph.producer(index, layer.bottom[0]), layer.bottom[0]) in sources
        and traits(layer).num_output(layer) == BOX * head.num_output
        and not _scores(graph, index)
    ]


def _scores(graph: Graph, index: int) -> bool:
    """Return whether a loss over classes, an accuracy or a Softmax reads what the layer at ``index`` gives, moved in any way."""
    return any(
        blob == layer.bottom[0] and (compares_classes(layer) or traits(layer).role in ("metric", "probability"))
        for layer, blob in score_readers(graph, index)
    )


def _followed(graphs: Sequence[Graph], name: str, values: int) -> BoxRegressor:
    counters, reshapes = collect_counters(graphs, name)
    kept = tuple(at for at, count in counters.items() if count == values)
    return BoxRegressor(name, kept, tuple((layer, axis) for layer, shape in reshapes.items() if (axis := _axis(shape, values))))


def _axis(reshape: Any, values: int) -> int:
    """Return the axis on which a Reshape names ``values``; 0 where it names them nowhere or twice."""
    dims = list(reshape.reshape_param.shape.dim)
    return dims.index(values) if dims.count(values) == 1 else 0
