"""Dropout (dropout_layer.cpp)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.activation import Elementwise
from caffetools.layers.base import OnnxGraph, Shapes
from caffetools.layers.draws import uniform_like
from caffetools.layers.registry import register


@register("Dropout")
class Dropout(Elementwise):
    """In training each value is kept with probability 1 − ``dropout_ratio`` and divided by it, else 0; in TEST the identity.

    Any shape; the gradient passes through the same mask. Follows dropout_layer.cpp; the random stream is torch's, of :attr:`generator`.
    R-FCN's ``scale_train: false`` divides nothing in training and multiplies by 1 − ``dropout_ratio`` in TEST instead.
    """

    BACKWARD_READS_BOTTOMS = False
    TRAITS = replace(Elementwise.TRAITS, role="dropout", settings="dropout_param", half=True)
    FORK_FIELDS = frozenset({"scale_train"})

    def setup(self, bottoms: Shapes) -> Shapes:
        self.ratio = float(self.param.dropout_param.dropout_ratio)
        if not 0.0 <= self.ratio < 1.0:
            raise self.error(f"dropout_ratio must be at least 0 and below 1, not {self.ratio:g}")
        param = self.param.dropout_param
        self.in_test = param.HasField("scale_train") and not param.scale_train
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ratio or not (self.training or self.in_test):
            return x
        if self.in_test:
            return x * (uniform_like(x, self.generator) >= self.ratio) if self.training else x * (1.0 - self.ratio)
        if x.device.type != "cpu":
            return F.dropout(x, self.ratio, training=True, inplace=self.overwrites(x))
        # torch's Bernoulli draws on the CPU take several times longer than uniform ones.
        mask = uniform_like(x, self.generator).ge_(self.ratio).mul_(1.0 / (1.0 - self.ratio))
        return x.mul_(mask) if self.overwrites(x) else x * mask

    def inference_form(self) -> inference.Identity | None:
        return None if self.training or self.in_test else inference.Identity()

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.in_test and self.ratio:
            graph.node("Mul", [self.bottoms[0], graph.constant("kept", np.array(1.0 - self.ratio, np.float32))], self.tops)
            return
        graph.node("Identity", self.bottoms, self.tops)
