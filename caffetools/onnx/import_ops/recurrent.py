"""LSTM, GRU and RNN of ONNX: a layer for each direction, or layers for each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffetools.layers.concat import Concat
from caffetools.layers.crop import Tile
from caffetools.layers.recurrent import LSTM, RNN
from caffetools.layers.reduction import Reduction
from caffetools.layers.reshape import Reshape
from caffetools.layers.scale import Bias
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.activation import power
from caffetools.onnx.import_ops.axes import take
from caffetools.onnx.import_ops.recurrent_steps import GATES, Direction, Shape, add_steps, is_unrolled
from caffetools.onnx.import_ops.shape import add_reshape
from caffetools.onnx.import_ops.slicing import cut

Array = NDArray[Any]

# ONNX's gates i, o, f, c in the order of Caffe's i, f, o, g.
_ORDER = {"LSTM": [0, 2, 1, 3], "RNN": [0]}
# Inputs of an ONNX node that hold its first state: h, and c of an LSTM.
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
# Caffe's RNN gives tanh(W_o h + b_o) where ONNX's gives h. With W_o of 1 / 4096, tanh is its argument up to a factor of 1 − 2e-8,
# which float32 cannot hold, and a multiplication by a power of two is exact.
_NEARLY_LINEAR = 4096.0


@importer("LSTM", "GRU", "RNN")
def recurrent(writer: NetWriter, node: Node) -> None:
    """Add a layer of Caffe for each direction, or the layers of all its steps where Caffe has none."""
    weights = writer.required(node, 1, "weights")
    steps, batch, _ = writer.shape(node.inputs[0])
    shape = Shape(steps, batch, int(weights.shape[1]) // len(GATES[node.op]))
    _refuse_lengths(writer, node, steps)
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[str(node.attributes.get("direction", "forward"))]
    parts = (_unrolled if is_unrolled(writer, node) else _as_layers)(writer, node, shape, backwards)
    _give(writer, node, [part.y for part in parts], shape)
    for index in range(len(_STATES[node.op])):
        if value := _needed(writer, node, 1 + index):
            joined = [part.last[index] for part in parts]
            target = replace(node, outputs=[value])
            if len(joined) == 1:
                writer.set_blob(value, joined[0])
            else:
                writer.layer(target, Concat.TYPE, joined, hint="last").concat_param.axis = 0


def _as_layers(writer: NetWriter, node: Node, shape: Shape, backwards: list[bool]) -> list[Direction]:
    """Add a layer for each direction; the one backwards reads and gives the steps in reverse order, by Slice and Concat."""
    exposed = _has_first_state(writer, node) or bool(_needed(writer, node, 2))
    cont = _cont(writer, node, shape, continued=exposed)
    zeros = _zeros(writer, node, shape, cont) if exposed else ""
    return [_direction(writer, node, shape, cont, index, reverse, zeros) for index, reverse in enumerate(backwards)]


def _unrolled(writer: NetWriter, node: Node, shape: Shape, backwards: list[bool]) -> list[Direction]:
    """Add the layers of all steps of each direction."""
    zeros = _zeros(writer, node, shape, _cont(writer, node, shape, continued=True)) if _has_first_state(writer, node) else ""
    parts = []
    for index, reverse in enumerate(backwards):
        states = [_first_state(writer, node, zeros, state, index) for state in _STATES[node.op]] if zeros else []
        parts.append(add_steps(writer, node, shape, index, reverse, states))
    return parts


def _needed(writer: NetWriter, node: Node, index: int) -> str:
    """Return the name of an output that something reads, else ``""``."""
    name = node.outputs[index] if index < len(node.outputs) else ""
    return name if name and (writer.graph.readers(name) or name in writer.graph.outputs) else ""


def _refuse_lengths(writer: NetWriter, node: Node, steps: int) -> None:
    """Raise for sequences of different lengths."""
    lengths = writer.constant(node, 4)
    if (len(node.inputs) > 4 and node.inputs[4] and lengths is None) or (lengths is not None and (lengths != steps).any()):
        raise node.error(f"its sequences have lengths of their own (sequence_lens), and layers run all {steps} steps")


def _has_first_state(writer: NetWriter, node: Node) -> bool:
    """Whether the first state is other than zeros."""
    for index in _STATES[node.op]:
        if index < len(node.inputs) and node.inputs[index]:
            constant = writer.constant(node, index)
            if constant is None or constant.any():
                return True
    return False


def _cont(writer: NetWriter, node: Node, shape: Shape, *, continued: bool) -> str:
    """Return a blob (T, N) of continuation indicators: 0 at the first step and 1 after it, or 1 at all; made of x, so that it has any batch size."""
    sums = writer.layer(node, Reduction.TYPE, [writer.blob(node, node.inputs[0])], last=False, hint="steps")
    sums.reduction_param.axis = 2
    constant = power(writer, node, sums.top[0], scale=0, shift=1 if continued else 0, last=False)
    if continued:
        return constant
    after = np.ones(shape.steps, np.float32)
    after[0] = 0
    layer = writer.layer(node, Bias.TYPE, [constant], last=False, hint="cont", weights=[after])
    layer.bias_param.axis = 0
    return str(layer.top[0])


def _direction(writer: NetWriter, node: Node, shape: Shape, cont: str, index: int, reverse: bool, zeros: str) -> Direction:
    """Add the layer of direction ``index``; with ``zeros``, a state of zeros, its states are bottoms and tops."""
    x = writer.blob(node, node.inputs[0])
    back = list(range(shape.steps))[::-1]
    turned = reverse and shape.steps > 1
    if turned:
        x = take(writer, node, x, 0, shape.steps, back, last=False)
    states = [_first_state(writer, node, zeros, state, index) for state in _STATES[node.op]] if zeros else []
    kind = LSTM.TYPE if node.op == "LSTM" else RNN.TYPE
    weights = _weights(writer, node, shape, index)
    layer = writer.layer(node, kind, [x, cont, *states], last=False, hint="backward" if reverse else "forward", weights=weights, tops=1)
    layer.recurrent_param.num_output = shape.hidden
    name = layer.top[0]
    if zeros:
        layer.recurrent_param.expose_hidden = True
        layer.top.extend(f"{name}_{state}" for state in ("h", "c")[: len(states)])
    last = list(layer.top[1:])
    if node.op == "RNN":
        name = power(writer, node, name, scale=_NEARLY_LINEAR, last=False)
    if not zeros and _needed(writer, node, 1):
        last = [name if shape.steps == 1 else cut(writer, node, name, 0, shape.steps, shape.steps - 1, shape.steps, last=False)]
    return Direction(take(writer, node, name, 0, shape.steps, back, last=False) if turned else name, last)


def _weights(writer: NetWriter, node: Node, shape: Shape, index: int) -> list[Array]:
    """Return the layer's parameters: W_x, b, W_h, and W_o and b_o of an RNN."""
    hidden, order = shape.hidden, _ORDER[node.op]

    def ordered(array: Array) -> Array:
        return array.reshape(len(order), hidden, -1)[order].reshape(len(order) * hidden, -1)

    given = writer.constant(node, 3)
    if given is None and len(node.inputs) > 3 and node.inputs[3]:
        raise node.error("its bias must be constant")
    both = np.zeros(2 * len(order) * hidden) if given is None else given[index].astype(np.float64)
    bias = ordered(both.reshape(2, -1).sum(0)).reshape(-1)
    weights = [ordered(writer.required(node, 1, "weights")[index]), bias, ordered(writer.required(node, 2, "weights")[index])]
    if node.op == "RNN":
        weights += [np.eye(hidden, dtype=np.float32) / np.float32(_NEARLY_LINEAR), np.zeros(hidden, np.float32)]
    return weights


