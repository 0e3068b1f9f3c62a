"""Separate the nets for training, testing and deployment that one file holds by stages, as NVIDIA DIGITS's do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from caffetools.errors import NetError, did_you_mean
from caffetools.graph.graph import Graph, phases_present
from caffetools.graph.inputs import is_input
from caffetools.graph.summary import summarize
from caffetools.layers.base import Shape
from caffetools.layers.inputs import Input
from caffetools.layers.registry import traits
from caffetools.net.phases import layer_included, make_state
from caffetools.net.topology import check_blob_graph
from caffetools.proto.schema import TEST, TRAIN, NetParameter


@dataclass(frozen=True)
class Stages:
    """The stages in which a file is trained, tested and used; empty where it needs none.

    Attributes:
        train: With the TRAIN phase.
        test: With the TEST phase.
        deploy: With the TEST phase, for the net that is used; None where the file has no such net.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    deploy: tuple[str, ...] | None = None

    def replaced(self, other: Stages | None) -> Stages:
        """Return these stages with those that ``other`` names in their place."""
        if other is None:
            return self
        return Stages(other.train or self.train, other.test or self.test, self.deploy if other.deploy is None else other.deploy)


def stage_names(param: NetParameter) -> list[str]:
    """Return the names of the stages in the rules of a net in today's form, in their order."""
    rules = [rule for layer in param.layer for field in (layer.include, layer.exclude) if field for rule in field]
    return list(dict.fromkeys(name for rule in rules for name in (*rule.stage, *rule.not_stage)))


def find_stages(param: NetParameter) -> Stages:
    """Return the stages in which a net can be trained, tested and used, as far as it needs stages at all.

    A phase that has data and a complete graph without a stage needs none. Otherwise the first stage with which it has them is taken,
    of those that are called like the purpose ("train", "val", "test", "deploy") before others.

    Args:
        param: A ``NetParameter`` in today's form.

    Raises:
        NetError: A layer has both include and exclude rules.
    """
    names = stage_names(param)
    if not names:
        return Stages()
    train = _first_working(param, TRAIN, names, ("train",))
    rest = [name for name in names if (name,) != train]
    test = _first_working(param, TEST, rest, ("val", "test"))
    deploy = next(((name,) for name in names if "deploy" in name.lower() and _has_deploy_net(param, name)), None)
    return Stages(train or (), test or (), deploy)


def resolve_stages(param: NetParameter, train: Iterable[str], test: Iterable[str] | None = None) -> NetParameter:
    """Return a copy of a net in which only phases are left in the rules: its layers of one stage, or of one for each phase.

    Args:
        param: A ``NetParameter`` in today's form.
        train: The stages of the TRAIN phase.
        test: The stages of the TEST phase; None is the same ones.

    Raises:
        NetError: No rule names one of the stages, or a layer has both include and exclude rules.
    """
    wanted = {TRAIN: tuple(train), TEST: tuple(train if test is None else test)}
    known = stage_names(param)
    for name in dict.fromkeys(name for stages in wanted.values() for name in stages):
        if name not in known:
            raise NetError(f"the net '{param.name}' has no stage '{name}'{did_you_mean(name, known)} (--stage)")
    states = {phase: make_state(phase, stages=stages) for phase, stages in wanted.items()}
    resolved = NetParameter()
    resolved.CopyFrom(param)
    resolved.ClearField("layer")
    for layer in param.layer:
        phases = [phase for phase, state in states.items() if layer_included(layer, state)]
        if phases:
            added = resolved.layer.add()
            added.CopyFrom(layer)
            added.ClearField("include")
            added.ClearField("exclude")
            if len(phases) == 1:
                added.include.add(phase=phases[0])
    return resolved


def add_outside_inputs(param: NetParameter, shapes: Mapping[str, Shape], phase: int = TEST) -> NetParameter:
    """Return a net in which blobs that are read, produced by no layer of any phase, and named in ``shapes`` come from an Input layer.

    The deploy stage of a file for all purposes has no Input; what uses it gives the blob. The net itself is returned where it lacks none.

    Args:
        param: A ``NetParameter`` in today's form.
        shapes: Shapes by blob; ``""`` stands for the first one that is lacking, where the net has no other input.
        phase: The phase whose layers are looked at.
    """
    lacking = outside_blobs(param, phase)
    inputs = any(map(is_input, Graph(param, phase).layers.values()))
    named = {(lacking[0] if not name and lacking and not inputs else name): shape for name, shape in shapes.items()}
    # What a data layer gives in the other phase is not from outside.
    made_elsewhere = {top for layer in param.layer for top in layer.top}
    missing = [blob for blob in lacking if blob in named and blob not in made_elsewhere]
    if not missing:
        return param
    made = NetParameter()
    made.CopyFrom(param)
    made.ClearField("layer")
    for blob in missing:
        layer = made.layer.add(name=blob, type=Input.TYPE, top=[blob])
        layer.input_param.shape.add(dim=named[blob])
    for layer in param.layer:
        made.layer.add().CopyFrom(layer)
    return made


