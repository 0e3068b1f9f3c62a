"""Resizing of maps as FlowNet 2 does it: Resample (resample_layer.cu) and Accum (accum_layer.cpp). Ilg et al. (2017)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import enum_name

Matrix = NDArray[np.float32]


@register("Resample")
class Resample(Layer):
    """Resizes (N, C, H, W) to ``height`` x ``width``, or to the size of a second bottom, by a filter: NEAREST, LINEAR or CUBIC.

    A pixel's value is the weighted mean of the pixels around its place in the bottom, those outside of the map aside. With ``antialias`` (the
    default) and a smaller top the filter is as much wider as the map shrinks. As in FlowNet's CUDA code, the place is
    x · fx + fy / 2 − 1/2 (and y · fy + fx / 2 − 1/2), fx and fy being the ratios of the sizes: where these differ, the image shifts.
    ``factor`` is not used there either. FlowNet's layer has no gradient; this one has that of the weighted mean.
    """

    TRAITS = Traits(role="sampling", settings="resample_param", channels="kept")
    BOTTOMS = (1, 2)
    NO_GRADIENT = SIZE_BOTTOMS = frozenset({1})
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.resample_param
        n, c, h, w = self.legacy_axes(bottoms[0])
        size = self.legacy_axes(bottoms[1], bottom=1)[2:] if len(bottoms) > 1 else (int(param.height), int(param.width))
        if min(size) < 1:
            raise self.error("resample_param needs height and width, or a second bottom of that size")
        kind = enum_name(param, "type")
        if kind == "AREA":
            raise self.error("type AREA has no definition in FlowNet's layer either; NEAREST, LINEAR and CUBIC are computed")
        ratios = [np.float32(a) / np.float32(b) for a, b in zip((h, w), size, strict=True)]
        antialias = bool(param.antialias) and max(ratios) > 1
        sides = ((size[0], h, ratios[0], ratios[1]), (size[1], w, ratios[1], ratios[0]))
        self.weights = [_nearest(self, *side) if kind == "NEAREST" else _filtered(kind, *side, antialias=antialias) for side in sides]
        return [(n, c, *size)]

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        x = x.reshape(self.legacy_axes(tuple(x.shape)))
        return resized(x, *(torch.from_numpy(w).to(x) for w in self.weights))

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if len(self.bottom_shapes[0]) != 4 or any(graph.is_free(bottom, 2, 3) for bottom in self.bottoms):
            raise self.no_onnx_form("maps of any size")
        graph.node("MatMul", [_rows_resized(graph, self.bottoms[0], self.weights[0]), _turned(graph, self.weights[1])], self.tops)


@register("Accum")
class Accum(Layer):
    """All bottoms (N, C_i, H_i, W_i) resized to one size and joined along the channels; bilinear, and corner pixels stay corners.

    The size is that of the last bottom, which gives nothing else, with ``have_reference``; else the largest height and width of all, or
    ``top_height`` x ``top_width`` (the multiples of ``size_divisible_by`` above the largest ones) where both are larger.
    """

    TRAITS = Traits(role="concat", settings="accum_param")
    BOTTOMS = (1, None)
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.accum_param
        shapes = [self.legacy_axes(shape, bottom=i) for i, shape in enumerate(bottoms)]
        if param.have_reference and len(shapes) < 2:
            raise self.error("have_reference needs a further bottom for the size")
        joined = shapes[:-1] if param.have_reference else shapes
        if any(shape[0] != joined[0][0] for shape in joined):
            raise self.error(f"bottoms must have one batch size, but they have {', '.join(str(shape[0]) for shape in joined)}")
        self.joined = len(joined)
        size = shapes[-1][2:] if param.have_reference else self._size(joined)
        if min(size) < 2:
            raise self.error(f"maps of {format_shape(size)} have no corners; 2 x 2 is the least")
        self.weights = [[_between_corners(new, old) for new, old in zip(size, shape[2:], strict=True)] for shape in joined]
        return [(joined[0][0], sum(shape[1] for shape in joined), *size)]

    def _size(self, shapes: list[Shape]) -> Shape:
        param = self.param.accum_param
        largest = [max(shape[axis] for shape in shapes) for axis in (2, 3)]
        wanted = [int(param.top_height), int(param.top_width)]
        if param.size_divisible_by:
            wanted = [math.ceil(n / param.size_divisible_by) * param.size_divisible_by for n in largest]
        return tuple(wanted if wanted[0] > largest[0] and wanted[1] > largest[1] else largest)

    def forward(self, *bottoms: Tensor) -> Tensor:
        parts = []
        for x, weights in zip(bottoms[: self.joined], self.weights, strict=True):
            maps = x.reshape(self.legacy_axes(tuple(x.shape)))
            parts.append(resized(maps, *(torch.from_numpy(w).to(x) for w in weights)))
        return torch.cat(parts, 1)

    ONNX_LIMITS = "needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if any(len(shape) != 4 for shape in self.bottom_shapes) or any(graph.is_free(bottom, 2, 3) for bottom in self.bottoms):
            raise self.no_onnx_form("maps of any size")
        n = Nodes(graph)
        pairs = zip(self.bottoms, self.weights, strict=False)
        parts = [n("MatMul", _rows_resized(graph, name, rows), _turned(graph, columns)) for name, (rows, columns) in pairs]
        graph.node("Concat", parts, self.tops, axis=1)


def resized(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (N, C, H', W') of maps (N, C, H, W) and weights ``rows`` (H', H) and ``columns`` (W', W)."""
    maps: Tensor = rows @ x @ columns.T
    return maps