def _zeros(writer: NetWriter, node: Node, shape: Shape, cont: str) -> str:
    """Return a state (1, N, D) of zeros, made of ``cont``, so that it has any batch size."""
    step = cont if shape.steps == 1 else cut(writer, node, cont, 0, shape.steps, 0, 1, last=False)
    column = writer.layer(node, Reshape.TYPE, [step], last=False, hint="column")
    column.reshape_param.shape.dim.extend([0, 0, 1])
    zero = power(writer, node, column.top[0], scale=0, last=False)
    wide = writer.layer(node, Tile.TYPE, [zero], last=False, hint="zeros")
    wide.tile_param.axis, wide.tile_param.tiles = 2, shape.hidden
    return str(wide.top[0])


def _first_state(writer: NetWriter, node: Node, zeros: str, place: int, index: int) -> str:
    """Return the blob (1, N, D) of a direction's first state, from input ``place`` of the node."""
    name = node.inputs[place] if place < len(node.inputs) else ""
    constant = writer.constant(node, place)
    if name and constant is None:
        blob, directions = writer.blob(node, name), writer.shape(name)[0]
        return blob if directions == 1 else cut(writer, node, blob, 0, directions, index, index + 1, last=False)
    if constant is None or not constant[index].any():
        return zeros
    if (constant[index] != constant[index][:1]).any():
        raise node.error("its first state is a constant that differs from item to item")
    layer = writer.layer(node, Bias.TYPE, [zeros], last=False, hint="state", weights=[constant[index][0]])
    layer.bias_param.axis = 2
    return str(layer.top[0])


def _give(writer: NetWriter, node: Node, blobs: list[str], shape: Shape) -> None:
    """Let the node's first output be the outputs of all directions: (T, directions, N, D), or (T, N, directions · D) where that was merged into it."""
    value = _needed(writer, node, 0)
    if not value:
        return
    target = replace(node, outputs=[value])
    if node.attributes.get("joined"):
        if len(blobs) == 1:
            writer.set_blob(value, blobs[0])
        else:
            writer.layer(target, Concat.TYPE, blobs).concat_param.axis = 2
        return
    source, wide = (shape.steps, shape.batch, shape.hidden), (shape.steps, 1, shape.batch, shape.hidden)
    if len(blobs) == 1:
        add_reshape(writer, target, blobs[0], source, wide, batch=(1, 2))
        return
    rows = [add_reshape(writer, target, blob, source, wide, batch=(1, 2), last=False) for blob in blobs]
    writer.layer(target, Concat.TYPE, rows)
