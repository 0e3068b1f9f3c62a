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


@importer("Transpose")
def transpose(writer: NetWriter, node: Node) -> None:
    """Nothing where only axes of 1 move; Permute of SSD's fork; Slice and Concat for BVLC Caffe."""
    shape = writer.shape(node.inputs[0])
    order = [int(n) for n in node.attributes.get("perm", range(len(shape))[::-1])]
    blob = writer.blob(node, node.inputs[0])
    add_transpose(writer, node, blob, shape, order)


def add_transpose(writer: NetWriter, node: Node, blob: str, shape: Shape, order: Sequence[int], *, last: bool = True) -> str:
    """Put the axes of a blob of ``shape`` into another order; gives the blob."""
    moved = [axis for axis in order if shape[axis] != 1]
    # A Reshape that moves a batch of 1 is right for no other batch; Permute is for any.
    if moved == sorted(moved) and (order[0] == 0 or shape[0] != 1 or writer.target == "bvlc"):
        return add_reshape(writer, node, blob, shape, tuple(shape[axis] for axis in order), last=last)
    if writer.target == "bvlc":
        return _move_axes(writer, node, blob, shape, order, last=last)
    layer = writer.layer(node, Permute.TYPE, [blob], last=last, hint="" if last else "permute")
    layer.permute_param.order.extend(order)
    return str(layer.top[0])


def _move_axes(writer: NetWriter, node: Node, blob: str, shape: Shape, order: Sequence[int], *, last: bool) -> str:
    """Move one axis after the other: cut into parts of 1 along it, and put them together along a new axis."""
    # A batch that is first and remains first may have any size; axes of 1 need no move.
    axes = [axis for axis in range(len(shape)) if shape[axis] != 1 or (axis == 0 and order[0] == 0)]
    moves, cost = _plan(axes, [axis for axis in order if axis in axes], shape)
    if cost > _MOST_PARTS:
        raise node.error(f"BVLC Caffe has no layer that moves axes, and Slice would need {cost} parts; --target ssd or any has Permute")
    present, actual = tuple(shape[axis] for axis in axes), shape
    for source, target in moves:
        # A new axis of 1 at the place where the parts are put together.
        wide = (*present[:target], 1, *present[target:])
        place = source if source < target else source + 1
        part = add_reshape(writer, node, blob, actual, wide, last=False)
        sliced = writer.layer(node, Slice.TYPE, [part], last=False, hint="parts", tops=wide[place])
        sliced.slice_param.axis = place
        joined = writer.layer(node, Concat.TYPE, list(sliced.top), last=False, hint="joined")
        joined.concat_param.axis = target
        blob = joined.top[0]
        moved = [*wide]
        moved[target], moved[place] = wide[place], 1
        actual = tuple(moved)
        del moved[place]
        present = tuple(moved)
    return add_reshape(writer, node, blob, actual, tuple(shape[axis] for axis in order), last=last)


def _plan(start: Sequence[int], end: Sequence[int], shape: Shape) -> tuple[list[tuple[int, int]], int]:
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
