"""Set learning rates, frozen layers and dropout ratios of a net, in place, and parse fillers."""

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

# The fillers that one number determines, and the field of that number.
_FILLERS = {"gaussian": "std", "constant": "value", "xavier": "", "msra": ""}


@dataclass(frozen=True)
class Tuning:
    """Learning settings of a retargeted net; see the options of ``caffetools retarget``.

    Attributes:
        lr_mult: The factor of the lr_mult values of all layers but the classifiers.
        freeze: The last layer to freeze; all layers that it depends on are frozen too.
        dropout: The ratio of all Dropout layers, in [0, 1).
        keep_names: Whether the classifiers keep their names.
        filler: A ``FillerParameter`` for the classifiers' weights.
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
        tuning: The settings.
        heads: The names of the layers that are reinitialized; their rates are not scaled, and they cannot be frozen.
        shapes: Shapes of inputs by blob, where the net does not state them.

    Raises:
        CaffeToolsError: A number is out of its range.
        NetError: A layer is missing, or cannot be frozen.
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
        CaffeToolsError: The factor is negative or not a number.
    """
    if not 0 <= factor < math.inf:
        raise CaffeToolsError(f"lr_mult can be multiplied by 0 or more, not by {factor:g} (--lr-mult)")
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
        NetError: The net does not have the layer, or one of ``heads`` would be frozen, which is reinitialized.
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
            raise NetError("is reinitialized, so it cannot be frozen; give a layer before it (--freeze)", layer=layer.name)
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
    """Set the dropout ratio of all Dropout layers, in place.

    Args:
        net: A ``NetParameter`` in today's form.
        ratio: The share of values set to 0, in [0, 1).

    Raises:
        CaffeToolsError: The ratio is out of range.
        NetError: The net has no Dropout layer.
    """
    if not 0 <= ratio < 1:
        raise CaffeToolsError(f"the dropout ratio must be in [0, 1), not {ratio:g} (--dropout)")
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
    """Return the number of learned blobs of a layer; where that is not known, its number of ``param`` entries."""
    number = count_learned(layer) if learned is None else learned.count(layer)
    return len(layer.param) if number is None else number


def spread_rates(layer: LayerParameter, learned: LearnedBlobs | None = None) -> list[Any]:
    """Return the ``ParamSpec`` of each blob that a layer learns, added where there was none; empty where it learns nothing."""
    count = learned_blobs(layer, learned)
    while len(layer.param) < count:
        layer.param.add()
    return list(layer.param) if count else []


def parse_filler(text: str | None) -> FillerParameter | None:
    """Parse a filler: ``xavier``, ``msra``, ``gaussian:0.01`` (std) or ``constant:0`` (value).

    Args:
        text: The filler; None gives None.

    Returns:
        The ``FillerParameter``.

    Raises:
        CaffeToolsError: The text is none of these.
    """
    if text is None:
        return None
    kind, _, value = text.partition(":")
    field = _FILLERS.get(kind)
    if field is None or (value and not field):
        raise CaffeToolsError(
            f"'{text}' is not a filler; write xavier, msra, gaussian:0.01 (its standard deviation) or constant:0 (--filler)"
        )
    try:
        made = FillerParameter(type=kind)
        if field and value:
            setattr(made, field, float(value))
        return made
    except ValueError:
        raise CaffeToolsError(f"'{value}' is not a number for the filler {kind} (--filler)") from None


def describe_filler(filler: FillerParameter) -> str:
    """Format a filler for messages: ``gaussian, std 0.01``."""
    field = _FILLERS.get(filler.type, "")
    return f"{filler.type}, {field} {number(getattr(filler, field))}" if field else str(filler.type)


def _share_rates(net: NetParameter) -> list[Change]:
    """Give all owners of a shared parameter the rates of the first owner; Caffe accepts no others."""
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
