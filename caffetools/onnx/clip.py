"""Values held between two numbers, which BVLC Caffe writes with ReLU, Power and Eltwise: one Clip in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def merge_clips(graph: onnx.GraphProto, weights: MutableMapping[str, Array], outputs: Collection[str]) -> set[str]:
    """Replace x - max(x - h, 0) by Clip(x, max = h), and x + max(l - x, 0) by Clip(x, min = l), and remove what nothing reads then.

    The import writes ReLU6 and hard activations with these layers; runtimes fuse a Clip with the convolution before it.

    Args:
        graph: The nodes, without initializers; changed in place.
        weights: The initializers; changed in place.
        outputs: The values that are outputs of the model, which remain.

    Returns:
        The values that are no longer made.
    """
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        # A graph inside of a node may read values of this one.
        return set()
    makers = {name: node for node in graph.node for name in node.output}
    parts: set[str] = set()
    for node in graph.node:
        found = _find_bound(makers, weights, node) if node.op_type == "Add" else None
        if found is None:
            continue
        value, other, bound, is_upper = found
        name = f"{node.output[0]}/{'max' if is_upper else 'min'}"
        weights[name] = np.asarray(-weights[bound] if is_upper else weights[bound])
        parts |= _values_between(makers, other, _source(makers, value))
        node.CopyFrom(helper.make_node("Clip", [value, "", name] if is_upper else [value, name], list(node.output), name=node.name))
    return _remove_unused(graph, weights, parts - set(outputs))


def name_lower_bounds(proto: onnx.ModelProto) -> None:
    """Give each Clip without a lower bound one of -infinity, in place: onnx2torch reads the name of the input that is left out."""
    name = "caffetools/no_lower_bound"
    clips = [node for node in proto.graph.node if node.op_type == "Clip" and len(node.input) > 2 and not node.input[1]]
    for node in clips:
        node.input[1] = name
    if clips:
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(-np.inf, np.float32), name))


def _find_bound(
    makers: Mapping[str, onnx.NodeProto], weights: Mapping[str, Array], node: onnx.NodeProto
) -> tuple[str, str, str, bool] | None:
    """Return of an Add that holds a value: the value, the other input, the constant, and whether it is the upper bound."""
    for value, other in (tuple(node.input), tuple(reversed(node.input))):
        if (upper := _upper(makers, weights, value, other)) is not None:
            return value, other, upper, True
        if (lower := _lower(makers, weights, value, other)) is not None:
            return value, other, lower, False
    return None


def _values_between(makers: Mapping[str, onnx.NodeProto], last: str, first: str) -> set[str]:
    """Return the values from ``last`` back to ``first``, without it."""
    found: set[str] = set()
    waiting = [last]
    while waiting:
        value = waiting.pop()
        if value != first and value in makers and value not in found:
            found.add(value)
            waiting.extend(makers[value].input)
    return found


def _upper(makers: Mapping[str, onnx.NodeProto], weights: Mapping[str, Array], value: str, other: str) -> str | None:
    """Return the constant -h of -max(value - h, 0)."""
    ramp = _operand(makers, weights, other, "Mul", _is_minus_one)
    shifted = _of_relu(makers, ramp[0]) if ramp is not None else None
    inner = _operand(makers, weights, shifted, "Add", _is_any) if shifted is not None else None
    return inner[1] if inner is not None and inner[0] == _source(makers, value) else None


def _lower(makers: Mapping[str, onnx.NodeProto], weights: Mapping[str, Array], value: str, other: str) -> str | None:
    """Return the constant l of max(l - value, 0)."""
    shifted = _of_relu(makers, other)
    inner = _operand(makers, weights, shifted, "Add", _is_any) if shifted is not None else None
    turned = _operand(makers, weights, inner[0], "Mul", _is_minus_one) if inner is not None else None
    return inner[1] if inner is not None and turned is not None and turned[0] == _source(makers, value) else None


def _of_relu(makers: Mapping[str, onnx.NodeProto], value: str) -> str | None:
    node = makers.get(value)
    return _source(makers, node.input[0]) if node is not None and node.op_type == "Relu" else None


def _source(makers: Mapping[str, onnx.NodeProto], value: str) -> str:
    """Return the value that an Identity, or several, copy."""
    while (node := makers.get(value)) is not None and node.op_type == "Identity":
        value = node.input[0]
    return value


def _is_minus_one(constant: float) -> bool:
    return constant == -1


def _is_any(constant: float) -> bool:
    return True


def _operand(
    makers: Mapping[str, onnx.NodeProto], weights: Mapping[str, Array], value: str, op: str, wanted: Callable[[float], bool]
) -> tuple[str, str] | None:
    """Return the value and the constant of one number, which is ``wanted``, of an operator of both."""
    node = makers.get(_source(makers, value))
    if node is None or node.op_type != op:
        return None
    first, second = node.input
    for source, constant in ((first, second), (second, first)):
        array = weights.get(constant)
        if array is not None and array.size == 1 and not array.shape and wanted(float(array)):
            return _source(makers, source), constant
    return None


def _remove_unused(graph: onnx.GraphProto, weights: MutableMapping[str, Array], candidates: Collection[str]) -> set[str]:
    """Remove the nodes of which only ``candidates`` come and nothing is read, and their constants; gives the values that are removed."""
    removed: set[str] = set()
    constants: set[str] = set()
    nodes = list(graph.node)
    while True:
        read = {name for node in nodes for name in node.input}
        unread = [node for node in nodes if all(name in candidates and name not in read for name in node.output)]
        if not unread:
            break
        removed.update(name for node in unread for name in node.output)
        constants.update(name for node in unread for name in node.input if name in weights)
        nodes = [node for node in nodes if node.output[0] not in removed]
    if removed:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    for name in constants - {name for node in nodes for name in node.input}:
        del weights[name]
    return removed
