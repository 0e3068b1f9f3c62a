"""InnerProduct (inner_product_layer.cpp) and Embed (embed_layer.cpp): layers that are one matrix of weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers import inference, native_product
from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes
from caffetools.layers.loss import as_index
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter


@register("InnerProduct")
class InnerProduct(Layer):
    """y = x · Wᵀ + b over all axes from ``axis`` on: (outer…, K…) to (outer…, num_output).

    Blobs: weights (num_output, K), or (K, num_output) with ``transpose``; bias (num_output). Follows inner_product_layer.cpp.
    """

    TRAITS = Traits(
        role="classifier",
        settings="inner_product_param",
        outputs="num_output",
        class_axes=(0, 0),
        half=True,
        weight_filler="weight_filler",
        blobs=("weights", "bias"),
    )
    IN_PLACE = "overwrites"
    NEEDS_TOP = False

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return replace(cls.TRAITS, class_axes=(1, 0)) if param.inner_product_param.transpose else cls.TRAITS

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.inner_product_param
        self.outer_axes = self.axis(param.axis, bottoms[0])
        self.inputs, self.outputs = math.prod(bottoms[0][self.outer_axes :]), int(param.num_output)
        if self.outputs < 1:
            raise self.error("num_output must be at least 1; where DIGITS is to fill it in, retarget --classes N does so")
        self.transposed = bool(param.transpose)
        shape = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        self.declare_blob(shape, param.weight_filler)
        if param.bias_term:
            self.declare_blob((self.outputs,), param.bias_filler)
        return [(*bottoms[0][: self.outer_axes], self.outputs)]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.blobs[0].t() if self.transposed else self.blobs[0]
        bias = self.blobs[1] if len(self.blobs) > 1 else None
        rows = x.reshape(*x.shape[: self.outer_axes], self.inputs)
        if self.outer_axes == 1 and not self.transposed and native_product.takes(rows, weight):
            return native_product.multiply(rows, weight, bias)
        if self.training and self.outer_axes == 1 and not self.transposed and native_product.takes(rows, weight, gradient=True):
            return native_product.multiply_in_training(rows, weight, bias)
        return F.linear(rows, weight, bias)

    def inference_form(self) -> inference.Product | None:
        if self.transposed or self.outer_axes != 1:
            return None
        return inference.Product(self.blobs[0], self.blobs[1] if len(self.blobs) > 1 else None)

    def macs(self) -> int:
        return math.prod(self.bottom_shapes[0]) * self.outputs

    def native_training(self, gradient: bool) -> tuple[int, float]:
        rows = math.prod(self.bottom_shapes[0][: self.outer_axes])
        taken = self.outer_axes == 1 and not self.transposed and native_product.takes_in_training(rows, self.outputs * self.inputs)
        return (3 * self.macs(), 1.0) if taken else (0, 0.0)

    def to_onnx(self, graph: OnnxGraph) -> None:
        x, weight = self.bottoms[0], graph.parameter(self, 0)
        bias = [graph.parameter(self, 1)] if len(self.blobs) > 1 else []
        if self.outer_axes == 1:
            if len(self.bottom_shapes[0]) != 2:
                x = graph.value("flat")
                graph.node("Flatten", [self.bottoms[0]], [x], axis=1)
            graph.node("Gemm", [x, weight, *bias], self.tops, transB=int(not self.transposed))
            return
        if not self.transposed:
            weight = graph.value("weights")
            graph.node("Transpose", [graph.parameter(self, 0)], [weight], perm=[1, 0])
        rows = graph.value("rows")
        # A 0 copies the bottom's axis, so the graph holds for any batch.
        shape = graph.constant("shape", np.array([0] * self.outer_axes + [-1], np.int64))
        graph.node("Reshape", [x, shape], [rows])
        product = graph.value("product") if bias else self.tops[0]
        graph.node("MatMul", [rows, weight], [product])
        if bias:
            graph.node("Add", [product, *bias], self.tops)


@register("Embed")
class Embed(Layer):
    """Row ``x`` of the weights, plus a bias, for each index x in 0 … input_dim − 1: (…) to (…, num_output).

    Blobs: weights (input_dim, num_output), bias (num_output). Follows embed_layer.cpp; an index outside is a NetError.
    """

    TRAITS = Traits(
        settings="embed_param",
        outputs="num_output",
        rows="input_dim",
        class_axes=(1, 0),
        weight_filler="weight_filler",
        blobs=("weights", "bias"),
    )
    NO_GRADIENT = frozenset({0})
    REFUSES_GRADIENT = True
    REFUSES_FORCED = frozenset({0})
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.embed_param
        if param.num_output < 1 or param.input_dim < 1:
            raise self.error("num_output and input_dim must be at least 1")
        self.declare_blob((param.input_dim, param.num_output), param.weight_filler)
        if param.bias_term:
            self.declare_blob((param.num_output,), param.bias_filler)
        return [(*bottoms[0], param.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        index, outside = as_index(self, x, self.blobs[0].shape[0], what="index", of="rows of the weights")
        y = F.embedding(index, self.blobs[0])
        if outside is not None:
            y = y.masked_fill(outside.unsqueeze(-1), float("nan"))
        return y + self.blobs[1] if len(self.blobs) > 1 else y

    def to_onnx(self, graph: OnnxGraph) -> None:
        index = graph.value("index")
        graph.node("Cast", self.bottoms, [index], to=7)
        rows = graph.value("rows") if len(self.blobs) > 1 else self.tops[0]
        graph.node("Gather", [graph.parameter(self, 0), index], [rows], axis=0)
        if len(self.blobs) > 1:
            graph.node("Add", [rows, graph.parameter(self, 1)], self.tops)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        return random.randint(0, self.specs[0].shape[0], shape).astype(np.float32)
