"""BatchReindex (batch_reindex_layer.cpp) and Filter (filter_layer.cpp): chosen items of a batch."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.loss import as_index
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("BatchReindex")
class BatchReindex(Layer):
    """The items of (N, …) in the order that the second bottom (M) names them, to (M, …) (batch_reindex_layer.cpp)."""

    TRAITS = Traits(channels="kept")
    BOTTOMS = (2, 2)
    NO_GRADIENT = frozenset({1})
    REFUSES_GRADIENT = True
    REFUSES_FORCED = frozenset({1})

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(bottoms[1]) != 1:
            raise self.error(f"bottom '{self.bottoms[1]}' (the order) must have 1 axis, not {format_shape(bottoms[1])}")
        return [(bottoms[1][0], *bottoms[0][1:])]

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        index, outside = as_index(self, order, x.shape[0], what="index", of="items in the batch")
        y = x.index_select(0, index)
        return y if outside is None else y.masked_fill(outside.reshape(-1, *[1] * (x.dim() - 1)), float("nan"))

    def to_onnx(self, graph: OnnxGraph) -> None:
        index = graph.value("index")
        graph.node("Cast", [self.bottoms[1]], [index], to=7)
        graph.node("Gather", [self.bottoms[0], index], self.tops, axis=0)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        return random.randint(0, max(self.bottom_shapes[0][0], 1), shape).astype(np.float32) if index else None


@register("Filter")
class Filter(Layer):
    """The items whose value in the last bottom (N, or N x 1 x …) is not 0, of every other bottom (N, …) (filter_layer.cpp).

    The shape rule gives the largest shape; a run gives as many items as there are. Items left out get gradient 0.
    """

    TRAITS = Traits(half=True)
    BOTTOMS = (2, None)
    TOPS = (1, None)
    REFUSES_GRADIENT = True

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(self.tops) != len(bottoms) - 1:
            raise self.error(f"needs one top for each bottom but the last (the selector): {len(bottoms) - 1}, not {len(self.tops)}")
        # The selector is the last bottom, and how many there are is the layer's own.
        self.__dict__["NO_GRADIENT"] = self.__dict__["REFUSES_FORCED"] = frozenset({len(bottoms) - 1})
        selector = bottoms[-1]
        if not selector or math.prod(selector[1:]) != 1:
            raise self.error(f"the selector '{self.bottoms[-1]}' must have one value for each item, not {format_shape(selector)}")
        for name, shape in zip(self.bottoms, bottoms, strict=True):
            if shape[:1] != selector[:1]:
                raise self.error(f"'{name}' ({format_shape(shape)}) must have as many items as the selector ({format_shape(selector)})")
        return bottoms[:-1]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        kept = torch.nonzero(bottoms[-1].detach().reshape(-1)).reshape(-1)
        return tuple(x.index_select(0, kept) for x in bottoms[:-1])

    def to_onnx(self, graph: OnnxGraph) -> None:
        flat, chosen = graph.value("flat"), graph.value("chosen")
        graph.node("Reshape", [self.bottoms[-1], graph.constant("shape", np.array([-1], np.int64))], [flat])
        graph.node("Cast", [flat], [chosen], to=9)
        for bottom, top in zip(self.bottoms[:-1], self.tops, strict=True):
            graph.node("Compress", [bottom, chosen], [top], axis=0)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        if index < len(self.bottoms) - 1:
            return None
        # At least one item stays, so that the layers behind have something to compute.
        selected = random.randint(0, 2, shape).astype(np.float32)
        selected[:1] = 1
        return selected
