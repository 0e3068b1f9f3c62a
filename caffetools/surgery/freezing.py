"""How fast the layers of a net learn, what some of them start from, and how much dropout drops: set in place, and told as changes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from caffetools.errors import CaffeToolsError, NetError, did_you_mean
from caffetools.graph.graph import phases
from caffetools.layers.normalization import has_scale_bias
from caffetools.layers.registry import layer_types
from caffetools.proto.schema import FillerParameter
from caffetools.surgery.changes import Change, number

# The fillers that one number says all about, and what that number is.
_FILLERS = {"gaussian": "std", "constant": "value", "xavier": "", "msra": ""}

# Learned blobs of a layer: how many it always has, and whether bias_term adds one. Scale and Bias learn only where they have one bottom.
_BIASED = {
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
    "Embed": "embed_param",
    "DepthwiseConvolution": "convolution_param",
    "ConvolutionDepthwise": "convolution_param",
    "Scale": "scale_param",
}
_FIXED = {"Bias": 1, "PReLU": 1, "Parameter": 1, "MarginInnerProduct": 1, "CenterLoss": 1, "Normalize": 1, "BN": 2, "LSTM": 3, "RNN": 5}


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


def tune(net: Any, tuning: Tuning, heads: Collection[str]) -> list[Change]:
    """Do in ``net``, in place, what ``tuning`` says of rates and dropout; ``heads`` are the layers that start anew.

    Raises:
        CaffeToolsError: a number is out of its range. NetError: a layer is not there, or cannot be frozen.
    """
    changes: list[Change] = []
    if tuning.lr_mult != 1:
        changes += scale_rates(net, tuning.lr_mult, heads)
    if tuning.freeze is not None:
        changes += freeze_upto(net, tuning.freeze, heads)
    if tuning.dropout is not None:
        changes += set_dropout(net, tuning.dropout)
    return list(dict.fromkeys(changes))


def scale_rates(net: Any, factor: float, but: Collection[str] = ()) -> list[Change]:
    """Multiply the lr_mult of all layers with learned blobs by ``factor``, but for those called as in ``but``.

    Raises:
        CaffeToolsError: the factor is negative or no number.
    """
    if not 0 <= factor < math.inf:
        raise CaffeToolsError(f"rates can be multiplied by 0 or more, not by {factor:g} (--lr-mult)")
    changes = []
    for layer in net.layer:
        specs = [] if layer.name in but else spread_rates(layer)
        before = [spec.lr_mult for spec in specs]
        for spec in specs:
            spec.lr_mult *= factor
        if specs:
            changes.append(_change(layer, before))
    return changes + _share_rates(net)


def freeze_upto(net: Any, name: str, heads: Collection[str] = ()) -> list[Change]:
    """Let layer ``name`` and all that it is made from learn no more: lr_mult and decay_mult 0, BatchNorm with the statistics it has.

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
    changes = []
    for index in sorted(frozen):
        layer = net.layer[index]
        if layer.name in heads:
            raise NetError("starts anew, so it cannot be frozen; give a layer before it (--freeze)", layer=layer.name)
        if layer.type == "BatchNorm":
            layer.batch_norm_param.use_global_stats = True
            changes.append(Change(layer.name, "use_global_stats", "", "true"))
        elif layer.type == "BN" and not layer.bn_param.HasField("bn_mode"):
            layer.bn_param.frozen = True
            changes.append(Change(layer.name, "frozen", "", "true"))
        specs = spread_rates(layer)
        before = [spec.lr_mult for spec in specs]
        for spec in specs:
            spec.lr_mult = spec.decay_mult = 0
        if specs:
            changes.append(_change(layer, before))
        elif layer.type not in layer_types():
            changes.append(Change(layer.name, "lr_mult", "not known", "as it is: whether this type learns is not known here"))
    return changes + _share_rates(net)


def set_dropout(net: Any, ratio: float) -> list[Change]:
    """Let all Dropout layers drop ``ratio`` of their input.

    Raises:
        CaffeToolsError: the ratio is not from 0 to below 1. NetError: there is no Dropout layer.
    """
    if not 0 <= ratio < 1:
        raise CaffeToolsError(f"dropout drops from 0 to below 1 of its input, not {ratio:g} (--dropout)")
    layers = [layer for layer in net.layer if layer.type == "Dropout"]
    if not layers:
        raise NetError(f"the net '{net.name}' has no Dropout layer whose ratio could be set (--dropout)")
    changes = []
    for layer in layers:
        before = layer.dropout_param.dropout_ratio
        layer.dropout_param.dropout_ratio = ratio
        if layer.dropout_param.dropout_ratio != before:
            changes.append(Change(layer.name, "dropout_ratio", number(before), number(ratio)))
    return changes


def learned_blobs(layer: Any) -> int:
    """How many blobs a layer learns; for types that are unknown here, as many as it says something of."""
    if layer.type in _BIASED:
        bias = bool(getattr(layer, _BIASED[layer.type]).bias_term)
        return bias + (layer.type != "Scale" or len(layer.bottom) == 1)
    if layer.type == "Bias" and len(layer.bottom) > 1:
        return 0
    if layer.type == "BatchNorm":
        # NVCaffe's may have a scale and a bias behind its statistics.
        return 5 if has_scale_bias(layer.batch_norm_param) else 0
    static = layer.type in ("LSTM", "RNN") and len(layer.bottom) - (2 if layer.recurrent_param.expose_hidden else 0) > 2
    return _FIXED[layer.type] + static if layer.type in _FIXED else len(layer.param)


def spread_rates(layer: Any) -> list[Any]:
    """The ``ParamSpec`` of each blob that a layer learns, made where there was none; none where it learns nothing."""
    count = learned_blobs(layer)
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
        return FillerParameter(type=kind, **({field: float(value)} if field and value else {}))
    except ValueError:
        raise CaffeToolsError(f"'{value}' is no number for the filler {kind} (--filler)") from None


def describe_filler(filler: Any) -> str:
    """A filler in words: ``gaussian, std 0.01``."""
    field = _FILLERS.get(filler.type, "")
    return f"{filler.type}, {field} {number(getattr(filler, field))}" if field else str(filler.type)


def _share_rates(net: Any) -> list[Change]:
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


def _change(layer: Any, before: list[float]) -> Change:
    after = [spec.lr_mult for spec in layer.param]
    return Change(layer.name, "lr_mult", " / ".join(map(number, before)), " / ".join(map(number, after)))
