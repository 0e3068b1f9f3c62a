"""Groups of ONNX nodes that one Caffe layer computes, merged before the import."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from caffetools.onnx.import_graph import ImportGraph, Node

Pattern = Callable[[ImportGraph, Node], bool]


def merge_patterns(graph: ImportGraph) -> None:
    """Merge all groups, each found from its last node."""
    for pattern in (merge_bias, merge_swish, merge_channel_shuffle, merge_pad):
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
    pad = graph.maker(node.inputs[0]) if node.op == "Conv" else None
    if (
        pad is None
        or pad.op != "Pad"
        or graph.only_reader(pad.outputs[0]) is not node
        or str(node.attributes.get("auto_pad", "NOTSET")) != "NOTSET"
    ):
        return False
    amounts = pad.attributes.get("pads")
    given = graph.constants.get(pad.inputs[1]) if len(pad.inputs) > 1 else None
    numbers = [int(n) for n in (given.reshape(-1) if given is not None else amounts if amounts is not None else [])]
    value = graph.constants.get(pad.inputs[2]) if len(pad.inputs) > 2 else None
    constant = float(np.asarray(value).reshape(-1)[0]) if value is not None and np.size(value) else float(pad.attributes.get("value", 0.0))
    axes = len(graph.shapes[pad.inputs[0]])
    plain = str(pad.attributes.get("mode", "constant")) == "constant" and not constant and not (len(pad.inputs) > 3 and pad.inputs[3])
    if not plain or len(numbers) != 2 * axes or min(numbers) < 0 or any(numbers[:2]) or any(numbers[axes : axes + 2]):
        return False
    own = list(node.attributes.get("pads", [0] * 2 * (axes - 2)))
    pads = [a + b for a, b in zip(own, [*numbers[2:axes], *numbers[axes + 2 :]], strict=True)]
    graph.replace([pad, node], Node("Conv", node.name, [pad.inputs[0], *node.inputs[1:]], node.outputs, {**node.attributes, "pads": pads}))
    return True
