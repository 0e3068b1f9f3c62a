"""Eltwise: equally shaped blobs combined value by value (eltwise_layer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from caffetools.layers import inference, native_training
from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import enum_name


@register("Eltwise")
class Eltwise(Layer):
    """SUM (with a ``coeff`` for each bottom), PROD or MAX of equally shaped bottoms, value by value.

    As in eltwise_layer.cpp the gradient of MAX goes, of equal values, to the second of the first two bottoms; a later one must be
    strictly larger. ``stable_prod_grad: false`` divides there (and fails at 0); here the stable form serves both, except where blobs
    were edited after the forward pass.
    """

    TRAITS = Traits(role="merge", half=True, coordinates="same")
    BOTTOMS = (2, None)
    NEEDS_TOP = False
    BACKWARD_FROM_BLOBS = True

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.eltwise_param
        self.operation, self.coeff = enum_name(param, "operation"), [float(c) for c in param.coeff]
        if self.coeff and (self.operation != "SUM" or len(self.coeff) != len(bottoms)):
            raise self.error(f"coeff is for SUM, once for each of its {len(bottoms)} bottoms")
        for name, shape in zip(self.bottoms, bottoms, strict=True):
            if shape != bottoms[0]:
                raise self.error(
                    f"bottoms must have one shape: '{self.bottoms[0]}' is {format_shape(bottoms[0])}, '{name}' is {format_shape(shape)}"
                )
        return [bottoms[0]]

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.operation == "SUM":
            return self._sum(bottoms)
        y = bottoms[0]
        for index, x in enumerate(bottoms[1:], 1):
            if self.operation == "PROD":
                y = y * x
                continue
            y = torch.where(y > x, y, x) if index == 1 else torch.where(x > y, x, y)
        return y

    def gradients_from_blobs(
        self, recorded: Sequence[Tensor] | None, bottoms: Sequence[Tensor], tops: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if self.operation == "MAX":
            largest = torch.zeros_like(bottoms[0])
            y = recorded[0] if recorded else bottoms[0]
            for index, x in enumerate(recorded[1:] if recorded else (), 1):
                won = (y > x).logical_not_() if index == 1 else x > y
                largest[won], y = float(index), torch.where(won, x, y)
            return [gradients[0] * (largest == index) for index in range(len(bottoms))]
        if self.operation == "PROD" and not self.param.eltwise_param.stable_prod_grad:
            return [tops[0] / x * gradients[0] for x in bottoms]
        return None

    def caffe_in_place(self) -> Literal["", "refused", "overwrites"]:
        return "" if self.operation == "PROD" and self.tops[0] in self.bottoms[:2] else "overwrites"

    def backward_reads_top(self) -> bool:
        return self.operation == "PROD" and not self.param.eltwise_param.stable_prod_grad

    def _sum(self, bottoms: tuple[Tensor, ...]) -> Tensor:
        coeff = self.coeff or [1.0] * len(bottoms)
        if self.training and coeff == [1.0, 1.0] and native_training.adds(*bottoms):
            return native_training.add(*bottoms)
        y = bottoms[0] if coeff[0] == 1 else bottoms[0] * coeff[0]
        for x, c in zip(bottoms[1:], coeff[1:], strict=True):
            y = torch.add(y, x, alpha=c)
        return y

    def native_training(self, gradient: bool) -> tuple[int, float]:
        return 0, 1.0 if self.inference_form() is not None else 0.0

    def spatial_windows(self) -> Windows:
        return POINTWISE

    def inference_form(self) -> inference.Sum | None:
        plain = self.operation == "SUM" and len(self.bottoms) == 2 and all(c == 1 for c in self.coeff)
        return inference.Sum() if plain else None

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.operation == "PROD":
            self._chain(graph, "Mul", self.bottoms)
        elif self.operation == "MAX":
            graph.node("Max", self.bottoms, self.tops)
        else:
            self._chain(graph, "Add", [self._scaled(graph, i) for i in range(len(self.bottoms))])

    def _scaled(self, graph: OnnxGraph, index: int) -> str:
        if not self.coeff or self.coeff[index] == 1:
            return self.bottoms[index]
        scaled = graph.value("scaled")
        factor = graph.constant("coeff", np.array(self.coeff[index], np.float32))
        graph.node("Mul", [self.bottoms[index], factor], [scaled])
        return scaled

    def _chain(self, graph: OnnxGraph, op: str, names: list[str]) -> None:
        result = names[0]
        for index, name in enumerate(names[1:], 2):
            target = self.tops[0] if index == len(names) else graph.value("part")
            graph.node(op, [result, name], [target])
            result = target
