"""Recurrent layers: LSTM, LSTMUnit, RNN (recurrent_layer.cpp and its kin)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import TEST, LayerParameter


class Recurrent(Layer):
    """What LSTM and RNN share: x (T, N, …), cont (T, N), perhaps x_static (N, …), to (T, N, num_output).

    Where cont is 0 a sequence begins, and the state before it does not count. The state lives on from one pass to the next;
    with ``expose_hidden`` it comes from further bottoms, and is written to further tops, each (1, N, num_output), without gradients.
    """

    BACKWARD_READS_BOTTOMS = False
    TRAITS = Traits(role="recurrent", settings="recurrent_param", outputs="num_output", weight_filler="weight_filler")
    BOTTOMS = (2, None)
    TOPS = (1, None)
    NO_GRADIENT = frozenset({1})
    REFUSES_GRADIENT = True
    # The number of tensors in the state.
    STATES = 1

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        steps, batch, settings = 3, 2, param.recurrent_param
        given = cls.STATES if settings.expose_hidden else 0
        static = len(param.bottom) > 2 + given
        return [(steps, batch, 4), (steps, batch), *[(batch, 4)] * static, *[(1, batch, settings.num_output)] * given]

    def __init__(self, param: LayerParameter, phase: int = TEST):
        super().__init__(param, phase)
        self._state: list[Tensor] = []

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.recurrent_param
        self.outputs, self.exposed = int(param.num_output), bool(param.expose_hidden)
        if self.outputs < 1:
            raise self.error("num_output must be at least 1")
        given = self.STATES if self.exposed else 0
        if len(bottoms) not in (2 + given, 3 + given) or len(self.tops) != 1 + given:
            raise self.error(
                f"takes x, cont, perhaps x_static, and {given} state bottom(s), and gives 1 + {given} top(s); "
                f"the prototxt has {len(bottoms)} and {len(self.tops)}"
            )
        self.static = len(bottoms) == 3 + given
        self._check(bottoms)
        steps, batch = bottoms[0][:2]
        self.declare_blobs(math.prod(bottoms[0][2:]), math.prod(bottoms[2][1:]) if self.static else None)
        return [(steps, batch, self.outputs), *[(1, batch, self.outputs)] * given]

    def _check(self, bottoms: Shapes) -> None:
        x, cont = bottoms[0], bottoms[1]
        if len(x) < 2 or cont != x[:2]:
            raise self.error(
                f"'{self.bottoms[0]}' must be T x N x …, '{self.bottoms[1]}' T x N, not {format_shape(x)} and {format_shape(cont)}"
            )
        if self.static and bottoms[2][:1] != (x[1],):
            raise self.error(
                f"'{self.bottoms[2]}' ({format_shape(bottoms[2])}) must have the {x[1]} streams of '{self.bottoms[0]}' ({format_shape(x)})"
            )
        state: Shape = (1, x[1], self.outputs)
        for name, shape in zip(self.bottoms[2 + self.static :], bottoms[2 + self.static :], strict=True):
            if shape != state:
                raise self.error(f"'{name}' is a state and must be {format_shape(state)}, not {format_shape(shape)}")

    def declare_blobs(self, inputs: int, static: int | None) -> None:
        """Declare the parameters for ``inputs`` values a step and ``static`` ones a stream."""
        raise NotImplementedError

    def step(self, x: Tensor, cont: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute one time step: x's part of the gates, cont (N, 1) and the state (N, D) give the output (N, D) and the next state."""
        raise NotImplementedError

    def gates(self, width: int, inputs: int, static: int | None) -> None:
        """Declare weights and bias of x, and weights of x_static, for ``width`` gate values."""
        param = self.param.recurrent_param
        self.declare_blob((width, inputs), param.weight_filler)
        self.declare_blob((width,), param.bias_filler)
        if static is not None:
            self.declare_blob((width, static), param.weight_filler)

    def forward(self, x: Tensor, cont: Tensor, *more: Tensor) -> Tensor | tuple[Tensor, ...]:
        steps, batch = x.shape[:2]
        parts = F.linear(x.reshape(steps, batch, -1), self.blobs[0], self.blobs[1])
        if self.static:
            parts = parts + F.linear(more[0].reshape(batch, -1), self.blobs[2])
        state = self._initial(x, more)
        outputs = []
        for t in range(steps):
            output, state = self.step(parts[t], cont[t].detach().unsqueeze(1), state)
            outputs.append(output)
        last = [s.detach() for s in state]
        self._state = last
        y = torch.stack(outputs)
        return (y, *(s.unsqueeze(0) for s in last)) if self.exposed else y

    ONNX_LIMITS = "every run starts with a state of zeros; with expose_hidden exact"

    def to_onnx(self, graph: OnnxGraph) -> None:
        """Add a Scan over the steps; without ``expose_hidden`` every run begins with a state of zeros."""
        if not self.exposed:
            graph.note(
                f"layer '{self.name}' starts every run with a state of zeros in ONNX, where Caffe continues from the run before; "
                "with expose_hidden the state is an input"
            )
        bottom, cont = self.bottoms[:2]
        rows, shown, y = graph.value("rows"), graph.value("cont"), self.tops[0]
        graph.reshape(bottom, rows, [0, 0, -1])
        parts = self._product_in_onnx(graph, rows, 0, bias=1)
        if self.static:
            flat, both = graph.value("static"), graph.value("both")
            graph.reshape(self.bottoms[2], flat, [0, -1])
            graph.node("Add", [parts, self._product_in_onnx(graph, flat, 2)], [both])
            parts = both
        graph.node("Unsqueeze", [cont], [shown], axes=[2])
        before = [self._state_in_onnx(graph, index) for index in range(self.STATES)]
        after = [graph.value("last") for _ in before]
        weights = [self._transposed_in_onnx(graph, index) for index in self._STEP_WEIGHTS]

        def step(states: list[str], slices: list[str]) -> tuple[list[str], list[str]]:
            return self.step_to_onnx(graph, slices[0], slices[1], states, weights)

        graph.scan(before, [parts, shown], after, [y], step)
        for name, top in zip(after, self.tops[1:], strict=False):
            graph.node("Unsqueeze", [name], [top], axes=[0])

    # The parameters that a step multiplies with.
    _STEP_WEIGHTS: tuple[int, ...] = (-1,)

    def step_to_onnx(self, graph: OnnxGraph, x: str, cont: str, states: list[str], weights: list[str]) -> tuple[list[str], list[str]]:
        """Return the nodes of :meth:`step`: gives the names of the next states and of the output."""
        raise NotImplementedError

    def _state_in_onnx(self, graph: OnnxGraph, index: int) -> str:
        state = graph.value("state")
        if self.exposed:
            graph.node("Squeeze", [self.bottoms[2 + self.static + index]], [state], axes=[0])
        else:
            shape = graph.sizes("state_shape", [graph.size(self.bottoms[0], 1), self.outputs])
            graph.node("ConstantOfShape", [shape], [state])
        return state

    def _transposed_in_onnx(self, graph: OnnxGraph, index: int) -> str:
        turned = graph.value("weights")
        graph.node("Transpose", [graph.parameter(self, index % len(self.blobs))], [turned], perm=[1, 0])
        return turned

    def _product_in_onnx(self, graph: OnnxGraph, value: str, index: int, bias: int | None = None) -> str:
        product = graph.value("product")
        graph.node("MatMul", [value, self._transposed_in_onnx(graph, index)], [product])
        if bias is None:
            return product
        total = graph.value("sum")
        graph.node("Add", [product, graph.parameter(self, bias)], [total])
        return total

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        return random.randint(0, 2, shape).astype(np.float32) if index == 1 else None

    def _initial(self, x: Tensor, more: tuple[Tensor, ...]) -> list[Tensor]:
        if self.exposed:
            return [s.detach().squeeze(0) for s in more[self.static :]]
        state = self._state
        if not state or state[0].shape[0] != x.shape[1]:
            return [x.new_zeros(x.shape[1], self.outputs) for _ in range(self.STATES)]
        return [s.to(x.device) for s in state]

    def reset(self) -> None:
        """Forget the state that was carried over from the last pass (Caffe's RecurrentLayer::Reset)."""
        self._state = []

    def get_state(self) -> dict[str, Any]:
        """Return what a run that is resumed has to give :meth:`set_state`: the state after the last pass."""
        return {"state": list(self._state)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`get_state` was called, maybe in another process."""
        self._state = [torch.as_tensor(part) for part in state["state"]]

    def macs(self) -> int:
        steps, batch = self.bottom_shapes[0][:2]
        matrices = [spec.shape for spec in self.specs if len(spec.shape) == 2]
        once = math.prod(self.specs[2].shape) * batch if self.static else 0
        return once + steps * batch * sum(math.prod(shape) for i, shape in enumerate(matrices) if not (self.static and i == 1))


@register("LSTM")
class LSTM(Recurrent):
    """Long short-term memory: gates i, f, o, g = W_x · x + b (+ W_s · x_static) + W_h · (cont · h); c and h as in :class:`LSTMUnit`.

    Blobs: W_x (4 D, inputs), b (4 D), W_s (4 D, static) if there is one, W_h (4 D, D). The state is h, c.
    Donahue et al. (2015); lstm_layer.cpp.
    """

    STATES = 2

    def declare_blobs(self, inputs: int, static: int | None) -> None:
        self.gates(4 * self.outputs, inputs, static)
        self.declare_blob((4 * self.outputs, self.outputs), self.param.recurrent_param.weight_filler)

    def step(self, x: Tensor, cont: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h, c = state
        c, h = lstm_unit(c, x + F.linear(h * cont, self.blobs[-1]), cont)
        return h, [h, c]

    def step_to_onnx(self, graph: OnnxGraph, x: str, cont: str, states: list[str], weights: list[str]) -> tuple[list[str], list[str]]:
        h, c = states
        kept, part, gates, next_c, next_h, y = (graph.value(s) for s in ("kept", "part", "gates", "c", "h", "y"))
        graph.node("Mul", [h, cont], [kept])
        graph.node("MatMul", [kept, weights[0]], [part])
        graph.node("Add", [x, part], [gates])
        lstm_unit_to_onnx(graph, c, gates, cont, self.outputs, 1, next_c, next_h)
        graph.node("Identity", [next_h], [y])
        return [next_h, next_c], [y]


@register("RNN")
class RNN(Recurrent):
    """h = tanh(W_x · x + b_h (+ W_s · x_static) + W_h · (cont · h)), y = tanh(W_o · h + b_o) at every step.

    Blobs: W_x (D, inputs), b_h (D), W_s (D, static) if there is one, W_h (D, D), W_o (D, D), b_o (D). The state is h. rnn_layer.cpp.
    """

    def declare_blobs(self, inputs: int, static: int | None) -> None:
        param = self.param.recurrent_param
        self.gates(self.outputs, inputs, static)
        self.declare_blob((self.outputs, self.outputs), param.weight_filler)
        self.declare_blob((self.outputs, self.outputs), param.weight_filler)
        self.declare_blob((self.outputs,), param.bias_filler)

    def step(self, x: Tensor, cont: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = torch.tanh(x + F.linear(state[0] * cont, self.blobs[-3]))
        return torch.tanh(F.linear(h, self.blobs[-2], self.blobs[-1])), [h]

    _STEP_WEIGHTS = (-3, -2)

    def step_to_onnx(self, graph: OnnxGraph, x: str, cont: str, states: list[str], weights: list[str]) -> tuple[list[str], list[str]]:
        kept, part, total, h, product, out, y = (graph.value(s) for s in ("kept", "part", "total", "h", "product", "out", "y"))
        graph.node("Mul", [states[0], cont], [kept])
        graph.node("MatMul", [kept, weights[0]], [part])
        graph.node("Add", [x, part], [total])
        graph.node("Tanh", [total], [h])
        graph.node("MatMul", [h, weights[1]], [product])
        graph.node("Add", [product, graph.parameter(self, len(self.blobs) - 1)], [out])
        graph.node("Tanh", [out], [y])
        return [h], [y]


@register("LSTMUnit")
class LSTMUnit(Layer):
    """One LSTM step: c = cont · f · c_prev + i · g, h = o · tanh(c); i, f, o the sigmoids and g the tanh of the gates' inputs.

    Bottoms c_prev (1, N, D), gates (1, N, 4 D) in the order i, f, o, g, and cont (1, N); tops c, h (1, N, D).
    As in lstm_unit_layer.cpp the forget gate's gradient is f' (1 − f') of f' = cont · f, which differs where cont is a fraction.
    """

    BACKWARD_READS_BOTTOMS = False
    TRAITS = Traits(role="recurrent")
    BOTTOMS = (3, 3)
    TOPS = (2, 2)
    NO_GRADIENT = frozenset({2})
    REFUSES_GRADIENT = True

    def setup(self, bottoms: Shapes) -> Shapes:
        c, gates, cont = bottoms
        if len(c) != 3 or c[0] != 1 or gates != (1, c[1], 4 * c[2]) or cont != (1, c[1]):
            raise self.error(
                f"needs c_prev 1 x N x D, gates 1 x N x 4D and cont 1 x N, not {format_shape(c)}, {format_shape(gates)} and {format_shape(cont)} "
                f"('{self.bottoms[0]}', '{self.bottoms[1]}', '{self.bottoms[2]}')"
            )
        return [c, c]

    def forward(self, c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_unit(c, gates, cont.detach().unsqueeze(-1))

    def to_onnx(self, graph: OnnxGraph) -> None:
        shown = graph.value("cont")
        graph.node("Unsqueeze", [self.bottoms[2]], [shown], axes=[2])
        lstm_unit_to_onnx(graph, self.bottoms[0], self.bottoms[1], shown, self.bottom_shapes[0][2], 2, *self.tops)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        return random.randint(0, 2, shape).astype(np.float32) if index == 2 else None


def lstm_unit_to_onnx(graph: OnnxGraph, c: str, gates: str, cont: str, outputs: int, axis: int, next_c: str, next_h: str) -> None:
    """Nodes for :func:`lstm_unit`; the gates of ``outputs`` values each lie along ``axis``, and cont has an axis of 1 there."""
    n = {s: graph.value(s) for s in ("i", "f", "o", "g", "si", "sf", "so", "tg", "cf", "old", "new", "tc")}
    graph.node("Split", [gates], [n["i"], n["f"], n["o"], n["g"]], axis=axis, split=[outputs] * 4)
    for source, target in (("i", "si"), ("f", "sf"), ("o", "so")):
        graph.node("Sigmoid", [n[source]], [n[target]])
    graph.node("Tanh", [n["g"]], [n["tg"]])
    graph.node("Mul", [n["sf"], cont], [n["cf"]])
    graph.node("Mul", [n["cf"], c], [n["old"]])
    graph.node("Mul", [n["si"], n["tg"]], [n["new"]])
    graph.node("Add", [n["old"], n["new"]], [next_c])
    graph.node("Tanh", [next_c], [n["tc"]])
    graph.node("Mul", [n["so"], n["tc"]], [next_h])


def lstm_unit(c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next c and h (…, D) from c, the gates' inputs (…, 4 D) and cont (…, 1); see :class:`LSTMUnit`."""
    i, f, o, g = gates.chunk(4, dim=-1)
    kept: Tensor = _ForgetGate.apply(f, cont)
    c = kept * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


class _ForgetGate(torch.autograd.Function):
    """f' = cont · sigmoid(x), with the gradient f' (1 − f') that Caffe gives it."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, cont: Tensor) -> Tensor:
        kept = torch.where(cont == 0, torch.zeros_like(x), torch.sigmoid(x) * cont)
        ctx.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grads[0] * kept * (1 - kept), None
