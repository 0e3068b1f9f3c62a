"""Groups of ONNX nodes that one Caffe layer computes, merged before the import."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from caffetools.onnx.import_graph import ImportGraph, Node, pad_amounts, pad_value

Pattern = Callable[[ImportGraph, Node], bool]


def merge_patterns(graph: ImportGraph) -> None:
    """Merge all groups, each found from its last node."""
    for pattern in (
        merge_bias,
        merge_swish,
        merge_gelu,
        merge_channel_shuffle,
        merge_pad,
        merge_pool_pad,
        merge_directions,
    ):
        for node in list(graph.nodes):
            if any(node is kept for kept in graph.nodes):
                pattern(graph, node)


def merge_bias(graph: ImportGraph, node: Node) -> bool:
    """MatMul and an Add of one constant vector: MatMul with a ``bias``."""
    if node.op != "Add":
        return False
    for index in range(2):
        maker, constant = graph.maker(node.inputs[index]), graph.constants.get(node.inputs[1 - index])
        if maker is None or maker.op != "MatMul" or constant is None or graph.only_reader(node.inputs[index]) is not node:
            continue
        weight = graph.constants.get(maker.inputs[1])
        if weight is None or weight.ndim != 2 or constant.size != weight.shape[1] or constant.shape[-1:] != weight.shape[1:]:
            continue
        graph.replace([maker, node], Node("MatMul", maker.name, maker.inputs, node.outputs, {"bias": constant.reshape(-1)}))
        return True
    return False


def merge_swish(graph: ImportGraph, node: Node) -> bool:
    """x · Sigmoid(x): Swish. x · HardSigmoid(x): HardSwish."""
    if node.op != "Mul":
        return False
    for index in range(2):
        gate, value = graph.maker(node.inputs[index]), node.inputs[1 - index]
        if gate is None or gate.inputs[:1] != [value] or graph.only_reader(node.inputs[index]) is not node:
            continue
        if gate.op == "Sigmoid":
            graph.replace([gate, node], Node("Swish", node.name, [value], node.outputs))
            return True
        alpha, beta = float(gate.attributes.get("alpha", 0.2)), float(gate.attributes.get("beta", 0.5))
        if gate.op == "HardSigmoid" and math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5:
            graph.replace([gate, node], Node("HardSwish", node.name, [value], node.outputs))
            return True
    return False


def merge_gelu(graph: ImportGraph, node: Node) -> bool:
    """x · (1 + Erf(x / √2)) and half of it, before or after: Gelu."""
    if node.op != "Mul":
        return False
    half = _factor_of(graph, node)
    inner = graph.maker(half[0]) if half is not None and math.isclose(half[1], 0.5) else node
    if inner is None or inner.op != "Mul" or (inner is not node and graph.only_reader(inner.outputs[0]) is not node):
        return False
    for index in range(2):
        one, value = graph.maker(inner.inputs[index]), inner.inputs[1 - index]
        parts = _gate_of_erf(graph, one, inner)
        if parts is None:
            continue
        group = [*parts, inner, *([node] if inner is not node else [])]
        if inner is node:
            # Half of it before: (x / 2) · (1 + Erf).
            halved = graph.maker(value)
            factor = _factor_of(graph, halved) if halved is not None else None
            if halved is None or factor is None or not math.isclose(factor[1], 0.5):
                continue
            value = factor[0]
            group += [halved] if graph.only_reader(halved.outputs[0]) is node else []
        scaled = _factor_of(graph, parts[0])
        if scaled is not None and scaled[0] == value and math.isclose(scaled[1], math.sqrt(0.5), rel_tol=1e-5):
            graph.replace(group, Node("Gelu", node.name, [value], node.outputs))
            return True
    return False


def _gate_of_erf(graph: ImportGraph, one: Node | None, reader: Node) -> list[Node] | None:
    """Return the nodes of 1 + Erf(factor · x), of which only ``reader`` reads the last."""
    if one is None or one.op != "Add" or graph.only_reader(one.outputs[0]) is not reader:
        return None
    for index in range(2):
        constant, erf = graph.constants.get(one.inputs[1 - index]), graph.maker(one.inputs[index])
        if constant is None or constant.size != 1 or float(constant.reshape(-1)[0]) != 1 or erf is None or erf.op != "Erf":
            continue
        scaled = graph.maker(erf.inputs[0])
        if scaled is not None and graph.only_reader(erf.outputs[0]) is one and graph.only_reader(scaled.outputs[0]) is erf:
            return [scaled, erf, one]
    return None


def _factor_of(graph: ImportGraph, node: Node) -> tuple[str, float] | None:
    """Return the value and the number of a Mul or Div of both."""
    if node.op not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    for index in range(1 if node.op == "Div" else 2):
        constant = graph.constants.get(node.inputs[1 - index])
        if constant is not None and constant.size == 1:
            number = float(constant.reshape(-1)[0])
            return node.inputs[index], 1 / number if node.op == "Div" and number else number
    return None


def merge_channel_shuffle(graph: ImportGraph, node: Node) -> bool:
    """Reshape to (N, g, C / g, …), Transpose of the middle axes, Reshape back: ChannelShuffle."""
    if node.op != "Reshape":
        return False
    turned = graph.maker(node.inputs[0])
    split = graph.maker(turned.inputs[0]) if turned is not None and turned.op == "Transpose" else None
    if turned is None or split is None or split.op != "Reshape":
        return False
    if graph.only_reader(split.outputs[0]) is not turned or graph.only_reader(turned.outputs[0]) is not node:
        return False
    shape, rows = graph.shapes[split.inputs[0]], graph.shapes[split.outputs[0]]
    order: Any = list(turned.attributes.get("perm", []))
    whole = len(rows) == len(shape) + 1 and rows[0] == shape[0] and rows[3:] == shape[2:] and graph.shapes[node.outputs[0]] == shape
    if not whole or order != [0, 2, 1, *range(3, len(rows))]:
        return False
    graph.replace([split, turned, node], Node("ChannelShuffle", node.name, [split.inputs[0]], node.outputs, {"group": rows[1]}))
    return True


def merge_pad(graph: ImportGraph, node: Node) -> bool:
    """Merge a Pad of zeros around maps that only a Conv reads into the padding of the Conv."""
    if node.op != "Conv" or str(node.attributes.get("auto_pad", "NOTSET")) != "NOTSET":
        return False
    pads = _pads_before(graph, node, lambda value: value == 0)
    if pads is None:
        return False
    pad, amounts = pads
    own = list(node.attributes.get("pads", [0] * len(amounts)))
    attributes = {**node.attributes, "pads": [a + b for a, b in zip(own, amounts, strict=True)]}
    graph.replace([pad, node], Node("Conv", node.name, [pad.inputs[0], *node.inputs[1:]], node.outputs, attributes))
    return True


def merge_pool_pad(graph: ImportGraph, node: Node) -> bool:
    """Merge a Pad of a number below all values around maps that only a MaxPool reads into the padding of the MaxPool."""
    if node.op != "MaxPool" or str(node.attributes.get("auto_pad", "NOTSET")) != "NOTSET":
        return False
    pads = _pads_before(graph, node, lambda value: value < -1e30)
    if pads is None:
        return False
    pad, amounts = pads
    own = list(node.attributes.get("pads", [0] * len(amounts)))
    attributes = {**node.attributes, "pads": [a + b for a, b in zip(own, amounts, strict=True)]}
    graph.replace([pad, node], Node("MaxPool", node.name, [pad.inputs[0]], node.outputs, attributes))
    return True


def merge_directions(graph: ImportGraph, node: Node) -> bool:
    """Merge what brings a recurrent node's output (T, directions, N, D) to (T, N, directions · D) into it, ``joined``.

    A Squeeze or Reshape of one direction, or Transpose and Reshape.
    """
    if node.op not in ("Reshape", "Squeeze"):
        return False
    turned = graph.maker(node.inputs[0])
    maker = graph.maker(turned.inputs[0]) if turned is not None and turned.op == "Transpose" else turned
    if turned is None or maker is None or maker.op not in ("LSTM", "GRU", "RNN") or "joined" in maker.attributes:
        return False
    value = maker.outputs[0]
    steps, directions, batch, hidden = graph.shapes.get(value, (0, 0, 0, 0))
    if node.inputs[0] not in (value, turned.outputs[0]) or graph.shapes[node.outputs[0]] != (steps, batch, directions * hidden):
        return False
    straight = turned is maker
    if graph.only_reader(value) is not (node if straight else turned) or graph.only_reader(node.inputs[0]) is not node:
        return False
    if directions > 1 if straight else list(turned.attributes.get("perm", [])) != [0, 2, 1, 3]:
        return False
    outputs = [node.outputs[0], *maker.outputs[1:]]
    merged = Node(maker.op, maker.name, maker.inputs, outputs, {**maker.attributes, "joined": 1})
    # In the place of the LSTM, since other nodes may read its last state.
    graph.nodes[graph.nodes.index(maker)] = merged
    graph.nodes = [kept for kept in graph.nodes if kept is not node and kept is not turned]
    graph.forget_readers()
    return True


def _pads_before(graph: ImportGraph, node: Node, wanted: Callable[[float], bool]) -> tuple[Node, list[int]] | None:
    """Return a Pad of maps by a constant that is ``wanted``, which only ``node`` reads, and its amounts: begins, then ends."""
    pad = graph.maker(node.inputs[0])
    if pad is None or pad.op != "Pad" or graph.only_reader(pad.outputs[0]) is not node:
        return None
    axes = len(graph.shapes[pad.inputs[0]])
    if str(pad.attributes.get("mode", "constant")) != "constant" or not wanted(pad_value(pad, graph.constants)):
        return None
    full = pad_amounts(pad, axes, graph.constants)
    if min(full) < 0 or any(full[:2]) or any(full[axes : axes + 2]):
        return None
    return pad, [*full[2:axes], *full[axes + 2 :]]