def outside_blobs(param: NetParameter, phase: int = TEST) -> list[str]:
    """Return the blobs that layers of a phase read and that no layer before them produces, in order."""
    graph = Graph(param, phase)
    uses = [(index, blob) for index, layer in graph.layers.items() for blob in layer.bottom]
    return list(dict.fromkeys(blob for index, blob in uses if graph.producer(index, blob) is None))


@dataclass(frozen=True)
class Chosen:
    """A net of which the layers of some stages were taken.

    Attributes:
        net: The ``NetParameter``; only phases are left in its rules.
        stages: The stages taken, of all phases; empty where the net needs none.
    """

    net: NetParameter
    stages: tuple[str, ...] = ()


def choose_stages(
    param: NetParameter, stages: Iterable[str] | None = None, shapes: Mapping[str, Shape] | None = None, *, deploy: bool = False
) -> Chosen:
    """Take the layers of the stages that are named, or else of those that the net needs, and add Inputs for blobs given from outside.

    Args:
        param: A ``NetParameter`` in today's form.
        stages: The stages, for both phases; None or empty lets the net decide.
        shapes: Shapes of blobs given from outside.
        deploy: Whether the net that is used is wanted, where the file has it as a stage.

    Raises:
        NetError: No rule names one of the stages, or a blob comes from outside and has no shape.
    """
    named, shapes = tuple(stages or ()), shapes or {}
    if named:
        chosen = Chosen(resolve_stages(param, named), named)
    else:
        found = find_stages(param)
        if deploy and found.deploy is not None:
            return Chosen(deploy_stage(param, found.deploy, resolve_stages(param, found.train, found.test), shapes), found.deploy)
        elif found.train or found.test:
            chosen = Chosen(resolve_stages(param, found.train, found.test), (*found.train, *found.test))
        else:
            chosen = Chosen(param)
    net = add_outside_inputs(chosen.net, shapes)
    if chosen.stages:
        _check_outside(net, chosen.stages)
    return Chosen(net, chosen.stages)


def deploy_stage(
    param: NetParameter, stages: Iterable[str], trained: NetParameter, shapes: Mapping[str, Shape] | None = None
) -> NetParameter:
    """Return the net of the stage for use, with an Input for what it gets from outside.

    Args:
        param: A ``NetParameter`` in today's form, with rules on stages.
        stages: The stages in which it is used.
        trained: The net for training, from whose data the shape of a single blob from outside follows where ``shapes`` is empty.
        shapes: Shapes of blobs given from outside.

    Raises:
        NetError: A blob comes from outside and has no shape.
    """
    net = _layers_of(param, TEST, tuple(stages))
    lacking, shapes = outside_blobs(net), dict(shapes or {})
    if len(lacking) == 1 and not shapes and (data := _data_shape(trained)) is not None:
        shapes = {lacking[0]: (1, *data[1:])}
    net = add_outside_inputs(net, shapes)
    _check_outside(net, tuple(stages))
    return net


def _data_shape(net: NetParameter) -> Shape | None:
    """Return the shape of the first blob of data in the TEST phase, or in the TRAIN phase where there is no other; None where it is not known."""
    for phase in reversed(phases_present(net)):
        for row in summarize(net, phase).layers:
            if row.tops and not row.bottoms:
                return row.shapes[0]
    return None


def _check_outside(net: NetParameter, stages: Sequence[str]) -> None:
    produced = {top for layer in net.layer for top in layer.top}
    lacking = next((blob for blob in outside_blobs(net) if blob not in produced), None)
    if lacking is not None:
        raise NetError(
            f"the net '{net.name}' gets its blob '{lacking}' from outside in the stage {', '.join(stages)}; "
            f"give its shape: --input-shape {lacking}=1x3x227x227"
        )


def _first_working(param: NetParameter, phase: int, names: Sequence[str], like: Sequence[str]) -> tuple[str, ...] | None:
    called = sorted(names, key=lambda name: not any(word in name.lower() for word in like))
    candidates: list[tuple[str, ...]] = [(), *((name,) for name in called)]
    return next((stages for stages in candidates if _works(param, phase, stages)), None)


def _works(param: NetParameter, phase: int, stages: tuple[str, ...]) -> bool:
    """Return whether the net has data in the phase, something that measures it, and no blob that no layer produces."""
    net = _layers_of(param, phase, stages)
    with suppress(NetError):
        check_blob_graph(net.layer)
        sources = any(layer.top and not layer.bottom for layer in net.layer)
        return sources and any(traits(layer).role in ("loss", "metric") or any(layer.loss_weight) for layer in net.layer)
    return False


def _has_deploy_net(param: NetParameter, name: str) -> bool:
    net = _layers_of(param, TEST, (name,))
    return any(layer.bottom for layer in net.layer) and not any(traits(layer).role in ("loss", "metric") for layer in net.layer)


def _layers_of(param: NetParameter, phase: int, stages: tuple[str, ...]) -> NetParameter:
    """Return the layers of one phase and of some stages, without rules."""
    state = make_state(phase, stages=stages)
    net = NetParameter(name=param.name)
    for layer in param.layer:
        if layer_included(layer, state):
            added = net.layer.add()
            added.CopyFrom(layer)
            added.ClearField("include")
            added.ClearField("exclude")
    return net