def _rows_resized(graph: OnnxGraph, source: str, rows: Matrix) -> str:
    return Nodes(graph)("MatMul", graph.constant("rows", rows), source)


def _turned(graph: OnnxGraph, columns: Matrix) -> str:
    return graph.constant("columns", np.ascontiguousarray(columns.T))


def _places(size: int, ratio: np.float32, other: np.float32) -> NDArray[np.float32]:
    """The places of ``size`` pixels in the bottom, in float32 as in the CUDA code."""
    places: Matrix = np.arange(size, dtype=np.float32) * ratio + other / np.float32(2) - np.float32(0.5)
    return places


def _rounded(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers, halves away from 0, as C's round."""
    whole: NDArray[np.int64] = np.copysign(np.floor(np.abs(values) + np.float32(0.5)), values).astype(np.int64)
    return whole


def _nearest(layer: Layer, size: int, old: int, ratio: np.float32, other: np.float32) -> Matrix:
    index = _rounded(_places(size, ratio, other))
    if index.min() < 0 or index.max() >= old:
        raise layer.error("type NEAREST reads outside of the maps for these sizes, in FlowNet's layer too; keep the ratio of the sides")
    weights: Matrix = np.eye(old, dtype=np.float32)[index]
    return weights


def _filtered(kind: str, size: int, old: int, ratio: np.float32, other: np.float32, *, antialias: bool) -> Matrix:
    """Weights (size, old) of one axis whose rows add up to 1, or are 0 where no pixel has a weight."""
    places = _places(size, ratio, other)
    narrow = np.float32(1) / ratio if antialias else np.float32(1)
    reach = 2 if ratio < 1 else math.ceil((4 if kind == "CUBIC" else 2) / narrow)
    pixels = np.arange(old)
    near = np.abs(pixels - _rounded(places)[:, None]) <= reach
    distance = np.abs(narrow * (places[:, None] - pixels.astype(np.float32)))
    weights = np.where(near, _cubic(distance) if kind == "CUBIC" else np.clip(1 - distance, 0, None), 0).astype(np.float64)
    total = weights.sum(1, keepdims=True)
    shares: Matrix = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0).astype(np.float32)
    return shares


def _cubic(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys' cubic filter with a = −1/2, for distances x of 0 or more."""
    inner, outer = x * x * (1.5 * x - 2.5) + 1, x * (x * (-0.5 * x + 2.5) - 4) + 2
    value: NDArray[np.float32] = np.where(x <= 1, inner, np.where(x < 2, outer, 0))
    return value


def _between_corners(size: int, old: int) -> Matrix:
    """Bilinear weights (size, old) of one axis whose first and last pixels are those of the bottom."""
    places = np.arange(size) / (size - 1) * (old - 1)
    first = np.minimum(np.floor(places).astype(np.int64), old - 1)
    share = (places - first)[:, None]
    eye = np.eye(old)
    weights: Matrix = ((1 - share) * eye[first] + share * eye[np.minimum(first + 1, old - 1)]).astype(np.float32)
    return weights
