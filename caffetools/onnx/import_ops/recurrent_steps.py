"""GRU, and LSTM and RNN with settings that Caffe's layers do not have: written step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.activation import ELU, ReLU
from caffetools.layers.concat import Concat, Slice
from caffetools.layers.eltwise import Eltwise
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.scale import Scale
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter
from caffetools.onnx.import_ops.activation import PLAIN, add_clip, add_hard_sigmoid, power, product

Array = NDArray[Any]

GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "i"}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# Functions with numbers of their own, and what those are where none are given.
_NUMBERS = {
    "Affine": {"alpha": 1.0, "beta": 0.0},
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "ScaledTanh": {"alpha": 1.0, "beta": 1.0},
}
_FUNCTIONS = ("Relu", "Sigmoid", "Softplus", "Tanh", *_NUMBERS)
# Every step has weights of its own in the file; those of all steps up to which one is written (256 MB).
_MOST_WEIGHTS = 1 << 26
# Steps up to which they are written one by one; a net of more takes minutes to load.
_MOST_STEPS = 512


@dataclass(frozen=True)
class Shape:
    """Steps, streams (the batch) and hidden values of one direction."""

    steps: int
    batch: int
    hidden: int


@dataclass(frozen=True)
class Direction:
    """Blobs of one direction, in the order of the model's steps: y (T, N, D), and the last states (1, N, D)."""

    y: str
    last: list[str]


@dataclass(frozen=True)
class Function:
    """An activation, and its numbers ``alpha`` and ``beta``, as far as it has any."""

    name: str
    numbers: dict[str, float]


def activations(node: Node) -> Iterator[list[Function]]:
    """Yield the activations of each direction."""
    usual = ACTIVATIONS[node.op]
    names = [str(name) for name in node.attributes.get("activations", usual * 2)]
    given = {key: iter(node.attributes.get(f"activation_{key}", ())) for key in ("alpha", "beta")}
    functions = []
    for name in names:
        known = next((function for function in _FUNCTIONS if function.lower() == name.lower()), name)
        numbers = {key: float(next(given[key], default)) for key, default in _NUMBERS.get(known, {}).items()}
        functions.append(Function(known, numbers))
    for first in range(0, len(functions), len(usual)):
        yield functions[first : first + len(usual)]


def is_unrolled(writer: NetWriter, node: Node) -> bool:
    """Return whether Caffe's layers do not have what the node asks for, so that it is written step by step."""
    usual = ACTIVATIONS[node.op]
    if node.op == "GRU" or any([function.name for function in functions] != usual for functions in activations(node)):
        return True
    if float(node.attributes.get("clip", 0.0)) or int(node.attributes.get("input_forget", 0)):
        return True
    peepholes = writer.constant(node, 7)
    return node.op == "LSTM" and len(node.inputs) > 7 and bool(node.inputs[7]) and (peepholes is None or bool(peepholes.any()))


def add_steps(writer: NetWriter, node: Node, shape: Shape, index: int, reverse: bool, states: list[str]) -> Direction:
    """Add the layers of direction ``index``, step by step.

    Args:
        writer: Receives them.
        node: A GRU, LSTM or RNN.
        shape: Its sizes.
        index: The direction, among those of the weights.
        reverse: Whether it begins with the last step.
        states: Blobs (1, N, D) of its first states; none for zeros.

    Raises:
        ImportFailed: There are too many steps, or an activation has no layers.
    """
    steps = _Steps(writer, node, shape, index)
    parts = steps.input_parts()
    order = range(shape.steps)[::-1] if reverse else range(shape.steps)
    state: list[str | None] = [*states] if states else [None] * (2 if node.op == "LSTM" else 1)
    outputs: list[str] = [""] * shape.steps
    for step in order:
        state = [*steps.add({gate: rows[step] for gate, rows in parts.items()}, state)]
        outputs[step] = str(state[0])
    last = [str(blob) for blob in state]
    if shape.steps == 1:
        return Direction(outputs[0], last)
    joined = writer.layer(node, Concat.TYPE, outputs, last=False, hint="steps")
    joined.concat_param.axis = 0
    return Direction(str(joined.top[0]), last)


