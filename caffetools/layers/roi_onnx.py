"""PSROIPooling as ONNX nodes: sums over bins are products with 0/1 matrices of rows and columns, as in its forward pass."""

from __future__ import annotations

import numpy as np

from caffetools.layers.base import Layer, OnnxGraph, Size
from caffetools.layers.onnx_nodes import Nodes


def psroi_to_onnx(graph: OnnxGraph, layer: Layer, g: int, outputs: int, scale: float) -> None:
    """Add the nodes of PSROIPooling for maps (N, D · g · g, H, W) and regions (R, 5) to (R, D, g, g).

    The items of the batch lie one below the other in one map of N · H rows, and a region's rows are those of its item.
    """
    n = Nodes(graph)
    batch, h, w = (graph.size(layer.bottoms[0], axis) for axis in (0, 2, 3))
    regions = n.reshape(layer.bottoms[1], 0, 5)
    rows, columns = _bins(n, g, scale, regions, 2, h), _bins(n, g, scale, regions, 1, w)  # (R, g, H), (R, g, W)
    own = n("Cast", n("Equal", n.column(regions, 0), _range(n, batch)), to=1)  # (R, N)
    spread = n("Mul", n("Unsqueeze", own, axes=[1, 3]), n("Unsqueeze", rows, axes=[2]))  # (R, g, N, H)
    tall_rows = n("Transpose", n.reshape(spread, 0, 0, -1), perm=[1, 0, 2])  # (i, R, N · H)
    grouped = n("Transpose", n.reshape(layer.bottoms[0], 0, outputs, g, g, h, w), perm=[2, 0, 4, 1, 3, 5])
    maps = n.reshape(grouped, g, graph.arithmetic("Mul", batch, h), graph.arithmetic("Mul", w, outputs * g))
    strips = n.reshape(n("MatMul", tall_rows, maps), 0, -1, outputs, g, w)  # (i, R, D, j, W)
    sums = n("ReduceSum", n("Mul", strips, n("Unsqueeze", columns, axes=[0, 2])), axes=[4], keepdims=0)  # (i, R, D, j)
    tall, wide = (n("ReduceSum", bins, axes=[2], keepdims=0) for bins in (rows, columns))
    areas = n("Mul", n("Unsqueeze", tall, axes=[2]), n("Unsqueeze", wide, axes=[1]))  # (R, i, j)
    divisors = n("Unsqueeze", n("Max", areas, n.number(1)), axes=[1])
    graph.node("Div", [n("Transpose", sums, perm=[1, 2, 0, 3]), divisors], layer.tops)


def _bins(n: Nodes, g: int, spatial_scale: float, regions: str, start: int, limit: Size) -> str:
    """Return (R, g, limit) with 1 where a pixel lies in a bin of the regions' axis in columns ``start`` and ``start + 2``."""
    scale, graph = n.number(spatial_scale), n.graph
    first, last = (_rounded(n, n.column(regions, index)) for index in (start, start + 2))
    first, last = n("Mul", first, scale), n("Mul", n("Add", last, n.number(1)), scale)
    size = n("Div", n("Max", n("Sub", last, first), n.number(0.1)), n.number(g))
    steps = np.arange(g, dtype=np.float32)[None]
    begin, end = (n("Mul", graph.constant("steps", steps + more), size) for more in (0, 1))
    begin, end = n("Floor", n("Add", begin, first)), n("Ceil", n("Add", end, first))
    high = n("Cast", graph.sizes("limit", [limit]), to=1)
    begin, end = (n("Unsqueeze", n("Min", n("Max", edge, n.number(0)), high), axes=[2]) for edge in (begin, end))
    pixels = _range(n, limit)
    return n("Cast", n("And", n("Not", n("Less", pixels, begin)), n("Less", pixels, end)), to=1)


def _range(n: Nodes, size: Size) -> str:
    """0, 1, … below ``size``, float32."""
    end = n("Squeeze", n("Cast", n.graph.sizes("size", [size]), to=1), axes=[0])
    return n("Range", n.number(0), end, n.number(1))


def _rounded(n: Nodes, value: str) -> str:
    """To whole numbers, halves away from 0."""
    return n("Mul", n("Sign", value), n("Floor", n("Add", n("Abs", value), n.number(0.5))))
