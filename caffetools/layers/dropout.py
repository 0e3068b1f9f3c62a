"""Dropout (dropout_layer.cpp)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from caffetools.errors import ExportError
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
    SegNet's ``sample_weights_test: true`` drops values in TEST as in training, so that several runs give samples (Bayesian SegNet).
    """

    BACKWARD_READS_BOTTOMS = False
    TRAITS = replace(Elementwise.TRAITS, role="dropout", settings="dropout_param", half=True)
    FORK_FIELDS = frozenset({"scale_train", "sample_weights_test"})

    def setup(self, bottoms: Shapes) -> Shapes:
        self.ratio = float(self.param.dropout_param.dropout_ratio)
        if not 0.0 <= self.ratio < 1.0:
            raise self.error(f"dropout_ratio must be at least 0 and below 1, not {self.ratio:g}")
        param = self.param.dropout_param
        self.scaled_in_test = param.HasField("scale_train") and not param.scale_train
        self.drops_in_test = bool(param.sample_weights_test)
        return super().setup(bottoms)

    def forward(self, x: Tensor) -> Tensor:
        drops = self.training or self.drops_in_test
        if not self.ratio or not (drops or self.scaled_in_test):
            return x
        if self.scaled_in_test:
            return x * (uniform_like(x, self.generator) >= self.ratio) if drops else x * (1.0 - self.ratio)
        if x.device.type != "cpu":
            return F.dropout(x, self.ratio, training=True, inplace=self.overwrites(x))
        # torch's Bernoulli draws on the CPU take several times longer than uniform ones.
        mask = uniform_like(x, self.generator).ge_(self.ratio).mul_(1.0 / (1.0 - self.ratio))
        return x.mul_(mask) if self.overwrites(x) else x * mask

    def inference_form(self) -> inference.Identity | None:
        return None if self.training or self.scaled_in_test or self.drops_in_test else inference.Identity()

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.drops_in_test and self.ratio:
            raise ExportError(
                "dropout_param: sample_weights_test drops values at random in use, and ONNX has no such numbers",
                layer=self.name,
                hint="for the mean of many samples, take that line out",
            )
        if self.scaled_in_test and self.ratio:
            graph.node("Mul", [self.bottoms[0], graph.constant("kept", np.array(1.0 - self.ratio, np.float32))], self.tops)
            return
        graph.node("Identity", self.bottoms, self.tops)
