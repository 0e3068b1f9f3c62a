"""How fast the layers of a net learn, what some of them start from, and how much dropout drops: set in place, and told as changes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from caffetools.errors import CaffeToolsError, NetError, did_you_mean
from caffetools.graph.graph import phases
from caffetools.graph.learned import LearnedBlobs, count_learned
from caffetools.layers.base import Shape
from caffetools.layers.registry import traits
from caffetools.layers.traits import field_at
from caffetools.proto.schema import FillerParameter, LayerParameter, NetParameter
from caffetools.surgery.changes import Change, number

# The fillers that one number says all about, and what that number is.
_FILLERS = {"gaussian": "std", "constant": "value", "xavier": "", "msra": ""}


@dataclass(frozen=True)
class Tuning:
    """How a retargeted net is to learn; see the options of ``caffetools retarget``.

    Attributes:
        lr_mult: What the lr_mult values of all layers but the classifiers are multiplied by.
        freeze: The layer up to which nothing learns, itself included. dropout: the ratio of all Dropout layers.
        keep_names: The classifiers keep their names. filler: a ``FillerParameter`` for their weights.
    """

    lr_mult: float = 1.0
    freeze: str | None = None
    dropout: float | None = None
    keep_names: bool = False
    filler: Any | None = None


def tune(net: NetParameter, tuning: Tuning, heads: Collection[str], shapes: Mapping[str, Shape] | None = None) -> list[Change]:
    """Set the learning rates and dropout ratios of ``net`` as ``tuning`` asks, in place.

    Args:
        net: A ``NetParameter`` in today's form.
        tuning: What is asked.
        heads: The names of the layers that are reinitialized; their rates are not scaled, and they cannot be frozen.
        shapes: Shapes of inputs by blob, where the net does not state them.

    Raises:
        CaffeToolsError: a number is out of its range. NetError: a layer is not there, or cannot be frozen.
    """
    changes: list[Change] = []
    if tuning.lr_mult != 1:
        changes += scale_rates(net, tuning.lr_mult, heads, shapes)
    if tuning.freeze is not None:
        changes += freeze_upto(net, tuning.freeze, heads, shapes)
    if tuning.dropout is not None:
        changes += set_dropout(net, tuning.dropout)
    return list(dict.fromkeys(changes))


def scale_rates(net: NetParameter, factor: float, but: Collection[str] = (), shapes: Mapping[str, Shape] | None = None) -> list[Change]:
    """Multiply the lr_mult of all layers with learned blobs by ``factor``, in place.

    Args:
        net: A ``NetParameter`` in today's form.
        factor: 0 or more.
        but: The names of layers that keep their rates.
        shapes: Shapes of inputs by blob, where the net does not state them.

    Raises:
        CaffeToolsError: the factor is negative or no number.
    """
    if not 0 <= factor < math.inf:
        raise CaffeToolsError(f"rates can be multiplied by 0 or more, not by {factor:g} (--lr-mult)")
    changes, learned = [], LearnedBlobs(net, shapes)
    for layer in net.layer:
        if layer.name in but:
            continue
        specs = spread_rates(layer, learned)
        before = [spec.lr_mult for spec in specs]
        for spec in specs:
            spec.lr_mult *= factor
        changes += [_change(layer, before)] if specs else _not_known(layer, learned)
    return changes + _share_rates(net)


def freeze_upto(net: NetParameter, name: str, heads: Collection[str] = (), shapes: Mapping[str, Shape] | None = None) -> list[Change]:
    """Freeze layer ``name`` and all layers that it depends on, in place: lr_mult and decay_mult 0, stored statistics in BatchNorm.

    Args:
        net: A ``NetParameter`` in today's form.
        name: The last layer to freeze.
        heads: The names of the layers that are reinitialized.
        shapes: Shapes of inputs by blob, where the net does not state them.

    Raises:
        NetError: there is no such layer, or one of ``heads`` would be frozen, which starts anew.
    """
    if not any(layer.name == name for layer in net.layer):
        known = did_you_mean(name, [layer.name for layer in net.layer])
        raise NetError(f"the net '{net.name}' has no layer '{name}' to freeze up to{known} (--freeze)")
    frozen: set[int] = set()
    for graph in phases(net):
        ends = [i for i, layer in graph.layers.items() if layer.name == name]
        frozen |= {*ends, *graph.needed([(i, bottom) for i in ends for bottom in graph.layers[i].bottom])}
    changes, learned = [], LearnedBlobs(net, shapes)
    for index in sorted(frozen):
        layer = net.layer[index]
        if layer.name in heads:
            raise NetError("starts anew, so it cannot be frozen; give a layer before it (--freeze)", layer=layer.name)
        changes += _freeze_statistics(layer)
        specs = spread_rates(layer, learned)
        before = [spec.lr_mult for spec in specs]
        for spec in specs:
            spec.lr_mult = spec.decay_mult = 0
        changes += [_change(layer, before)] if specs else _not_known(layer, learned)
    return changes + _share_rates(net)


def _not_known(layer: LayerParameter, learned: LearnedBlobs) -> list[Change]:
    if learned.count(layer) is not None:
        return []
    return [Change(layer.name, "lr_mult", "not known", "unchanged: whether this layer has parameters is not known here")]


def _freeze_statistics(layer: LayerParameter) -> list[Change]:
    """Make a normalization use the statistics that it has stored, in training too."""
    if not (switch := traits(layer).statistics_switch):
        return []
    message, field = field_at(layer, switch)
    setattr(message, field, True)
    return [Change(layer.name, field, "", "true")]


def set_dropout(net: NetParameter, ratio: float) -> list[Change]:
    """Let all Dropout layers drop ``ratio`` of their input.

    Raises:
        CaffeToolsError: the ratio is not from 0 to below 1. NetError: there is no Dropout layer.
    """
    if not 0 <= ratio < 1:
        raise CaffeToolsError(f"dropout drops from 0 to below 1 of its input, not {ratio:g} (--dropout)")
    layers = [layer for layer in net.layer if traits(layer).role == "dropout"]
    if not layers:
        raise NetError(f"the net '{net.name}' has no Dropout layer whose ratio could be set (--dropout)")
    changes = []
    for layer in layers:
        before = layer.dropout_param.dropout_ratio
        layer.dropout_param.dropout_ratio = ratio
        if layer.dropout_param.dropout_ratio != before:
            changes.append(Change(layer.name, "dropout_ratio", number(before), number(ratio)))
    return changes


def learned_blobs(layer: LayerParameter, learned: LearnedBlobs | None = None) -> int:
    """Return how many blobs a layer learns; where that is not known, how many ``param`` entries it has."""
    number = count_learned(layer) if learned is None else learned.count(layer)
    return len(layer.param) if number is None else number


def spread_rates(layer: LayerParameter, learned: LearnedBlobs | None = None) -> list[Any]:
    """Return the ``ParamSpec`` of each blob that a layer learns, added where there was none; empty where it learns nothing."""
    count = learned_blobs(layer, learned)
    while len(layer.param) < count:
        layer.param.add()
    return list(layer.param) if count else []


def parse_filler(text: str | None) -> Any | None:
    """A ``FillerParameter`` as people write it: ``xavier``, ``msra``, ``gaussian:0.01``, ``constant:0``; None for None.

    Raises:
        CaffeToolsError: it is none of these.
    """
    if text is None:
        return None
    kind, _, value = text.partition(":")
    field = _FILLERS.get(kind)
    if field is None or (value and not field):
        raise CaffeToolsError(f"'{text}' is no filler; write xavier, msra, gaussian:0.01 (its standard deviation) or constant:0 (--filler)")
    try:
        made = FillerParameter(type=kind)
        if field and value:
            setattr(made, field, float(value))
        return made
    except ValueError:
        raise CaffeToolsError(f"'{value}' is no number for the filler {kind} (--filler)") from None


def describe_filler(filler: FillerParameter) -> str:
    """A filler in words: ``gaussian, std 0.01``."""
    field = _FILLERS.get(filler.type, "")
    return f"{filler.type}, {field} {number(getattr(filler, field))}" if field else str(filler.type)


def _share_rates(net: NetParameter) -> list[Change]:
    """Let all owners of a shared parameter say of its rates what the first in the net says; Caffe takes no others."""
    first: dict[str, Any] = {}
    changes = []
    for layer in net.layer:
        before = [spec.lr_mult for spec in layer.param]
        for spec in layer.param:
            owner = first.setdefault(spec.name, spec) if spec.name else spec
            for field in ("lr_mult", "decay_mult"):
                if spec.HasField(field) and getattr(spec, field) != getattr(owner, field):
                    setattr(spec, field, getattr(owner, field))
        if before != [spec.lr_mult for spec in layer.param]:
            changes.append(_change(layer, before))
    return changes


def _change(layer: LayerParameter, before: list[float]) -> Change:
    after = [spec.lr_mult for spec in layer.param]
    return Change(layer.name, "lr_mult", " / ".join(map(number, before)), " / ".join(map(number, after)))
