"""Activation checkpointing: a training pass keeps the blobs between segments of the net, and computes those inside again going back.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). The weights get the same bits as without it on the CPU: autograd's
graph is the same, only the tensors that it saved are computed a second time, from the same random state.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from caffetools.errors import NetError
from caffetools.layers.autograd import recomputing
from caffetools.layers.base import Layer, Shape
from caffetools.net.net import LayerPass, Net
from caffetools.net.shape_plans import ShapePlan, is_exclusive
from caffetools.net.training_steps import Step

# The sizes of segments that are tried shrink by this factor, down to this number of segments.
_RATIO, _MOST_SEGMENTS = 1.15, 512


@dataclass(frozen=True)
class Segment:
    """Consecutive layers of a net.

    Attributes:
        start: Index of the first layer.
        end: Index after the last.
        recomputed: Whether the activations inside are dropped and computed again.
    """

    start: int
    end: int
    recomputed: bool


class Checkpointed:
    """A pass that keeps fewer activations for the backward pass; see :meth:`Net.wrap_compute`.

    Layers with a state of their own or effects outside of the net (Python and recurrent layers, HDF5Output, layers of plugins that do not
    declare ``RECOMPUTABLE``, layers with hooks) run once, and what they keep is kept.

    Args:
        net: The net to train.
        plain: Its pass that keeps them all, for passes without gradients.
    """

    def __init__(self, net: Net, plain: LayerPass):
        self._net = net
        self._plain = plain
        self._segments: dict[tuple[Shape, ...], list[Segment]] = {}

    def __call__(self, blobs: dict[str, Tensor], keep: Collection[str] = (), plan: ShapePlan | None = None) -> dict[str, Tensor]:
        if not torch.is_grad_enabled():
            return self._plain(blobs, keep, plan)
        plan = plan or self._net.plan()
        segments = self._of_plan(plan, blobs)
        wanted = {*self._net.outputs, *self._net.loss_weights, *keep}
        results: dict[str, Tensor] = {}
        for segment in segments:
            self._run(segment, plan.layers, blobs, wanted, results)
        return results

    def _of_plan(self, plan: ShapePlan, blobs: dict[str, Tensor]) -> list[Segment]:
        key = tuple(tuple(blob.shape) for blob in blobs.values())
        if key not in self._segments:
            self._segments[key] = plan_segments(self._net, plan)
        return self._segments[key]

    def _run(
        self, segment: Segment, layers: Sequence[Layer], blobs: dict[str, Tensor], wanted: Collection[str], results: dict[str, Tensor]
    ) -> None:
        """Run the layers of ``segment``; ``blobs`` are those before it, and afterwards those that later layers read."""
        dying = [name for index in range(segment.start, segment.end) for name in self._net.last_use[index]]
        read = {bottom for index in range(segment.start, segment.end) for bottom in layers[index].bottoms}
        names = [name for name in blobs if name in read]
        inside = segment_layers(layers, segment)
        made = list(dict.fromkeys(top for layer in inside if not layer.IS_DATA for top in layer.tops))
        dropped = set(dying) - set(wanted)
        current = [*layers[: segment.start], *inside, *layers[segment.end :]]

        def compute(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            local = dict(zip(names, inputs, strict=True))
            steps: dict[int, Step] = {}
            if self._net.training_steps is not None:
                steps = self._net.training_steps.normalizing(current, wanted, self._net.run_layer, again=False)
            for offset, layer in enumerate(inside):
                index = segment.start + offset
                if index in steps:
                    steps[index](local)
                elif not layer.IS_DATA:
                    self._net.run_layer(index, layer, local)
                for name in self._net.last_use[index]:
                    if name not in wanted:
                        local.pop(name, None)
            return tuple(None if name in dropped else local[name] for name in made)

        inputs = [blobs[name] for name in names]
        tops = self._checkpoint(compute, inputs, layers[segment.start].name) if segment.recomputed else compute(*inputs)
        del inputs
        blobs.update((name, top) for name, top in zip(made, tops, strict=True) if top is not None)
        for name in dying:
            blob = blobs.pop(name, None)
            if name in wanted and blob is not None:
                results[name] = blob

    def _checkpoint(self, compute: Callable[..., tuple[Tensor | None, ...]], inputs: list[Tensor], layer: str) -> tuple[Tensor | None, ...]:
        versions = [tensor._version for tensor in inputs]
        first = True
        # Layers of ours draw from the net's generator, others from the global states.
        generator = self._net.generator
        shared = generator is None or self._net.device.type != "cpu" or any(item.draws_globally() for item in self._net.layers)

        def again(*tensors: Tensor) -> tuple[Tensor | None, ...]:
            nonlocal first
            if not first and [tensor._version for tensor in tensors] != versions:
                raise NetError(
                    "its bottoms were overwritten, so it cannot be recomputed", layer=layer, hint="train without --checkpoint-memory"
                )
            first = False
            return compute(*tensors)

        contexts = partial(_contexts, generator)
        result: tuple[Tensor | None, ...] = checkpoint(again, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=shared)
        return result


def checkpoint_memory(net: Net) -> None:
    """Let ``net`` keep fewer activations in training passes from now on, and compute the others again in backward passes."""
    net.wrap_compute(partial(Checkpointed, net))


def plan_segments(net: Net, plan: ShapePlan) -> list[Segment]:
    """Divide the layers of ``net`` so that the blobs kept between segments and the largest segment's own take the least memory.

    Args:
        net: The net.
        plan: Its layers and blobs' shapes for a batch.

    Returns:
        Segments that together are all layers, in order. The last one is not recomputed: going back begins with it.
    """
    layers = plan.layers
    # A ReLU in place keeps its bottom's memory; other layers in place keep what their gradients need besides.
    sizes = [0 if layer.inplace_ok and layer.idempotent() else sum(math.prod(shape) for shape in layer.top_shapes) for layer in layers]
    alive = list(_values_between(layers, net.last_use, plan))
    fixed = [once or index in net.overwriting or index in net.rewriting.names for index, once in enumerate(_layers_that_run_once(layers))]
    # Layers that are one operator are in one segment.
    spans = _spans(net.training_steps.chains if net.training_steps is not None else [])
    beginning = {index: start for start, end in spans for index in range(start, end)}
    for start, end in spans:
        fixed[start:end] = [any(fixed[start:end])] * (end - start)
    best: list[int] = []
    least = sum(sizes)
    for step in range(1, math.ceil(math.log(min(len(layers), _MOST_SEGMENTS) + 1, _RATIO))):
        cuts = sorted({beginning.get(cut, cut) for cut in _cuts(sizes, alive, sum(sizes) / _RATIO**step)} - {0})
        ends = [*cuts, len(layers)]
        largest = max(sum(sizes[start:end]) for start, end in zip([0, *cuts], ends, strict=True))
        need = sum(alive[cut] for cut in cuts) + largest
        if need < least:
            best, least = cuts, need
    return list(_segments(best, fixed, len(layers)))


def _spans(chains: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return the first index and the one after the last of each of ``chains``; those that overlap are one."""
    spans: list[tuple[int, int]] = []
    for chain in sorted(chains):
        start, end = chain[0], chain[-1] + 1
        if spans and start < spans[-1][1]:
            start, end = spans[-1][0], max(end, spans.pop()[1])
        spans.append((start, end))
    return spans


