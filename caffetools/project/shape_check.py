"""Whether a net for training, in both of its phases, and its deploy net can hold the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from caffetools.errors import NetError
from caffetools.graph.graph import Graph, phases_present, shapes_in
from caffetools.graph.summary import LayerSummary, summarize
from caffetools.layers.base import Shape, format_shape
from caffetools.proto.schema import TRAIN, NetParameter, ParamSpec


def check_parameter_shapes_match(train_val: NetParameter, deploy: NetParameter, shapes: Mapping[str, Shape]) -> None:
    """Compare the shapes of all parameters between the phases and the deploy net, as far as they are known without running anything.

    Args:
        train_val: The net for training in today's form.
        deploy: The deploy net in today's form.
        shapes: Shapes of inputs that the net itself does not give, by blob; ``""`` is the first.

    Raises:
        NetError: A net cannot be built, a layer has other parameters in one of them, or layers that share one differ on it.
    """
    known: dict[str, tuple[str, list[Shape]]] = {}
    nets = []
    for phase in phases_present(train_val):
        graph = Graph(train_val, phase)
        rows = _rows(graph, phase, shapes)
        _check_sharing(graph, rows)
        nets.append(("training" if phase == TRAIN else "testing", rows))
    for where, rows in [*nets, ("use (the deploy net)", summarize(deploy).layers)]:
        for row in rows:
            if not row.parameters:
                continue
            before, parameters = known.setdefault(row.name, (where, row.parameters))
            if parameters != row.parameters:
                raise NetError(
                    f"has parameters of {_listed(parameters)} in {before}, but of {_listed(row.parameters)} in {where}: pictures are of "
                    "another size there, so weights of the one do not fit the other; give one --crop for all, and leave --input-shape out",
                    layer=row.name,
                )


def _rows(graph: Graph, phase: int, shapes: Mapping[str, Shape]) -> list[LayerSummary]:
    """Return the layers with the sizes that the net gives; those without sizes with ``shapes``."""
    own = summarize(graph.param, phase).layers
    if not (given_shapes := shapes_in(graph, shapes)):
        return own
    forced = summarize(graph.param, phase, shapes=given_shapes).layers
    return [given if mine.parameters is None else mine for mine, given in zip(own, forced, strict=True)]


def _check_sharing(graph: Graph, rows: list[LayerSummary]) -> None:
    owners: dict[str, tuple[str, Shape]] = {}
    for layer, row in zip(graph.layers.values(), rows, strict=True):
        for spec, shape in zip(layer.param, row.parameters or (), strict=False):
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


def _listed(shapes: list[Shape]) -> str:
    return ", ".join(map(format_shape, shapes))
