"""Parse the layers to insert: a type with its numbers, or prototxt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from caffetools.errors import CaffeToolsError, PrototxtError
from caffetools.graph.classifiers import classifier_param
from caffetools.layers.registry import is_known, layer_class, suggestion, traits
from caffetools.layers.scale import Scale
from caffetools.proto.schema import LayerParameter, NetParameter
from caffetools.proto.text import parse

_HOW = "write InnerProduct:256, Convolution:64:3, Pooling:MAX:3:2, Dropout:0.5, a type by itself as ReLU, or a layer's prototxt"


@dataclass(frozen=True)
class LayerSpec:
    """A layer to insert into a net.

    Attributes:
        layer: A ``LayerParameter`` without bottoms and tops; its name may be empty.
        after: The layer to insert it behind; None is before the primary classifier.
    """

    layer: LayerParameter
    after: str | None = None


def parse_added(text: str) -> LayerSpec:
    """Parse a layer to insert: ``[AFTER=]TYPE[:NUMBERS]``, such as ``InnerProduct:256`` or ``pool1=ReLU``, or ``[AFTER=]PROTOTXT``.

    Short forms follow from a type's traits, so that plugins' types have them too: ``InnerProduct:OUTPUTS``;
    ``Convolution:OUTPUTS:KERNEL``, padded to keep the size; ``Pooling:MAX:KERNEL:STRIDE``, or ``Pooling:AVE``, which is global;
    ``Dropout:RATIO``; and every type that needs no numbers. Prototxt is the text within a layer's braces, or the layer with its braces.

    Args:
        text: The layer.

    Raises:
        CaffeToolsError: The text is none of these.
        PrototxtError: The prototxt is broken.
    """
    place, equals, what = text.partition("=")
    if not equals or re.search(r'["{]', place):
        place, what = "", text
    layer = _from_prototxt(what) if re.search(r'["{]', what) else _from_words(what.strip())
    return LayerSpec(layer, place.strip() or None)


def _from_prototxt(text: str) -> LayerParameter:
    body = text.strip()
    wrapped = re.match(r"layer\s*:?\s*\{", body) is not None
    net = parse(body if wrapped else f"layer {{ {body} }}", NetParameter, path="--add-layer")
    if len(net.layer) != 1 or [field.name for field, _ in net.ListFields()] != ["layer"]:
        raise PrototxtError("is not a single layer; give --add-layer once for each", path="--add-layer")
    layer = net.layer[0]
    if not layer.type:
        raise PrototxtError('the new layer has no type; write type: "ReLU"', path="--add-layer")
    if reason := _why_not(layer.type):
        raise PrototxtError(f"a new {layer.type} layer {reason}", path="--add-layer")
    if traits(layer).user_code and not layer.HasField(traits(layer).settings):
        raise PrototxtError(f"a new {layer.type} layer needs {traits(layer).settings}", path="--add-layer")
    if layer.bottom or layer.top:
        raise PrototxtError("bottoms and tops follow from the layer's position; leave them out", path="--add-layer")
    return layer


def _from_words(text: str) -> LayerParameter:
    kind, *numbers = text.split(":")
    if not is_known(kind):
        raise CaffeToolsError(f"'{text}' is not a layer: the type '{kind}' is not known here{suggestion(kind)}; {_HOW} (--add-layer)")
    reason = _why_not(kind) or ("is written as prototxt, with its python_param" if traits(kind).user_code else "")
    if reason:
        raise CaffeToolsError(f"a new {kind} layer {reason} (--add-layer)")
    try:
        return _short_form(kind)(*numbers)
    except (TypeError, ValueError):
        raise CaffeToolsError(f"'{text}' does not give the numbers that a {kind} layer needs; {_HOW} (--add-layer)") from None


def _why_not(kind: str) -> str:
    """Return why a layer of type ``kind`` can't be inserted: it passes no gradient; empty where it does, or where that is not known."""
    if is_known(kind) and (0 in layer_class(kind).NO_GRADIENT or traits(kind).role in ("metric", "silence")):
        return "passes no gradient, so no layer below it would learn"
    return ""


def _short_form(kind: str) -> Callable[..., LayerParameter]:
    """Return what makes a layer of its numbers, by its traits: of a linear layer its outputs, with a kernel where it has windows."""
    of_type = traits(kind)
    fields = of_type.settings_of(LayerParameter(type=kind)).DESCRIPTOR.fields_by_name if of_type.settings else {}
    fitting = of_type.coordinates == "window" if "kernel_size" in fields else not of_type.coordinates
    if of_type.role == "classifier" and of_type.outputs == "num_output" and not of_type.label_bottoms and fitting:
        return partial(_weighted, kind)
    if of_type.role == "pooling" and {"pool", "global_pooling"} <= set(fields):
        return partial(_pooling, kind)
    if of_type.role == "dropout" and "dropout_ratio" in fields:
        return partial(_dropout, kind)
    return partial(_plain, kind)


def _plain(kind: str) -> LayerParameter:
    layer = LayerParameter(type=kind)
    if kind == Scale.TYPE:
        layer.scale_param.bias_term = True
    return layer


def _weighted(kind: str, outputs: str, *kernel: str) -> LayerParameter:
    layer = LayerParameter(type=kind)
    param = classifier_param(layer)
    param.num_output = _positive(outputs)
    if "bias_filler" in param.DESCRIPTOR.fields_by_name:
        param.bias_filler.type = "constant"
    if traits(kind).coordinates:
        (side,) = map(_positive, kernel)
        if side % 2 == 0:
            raise ValueError
        param.kernel_size.append(side)
        param.pad.append(side // 2)
    elif kernel:
        raise ValueError
    return layer


def _pooling(kind: str, method: str, *sizes: str) -> LayerParameter:
    layer = LayerParameter(type=kind)
    param = traits(kind).settings_of(layer)
    param.pool = {"MAX": param.MAX, "AVE": param.AVE}.get(method.upper(), -1)
    if not sizes:
        param.global_pooling = True
        return layer
    param.kernel_size, param.stride = map(_positive, sizes)
    return layer


def _dropout(kind: str, ratio: str = "0.5") -> LayerParameter:
    if not 0 <= float(ratio) < 1:
        raise ValueError
    layer = LayerParameter(type=kind)
    traits(kind).settings_of(layer).dropout_ratio = float(ratio)
    return layer


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number < 2**31:
        raise ValueError
    return number
