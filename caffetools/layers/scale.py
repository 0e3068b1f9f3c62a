"""Scale (scale_layer.cpp) and Bias (bias_layer.cpp): a product or a sum along some axes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from caffetools.layers import inference
from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import POINTWISE, Windows
from caffetools.proto.schema import BiasParameter, FillerParameter, LayerParameter, ScaleParameter


class _Broadcasting(Layer):
    """One operand lies along ``num_axes`` axes of the bottom from ``axis`` on; it is a second bottom, or learned."""

    BOTTOMS = (1, 2)
    NEEDS_TOP = False

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 8, 64, 64), (1,)][: len(param.bottom)]

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return cls.TRAITS if len(param.bottom) == 1 else replace(cls.TRAITS, channels="mixed", class_axes=())

    def place(self, param: ScaleParameter | BiasParameter, bottoms: Shapes) -> Shape:
        """Return the operand's shape; sets ``first_axis``, its first one in the bottom, and ``expanded``, its shape with ones around it.

        Raises:
            NetError: The operand does not fit the bottom.
        """
        shape = bottoms[0]
        if len(bottoms) > 1:
            operand = bottoms[1]
            axis = 0 if math.prod(operand) == 1 else self.axis(param.axis, shape)
            if math.prod(operand) != 1 and shape[axis : axis + len(operand)] != operand:
                raise self.error(
                    f"bottom '{self.bottoms[1]}' ({format_shape(operand)}) does not fit '{self.bottoms[0]}' ({format_shape(shape)}) from axis {axis} on"
                )
        else:
            axis = self.axis(param.axis, shape) if param.num_axes else 0
            if param.num_axes < -1 or axis + param.num_axes > len(shape):
                raise self.error(f"num_axes {param.num_axes} from axis {axis} on does not fit a bottom of {format_shape(shape)}")
            operand = shape[axis:] if param.num_axes == -1 else shape[axis : axis + param.num_axes]
        self.first_axis = axis
        if math.prod(operand) == 1:
            self.expanded: Shape = (1,) * len(shape)
        else:
            self.expanded = (*[1] * axis, *operand, *[1] * (len(shape) - axis - len(operand)))
        return operand

    def learned_in_onnx(self, graph: OnnxGraph, index: int, hint: str) -> str:
        """Return the name of a constant that holds parameter ``index``, shaped to be broadcast."""
        return graph.constant(hint, self.array(index).reshape(self.expanded))

    def bottom_in_onnx(self, graph: OnnxGraph, axis: int) -> str:
        """Return the name of the second bottom with axes of 1 behind it, so that it is broadcast from ``axis`` on, for any sizes."""
        (shape, operand), name = self.bottom_shapes, self.bottoms[1]
        if math.prod(operand) == 1 and not (operand and graph.is_free(name, *range(len(operand)))):
            result = graph.value("operand")
            graph.reshape(name, result, [1] * len(shape))
            return result
        missing = len(shape) - self.axis(axis, shape) - len(operand)
        if not missing:
            return name
        result = graph.value("operand")
        graph.node("Unsqueeze", [name], [result], axes=list(range(len(operand), len(operand) + missing)))
        return result

    def spatial_windows(self) -> Windows | None:
        shape = self.bottom_shapes[0]
        whole_map = len(self.bottoms) == 1 and all(n == 1 for n in self.expanded[2:])
        return POINTWISE if len(shape) == 4 and whole_map else None

    def along_channels(self, values: int) -> bool:
        """Return whether a learned operand of ``values`` values is one for each channel of (N, C, …)."""
        shape = self.bottom_shapes[0]
        return len(shape) > 1 and self.expanded == (1, shape[1], *[1] * (len(shape) - 2)) and values == shape[1]


@register("Scale")
class Scale(_Broadcasting):
    """y = scale · x (+ bias); scale along ``num_axes`` axes of x from ``axis`` on (by default the channels), learned or a second bottom.

    Blobs: scale (only with one bottom; starts at 1), bias of the same shape (``bias_term``; starts at 0). A second bottom of one
    value scales everything. Follows scale_layer.cpp.
    """

    TRAITS = Traits(
        role="scale",
        settings="scale_param",
        class_axes=(0, 0),
        channels="kept",
        in_place=True,
        coordinates="same",
        weight_filler="filler",
        blobs=("scale", "bias"),
    )

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.scale_param
        shape = self.place(param, bottoms)
        if len(bottoms) == 1:
            self.declare_blob(shape, param.filler if param.HasField("filler") else FillerParameter(value=1.0))
        if param.bias_term:
            self.declare_blob(shape, param.bias_filler)
        return [bottoms[0]]

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        factor = (self.blobs[0] if scale is None else scale).reshape(self.expanded)
        if not self.param.scale_param.bias_term:
            return x * factor
        return torch.addcmul(self.blobs[-1].reshape(self.expanded), x, factor)

    def macs(self) -> int:
        return math.prod(self.top_shapes[0])

    def replaced_gradients(self) -> frozenset[int]:
        # Where nothing stands before the operand's axes, Caffe computes the sums in the scale's diff itself.
        if len(self.bottoms) > 1:
            return frozenset()
        shape, operand = self.bottom_shapes[0], self.blobs[0].shape
        outer, inner = math.prod(shape[: self.first_axis]), math.prod(shape[self.first_axis + len(operand) :])
        return frozenset({0} if outer == 1 and (inner == 1 or operand.numel() > 1) else ())

    def left_in_diff(self, bottom: Tensor, diff: Tensor) -> Tensor | None:
        # The products whose sums are the scale's gradient, unless they are that gradient or the layer works in place.
        if len(self.bottoms) > 1 or self.tops == self.bottoms or bottom.shape != diff.shape or bottom.numel() == self.blobs[0].numel():
            return None
        return diff * bottom

    def of_channels(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the learned scale (C) and the bias (C) or None; None where it is not one for each channel of (N, C, …)."""
        if len(self.bottoms) > 1 or not self.along_channels(self.blobs[0].numel()):
            return None
        return self.blobs[0].reshape(-1), self.blobs[1].reshape(-1) if self.param.scale_param.bias_term else None

    def inference_form(self) -> inference.Affine | None:
        found = self.of_channels()
        if found is None:
            return None
        scale, bias = found[0].detach(), found[1]
        return inference.Affine(scale, torch.zeros_like(scale) if bias is None else bias.detach())

    def to_onnx(self, graph: OnnxGraph) -> None:
        biased = self.param.scale_param.bias_term
        product = graph.value("product") if biased else self.tops[0]
        two = len(self.bottoms) > 1
        factor = self.bottom_in_onnx(graph, self.param.scale_param.axis) if two else self.learned_in_onnx(graph, 0, "scale")
        graph.node("Mul", [self.bottoms[0], factor], [product])
        if biased:
            graph.node("Add", [product, self.learned_in_onnx(graph, len(self.blobs) - 1, "bias")], self.tops)