def _segments(cuts: Sequence[int], fixed: Sequence[bool], count: int) -> Iterator[Segment]:
    """Yield the segments between ``cuts``, with every run of ``fixed`` layers as a segment of its own."""
    start, places = 0, set(cuts)
    last = cuts[-1] if cuts else 0
    for end in range(1, count + 1):
        if end == count or end in places or fixed[end] != fixed[end - 1]:
            yield Segment(start, end, recomputed=not fixed[start] and start < last)
            start = end


def _values_between(layers: Sequence[Layer], last_use: Sequence[Sequence[str]], plan: ShapePlan) -> Iterator[int]:
    """Yield for each layer the number of values of all blobs that exist before it and are read by it or later."""
    alive: dict[str, int] = {}
    for layer, dying in zip(layers, last_use, strict=True):
        yield sum(alive.values())
        alive.update((top, math.prod(plan.blob_shapes[top])) for top in layer.tops)
        for name in dying:
            alive.pop(name, None)


def _cuts(sizes: Sequence[int], alive: Sequence[int], target: float) -> list[int]:
    """Return where to cut so that segments have about ``target`` values, at places in their second halves where few blobs are alive."""
    cuts: list[int] = []
    start, total = 0, 0.0
    candidate: int | None = None
    for index in range(1, len(sizes)):
        total += sizes[index - 1]
        if total >= target / 2 and (candidate is None or alive[index] <= alive[candidate]):
            candidate = index
        if total + sizes[index] > target and candidate is not None and candidate > start:
            cuts.append(candidate)
            total = float(sum(sizes[candidate:index]))
            start, candidate = candidate, None
    return cuts


def _layers_that_run_once(layers: Sequence[Layer]) -> list[bool]:
    """Return for each layer whether its forward pass must not be repeated."""
    holders = Counter(id(blob) for layer in layers for blob in layer.blobs if not blob.requires_grad)
    shared = {key for key, count in holders.items() if count > 1}
    once = [not _repeatable(layer) or any(id(blob) in shared for blob in layer.blobs) for layer in layers]
    # From there on the shapes are known only as layers run.
    dynamic = next((index for index, layer in enumerate(layers) if layer.DYNAMIC_SHAPE), len(layers))
    return once[:dynamic] + [True] * (len(layers) - dynamic)


def _repeatable(layer: Layer) -> bool:
    declared = type(layer).RECOMPUTABLE
    if declared is None:
        declared = type(layer).__module__.startswith("caffetools.")
    return declared and not is_exclusive(layer) and not layer._forward_hooks and not layer._forward_pre_hooks


def segment_layers(layers: Sequence[Layer], segment: Segment) -> list[Layer]:
    """Return the layers of ``segment``; one that would overwrite a blob made before it gets a copy that does not."""
    inside: list[Layer] = []
    made: set[str] = set()
    for layer in layers[segment.start : segment.end]:
        if segment.recomputed and layer.inplace_ok and not made.issuperset(layer.bottoms):
            layer = copy.copy(layer)
            layer.inplace_ok = False
        inside.append(layer)
        made.update(layer.tops)
    return inside


def _contexts(generator: torch.Generator | None) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _recomputing_from(generator, generator.get_state() if generator is not None else None)


@contextmanager
def _recomputing_from(generator: torch.Generator | None, state: Tensor | None) -> Iterator[None]:
    """Draw again what was drawn from ``state`` on; the stream then continues where it was."""
    with recomputing():
        if generator is None or state is None:
            yield
            return
        now = generator.get_state()
        generator.set_state(state)
        try:
            yield
        finally:
            generator.set_state(now)
