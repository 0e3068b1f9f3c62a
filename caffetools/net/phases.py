"""Which layers belong to a phase: include and exclude rules, stages and levels (Caffe's Net::FilterNet)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from caffetools.errors import NetError, did_you_mean
from caffetools.proto.schema import TEST, TRAIN, NetParameter, NetState


def make_state(phase: int, *, level: int = 0, stages: Iterable[str] = ()) -> Any:
    """A ``NetState`` message."""
    return NetState(phase=phase, level=level, stage=list(stages))


def filter_net(param: Any, state: Any) -> Any:
    """A copy of ``param`` with only the layers that ``state`` includes; their rules stay, as Caffe leaves them.

    Raises:
        NetError: a layer has both include and exclude rules.
    """
    filtered = NetParameter()
    filtered.CopyFrom(param)
    del filtered.layer[:]
    for layer in param.layer:
        if layer_included(layer, state):
            filtered.layer.add().CopyFrom(layer)
    return filtered


def with_stages(param: Any, stages: Iterable[str]) -> Any:
    """A copy of ``param`` (in today's form) as it is in ``stages``: only phases are left in its layers' rules.

    Raises:
        NetError: a layer has both include and exclude rules, or no rule names one of the stages.
    """
    known = {name for layer in param.layer for rule in (*layer.include, *layer.exclude) for name in (*rule.stage, *rule.not_stage)}
    for name in stages:
        if name not in known:
            raise NetError(f"the net '{param.name}' has no stage '{name}'{did_you_mean(name, known)} (--stage)")
    states = {phase: make_state(phase, stages=stages) for phase in (TRAIN, TEST)}
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


def layer_included(layer: Any, state: Any) -> bool:
    """Whether ``layer`` is part of the net in ``state``: some include rule is met, or no exclude rule is."""
    if not layer.include and not layer.exclude:
        return True
    if layer.include and layer.exclude:
        raise NetError("has both include and exclude rules; only one kind is possible", layer=layer.name)
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: Any, state: Any) -> bool:
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and all(stage in stages for stage in rule.stage)
        and not any(stage in stages for stage in rule.not_stage)
    )
