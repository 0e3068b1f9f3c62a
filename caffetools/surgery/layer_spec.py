"""Parse the layers to insert: a type with its numbers, or prototxt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from caffetools.errors import CaffeToolsError, PrototxtError
from caffetools.graph.classifiers import classifier_param
from caffetools.layers.convolution import Convolution
from caffetools.layers.dropout import Dropout
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.pooling import Pooling
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

    layer: Any
    after: str | None = None


def parse_added(text: str) -> LayerSpec:
    """Parse a layer to insert: ``[AFTER=]TYPE[:NUMBERS]``, such as ``InnerProduct:256`` or ``pool1=ReLU``, or ``[AFTER=]PROTOTXT``.

    Short forms: ``InnerProduct:OUTPUTS``; ``Convolution:OUTPUTS:KERNEL``, padded to keep the size; ``Pooling:MAX:KERNEL:STRIDE``, or
    ``Pooling:AVE``, which is global; ``Dropout:RATIO``; and every type that needs no numbers. Prototxt is the text within a layer's
    braces, or the layer with its braces.

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


def _from_prototxt(text: str) -> Any:
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


def _from_words(text: str) -> Any:
    kind, *numbers = text.split(":")
    if not is_known(kind):
        raise CaffeToolsError(f"'{text}' is not a layer: the type '{kind}' is not known here{suggestion(kind)}; {_HOW} (--add-layer)")
    reason = _why_not(kind) or ("is written as prototxt, with its python_param" if traits(kind).user_code else "")
    if reason:
        raise CaffeToolsError(f"a new {kind} layer {reason} (--add-layer)")
    make = _SHORT_FORMS.get(kind)
    try:
        if make is None:
            return LayerParameter(type=kind, **_plain(kind, numbers))
        return make(*numbers)
    except (TypeError, ValueError):
        raise CaffeToolsError(f"'{text}' does not give the numbers that a {kind} layer needs; {_HOW} (--add-layer)") from None


def _why_not(kind: str) -> str:
    """Return why a layer of type ``kind`` can't be inserted: it passes no gradient; empty where it does, or where that is not known."""
    if is_known(kind) and (0 in layer_class(kind).NO_GRADIENT or traits(kind).role in ("metric", "silence")):
        return "passes no gradient, so no layer below it would learn"
    return ""


def _plain(kind: str, numbers: Sequence[str]) -> dict[str, Any]:
    if numbers:
        raise ValueError
    return {"scale_param": {"bias_term": True}} if kind == Scale.TYPE else {}


def _weighted(kind: str, outputs: str, *kernel: str) -> Any:
    layer = LayerParameter(type=kind)
    param = classifier_param(layer)
    param.num_output = _positive(outputs)
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


def _pooling(method: str, *sizes: str) -> Any:
    layer = LayerParameter(type=Pooling.TYPE)
    param = layer.pooling_param
    param.pool = {"MAX": param.MAX, "AVE": param.AVE}.get(method.upper(), -1)
    if not sizes:
        param.global_pooling = True
        return layer
    param.kernel_size, param.stride = map(_positive, sizes)
    return layer


def _dropout(ratio: str = "0.5") -> Any:
    if not 0 <= float(ratio) < 1:
        raise ValueError
    return LayerParameter(type=Dropout.TYPE, dropout_param={"dropout_ratio": float(ratio)})


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number < 2**31:
        raise ValueError
    return number


_SHORT_FORMS: dict[str, Callable[..., Any]] = {
    InnerProduct.TYPE: partial(_weighted, InnerProduct.TYPE),
    Convolution.TYPE: partial(_weighted, Convolution.TYPE),
    Pooling.TYPE: _pooling,
    Dropout.TYPE: _dropout,
}
