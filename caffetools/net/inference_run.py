"""Running an inference plan's program: its operators bound to memory, one call after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import partial

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
        self.head: list[Callable[[], object]] = []
        self.steps: list[Callable[[], object]] = []
        # Pointers that the head moves on from part to part of the batch: (pointer, start, bytes of a part).
        self.moving: list[tuple[ctypes.c_void_p, int, int]] = []
        for index, operator in enumerate(program.operators):
            if not operator.dropped:
                self._bind(operator, index)
            if index + 1 == program.head:
                self.head, self.steps = self.steps, []

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = []
        for name, value in self.program.inputs.items():
            tensor = batch[name].contiguous()
            held.append(tensor)
            self.tensors[value] = tensor
            self.pointers[value].value = tensor.data_ptr()
        if self.head:
            self._run_head(held[0])
        for step in self.steps:
            step()
        results = {name: self._result(value) for name, value in self.program.results.items()}
        self.tensors.clear()
        return results

    def _run_head(self, given: Tensor) -> None:
        (pointer,) = self.pointers.values()
        part = given.numel() // self.program.repeats * 4
        for i in range(self.program.repeats):
            pointer.value = given.data_ptr() + i * part
            for moved, start, size in self.moving:
                moved.value = start + i * size
            for step in self.head:
                step()

    def _result(self, value: Value) -> Tensor:
        if value.root.offset is None:
            return self.tensors[value]
        return self._view(value).clone(memory_format=torch.contiguous_format)

    # ---- binding ----

    def _bind(self, operator: Operator, index: int) -> None:
        form, threads = operator.form, self.program.threads
        if operator.conv is not None:
            residual = self._pointer(operator.residual, index) if operator.residual is not None else None
            x, y = operator.inputs[0], operator.outputs[0]
            pointers = self._pointer(x, index), self._pointer(y, index), residual, self.scratch.data_ptr()
            self.steps.append(partial(native_conv.conv_run(), operator.conv.handle, *pointers, threads))
        elif isinstance(form, inference.Pool):
            x, y = operator.inputs[0], operator.outputs[0]
            run_shape = self.program.run_shape
            sizes = native_conv.pool_sizes(form, Layout(run_shape(x, index), run_shape(y, index), x.pitch, y.pitch))
            ends = self._pointer(x, index), self._pointer(y, index)
            self.steps.append(partial(native_conv.pool_run(), sizes, *ends, int(form.largest), threads))
        elif isinstance(form, inference.CrossChannelNorm) and self._dense(operator):
            x, y = operator.inputs[0], operator.outputs[0]
            n, c, h, w = self.program.run_shape(x, index)
            numbers = (n, c, h * w, 1, form.size, form.alpha, form.beta, form.k, threads)
            self.steps.append(partial(native_conv.lrn_run(), self._pointer(x, index), self._pointer(y, index), *numbers))
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

    def _pointer(self, value: Value, index: int) -> ctypes.c_void_p:
        root = value.root
        if root.offset is None:
            return self.pointers[value]
        start = self.arena.data_ptr() + 4 * (root.offset + value.first_channel)
        pointer = ctypes.c_void_p(start)
        if root is self.program.boundary and index < self.program.head:
            self.moving.append((pointer, start, 4 * root.size // self.program.repeats))
        return pointer

    def _view(self, value: Value) -> Tensor:
        if value.root.offset is None:
            return self.tensors[value]
        if len(value.shape) != 4:
            return self.arena.narrow(0, value.root.offset, value.size).view(value.shape)
        _, _, h, w = value.shape
        pitch = value.pitch
        return self.arena.as_strided(value.shape, (h * w * pitch, 1, w * pitch, pitch), value.root.offset + value.first_channel)
