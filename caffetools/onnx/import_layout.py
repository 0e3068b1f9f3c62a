"""Maps whose channels are last: the nodes between two Transposes are rewritten for channels at axis 1, so that no axes move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.base import Shape
from caffetools.onnx.import_graph import ImportGraph, Node

Array = NDArray[Any]
Order = tuple[int, ...]

# Channels last to channels first, and back.
_FIRST: Order = (0, 3, 1, 2)
_LAST: Order = (0, 2, 3, 1)

_OF_ONE = frozenset(
    "Abs Cast Celu Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Pow Reciprocal Relu Selu Sigmoid "  # noqa: SIM905
    "Softplus Softsign Sqrt Swish Tanh".split()
)
_OF_TWO = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min"))


def channels_first(graph: ImportGraph) -> dict[str, Order]:
    """Rewrite the nodes after Transposes of maps, and inputs whose channels are last.

    Returns:
        Input → the order of the model's axes in the net, for inputs whose axes were moved.
    """
    rewriter = _Rewriter(graph)
    moved = {name: _FIRST for name in graph.inputs if _only_transposed(graph, name)}
    for name, order in moved.items():
        # The net's input has its channels first; its name remains.
        rewriter.store(name, name, order)
        graph.inputs[name] = _permuted(graph.inputs[name], order)
    if not moved and not any(node.op == "Transpose" for node in graph.nodes):
        return moved
    nodes = list(graph.nodes)
    graph.nodes = []
    for node in nodes:
        rewriter.add(node)
    rewriter.restore_outputs()
    graph.forget_readers()
    for name, order in moved.items():
        graph.shapes[name] = graph.inputs[name]
        graph.sample[name] = np.ascontiguousarray(graph.sample[name].transpose(order))
    return moved


def _only_transposed(graph: ImportGraph, name: str) -> bool:
    """Whether every way from an input leads through operators of single values to a Transpose of its channels to axis 1."""
    if len(graph.inputs[name]) != 4:
        return False
    waiting, found = [name], False
    while waiting:
        value = waiting.pop()
        if value in graph.outputs or graph.shapes[value] != graph.inputs[name]:
            return False
        for node in graph.readers(value):
            if node.op == "Transpose":
                if tuple(node.attributes.get("perm", ())) != _FIRST:
                    return False
                found = True
            elif len(node.outputs) > 1:
                return False
            elif node.op in _OF_ONE or (node.op in _OF_TWO and _constant_of(graph, node) is not None):
                waiting.append(node.outputs[0])
            else:
                return False
    return found


def _constant_of(graph: ImportGraph, node: Node) -> Array | None:
    """Return the constant of an operator of a value and a constant."""
    found = [graph.constants[name] for name in node.inputs if name in graph.constants]
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None


def _permuted(shape: Shape, order: Order) -> Shape:
    return tuple(shape[axis] for axis in order)


class _Rewriter:
    """Values that are stored with their axes in another order than the model's, and nodes that read and make such values."""

    def __init__(self, graph: ImportGraph):
        self.graph = graph
        # Value → the name of the one that is stored, and the order of the model's axes in it.
        self.stored: dict[str, tuple[str, Order]] = {}
        self.restored: set[str] = set()
        # Value → the Transpose that asked for its order, for errors.
        self.asked: dict[str, str] = {}
        self.number = 0

    def store(self, value: str, name: str, order: Order) -> None:
        self.stored[value] = name, order
        if name != value:
            self.graph.shapes[name] = _permuted(self.graph.shapes[value], order)
            self.graph.sample[name] = np.ascontiguousarray(self.graph.sample[value].transpose(order))

    def add(self, node: Node) -> None:
        """Add a node, in the order of its stored inputs where its operator allows that."""
        if node.op == "Transpose" and self._transposed(node):
            return
        orders = {self.stored[name][1] for name in node.inputs if name in self.stored}
        if len(orders) == 1 and len(node.outputs) == 1:
            order = orders.pop()
            made = self._in_order(node, order)
            if made is not None and made.outputs:
                self.graph.nodes.append(made)
                return
            if made is not None:
                name = f"{node.outputs[0]}/first"
                self.store(node.outputs[0], name, order)
                made.outputs = [name]
                self.graph.nodes.append(made)
                return
        for value in node.inputs:
            self._restore(value)
        self.graph.nodes.append(node)

    def restore_outputs(self) -> None:
        for value in self.graph.outputs:
            self._restore(value)

    def _transposed(self, node: Node) -> bool:
        """Note the order that a Transpose asks for, and add nothing; gives whether there is such an order."""
        source = node.inputs[0]
        self.asked[node.outputs[0]] = node.name
        order = tuple(int(n) for n in node.attributes.get("perm", ()))
        if source in self.stored:
            name, present = self.stored[source]
            # Axis i of the output is axis order[i] of the input, which is stored at this place.
            places = [order.index(axis) for axis in present]
            if places == sorted(places):
                self.graph.nodes.append(Node("Identity", node.name, [name], node.outputs))
            else:
                self.store(node.outputs[0], name, tuple(places))
            return True
        if order == _LAST:
            self.store(node.outputs[0], source, _FIRST)
            return True
        return False

    def _restore(self, value: str) -> None:
        """Add the Transpose that gives a stored value its own order, once."""
        if value not in self.stored or value in self.restored:
            return
        self.restored.add(value)
        name, order = self.stored[value]
        back = [order.index(axis) for axis in range(len(order))]
        self.graph.nodes.append(Node("Transpose", self.asked.get(value, value), [name], [value], {"perm": back}))

    def _in_order(self, node: Node, order: Order) -> Node | None:
        """Return the node for stored inputs; None where it has no such form. Its outputs are set where they are in the model's own order."""
        graph, name = self.graph, self.stored.get(node.inputs[0], ("", ()))[0]
        shape = graph.shapes[node.inputs[0]]
        made = replace(node, inputs=list(node.inputs), outputs=[], attributes=dict(node.attributes))
        made.inputs[0] = name or node.inputs[0]
        if node.op in _OF_ONE and name:
            return made
        if node.op in _OF_TWO and len(node.inputs) == 2:
            return self._of_two(made, node, order)
        if not name:
            return None
        if node.op in ("Softmax", "LogSoftmax") and graph.opset >= 13:
            made.attributes["axis"] = order.index(int(node.attributes.get("axis", -1)) % len(shape))
            return made
        if order == _FIRST and node.op == "MatMul":
            return self._matmul(made, node)
        axis = int(node.attributes.get("axis", -1)) % len(shape)
        if order == _FIRST and node.op == "LayerNormalization" and axis == len(shape) - 1:
            return replace(made, op="ChannelNormalization")
        if node.op.startswith("Reduce"):
            return self._reduction(made, node, order)
        return None

    def _of_two(self, made: Node, node: Node, order: Order) -> Node | None:
        output = self.graph.shapes[node.outputs[0]]
        for index, value in enumerate(node.inputs):
            constant = self.graph.constants.get(value)
            if value in self.stored:
                made.inputs[index] = self.stored[value][0]
            elif constant is not None:
                full = constant.reshape((1,) * (len(output) - constant.ndim) + constant.shape)
                made.inputs[index] = self._constant(full.transpose(order) if constant.size > 1 else constant)
            else:
                return None
        return made

    def _matmul(self, made: Node, node: Node) -> Node | None:
        weight = self.graph.constants.get(node.inputs[1])
        if weight is None or weight.ndim != 2:
            return None
        bias = node.attributes.get("bias")
        inputs = [made.inputs[0], self._constant(np.ascontiguousarray(weight.T)[:, :, None, None])]
        return Node("Conv", node.name, [*inputs, *([] if bias is None else [self._constant(bias)])], [])

    def _reduction(self, made: Node, node: Node, order: Order) -> Node | None:
        """Over axes that are kept, or whose removal leaves the others in the model's order."""
        axes = node.attributes.get("axes")
        if axes is None:
            given = self.graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
            axes = None if given is None else given.reshape(-1).tolist()
        if not axes:
            return None
        chosen = {int(axis) % len(order) for axis in axes}
        made.inputs = made.inputs[:1]
        made.attributes["axes"] = sorted(order.index(axis) for axis in chosen)
        if not int(node.attributes.get("keepdims", 1)):
            rest = [axis for axis in order if axis not in chosen]
            if rest != sorted(rest):
                return None
            made.outputs = list(node.outputs)
        return made

    def _constant(self, array: Array) -> str:
        self.number += 1
        name = f"constant/{self.number}/first"
        self.graph.constants[name], self.graph.shapes[name] = array, tuple(array.shape)
        return name
