"""SPP (spp_layer.cpp): spatial pyramid pooling."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.pooling import Window, ave_pool, global_pool_to_onnx, max_pool, pool_to_onnx, stochastic_pool
from caffetools.layers.registry import register
from caffetools.proto.schema import enum_name


@register("SPP")
class SPP(Layer):
    """(N, C, H, W) pooled over 1, 2², 4², … windows, one grid a level, flattened and joined to (N, C · all windows).

    ``pyramid_height`` levels; a single one stays (N, C, 1, 1). Kernel and stride are ceil(size / bins), the padding half of what
    they reach too far. He et al. (2014); spp_layer.cpp.
    """

    BACKWARD_READS_BOTTOMS = False
    IN_PLACE = "overwrites"
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        param = self.param.spp_param
        if param.pyramid_height < 1:
            raise self.error("pyramid_height must be at least 1")
        self.method = enum_name(param, "pool")
        self.windows = [self._level((h, w), 2**level) for level in range(param.pyramid_height)]
        if len(self.windows) == 1:
            return [(n, c, *self.windows[0].output)]
        return [(n, c * sum(a * b for a, b in (window.output for window in self.windows)))]

    def _level(self, size: tuple[int, int], bins: int) -> Window:
        kernel = (-(-size[0] // bins), -(-size[1] // bins))
        pad = ((kernel[0] * bins - size[0] + 1) // 2, (kernel[1] * bins - size[1] + 1) // 2)
        if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
            raise self.error(f"bottom '{self.bottoms[0]}' has maps of {format_shape(size)}, too small for {bins} x {bins} windows")
        if self.method == "STOCHASTIC" and any(pad):
            raise self.error(f"STOCHASTIC pooling takes no padding, which maps of {format_shape(size)} need for {bins} x {bins} windows")
        return Window.over(size, kernel, kernel, pad)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self._pool(x, window) for window in self.windows]
        return levels[0] if len(levels) == 1 else torch.cat([level.flatten(1) for level in levels], 1)

    def _pool(self, x: Tensor, window: Window) -> Tensor:
        if self.method == "STOCHASTIC":
            return stochastic_pool(x, window, training=self.training, generator=self.generator)
        return max_pool(x, window) if self.method == "MAX" else ave_pool(x, window)

    ONNX_LIMITS = "STOCHASTIC has none; several levels need a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.method == "STOCHASTIC":
            raise self.no_onnx_form("STOCHASTIC pooling")
        if graph.is_free(self.bottoms[0], 2, 3):
            if len(self.windows) > 1:
                raise self.no_onnx_form("its windows depend on the size of the map; give height and width (--input-shape)")
            global_pool_to_onnx(graph, self.method, self.bottoms[0], self.tops[0])
            return
        if len(self.windows) == 1:
            pool_to_onnx(self, graph, self.windows[0], self.method, self.bottoms[0], self.tops)
            return
        rows = []
        flat = graph.constant("flat", np.array([0, -1], np.int64))
        for window in self.windows:
            pooled, row = graph.value("level"), graph.value("row")
            pool_to_onnx(self, graph, window, self.method, self.bottoms[0], [pooled])
            graph.node("Reshape", [pooled, flat], [row])
            rows.append(row)
        graph.node("Concat", rows, self.tops, axis=1)
