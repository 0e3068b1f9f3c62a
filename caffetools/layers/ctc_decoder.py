"""CTCGreedyDecoder: the best label of each step, repeats and blanks removed (OpenVINO, CTCGreedyDecoder-1). Graves et al. (2006)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("CTCGreedyDecoder")
class CTCGreedyDecoder(Layer):
    """Label sequences (N, T, 1, 1), ended by −1s, of scores (T, N, C) and indicators (T, N) that are 0 where a sequence is over.

    Each step's best class is a label unless it is the blank (``blank_index``, by default the last class) or, with ``ctc_merge_repeated``,
    the same as the step's before. A sequence ends before its first indicator of 0 behind the first step.
    """

    TRAITS = Traits(role="detection", settings="ctc_decoder_param")
    BOTTOMS = (2, 2)
    NO_GRADIENT = frozenset({0, 1})

    def setup(self, bottoms: Shapes) -> Shapes:
        if len(bottoms[0]) < 3 or any(n != 1 for n in bottoms[0][3:]):
            raise self.error(f"the scores '{self.bottoms[0]}' must be T x N x C, not {format_shape(bottoms[0])}")
        steps, items, classes = bottoms[0][:3]
        if tuple(bottoms[1][:2]) != (steps, items) or any(n != 1 for n in bottoms[1][2:]):
            raise self.error(f"the indicators '{self.bottoms[1]}' must be {steps} x {items}, not {format_shape(bottoms[1])}")
        blank = int(self.param.ctc_decoder_param.blank_index)
        self.blank = classes - 1 if blank < 0 else blank
        return [(items, steps, 1, 1)]

    def forward(self, scores: Tensor, indicators: Tensor) -> Tensor:
        steps, items = scores.shape[:2]
        best = scores.detach().reshape(steps, items, -1).argmax(2).T
        going = indicators.detach().reshape(steps, items).T != 0
        going = torch.cat([torch.ones_like(going[:, :1]), going[:, 1:]], 1).cumprod(1).bool()
        before = torch.cat([torch.full_like(best[:, :1], -1), best[:, :-1]], 1)
        kept = going & (best != self.blank)
        if self.param.ctc_decoder_param.ctc_merge_repeated:
            kept &= best != before
        labels = scores.new_full((items, steps), -1)
        for item in range(items):
            found = best[item][kept[item]]
            labels[item, : len(found)] = found.to(labels.dtype)
        return labels.reshape(items, steps, 1, 1)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Return ones of ``shape``: every step counts."""
        return np.ones(shape, np.float32) if index else None

    def to_onnx(self, graph: OnnxGraph) -> None:
        n = Nodes(graph)
        axes = len(self.bottom_shapes[0]), len(self.bottom_shapes[1])
        scores = self.bottoms[0] if axes[0] == 3 else n.reshape(self.bottoms[0], 0, 0, -1)
        indicators = self.bottoms[1] if axes[1] == 2 else n("Squeeze", self.bottoms[1], axes=list(range(2, axes[1])))
        best = n("ArgMax", scores, axis=2, keepdims=0)
        size = n("Shape", best)
        steps = n.part(size, 0, 1, 0)
        first, never = n.part(best, 0, 1, 0), 2**31 - 1
        stops = n("Cast", n("Equal", indicators, n.number(0)), to=7)
        axis = n("Squeeze", n.ints(0), axes=[0])
        nothing = n("Mul", first, n.ints(0))
        # The first step always counts.
        over = n("Concat", nothing, n("CumSum", n.part(stops, 1, never, 0), axis), axis=0)
        kept = n("And", n("Equal", over, n.ints(0)), n("Not", n("Equal", best, n.ints(self.blank))))
        if self.param.ctc_decoder_param.ctc_merge_repeated:
            before = n("Concat", n("Sub", nothing, n.ints(1)), n.part(best, 0, -1, 0), axis=0)
            kept = n("And", kept, n("Not", n("Equal", best, before)))
        # Labels go to the places that they have in their sequence, all else to a row behind the last, which is cut off.
        place = n("Sub", n("CumSum", n("Cast", kept, to=7), axis), n.ints(1))
        empty = n("Expand", n.number(-1), n("Add", size, n.ints(1, 0)))
        filled = n("ScatterElements", empty, n("Where", kept, place, steps), n("Cast", best, to=1), axis=0)
        rows = n("Transpose", n.part(filled, 0, -1, 0), perm=[1, 0])
        graph.node("Unsqueeze", [rows], self.tops, axes=[2, 3])