class _Steps:
    """The layers of one direction's steps."""

    def __init__(self, writer: NetWriter, node: Node, shape: Shape, index: int):
        self.writer, self.node, self.shape = writer, node, shape
        self.gates, hidden = GATES[node.op], shape.hidden
        weights = shape.steps * len(self.gates) * hidden * hidden
        if shape.steps > _MOST_STEPS or weights > _MOST_WEIGHTS:
            raise node.error(
                f"Caffe has no such layer, and written step by step its {shape.steps} steps would take {weights} weights; "
                f"there may be {_MOST_STEPS} steps and {_MOST_WEIGHTS} weights"
            )
        self.functions = list(activations(node))[index]
        if unknown := [function.name for function in self.functions if function.name not in _FUNCTIONS]:
            raise node.error(f"its activation {unknown[0]} is not one of {', '.join(_FUNCTIONS)}")
        self.clip = float(node.attributes.get("clip", 0.0))
        self.linear_first = bool(node.attributes.get("linear_before_reset", 0))
        self.coupled = bool(node.attributes.get("input_forget", 0))
        self.of_input = self._by_gate(writer.required(node, 1, "weights")[index])
        self.of_state = self._by_gate(writer.required(node, 2, "weights")[index])
        given = self._optional(3, "bias")
        both = np.zeros((2, len(self.gates) * hidden), np.float32) if given is None else given[index].reshape(2, -1)
        self.bias, self.state_bias = (self._by_gate(row[:, None]) for row in both)
        peepholes = self._optional(7, "peepholes") if node.op == "LSTM" else None
        self.peepholes = {} if peepholes is None else dict(zip("iof", peepholes[index].reshape(3, hidden), strict=True))

    def _optional(self, place: int, what: str) -> Array | None:
        given = len(self.node.inputs) > place and self.node.inputs[place]
        return self.writer.required(self.node, place, what) if given else None

    def _by_gate(self, rows: Array) -> dict[str, Array]:
        return dict(zip(self.gates, rows.reshape(len(self.gates), self.shape.hidden, -1), strict=True))

    def input_parts(self) -> dict[str, list[str]]:
        """Add what the gates take of x (T, N, I); gives gate → the blob (1, N, D) of each step."""
        x, parts = self.writer.blob(self.node, self.node.inputs[0]), {}
        for gate, weight in self.of_input.items():
            bias = self.bias[gate][:, 0].astype(np.float64)
            if not (gate == "h" and self.linear_first):
                bias = bias + self.state_bias[gate][:, 0]
            whole = self._product(x, weight, bias, "x")
            parts[gate] = [whole]
            if self.shape.steps > 1:
                layer = self.writer.layer(self.node, Slice.TYPE, [whole], last=False, hint="step", tops=self.shape.steps)
                layer.slice_param.axis = 0
                parts[gate] = list(layer.top)
        return parts

    def add(self, parts: dict[str, str], state: list[str | None]) -> tuple[str, ...]:
        """Add one step: the parts of x and the state before, None for zeros, give the state after."""
        if self.node.op == "GRU":
            return (self._gru(parts, state[0]),)
        if self.node.op == "RNN":
            return (self._activated(0, self._with_state("i", parts["i"], state[0])),)
        return self._lstm(parts, state[0], state[1])

    def _gru(self, parts: dict[str, str], h: str | None) -> str:
        z, r = (self._activated(0, self._with_state(gate, parts[gate], h)) for gate in "zr")
        if self.linear_first:
            bias = self.state_bias["h"][:, 0]
            gated = self._scaled(r, bias) if h is None else product(self.writer, self.node, [r, self._of_state("h", h, bias)], last=False)
            candidate = self._sum([parts["h"], gated])
        elif h is None:
            candidate = parts["h"]
        else:
            candidate = self._sum([parts["h"], self._of_state("h", product(self.writer, self.node, [r, h], last=False))])
        n = self._activated(1, candidate)
        # (1 - z) · n + z · h = n + z · (h - n).
        change = power(self.writer, self.node, n, scale=-1, last=False) if h is None else self._sum([h, n], [1, -1])
        return self._sum([n, product(self.writer, self.node, [z, change], last=False)])

    def _lstm(self, parts: dict[str, str], h: str | None, c: str | None) -> tuple[str, str]:
        i = self._activated(0, self._peep("i", self._with_state("i", parts["i"], h), c))
        new = product(self.writer, self.node, [i, self._activated(1, self._with_state("c", parts["c"], h))], last=False)
        if c is not None:
            if self.coupled:
                f = power(self.writer, self.node, i, scale=-1, shift=1, last=False)
            else:
                f = self._activated(0, self._peep("f", self._with_state("f", parts["f"], h), c))
            new = self._sum([product(self.writer, self.node, [f, c], last=False), new])
        o = self._activated(0, self._peep("o", self._with_state("o", parts["o"], h), new))
        return product(self.writer, self.node, [o, self._activated(2, new, clipped=False)], last=False), new

    def _with_state(self, gate: str, part: str, h: str | None) -> str:
        return part if h is None else self._sum([part, self._of_state(gate, h)])

    def _of_state(self, gate: str, blob: str, bias: Array | None = None) -> str:
        return self._product(blob, self.of_state[gate], bias, "h")

    def _peep(self, gate: str, blob: str, c: str | None) -> str:
        if c is None or gate not in self.peepholes:
            return blob
        return self._sum([blob, self._scaled(c, self.peepholes[gate])])

    def _product(self, blob: str, weight: Array, bias: Array | None, hint: str) -> str:
        weights = [weight, *([] if bias is None else [bias])]
        layer = self.writer.layer(self.node, InnerProduct.TYPE, [blob], last=False, hint=hint, weights=weights)
        param = layer.inner_product_param
        param.num_output, param.bias_term, param.axis = self.shape.hidden, bias is not None, 2
        return str(layer.top[0])

    def _scaled(self, blob: str, factor: Array) -> str:
        layer = self.writer.layer(self.node, Scale.TYPE, [blob], last=False, hint="scaled", weights=[factor])
        layer.scale_param.axis = 2
        return str(layer.top[0])

    def _sum(self, blobs: list[str], coefficients: list[int] | None = None) -> str:
        layer = self.writer.layer(self.node, Eltwise.TYPE, blobs, last=False, hint="sum")
        layer.eltwise_param.coeff.extend(coefficients or [])
        return str(layer.top[0])

    def _activated(self, place: int, blob: str, *, clipped: bool = True) -> str:
        """Add activation ``place`` of the direction."""
        writer, node, function = self.writer, self.node, self.functions[place]
        if self.clip and clipped:
            blob = add_clip(writer, node, blob, -self.clip, self.clip, last=False)
        numbers = function.numbers
        if function.name == "Affine":
            return power(writer, node, blob, scale=numbers["alpha"], shift=numbers["beta"], last=False)
        if function.name == "HardSigmoid":
            return add_hard_sigmoid(writer, node, blob, last=False, **numbers)
        if function.name == "ScaledTanh":
            inner = power(writer, node, blob, scale=numbers["beta"], last=False)
            outer = writer.layer(node, PLAIN["Tanh"].TYPE, [inner], last=False).top[0]
            return power(writer, node, outer, scale=numbers["alpha"], last=False)
        kind = {"Elu": ELU, "LeakyRelu": ReLU}.get(function.name) or PLAIN[function.name]
        layer = writer.layer(node, kind.TYPE, [blob], last=False)
        if function.name == "Elu":
            layer.elu_param.alpha = numbers["alpha"]
        if function.name == "LeakyRelu":
            layer.relu_param.negative_slope = numbers["alpha"]
        return str(layer.top[0])
