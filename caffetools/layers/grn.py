"""GRN: normalization of each pixel over its channels (Intel's training toolbox, OpenVINO); grn_layer.cpp."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("GRN")
class GRN(Layer):
    """y = x / sqrt(sum of x² over the channels + bias) for (N, C, H, W); ``dummy_backward`` passes the top's gradient as it is.

    ``bias`` is 1e-7 where the prototxt gives none, as in the toolbox that trains such nets; OpenVINO's importer takes 1 then.
    """

    TRAITS = Traits(role="normalization", settings="grn_param", coordinates="same")
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        self.legacy_axes(bottoms[0])
        if self.param.grn_param.bias < 0:
            raise self.error(f"bias must be at least 0, not {self.param.grn_param.bias}")
        if len(bottoms[0]) < 2:
            raise self.error(f"bottom '{self.bottoms[0]}' needs an axis of channels")
        return [bottoms[0]]

    def forward(self, x: Tensor) -> Tensor:
        y = x / ((x * x).sum(1, keepdim=True) + self.param.grn_param.bias).sqrt()
        if not self.param.grn_param.dummy_backward:
            return y
        # The value of y with the gradient of x.
        passed: Tensor = y.detach() + (x - x.detach())
        return passed

    def to_onnx(self, graph: OnnxGraph) -> None:
        n = Nodes(graph)
        total = n("ReduceSum", n("Mul", self.bottoms[0], self.bottoms[0]), axes=[1], keepdims=1)
        bias = graph.constant("bias", np.array(self.param.grn_param.bias, np.float32))
        graph.node("Div", [self.bottoms[0], n("Sqrt", n("Add", total, bias))], self.tops)