@register("Bias")
class Bias(_Broadcasting):
    """y = x + bias; bias along ``num_axes`` axes of x from ``axis`` on (by default the channels), learned or a second bottom.

    Blobs: bias (only with one bottom; starts at 0). Follows bias_layer.cpp.
    """

    TRAITS = Traits(
        role="scale",
        settings="bias_param",
        class_axes=(0,),
        channels="kept",
        in_place=True,
        coordinates="same",
        weight_filler="filler",
        blobs=("bias",),
    )

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.bias_param
        shape = self.place(param, bottoms)
        if len(bottoms) == 1:
            self.declare_blob(shape, param.filler)
        return [bottoms[0]]

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x + (self.blobs[0] if bias is None else bias).reshape(self.expanded)

    def inference_form(self) -> inference.Affine | None:
        if len(self.bottoms) > 1 or not self.along_channels(self.blobs[0].numel()):
            return None
        shift = self.blobs[0].detach().reshape(-1)
        return inference.Affine(torch.ones_like(shift), shift)

    def to_onnx(self, graph: OnnxGraph) -> None:
        two = len(self.bottoms) > 1
        term = self.bottom_in_onnx(graph, self.param.bias_param.axis) if two else self.learned_in_onnx(graph, 0, "bias")
        graph.node("Add", [self.bottoms[0], term], self.tops)
