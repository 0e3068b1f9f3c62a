"""Running an inference plan's program: its operators bound to memory, one call after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from caffetools.layers import inference, native_conv
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
        self._held: list[object] = []  # arrays that the native library reads
        self._views: dict[Value, Tensor] = {}
        if program.head:
            self._bind_head()
        self._bind([(i, o) for i, o in enumerate(program.operators) if not o.dropped and i >= program.head])

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the program once.

        Args:
            batch: Input blob → float32 values of the shape that the program was made for.

        Returns:
            Result blob → its float32 values; those in the arena are copies.
        """
        held = []
        for name, value in self.program.inputs.items():
            tensor = batch[name].contiguous()
            held.append(tensor)
            self.tensors[value] = tensor
            self.pointers[value].value = tensor.data_ptr()
        for step in self.steps:
            step()
        taken = {tensor.untyped_storage().data_ptr() for tensor in held}
        results = {name: self._result(value, taken) for name, value in self.program.results.items()}
        self.tensors.clear()
        return results

    def _result(self, value: Value, taken: set[int]) -> Tensor:
        """Return a value in memory that is not at ``taken``, of the inputs and other results: tops of Split and Slice are views of one blob."""
        if value.root.offset is None:
            result = self.tensors[value]
            if result.untyped_storage().data_ptr() in taken:
                return result.clone()
            taken.add(result.untyped_storage().data_ptr())
            return result
        if value not in self._views:
            self._views[value] = self._view(value)
        return self._views[value].clone(memory_format=torch.contiguous_format)

    # ---- binding ----

    def _bind_head(self) -> None:
        program = self.program
        boundary = program.boundary
        assert boundary is not None and boundary.offset is not None  # noqa: S101 (a head ends in one)
        operators = [(i, o) for i, o in enumerate(program.operators[: program.head]) if not o.dropped]
        steps = [step for i, o in operators if (step := self._native_step(o, i, self._head_place)) is not None]
        array = self._step_array(steps)
        scratch = max([o.conv.scratch_floats for _, o in operators if o.conv is not None], default=0)
        self._lanes = torch.empty(program.threads, max(program.head_floats, 1)), torch.empty(program.threads, max(scratch, 1))
        (value,), (given,) = program.inputs.values(), self.pointers.values()
        lanes = [number for memory in self._lanes for number in (memory.data_ptr(), memory.shape[1])]
        output = self.arena.data_ptr() + 4 * boundary.offset
        strides = value.size // program.repeats, boundary.size // program.repeats
        numbers = (ctypes.addressof(array), len(steps), program.repeats, *lanes, given, strides[0], output, strides[1])
        self.steps.append(partial(native_conv.sequence_run(), *numbers, program.threads))

    def _native_step(self, operator: Operator, index: int, place: Callable[[Value], tuple[int, int]]) -> native_conv.Step | None:
        """Return operator ``index`` as a step of the native library; None where it is not one, or has nothing to do."""
        form, (x, *_), (y, *_) = operator.form, operator.inputs, operator.outputs
        step = native_conv.Step(residual_place=-1)
        step.x_place, step.x = place(x)
        step.y_place, step.y = place(y)
        n, c, h, w = self.program.run_shape(x, index)
        if operator.pool is not None and operator.unpooled is not None and operator.conv is not None:
            step.kind, step.handle, step.largest = native_conv.CONVOLVE_AND_POOL, operator.conv.handle, int(operator.pool.largest)
            step.sizes = self._kept_sizes(native_conv.pool_sizes(operator.pool, self.program.layout(operator.unpooled, y, index)))
        elif operator.conv is not None:
            step.kind = native_conv.CONVOLVE if isinstance(form, inference.Conv) else native_conv.MULTIPLY
            step.handle = operator.conv.handle
            if operator.residual is not None:
                step.residual_place, step.residual = place(operator.residual)
        elif isinstance(form, inference.Pool):
            step.kind, step.largest = native_conv.POOL, int(form.largest)
            step.sizes = self._kept_sizes(native_conv.pool_sizes(form, self.program.layout(x, y, index)))
        elif isinstance(form, inference.CrossChannelNorm) and _dense(operator):
            step.kind, step.alpha, step.beta, step.k = native_conv.NORMALIZE, form.alpha, form.beta, form.k
            step.sizes = self._kept_sizes((ctypes.c_int64 * 4)(n, c, h * w, form.size))
        elif isinstance(form, inference.ChannelSoftmax):
            step.kind = native_conv.SOFTMAX
            step.sizes = self._kept_sizes((ctypes.c_int64 * 4)(n * h * w, c, x.pitch, y.pitch))
        else:
            return None
        return step

    def _kept_sizes(self, sizes: ctypes.Array[ctypes.c_int64]) -> Any:
        self._held.append(sizes)
        return ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))

    def _head_place(self, value: Value) -> tuple[int, int]:
        if value.root is self.program.boundary:
            return native_conv.OUTPUT, value.first_channel
        return self._place(value)

    def _place(self, value: Value) -> tuple[int, int]:
        root = value.root
        return (native_conv.INPUT, 0) if root.offset is None else (native_conv.MEMORY, root.offset + value.first_channel)

    def _bind(self, operators: Sequence[tuple[int, Operator]]) -> None:
        """Bind operators: native ones that follow each other are one call, which reads one input of the net at the most."""
        pending: list[native_conv.Step] = []
        given: Value | None = None
        for index, operator in operators:
            if isinstance(operator.form, inference.ChannelConcat) and not self._copies_of(operator):
                continue
            step = self._native_step(operator, index, self._place) if operator.form is not None else None
            read = operator.inputs[0] if step is not None and step.x_place == native_conv.INPUT else None
            if step is None or (read is not None and given not in (None, read)):
                self._bind_steps(pending, given)
                pending, given = [], None
            if step is None:
                self._bind_other(operator)
                continue
            pending.append(step)
            given = given or read
        self._bind_steps(pending, given)

    def _bind_steps(self, steps: Sequence[native_conv.Step], read: Value | None) -> None:
        """Bind one call for ``steps``, of which some read the input ``read``."""
        if not steps:
            return
        array = self._step_array(steps)
        given = self.pointers[read] if read is not None else None
        numbers = (ctypes.addressof(array), len(steps), self.arena.data_ptr(), given, self.scratch.data_ptr(), self.program.threads)
        self.steps.append(partial(native_conv.steps_run(), *numbers))

    def _step_array(self, steps: Sequence[native_conv.Step]) -> ctypes.Array[native_conv.Step]:
        array = (native_conv.Step * len(steps))(*steps)
        self._held.append(array)
        return array

    def _bind_other(self, operator: Operator) -> None:
        form = operator.form
        if isinstance(form, inference.ChannelConcat):
            self._bind_concat(operator)
        elif isinstance(form, inference.Sum):
            self.steps.append(partial(self._add, operator))
        elif isinstance(form, ToChannelsLast):
            self.steps.append(partial(self._copy, operator.inputs[0], self._view(operator.outputs[0])))
        else:
            self.steps.append(partial(self._run_layer, operator))

    def _bind_concat(self, operator: Operator) -> None:
        for value, first in self._copies_of(operator):
            part = self._view(operator.outputs[0]).narrow(1, first, value.shape4[1])
            self.steps.append(partial(self._copy, value, part))

    def _copies_of(self, operator: Operator) -> list[tuple[Value, int]]:
        """Return the bottoms of a concatenation that do not lie in its top, with their first channels there."""
        copies, first = [], 0
        for value in operator.inputs:
            if value.parent is None or value.parent[0] is not operator.outputs[0] or value.parent[1] != first:
                copies.append((value, first))
            first += value.shape4[1]
        return copies

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

    def _view(self, value: Value) -> Tensor:
        if value.root.offset is None:
            return self.tensors[value]
        if len(value.shape) != 4:
            return self.arena.narrow(0, value.root.offset, value.size).view(value.shape)
        _, _, h, w = value.shape
        pitch = value.pitch
        return self.arena.as_strided(value.shape, (h * w * pitch, 1, w * pitch, pitch), value.root.offset + value.first_channel)


def _dense(operator: Operator) -> bool:
    """Return whether the pixels of all values follow each other without gaps."""
    return all(value.pitch == value.shape4[1] for value in (*operator.inputs, *operator.outputs))
