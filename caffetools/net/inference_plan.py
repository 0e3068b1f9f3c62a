"""The inference plan: a net in the TEST phase at fixed shapes, as fused operators over memory that is planned once.

Convolution, bias, BatchNorm, Scale, sums of two blobs and activations run as one native operator with packed weights; the bottoms of
a concatenation are written where its top lies; dropout and Split cost nothing; blobs share one arena by their lifetimes. A layer
without an :meth:`~caffetools.layers.base.Layer.inference_form` is run by its own ``forward``. Results agree with the layer-by-layer
engine to 1e-5 of a blob's largest value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from caffetools.layers import inference, native_conv
from caffetools.layers.base import Layer, Shape
from caffetools.layers.native_conv import NativeConv
from caffetools.layers.native_product import MOST_ROWS, NativeProduct
from caffetools.net.inference_program import Operator, Program, ToChannelsLast, Value
from caffetools.net.inference_run import BoundProgram

_ALIGNMENT = 16  # floats: a cache line
_NARROW = 8  # outputs of a group
_CACHE_FLOATS = 384 * 1024  # of a second-level cache, in use
_HEAD_WEIGHTS = 4 * 1024 * 1024  # floats
_LARGE_FLOATS = 192 * 1024  # of a blob of one image that leaves the second-level cache before it is pooled
_FEW_PRODUCTS = 64  # of a value: a convolution that takes longer than to write its values to memory gains nothing by that
_MOST_SOFTMAX = 64 * 1024  # values: torch's exp is the faster one for large maps, a call of torch takes 0.1 to 0.3 ms


class InferencePlan:
    """A net's plan for given input shapes.

    Args:
        layers: In order, configured for the shapes.
        inputs: Input blob → shape.
        wanted: Blobs to give back.
        threads: For the native operators.
        like: A plan of the same weights for other shapes, to share packed weights with.
    """

    def __init__(
        self, layers: Sequence[Layer], inputs: Mapping[str, Shape], wanted: Collection[str], threads: int, like: InferencePlan | None = None
    ):
        self.program = Program([], {blob: Value(tuple(shape)) for blob, shape in inputs.items()}, threads)
        blobs = {blob: self._channels_last(value) for blob, value in self.program.inputs.items()}
        for layer in layers:
            if not layer.IS_DATA:
                self._lower(layer, blobs)
        for operator in self.program.operators:
            operator.dropped = isinstance(operator.form, ToChannelsLast) and not operator.outputs[0].consumers
        self.program.results = {blob: self._planar(blobs[blob]) for blob in wanted}
        for value in self.program.results.values():
            value.kept = True
        self._fuse()
        self._place_concatenations()
        self._fuse_poolings()
        self._split_batch()
        self.program.arena_floats = self._plan_memory()
        self._pack(like)
        self._idle: list[BoundProgram] = []

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; may be called from several threads at once.

        Args:
            batch: Input blob → float32 tensor on the CPU, of the plan's shape.

        Returns:
            The wanted blobs, in tensors of their own.

        Raises:
            ShapeChanged: A layer's top had another shape than planned.
        """
        with torch.no_grad():
            try:
                bound = self._idle.pop()
            except IndexError:
                bound = BoundProgram(self.program)
            results = bound.run(batch)
        self._idle.append(bound)
        return results

    # ---- building ----

    def _channels_last(self, value: Value) -> Value:
        """Return the channels-last copy of an input, for the operators that do not read (N, C, H, W) memory."""
        if len(value.shape) != 4 or value.shape[1] == 1 or value.shape[2] * value.shape[3] == 1:
            return value
        copy = Value(value.shape, len(self.program.operators))
        self.program.operators.append(Operator(None, ToChannelsLast(), [value], [copy]))
        return copy

    def _planar(self, value: Value) -> Value:
        """Return the input that ``value`` is a copy of; other values themselves."""
        maker = self.program.operators[value.producer] if value.producer >= 0 else None
        return maker.inputs[0] if maker is not None and isinstance(maker.form, ToChannelsLast) else value

    def _lower(self, layer: Layer, blobs: dict[str, Value]) -> None:
        index = len(self.program.operators)
        form = layer.inference_form()
        inputs = [blobs[name] for name in layer.bottoms]
        if isinstance(form, inference.Identity):
            blobs.update(dict.fromkeys(layer.tops, inputs[0]))
            return
        outputs = [Value(tuple(shape), index) for shape in layer.top_shapes]
        if form is not None and not all(len(v.shape) in (2, 4) and v.size for v in (*inputs, *outputs)):
            form = None
        if isinstance(form, inference.ChannelSoftmax) and inputs[0].size > _MOST_SOFTMAX:
            form = None
        activation = None
        if isinstance(form, (inference.Affine, inference.Activation)):
            form, activation = _per_channel(form, inputs[0].shape4[1])
        elif form is None or isinstance(form, (inference.Conv, inference.Product)):
            if form is not None and not _runs_natively(form, inputs[0]):
                form = None
            if not isinstance(form, inference.Conv) or not _is_depthwise(form):
                inputs = [self._planar(value) for value in inputs]
        for value in inputs:
            value.consumers.append(index)
        self.program.operators.append(Operator(layer, form, inputs, outputs, activation))
        blobs.update(zip(layer.tops, outputs, strict=True))

    def _fuse(self) -> None:
        for index, operator in enumerate(self.program.operators):
            if isinstance(operator.form, (inference.Conv, inference.Product)) and not operator.dropped:
                while self._absorb_next(index, operator):
                    pass

    def _absorb_next(self, index: int, operator: Operator) -> bool:
        """Fuse the only consumer of a convolution's output into it, where that is a per-channel operation or a sum.

        An inner product takes activations only: its weights are not copied.
        """
        value, form = operator.outputs[0], operator.form
        if value.kept or len(value.consumers) != 1:
            return False
        follower = self.program.operators[value.consumers[0]]
        if operator.activation is not None:
            return False
        if isinstance(follower.form, inference.Sum) and isinstance(form, inference.Conv):
            other = follower.inputs[1] if follower.inputs[0] is value else follower.inputs[0]
            if operator.residual is not None or _is_depthwise(form) or other is value or other.producer >= index or other.producer < 0:
                return False
            operator.residual = other
            other.consumers[other.consumers.index(value.consumers[0])] = index
        elif isinstance(follower.form, inference.Conv) and _is_per_channel(follower.form):
            if follower.residual is not None or (operator.residual is not None and not _only_activates(follower.form)):
                return False
            if not _only_activates(follower.form):
                if not isinstance(form, inference.Conv):
                    return False
                operator.form = form.with_affine(_affine_of(follower.form))
                operator.folded = (*operator.folded, follower.layer)
            operator.activation = follower.activation
        else:
            return False
        follower.dropped = True
        operator.outputs = follower.outputs
        operator.outputs[0].producer = index
        return True

    def _place_concatenations(self) -> None:
        for operator in reversed(self.program.operators):
            if operator.dropped or not isinstance(operator.form, inference.ChannelConcat):
                continue
            top, first = operator.outputs[0], 0
            for value in operator.inputs:
                if value.parent is None and value.producer >= 0 and len(value.shape) == 4:
                    value.parent = (top, first)
                first += value.shape4[1]

    def _fuse_poolings(self) -> None:
        """Pool the rows of large blobs that only a pooling reads as soon as a convolution has made them, while the cache holds them."""
        for index, operator in enumerate(self.program.operators):
            form, value = operator.form, operator.outputs[0]
            if operator.dropped or not isinstance(form, inference.Conv) or _is_depthwise(form) or operator.residual is not None:
                continue
            if form.weight[0].numel() > _FEW_PRODUCTS:
                continue
            if value.kept or value.parent is not None or len(value.consumers) != 1 or value.size < _LARGE_FLOATS * value.shape4[0]:
                continue
            follower = self.program.operators[value.consumers[0]]
            if not isinstance(follower.form, inference.Pool) or native_conv.choice(
                form, self.program.layout(operator.inputs[0], value, index)
            ):
                continue
            operator.pool, operator.unpooled = follower.form, value
            operator.outputs, follower.dropped = follower.outputs, True
            operator.outputs[0].producer = index

    def _split_batch(self) -> None:
        """Choose the head: the first operators, which are run for a few images at a time so that their blobs stay in the cache.

        The later operators run the whole batch at once, so that their weights, which are larger than their blobs, are read once. Between
        the two only one blob may be alive. The cut is where the fewest floats are read again: weights before it for each part of the
        batch, blobs behind it for each image.
        """
        batch = {value.shape[0] for value in self.program.inputs.values() if value.shape}
        if len(self.program.inputs) != 1 or len(batch) != 1 or (n := batch.pop()) < 2:
            return
        active = [(i, o) for i, o in enumerate(self.program.operators) if not o.dropped]
        traffic = [_traffic(o, n) for _, o in active]
        best = total = sum(blobs for _, blobs in traffic) * n
        weights, blobs = 0, total
        for position, (index, operator) in enumerate(active):
            if not self._may_be_in_head(operator, n):
                break
            weights += traffic[position][0]
            blobs -= traffic[position][1] * n
            boundary = self._only_alive_after(index)
            if boundary is not None and boundary.shape[0] == n and weights <= _HEAD_WEIGHTS and weights * n // 4 + blobs < best:
                best, self.program.head, self.program.boundary = weights * n // 4 + blobs, index + 1, boundary
        if self.program.boundary is None:
            return
        produced = {v for o in self.program.operators[: self.program.head] if not o.dropped for v in o.outputs}
        largest = max(v.root.size // n for v in produced)
        images = max(m for m in range(1, n + 1) if n % m == 0 and (m == 1 or m * largest <= _CACHE_FLOATS))
        self.program.repeats = n // images
        produced |= {o.unpooled for o in self.program.operators[: self.program.head] if o.unpooled is not None}
        for value in {v for made in produced for v in (made, made.root)} - {self.program.boundary}:
            value.shape = (images, *value.shape[1:])

    def _may_be_in_head(self, operator: Operator, batch: int) -> bool:
        if not all(len(v.shape) == 4 and v.shape[0] == batch and not v.kept for v in (*operator.inputs, *operator.outputs)):
            return False
        if isinstance(operator.form, inference.ChannelConcat):
            channels = [v.shape4[1] for v in operator.inputs]
            firsts = [sum(channels[:i]) for i in range(len(channels))]
            return [v.parent for v in operator.inputs] == [(operator.outputs[0], first) for first in firsts]
        if isinstance(operator.form, inference.CrossChannelNorm):
            return all(v.pitch == v.shape[1] for v in (*operator.inputs, *operator.outputs))
        return isinstance(operator.form, (inference.Conv, inference.Pool))

    def _only_alive_after(self, index: int) -> Value | None:
        """Return the root of all values that operators up to ``index`` make and later ones read; None where it is not one, or an input is read."""
        alive = {
            value if value.producer < 0 else value.root
            for operator in self.program.operators[index + 1 :]
            if not operator.dropped
            for value in (*operator.inputs, *([operator.residual] if operator.residual is not None else []))
            if value.producer <= index
        }
        if len(alive) != 1:
            return None
        (value,) = alive
        later = any(v.root is value for o in self.program.operators[index + 1 :] if not o.dropped for v in o.outputs)
        return None if value.producer < 0 or later or value.kept else value

    def _plan_memory(self) -> int:
        """Give each root value that a native operator touches a place in the arena, shared by lifetimes; return the arena's size."""
        first: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for index, operator in enumerate(self.program.operators):
            if operator.dropped:
                continue
            reads = [*operator.inputs, *([operator.residual] if operator.residual is not None else [])]
            for value in (*reads, *operator.outputs):
                root = value.root
                if root.producer < 0 and value.parent is None:
                    continue
                first.setdefault(root, 0 if root is self.program.boundary else index)
                last[root] = len(self.program.operators) if value.kept or root.kept else max(last.get(root, 0), index)
        native = {v.root for o in self.program.operators if not o.dropped and o.form is not None for v in (*o.inputs, *o.outputs)}
        native |= {o.residual.root for o in self.program.operators if o.residual is not None}
        ends: dict[int, list[Value]] = {}
        starts: dict[int, list[Value]] = {}
        for root, index in first.items():
            if root in native:
                root.in_head = last[root] < self.program.head and root is not self.program.boundary
                starts.setdefault(index, []).append(root)
                ends.setdefault(last[root], []).append(root)
        arenas = {False: _Arena(), True: _Arena()}
        for index in range(len(self.program.operators)):
            for root in starts.get(index, ()):
                root.offset = arenas[root.in_head].take(root.size)
            for root in ends.get(index, ()):
                arenas[root.in_head].give_back(root.offset or 0, root.size)
        self.program.head_floats = arenas[True].size
        return arenas[False].size

    def _pack(self, like: InferencePlan | None) -> None:
        # Which layers are folded into a convolution depends on the wanted blobs, so only one with the same of them has the same weights.
        kept = like.program.operators if like else []
        packed = {(o.layer, o.folded): o.conv for o in kept if isinstance(o.conv, NativeConv) and o.form is not None}
        for index, operator in enumerate(self.program.operators):
            if operator.dropped or not isinstance(operator.form, (inference.Conv, inference.Product)):
                continue
            x, y = operator.inputs[0], operator.outputs[0]
            if isinstance(operator.form, inference.Product):
                operator.conv = NativeProduct(operator.form, operator.activation, self.program.layout(x, y, index))
                continue
            made = operator.unpooled or y
            layout, algorithm = self.program.layout(x, made, index, operator.residual), 1 if operator.pool is not None else 0
            operator.conv = NativeConv(
                operator.form, operator.activation, layout, like=packed.get((operator.layer, operator.folded)), algorithm=algorithm
            )
            if operator.pool is not None:
                sizes, threads = native_conv.pool_sizes(operator.pool, self.program.layout(made, y, index)), self.program.threads
                operator.conv.scratch_floats = operator.conv.pooled_scratch(sizes, 1 if index < self.program.head else threads)


class _Arena:
    """Places for blocks of floats, reused once they are given back (first fit; neighbouring free blocks are joined)."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[tuple[int, int]] = []  # (offset, floats), by offset

    def take(self, floats: int) -> int:
        floats = -(-floats // _ALIGNMENT) * _ALIGNMENT
        for i, (offset, room) in enumerate(self.free):
            if room >= floats:
                self.free[i : i + 1] = [(offset + floats, room - floats)] if room > floats else []
                return offset
        if self.free and sum(self.free[-1]) == self.size:
            offset = self.free.pop()[0]
        else:
            offset = self.size
        self.size = offset + floats
        return offset

    def give_back(self, offset: int, floats: int) -> None:
        blocks = sorted([*self.free, (offset, -(-floats // _ALIGNMENT) * _ALIGNMENT)])
        self.free = []
        for start, room in blocks:
            if self.free and sum(self.free[-1]) == start:
                start, room = self.free[-1][0], self.free.pop()[1] + room
            self.free.append((start, room))


def _traffic(operator: Operator, batch: int) -> tuple[int, int]:
    """Return (floats of weights, floats of blobs for each image) that an operator reads and writes."""
    if isinstance(operator.form, inference.ChannelConcat):
        return 0, 0
    weights = operator.form.weight.numel() if isinstance(operator.form, inference.Conv) else 0
    if isinstance(operator.form, inference.Conv) and tuple(operator.form.weight.shape[2:]) == (3, 3):
        weights *= 4  # Winograd's transformed weights are up to four times as many
    return weights, sum(value.size for value in (*operator.inputs, *operator.outputs)) // batch


def _per_channel(form: inference.Affine | inference.Activation, channels: int) -> tuple[inference.Conv, inference.Activation | None]:
    """Return an operation for each channel as a depthwise convolution of one value, which the native library runs and others absorb."""
    if isinstance(form, inference.Affine):
        scale, shift = form.scale, form.shift.float()
        return inference.Conv(scale.float().reshape(-1, 1, 1, 1), shift, (1, 1), (0, 0), (1, 1), channels), None
    return inference.Conv(torch.ones(channels, 1, 1, 1), None, (1, 1), (0, 0), (1, 1), channels), form


def _is_depthwise(form: inference.Conv) -> bool:
    return form.groups > 1 and form.groups == form.weight.shape[0] and form.weight.shape[1] == 1


def _runs_natively(form: inference.Conv | inference.Product, x: Value) -> bool:
    if isinstance(form, inference.Product):
        return x.shape[0] <= MOST_ROWS
    return not _has_narrow_groups(form)


def _has_narrow_groups(form: inference.Conv) -> bool:
    """Return whether a group's outputs would leave most of a vector empty; torch's convolutions are the better ones there."""
    return form.groups > 1 and not _is_depthwise(form) and form.weight.shape[0] // form.groups < _NARROW


def _is_per_channel(form: inference.Conv) -> bool:
    return (
        form.groups == form.weight.shape[0] and tuple(form.weight.shape[1:]) == (1, 1, 1) and form.stride == (1, 1) and form.pad == (0, 0)
    )


def _only_activates(form: inference.Conv) -> bool:
    return form.bias is None and bool((form.weight == 1).all())


def _affine_of(form: inference.Conv) -> inference.Affine:
    scale = form.weight.reshape(-1)
    return inference.Affine(scale, torch.zeros_like(scale) if form.bias is None else form.bias)
