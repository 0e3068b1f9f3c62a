"""Whether a net for training, in both of its phases, and its deploy net can hold the same weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from caffetools.errors import NetError
from caffetools.graph.graph import Graph, graphs_present, shapes_in
from caffetools.graph.summary import parameter_shapes
from caffetools.layers.base import Shape, format_shape
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter, ParamSpec

# A layer and the shapes of its parameter blobs; None where they are not known.
Row = tuple[LayerParameter, list[Shape] | None]


def check_parameter_shapes_match(train_val: NetParameter, deploy: NetParameter, shapes: Mapping[str, Shape]) -> None:
    """Compare the shapes of all parameters between the phases and the deploy net, as far as they are known without running anything.

    Args:
        train_val: The net for training in today's form.
        deploy: The deploy net in today's form.
        shapes: Shapes of inputs that the net itself does not give, by blob; ``""`` is the first.

    Raises:
        NetError: A net cannot be built, a layer has other parameters in one of them, or layers that share one differ on it.
    """
    # Layers of one name are distinguished by their order.
    known: dict[tuple[str, int], tuple[str, list[Shape]]] = {}
    nets = []
    for phase, graph in graphs_present(train_val).items():
        rows = _rows(graph, phase, shapes)
        _check_sharing(rows)
        nets.append(("training" if phase == TRAIN else "testing", rows))
    deployed = list(deploy.layer)
    nets.append(("use (the deploy net)", list(zip(deployed, parameter_shapes(deployed, deploy, TEST), strict=True))))
    for where, rows in nets:
        seen: Counter[str] = Counter()
        for layer, parameters in rows:
            if not parameters:
                continue
            before, others = known.setdefault((layer.name, seen[layer.name]), (where, parameters))
            seen[layer.name] += 1
            if others != parameters:
                raise NetError(
                    f"has parameters of {_listed(others)} in {before}, but of {_listed(parameters)} in {where}: {_reason(others, parameters)}",
                    layer=layer.name,
                )


def _rows(graph: Graph, phase: int, shapes: Mapping[str, Shape]) -> list[Row]:
    """Return the layers with the sizes that the net gives; those without sizes with ``shapes``."""
    layers = list(graph.layers.values())
    own = parameter_shapes(layers, graph.param, phase)
    if given := shapes_in(graph, shapes):
        forced = parameter_shapes(layers, graph.param, phase, given)
        own = [other if mine is None else mine for mine, other in zip(own, forced, strict=True)]
    return list(zip(layers, own, strict=True))


def _check_sharing(rows: list[Row]) -> None:
    owners: dict[str, tuple[str, Shape]] = {}
    for layer, parameters in rows:
        for spec, shape in zip(layer.param if parameters else (), parameters or (), strict=False):
            if not spec.name:
                continue
            owner, theirs = owners.setdefault(spec.name, (layer.name, shape))
            permissive = spec.share_mode == ParamSpec.PERMISSIVE
            if (math.prod(theirs) != math.prod(shape)) if permissive else (theirs != shape):
                raise NetError(
                    f"shares its parameter '{spec.name}' with layer '{owner}', but has {format_shape(shape)} values, and that has "
                    f"{format_shape(theirs)}; give one of them another name",
                    layer=layer.name,
                )


def _reason(shapes: list[Shape], others: list[Shape]) -> str:
    """Return why a layer has parameters of two shapes, and what to do."""
    first, second = shapes[0], others[0]
    if len(first) == len(second) == 4 and (first[0], *first[2:]) == (second[0], *second[2:]):
        return (
            "pictures have another number of channels there; store as many as the net reads (`caffetools dataset build --gray` stores one), "
            "or give the --input-shape of the new net"
        )
    return "pictures are of another size there, so weights of the one do not fit the other; give one --crop for all, and leave --input-shape out"


def _listed(shapes: list[Shape]) -> str:
    return ", ".join(map(format_shape, shapes))
