"""Running an inference plan's program: its operators bound to memory, one call after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from caffetools.layers import inference, native_conv
from caffetools.layers.native_conv import Layout
from caffetools.net.inference_program import Operator, Program, ToChannelsLast, Value


class ShapeChanged(Exception):
    """A layer gave a top of another shape than its shape rule: the net cannot run by a plan."""


class BoundProgram:
    """A program with memory of its own: what one thread runs at a time."""

    def __init__(self, program: Program):
        self.program = program
        self.arena = torch.empty(max(program.arena_floats, 1))
        scratch = max([o.conv.scratch_floats for o in program.operators if o.conv is not None], default=0)
        self.scratch = torch.empty(max(scratch, 1))
        self.tensors: dict[Value, Tensor] = {}
        self.pointers = {value: ctypes.c_void_p() for value in program.inputs.values()}
        self.steps: list[Callable[[], object]] = []
        if program.head:
            self._bind_head()
        for index, operator in enumerate(program.operators):
            if not operator.dropped and index >= program.head:
                self._bind(operator)

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = []
        for name, value in self.program.inputs.items():
            tensor = batch[name].contiguous()
            held.append(tensor)
            self.tensors[value] = tensor
            self.pointers[value].value = tensor.data_ptr()
        for step in self.steps:
            step()
        results = {name: self._result(value) for name, value in self.program.results.items()}
        self.tensors.clear()
        return results

    def _result(self, value: Value) -> Tensor:
        if value.root.offset is None:
            return self.tensors[value]
        return self._view(value).clone(memory_format=torch.contiguous_format)

    # ---- binding ----

    def _bind_head(self) -> None:
        program = self.program
        boundary = program.boundary
        assert boundary is not None and boundary.offset is not None  # noqa: S101 (a head ends in one)
        operators = [(i, o) for i, o in enumerate(program.operators[: program.head]) if not o.dropped]
        self._sizes: list[object] = []
        steps = [step for i, o in operators if (step := self._head_step(o, i)) is not None]
        self._head_steps = (native_conv.Step * len(steps))(*steps)
        scratch = max([o.conv.scratch_floats for _, o in operators if o.conv is not None], default=0)
        self._lanes = torch.empty(program.threads, max(program.head_floats, 1)), torch.empty(program.threads, max(scratch, 1))
        (value,), (given,) = program.inputs.values(), self.pointers.values()
        lanes = [number for memory in self._lanes for number in (memory.data_ptr(), memory.shape[1])]
        output = self.arena.data_ptr() + 4 * boundary.offset
        strides = value.size // program.repeats, boundary.size // program.repeats
        numbers = (ctypes.addressof(self._head_steps), len(steps), program.repeats, *lanes, given, strides[0], output, strides[1])
        self.steps.append(partial(native_conv.sequence_run(), *numbers, program.threads))

    def _head_step(self, operator: Operator, index: int) -> native_conv.Step | None:
        form = operator.form
        if isinstance(form, inference.ChannelConcat):
            return None  # its bottoms are written where it lies
        x, y = operator.inputs[0], operator.outputs[0]
        step = native_conv.Step(residual_place=-1)
        step.x_place, step.x = self._head_place(x)
        step.y_place, step.y = self._head_place(y)
        shapes = self.program.run_shape(x, index), self.program.run_shape(y, index)
        if operator.conv is not None:
            step.kind, step.handle = native_conv.CONVOLVE, operator.conv.handle
            if operator.residual is not None:
                step.residual_place, step.residual = self._head_place(operator.residual)
        elif isinstance(form, inference.Pool):
            step.kind, step.largest = native_conv.POOL, int(form.largest)
            step.sizes = self._kept_sizes(native_conv.pool_sizes(form, Layout(*shapes, x.pitch, y.pitch)))
        elif isinstance(form, inference.CrossChannelNorm):
            n, c, h, w = shapes[0]
            step.kind, step.alpha, step.beta, step.k = native_conv.NORMALIZE, form.alpha, form.beta, form.k
            step.sizes = self._kept_sizes((ctypes.c_int64 * 4)(n, c, h * w, form.size))
        return step

    def _kept_sizes(self, sizes: ctypes.Array[ctypes.c_int64]) -> Any:
        self._sizes.append(sizes)
        return ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))

    def _head_place(self, value: Value) -> tuple[int, int]:
        root = value.root
        if root.offset is None:
            return native_conv.INPUT, 0
        if root is self.program.boundary:
            return native_conv.OUTPUT, value.first_channel
        return native_conv.MEMORY, root.offset + value.first_channel

    def _bind(self, operator: Operator) -> None:
        form, threads = operator.form, self.program.threads
        if operator.conv is not None:
            residual = self._pointer(operator.residual) if operator.residual is not None else None
            x, y = operator.inputs[0], operator.outputs[0]
            pointers = self._pointer(x), self._pointer(y), residual, self.scratch.data_ptr()
            self.steps.append(partial(native_conv.conv_run(), operator.conv.handle, *pointers, threads))
        elif isinstance(form, inference.Pool):
            x, y = operator.inputs[0], operator.outputs[0]
            sizes = native_conv.pool_sizes(form, Layout(x.shape4, y.shape4, x.pitch, y.pitch))
            ends = self._pointer(x), self._pointer(y)
            self.steps.append(partial(native_conv.pool_run(), sizes, *ends, int(form.largest), threads))
        elif isinstance(form, inference.CrossChannelNorm) and self._dense(operator):
            x, y = operator.inputs[0], operator.outputs[0]
            n, c, h, w = x.shape4
            numbers = (n, c, h * w, 1, form.size, form.alpha, form.beta, form.k, threads)
            self.steps.append(partial(native_conv.lrn_run(), self._pointer(x), self._pointer(y), *numbers))
        elif isinstance(form, inference.ChannelConcat):
            self._bind_concat(operator)
        elif isinstance(form, inference.Sum):
            self.steps.append(partial(self._add, operator))
        elif isinstance(form, ToChannelsLast):
            self.steps.append(partial(self._copy, operator.inputs[0], self._view(operator.outputs[0])))
        else:
            self.steps.append(partial(self._run_layer, operator))

    def _dense(self, operator: Operator) -> bool:
        return all(value.pitch == value.shape4[1] for value in (*operator.inputs, *operator.outputs))

    def _bind_concat(self, operator: Operator) -> None:
        first = 0
        for value in operator.inputs:
            channels = value.shape4[1]
            if value.parent is None or value.parent[0] is not operator.outputs[0] or value.parent[1] != first:
                part = self._view(operator.outputs[0]).narrow(1, first, channels)
                self.steps.append(partial(self._copy, value, part))
            first += channels

    def _add(self, operator: Operator) -> None:
        x, other = operator.inputs
        torch.add(self._current(x), self._current(other), out=self._view(operator.outputs[0]))

    def _copy(self, value: Value, part: Tensor) -> None:
        part.copy_(self._current(value))

    def _run_layer(self, operator: Operator) -> None:
        assert operator.layer is not None  # noqa: S101 (only a channels-last copy has none)
        made = operator.layer.forward(*(self._current(value) for value in operator.inputs))
        for value, top in zip(operator.outputs, (made,) if isinstance(made, Tensor) else made, strict=True):
            if tuple(top.shape) != value.shape:
                raise ShapeChanged
            if value.root.offset is not None:
                view = self._view(value)
                if top.data_ptr() != view.data_ptr():
                    view.copy_(top)
            else:
                # A view of the arena would be overwritten by a later operator.
                shared = top.untyped_storage().data_ptr() == self.arena.untyped_storage().data_ptr()
                self.tensors[value] = top.clone() if shared else top

    def _current(self, value: Value) -> Tensor:
        return self._view(value) if value.root.offset is not None else self.tensors[value]

    def _pointer(self, value: Value) -> ctypes.c_void_p:
        root = value.root
        if root.offset is None:
            return self.pointers[value]
        return ctypes.c_void_p(self.arena.data_ptr() + 4 * (root.offset + value.first_channel))

    def _view(self, value: Value) -> Tensor:
        if value.root.offset is None:
            return self.tensors[value]
        if len(value.shape) != 4:
            return self.arena.narrow(0, value.root.offset, value.size).view(value.shape)
        _, _, h, w = value.shape
        pitch = value.pitch
        return self.arena.as_strided(value.shape, (h * w * pitch, 1, w * pitch, pitch), value.root.offset + value.first_channel)
