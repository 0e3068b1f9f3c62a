"""Transpose, and values along an axis in another order: by Slice and Concat where there is no layer for it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from caffetools.layers.base import Shape
from caffetools.layers.concat import Concat, Slice
from caffetools.layers.permute import Permute
from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.shape import add_reshape

# Parts of a Slice layer up to which an axis is moved without Permute; a net of more takes long to load.
_MOST_PARTS = 2048
# The cost of cutting an axis that is not to be cut, and what stands for an axis of 1 that is not one of the value's own.
_NOT_CUT = 1 << 40
_ONE = -1


@importer("Transpose")
def transpose(writer: NetWriter, node: Node) -> None:
    """Nothing where only axes of 1 move; Permute of SSD's fork; Slice and Concat for BVLC Caffe."""
    shape = writer.shape(node.inputs[0])
    order = [int(n) for n in node.attributes.get("perm", range(len(shape))[::-1])]
    batch = writer.graph.batch_axes.get(node.inputs[0])
    add_transpose(writer, node, writer.blob(node, node.inputs[0]), shape, order, batch=batch)


def add_transpose(
    writer: NetWriter, node: Node, blob: str, shape: Shape, order: Sequence[int], *, batch: int | None = None, last: bool = True
) -> str:
    """Put the axes of a blob of ``shape`` into another order; gives the blob. ``batch`` is the axis of the batch, if it is known to move."""
    moved = [axis for axis in order if shape[axis] != 1 or axis == batch]
    # A Reshape that moves a batch of 1 is right for no other batch; Permute is for any.
    if moved == sorted(moved) and (order[0] == 0 or shape[0] != 1 or writer.target == "bvlc" or batch is not None):
        target = tuple(shape[axis] for axis in order)
        return add_reshape(writer, node, blob, shape, target, batch=None if batch is None else (batch, list(order).index(batch)), last=last)
    if writer.target == "bvlc":
        return _move_axes(writer, node, blob, shape, order, batch, last=last)
    layer = writer.layer(node, Permute.TYPE, [blob], last=last, hint="" if last else "permute")
    layer.permute_param.order.extend(order)
    return str(layer.top[0])


def _move_axes(writer: NetWriter, node: Node, blob: str, shape: Shape, order: Sequence[int], batch: int | None, *, last: bool) -> str:
    """Move one axis after the other: cut into parts of 1 along it, and put them together along a new axis."""
    # A batch that is first and remains first may have any size; axes of 1 need no move.
    axes = [axis for axis in range(len(shape)) if shape[axis] != 1 or axis == batch or (batch is None and axis == order[0] == 0)]
    # Others move around a batch of any size, which cannot be cut into parts.
    sizes = [_NOT_CUT if axis == batch else size for axis, size in enumerate(shape)]
    moves, cost = _plan(axes, [axis for axis in order if axis in axes], sizes)
    if cost > _MOST_PARTS:
        raise node.error(f"BVLC Caffe has no layer that moves axes, and Slice would need {cost} parts; --target ssd or any has Permute")
    present, actual = list(axes), [axis if axis in axes else _ONE for axis in range(len(shape))]

    def reshaped(given: list[int], wanted: list[int], *, final: bool) -> str:
        """Give the blob axes of 1 in other places."""
        sizes = [tuple(1 if axis == _ONE else shape[axis] for axis in axes) for axes in (given, wanted)]
        places = None if batch is None else (given.index(batch), wanted.index(batch))
        return add_reshape(writer, node, blob, *sizes, batch=places, last=final)

    for source, target in moves:
        # A new axis of 1 at the place where the parts are put together.
        wide = [*present[:target], _ONE, *present[target:]]
        place = source if source < target else source + 1
        part = reshaped(actual, wide, final=False)
        sliced = writer.layer(node, Slice.TYPE, [part], last=False, hint="parts", tops=shape[wide[place]])
        sliced.slice_param.axis = place
        joined = writer.layer(node, Concat.TYPE, list(sliced.top), last=False, hint="joined")
        joined.concat_param.axis = target
        blob = joined.top[0]
        actual = list(wide)
        actual[target], actual[place] = wide[place], _ONE
        present = [axis for index, axis in enumerate(actual) if index != place]
    return reshaped(actual, [axis if axis in axes else _ONE for axis in order], final=last)


def _plan(start: Sequence[int], end: Sequence[int], shape: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """Find the moves of single axes with the fewest parts: (place, place of the new axis before which it is put) each; Dijkstra's algorithm."""
    queue: list[tuple[int, list[int], list[tuple[int, int]]]] = [(0, list(start), [])]
    seen: set[tuple[int, ...]] = set()
    while queue:
        cost, present, moves = heapq.heappop(queue)
        if present == list(end):
            return moves, cost
        if tuple(present) in seen:
            continue
        seen.add(tuple(present))
        for source, axis in enumerate(present):
            for target in range(len(present) + 1):
                if target in (source, source + 1):
                    continue
                wide = [*present[:target], axis, *present[target:]]
                del wide[source if source < target else source + 1]
                heapq.heappush(queue, (cost + shape[axis], wide, [*moves, (source, target)]))
    raise AssertionError("every order of axes is reached by moves of single axes")


def take(writer: NetWriter, node: Node, blob: str, axis: int, size: int, indices: Sequence[int], *, last: bool = True) -> str:
    """Put values along ``axis`` of ``size`` into the order of ``indices``, which may repeat; gives the blob."""
    runs = _runs(indices)
    if len(runs) > _MOST_PARTS:
        raise node.error(
            f"its {len(indices)} places along axis {axis} are {len(runs)} parts of a Slice, more than the {_MOST_PARTS} that a net loads in time"
        )
    bounds = sorted({bound for first, end in runs if (first, end) != (0, size) for bound in (first, end)} - {0, size})
    parts: list[str] = [blob]
    if bounds:
        layer = writer.layer(node, Slice.TYPE, [blob], last=False, hint=f"slice{axis}", tops=len(bounds) + 1)
        layer.slice_param.axis = axis
        layer.slice_param.slice_point.extend(bounds)
        parts = list(layer.top)
    starts = [0, *bounds]
    chosen: list[str] = []
    for first, end in runs:
        if (first, end) == (0, size):
            chosen.append(blob)
        else:
            chosen.extend(part for part, start in zip(parts, starts, strict=True) if first <= start < end)
    writer.silence(node, [part for part in parts if part not in chosen and part != blob])
    joined: Any = writer.layer(node, Concat.TYPE, chosen, last=last, hint="" if last else "joined")
    if axis != 1:
        joined.concat_param.axis = axis
    return str(joined.top[0])


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, end) of each run of indices that follow one another."""
    places = np.asarray(indices)
    cuts = [0, *(int(n) + 1 for n in np.flatnonzero(np.diff(places) != 1)), len(places)]
    return [(int(places[a]), int(places[b - 1]) + 1) for a, b in itertools.pairwise(cuts)]
