"""Which layers belong to a phase: include and exclude rules, stages and levels (Caffe's Net::FilterNet)."""

from __future__ import annotations

from collections.abc import Iterable

from caffetools.errors import NetError
from caffetools.proto.schema import LayerParameter, NetParameter, NetState, NetStateRule


def make_state(phase: int, *, level: int = 0, stages: Iterable[str] = ()) -> NetState:
    """Return a ``NetState`` message."""
    return NetState(phase=phase, level=level, stage=list(stages))


def filter_net(param: NetParameter, state: NetState) -> NetParameter:
    """Return a copy of ``param`` with only the layers that ``state`` includes; their rules are kept, as in Caffe.

    Raises:
        NetError: A layer has both include and exclude rules.
    """
    filtered = NetParameter()
    filtered.CopyFrom(param)
    included = [layer for layer in param.layer if layer_included(layer, state)]
    if len(included) < len(param.layer):
        del filtered.layer[:]
        filtered.layer.extend(included)
    return filtered


def layer_included(layer: LayerParameter, state: NetState) -> bool:
    """Return whether ``layer`` is part of the net in ``state``: an include rule is met, or no exclude rule is.

    Raises:
        NetError: A layer with rules of both kinds.
    """
    include, exclude = layer.include, layer.exclude
    if not include and not exclude:
        return True
    if include and exclude:
        raise NetError("has both include and exclude rules; only one kind is possible", layer=layer.name)
    if include:
        return any(_meets(rule, state) for rule in include)
    return not any(_meets(rule, state) for rule in exclude)


def _meets(rule: NetStateRule, state: NetState) -> bool:
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and all(stage in stages for stage in rule.stage)
        and not any(stage in stages for stage in rule.not_stage)
    )
