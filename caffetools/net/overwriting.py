"""Blobs that layers working in place overwrite: Caffe's backward passes read what the memory holds then, so that its gradients follow from that.

Caffe gives a layer that works in place its bottom's memory. The backward pass of the layer that made the blob (Sigmoid, TanH, Power, LRN, …) then
reads the last result in place of its own top, and a layer in place that keeps no copy of its bottom (ReLU, ELU, BNLL, Clip) takes the result for it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffetools.layers.autograd import Context
from caffetools.layers.base import Layer

log = logging.getLogger(__name__)

# The attribute by which a top passes its memory on to the next layer of a chain.
_MEMORY = "overwritten_memory"


@dataclass
class Overwritten:
    """The memory of a blob during one pass.

    Attributes:
        value: What it holds at last; None until the last layer in place has run.
    """

    value: Tensor | None = None


@dataclass(frozen=True)
class Overwriting:
    """What a layer's place in a chain over one memory asks of its pass.

    Attributes:
        reads: Whether the layer's gradient is computed from what the memory holds at last.
        first: Whether the layer makes the blob that the others overwrite.
        last: Whether no layer overwrites the memory after this one.
        also: Names of blobs before it that have the same memory, in Caffe under other shapes.
    """

    reads: bool
    first: bool
    last: bool
    also: tuple[str, ...] = ()


@dataclass
class _Chain:
    """Layers over one memory.

    Attributes:
        members: Their indices, in order.
        blobs: The top of each that lies in the memory: a Slice has others.
        readers: How many other layers read the last of these blobs.
    """

    members: list[int]
    blobs: list[str]
    readers: int = 0


def plan_overwriting(layers: Sequence[Layer]) -> dict[int, Overwriting]:
    """Return for each layer, by index, what its place in a chain asks; layers of chains where nothing depends on it are left out.

    A blob that another layer reads before it is overwritten is in no chain: Caffe refuses such nets, or gives the reader's Split a copy.

    Args:
        layers: The layers of a net, in order.
    """
    chains: list[_Chain] = []
    current: dict[str, _Chain] = {}
    for index, layer in enumerate(layers):
        chain = current.get(layer.bottoms[0]) if is_in_place(layer) or layer.shares_memory() else None
        if chain is not None and not chain.readers:
            chain.members.append(index)
            chain.blobs.append(layer.tops[0])
            if not is_in_place(layer):
                chain.readers += 1
                current[layer.tops[0]] = _Chain(chain.members, chain.blobs)
            continue
        for bottom in layer.bottoms:
            if bottom in current:
                current[bottom].readers += 1
        for top in layer.tops:
            current[top] = _Chain([index], [top])
            chains.append(current[top])
    plans: dict[int, Overwriting] = {}
    for chain in chains:
        plans.update(_plans(layers, chain))
    return plans


def is_in_place(layer: Layer) -> bool:
    """Return whether the one top of ``layer`` is its one bottom."""
    return len(layer.bottoms) == 1 and layer.tops == layer.bottoms


def _plans(layers: Sequence[Layer], over: _Chain) -> dict[int, Overwriting]:
    members, blobs = over.members, over.blobs
    chain = [layers[index] for index in members]
    writes = [place == 0 or is_in_place(layer) for place, layer in enumerate(chain)]
    last = max(place for place, written in enumerate(writes) if written)
    plans: dict[int, Overwriting] = {}
    for place in range(last + 1):
        later = [layer for layer, written in zip(chain[place + 1 :], writes[place + 1 :], strict=True) if written]
        names = dict.fromkeys(blob for blob in blobs[:place] if blob != blobs[place])
        also = tuple(names) if place and writes[place] else ()
        reads = writes[place] and _reads_last(chain[place], later, in_place=place > 0)
        plans[members[place]] = Overwriting(reads, place == 0, place == last, also)
    return plans if any(plan.reads or plan.also for plan in plans.values()) else {}


def _reads_last(layer: Layer, later: Sequence[Layer], *, in_place: bool) -> bool:
    if later and layer.backward_reads_top():
        return True
    if not in_place:
        return False
    changed = any(not (other.idempotent() or other.TRAITS.role == "dropout") for other in later)
    return layer.in_place_changes_gradient() or (layer.BACKWARD_READS_RESULT and changed)


@dataclass
class Rewriting:
    """Blobs that a layer in place overwrites though other layers read them, since they lie in its memory (before a Flatten, in a Split's other tops).

    Attributes:
        names: Index of each such layer → those that are read after it, or are outputs.
        roots: The first blob of each memory.
        early: Indices of the layers that read such a blob before it is overwritten, and of which Caffe's gradient is computed from it afterwards.
    """

    names: dict[int, tuple[str, ...]]
    roots: frozenset[str]
    early: tuple[int, ...]


def plan_rewriting(layers: Sequence[Layer], outputs: Collection[str]) -> Rewriting:
    """Return which blobs layers in place overwrite besides their own.

    Args:
        layers: The layers of a net, in order.
        outputs: Blobs that nothing reads.
    """
    readers = _readers(layers)
    memory: dict[str, str] = {}
    version: Counter[str] = Counter()
    plan: dict[int, tuple[str, ...]] = {}
    roots: set[str] = set()
    early: set[int] = set()
    for index, layer in enumerate(layers):
        blob = layer.bottoms[0] if layer.bottoms else ""
        # With another reader Caffe puts a Split below both, and the layer is not in place.
        if is_in_place(layer) and readers[blob, version[blob]] == 1 and (root := memory.get(blob)) is not None:
            others = {name for name in (root, *memory) if memory.get(name, name) == root and name != blob}
            reading = [i for i, other in enumerate(layers) if not others.isdisjoint(other.bottoms)]
            early.update(i for i in reading if i < index and not layers[i].shares_data() and layers[i].BACKWARD_READS_BOTTOMS)
            if any(i > index for i in reading) or not others.isdisjoint(outputs):
                plan[index] = tuple(sorted(others))
                roots.add(root)
        for top in layer.tops:
            version[top] += 1
            if layer.shares_data():
                memory[top] = memory.setdefault(blob, blob)
            elif top not in layer.bottoms:
                memory.pop(top, None)
    return Rewriting(plan, frozenset(roots), tuple(sorted(early)))


def refuse_early(layers: Sequence[Layer], plan: Rewriting, needed: Sequence[Sequence[bool]]) -> None:
    """Raise :class:`NetError` where a gradient is Caffe's only if the pass runs layer by layer over blobs.

    Args:
        layers: The layers of a net, in order.
        plan: What :func:`plan_rewriting` gave for them.
        needed: Whether each bottom of each layer gets a gradient.
    """
    for index in plan.early:
        layer = layers[index]
        if any(needed[index]) or any(blob.requires_grad for blob in layer.blobs):
            raise layer.error(
                "Caffe computes its gradient from a blob that a later layer in place overwrites (they share memory by a Flatten, Reshape or Split), "
                "which is done in 'import caffe' only; give the layer in place a top of its own"
            )


def rewrite(blobs: Mapping[str, Tensor], names: Sequence[str], top: Tensor) -> None:
    """Write the top of a layer in place to the other blobs of its memory, also to what is kept of them for gradients, as Caffe's memory has it then."""
    for name in names:
        blob = blobs.get(name)
        if blob is not None and not _is_one_memory(blob, top):
            blob.data.copy_(top.detach().reshape(blob.shape))


def apart(tops: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return ``tops`` in memory of their own, where :func:`rewrite` may write to it."""
    return tuple(top.clone() if any(_is_one_memory(top, other) for other in others) else top for top in tops)


def _is_one_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _readers(layers: Sequence[Layer]) -> Counter[tuple[str, int]]:
    """Return how many layers read each blob, as each layer that writes to it leaves it."""
    version: Counter[str] = Counter()
    readers: Counter[tuple[str, int]] = Counter()
    for layer in layers:
        readers.update((bottom, version[bottom]) for bottom in layer.bottoms)
        version.update(layer.tops)
    return readers


def warn_of_gradients(layers: Sequence[Layer], plans: Mapping[int, Overwriting], needed: Sequence[Sequence[bool]]) -> None:
    """Log a warning for each layer whose gradient is Caffe's but not the derivative of what the net computes.

    Args:
        layers: The layers of a net, in order.
        plans: What :func:`plan_overwriting` gave for them.
        needed: Whether each bottom of each layer gets a gradient.
    """
    for index, plan in plans.items():
        if plan.reads and any(needed[index]):
            layer = layers[index]
            log.warning(
                "layer '%s' (%s): its gradient is computed, as in Caffe, from its blob '%s' after a layer in place has overwritten it, "
                "so it is not the derivative of the loss; give the layer in place a top of its own to train with that",
                layer.name, layer.type_name, layer.tops[0],
            )  # fmt: skip


def gradients_of_overwritten(
    layer: Layer, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of all bottoms of ``layer`` as Caffe computes them from the memory of its blobs.

    Args:
        layer: A layer whose gradient is computed from overwritten blobs.
        recorded: The bottoms of the forward pass; None before the first one.
        bottoms: What the bottoms' memory holds now, of the same shapes.
        tops: What the tops' memory holds now.
        gradients: The tops' diffs.
    """
    if layer.BACKWARD_READS_TOP:
        return [layer.gradient_from_top(bottoms[0], tops[0], gradients[0])]
    if layer.BACKWARD_FROM_BLOBS:
        found = layer.gradients_from_blobs(recorded, bottoms, tops, gradients)
        if found is not None:
            return found
    with torch.enable_grad():
        leaves = [bottom.detach().requires_grad_(True) for bottom in bottoms]
        return list(torch.autograd.grad(layer.forward(*leaves), leaves, list(gradients)))


def run_over(layer: Layer, bottoms: Sequence[Tensor], plan: Overwriting, source: Tensor | None) -> tuple[Tensor, ...]:
    """Run ``layer`` under autograd such that its gradient is computed from what the memory of its blob holds at last.

    Args:
        layer: The layer, as configured for the bottoms.
        bottoms: Its bottoms.
        plan: Its place in the chain.
        source: The top, of any shape, that this function gave for the layer before it in the chain; None for the first.
    """
    memory: Overwritten = getattr(source, _MEMORY, None) or Overwritten()
    if plan.reads and torch.is_grad_enabled() and any(bottom.requires_grad for bottom in bottoms):
        with torch.no_grad():
            made = layer.run(*bottoms)
        tops: tuple[Tensor, ...] = (_FromMemory.apply(layer, memory, plan.first, made[0], *bottoms), *made[1:])
    else:
        tops = layer.run(*bottoms)
    if plan.last:
        memory.value = tops[0].detach()
    setattr(tops[0], _MEMORY, memory)
    return tops


class _FromMemory(torch.autograd.Function):
    """The top of a layer, with the gradients of :func:`gradients_of_overwritten`."""

    @staticmethod
    def forward(ctx: Context, layer: Layer, memory: Overwritten, first: bool, top: Tensor, *bottoms: Tensor) -> Tensor:
        ctx.layer, ctx.memory, ctx.first = layer, memory, first
        ctx.save_for_backward(*bottoms)
        return top.view_as(top)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        recorded, last = ctx.saved_tensors, ctx.memory.value.to(grads[0].dtype).reshape(grads[0].shape)
        bottoms = recorded if ctx.first else (last,)
        found = gradients_of_overwritten(ctx.layer, recorded, bottoms, [last], [grads[0]])
        return (None, None, None, None, *found)
