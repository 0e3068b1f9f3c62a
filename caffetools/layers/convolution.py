"""Convolution and Deconvolution over any number of spatial axes (base_conv_layer.cpp), and forks' depthwise convolution."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers import inference, training_conv, winograd
from caffetools.layers.base import SAME_AS_BOTTOMS, Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.im2col import Kernel, columns_to_onnx, convolve, deconvolve
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import Windows, convolved, deconvolved
from caffetools.proto.schema import LayerParameter


class _Convolving(Layer):
    """What Convolution and Deconvolution share: (N, C, spatial…) bottoms, one set of weights for all of them."""

    BOTTOMS = (1, None)
    TOPS = SAME_AS_BOTTOMS
    NEEDS_TOP = False
    TRANSPOSED = False

    def setup(self, bottoms: Shapes) -> Shapes:
        conv = self.param.convolution_param
        axis = self.axis(conv.axis, bottoms[0])
        channels, spatial = bottoms[0][axis], bottoms[0][axis + 1 :]
        self.outer_axes, self.spatial_axes = axis, len(spatial)
        self.kernel = Kernel.from_param(self, conv, len(spatial))
        self.group, outputs = self.groups(channels), conv.num_output
        if outputs < 1:
            raise self.error("num_output must be at least 1; where DIGITS is to fill it in, retarget --classes N does so")
        if self.group < 1 or channels % self.group or outputs % self.group:
            raise self.error(f"group {self.group} must divide both the {channels} input channels and num_output {outputs}")
        for name, shape in zip(self.bottoms, bottoms, strict=True):
            if shape != bottoms[0]:
                raise self.error(
                    f"bottoms must have one shape: '{self.bottoms[0]}' is {format_shape(bottoms[0])}, '{name}' is {format_shape(shape)}"
                )
        first, second = (channels, outputs) if self.TRANSPOSED else (outputs, channels)
        self.declare_blob((first, second // self.group, *self.kernel.size), conv.weight_filler)
        if conv.bias_term:
            self.declare_blob((outputs,), conv.bias_filler)
        size = self.kernel.deconvolved(spatial) if self.TRANSPOSED else self.kernel.convolved(spatial)
        if any(n < 1 for n in size):
            raise self.error(
                f"kernel {format_shape(self.kernel.size)} does not fit its input {format_shape(bottoms[0])}: the output would be {format_shape(size)}"
            )
        return [(*bottoms[0][:axis], outputs, *size)] * len(self.tops)

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        conv = param.convolution_param
        channels = conv.num_output if cls.TRANSPOSED else max(int(conv.group), 1)
        extent = 1 + max([1, conv.kernel_h, conv.kernel_w, *conv.kernel_size]) * max([1, *conv.dilation])
        sizes = (extent,) * max(2, len(conv.kernel_size))
        return [(2, channels, *sizes)] * len(param.bottom)

    def groups(self, channels: int) -> int:
        """In how many groups the ``channels`` are convolved, each on its own."""
        return int(self.param.convolution_param.group)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._one(x, shape) for x, shape in zip(bottoms, self.top_shapes, strict=True))

    def macs(self) -> int:
        weight = self.specs[0].shape
        # Every weight meets every position of the smaller-named side once: outputs of a convolution, inputs of a deconvolution.
        positions = self.bottom_shapes if self.TRANSPOSED else self.top_shapes
        return sum(math.prod(shape[: self.outer_axes]) * math.prod(shape[self.outer_axes + 1 :]) * math.prod(weight) for shape in positions)

    def _one(self, x: Tensor, top: Shape) -> Tensor:
        weight = self.blobs[0]
        bias = self.blobs[1] if len(self.blobs) > 1 else None
        spatial = self.spatial_axes
        # Axes before the channel axis all count as the batch; torch convolves over 1 to 3 axes, fewer get one of length 1.
        shape = x.shape[self.outer_axes :] if spatial else (x.shape[self.outer_axes], 1)
        if self.outer_axes != 1 or not spatial:
            x = x.reshape(-1, *shape)
        kernel = self.kernel if spatial else Kernel((1,), (1,), (0,), (1,))
        if not spatial:
            weight = weight.unsqueeze(-1)
        if self.training and (branch := self.training_branch(x)) is not None and training_conv.takes(branch):
            y = training_conv.convolve([branch], rectify=False)
        elif spatial == 2 and not self.TRANSPOSED and winograd.takes(x, weight, kernel.stride, kernel.pad, kernel.dilation, self.group):
            y = winograd.convolve(x, weight, bias, kernel.pad[0])
        elif spatial > 3:
            y = self._over_many_axes(x, weight, bias, top[self.outer_axes + 1 :])
        else:
            function = getattr(F, f"conv_transpose{max(spatial, 1)}d" if self.TRANSPOSED else f"conv{max(spatial, 1)}d")
            dilation = (2, 2) if _would_be_another_library(x, kernel) and not self.TRANSPOSED else kernel.dilation
            y = function(x, weight, bias, stride=kernel.stride, padding=kernel.pad, dilation=dilation, groups=self.group)
        return y if self.outer_axes == 1 and spatial else y.reshape(top)

    def native_training(self, gradient: bool) -> tuple[int, float]:
        if self.TRANSPOSED or self.spatial_axes != 2 or self.outer_axes != 1:
            return 0, 0.0
        passes = training_conv.native_passes(self.bottom_shapes[0], self.specs[0].shape, self._geometry(), gradient=gradient)
        return passes * self.macs(), 1.0 if passes else 0.0

    def training_branch(self, x: Tensor) -> training_conv.Branch | None:
        """Return the convolution of ``x`` (N, C, H, W) as the native library takes it; None where it has another form."""
        if self.TRANSPOSED or self.spatial_axes != 2 or self.outer_axes != 1:
            return None
        return training_conv.Branch(x, self.blobs[0], self.blobs[1] if len(self.blobs) > 1 else None, self._geometry())

    def _geometry(self) -> training_conv.Geometry:
        stride, pad, dilation = ((pair[0], pair[1]) for pair in (self.kernel.stride, self.kernel.pad, self.kernel.dilation))
        return training_conv.Geometry(stride, pad, dilation, self.group)

    def _over_many_axes(self, x: Tensor, weight: Tensor, bias: Tensor | None, output: Shape) -> Tensor:
        function = deconvolve if self.TRANSPOSED else convolve
        y = function(x, weight, self.kernel, self.group, output)
        return y if bias is None else y + bias.reshape(-1, *[1] * len(output))

    def to_onnx(self, graph: OnnxGraph) -> None:
        for bottom, top in zip(self.bottoms, self.tops, strict=True):
            outer = range(self.outer_axes)
            if self.outer_axes == 1 and self.spatial_axes:
                self._convolved_in_onnx(graph, bottom, top)
                continue
            if graph.is_free(bottom, *range(self.outer_axes, len(self.bottom_shapes[0]))):
                raise self.no_onnx_form("axes before the channels' and maps of any size")
            # ONNX knows one batch axis and at least one spatial one; Caffe counts all axes before the channels' as the batch.
            source, result = graph.value("flat_batch"), graph.value("convolved")
            graph.reshape(bottom, source, [-1, *(self.bottom_shapes[0][self.outer_axes :] if self.spatial_axes else (self.channels(), 1))])
            self._convolved_in_onnx(graph, source, result)
            graph.reshape(result, top, [*(graph.size(bottom, axis) for axis in outer), *self.top_shapes[0][self.outer_axes :]])

    def channels(self) -> int:
        """Return the channels of a bottom."""
        return self.bottom_shapes[0][self.outer_axes]

    def _convolved_in_onnx(self, graph: OnnxGraph, source: str, target: str) -> None:
        """The nodes of one (de)convolution of (N, C, spatial…)."""
        if self.spatial_axes > 3:
            self._columns_in_onnx(graph, source, target)
            return
        parameters = [graph.parameter(self, i) for i in range(len(self.blobs))]
        kernel = self.kernel
        if not self.spatial_axes:
            kernel = Kernel((1,), (1,), (0,), (1,))
            parameters[0] = graph.value("weights")
            graph.node("Unsqueeze", [graph.parameter(self, 0)], [parameters[0]], axes=[2])
        op = "ConvTranspose" if self.TRANSPOSED else "Conv"
        graph.node(op, [source, *parameters], [target], group=self.group, **kernel.onnx_attributes())

    def _columns_in_onnx(self, graph: OnnxGraph, source: str, target: str) -> None:
        """A convolution over more axes than ONNX convolves over: a product of the weights and the windows as columns."""
        if self.TRANSPOSED:
            raise self.no_onnx_form(f"a deconvolution over {self.spatial_axes} axes; runtimes do 1 to 3")
        outputs, output = self.top_shapes[0][self.outer_axes], self.top_shapes[0][self.outer_axes + 1 :]
        columns, grouped = (
            columns_to_onnx(graph, source, self.bottom_shapes[0][self.outer_axes + 1 :], self.kernel, output),
            graph.value("grouped"),
        )
        inputs = self.channels() // self.group * math.prod(self.kernel.size)
        graph.reshape(columns, grouped, [0, self.group, inputs, math.prod(output)], "groups")
        weights = graph.constant("weights", self.array(0).reshape(self.group, outputs // self.group, inputs))
        product, maps = graph.value("product"), graph.value("maps") if len(self.blobs) > 1 else target
        graph.node("MatMul", [weights, grouped], [product])
        graph.reshape(product, maps, [0, outputs, *output], "maps_shape")
        if len(self.blobs) > 1:
            graph.node("Add", [maps, graph.constant("bias", self.array(1).reshape(-1, *[1] * len(output)))], [target])

    def spatial_windows(self) -> Windows | None:
        if self.spatial_axes != 2 or self.outer_axes != 1:
            return None
        kernel = self.kernel
        return (deconvolved if self.TRANSPOSED else convolved)(kernel.size, kernel.stride, kernel.pad, kernel.dilation)


@register("Convolution")
class Convolution(_Convolving):
    """Correlates (N, C, H, W) with ``num_output`` kernels of C/group channels, plus a bias; sizes round down.

    Blobs: weights (num_output, C/group, kernel…), bias (num_output). Bottoms and tops come in pairs that share them.
    """

    TRAITS = Traits(
        role="classifier",
        settings="convolution_param",
        outputs="num_output",
        class_axes=(0, 0),
        half=True,
        coordinates="window",
        weight_filler="weight_filler",
        blobs=("weights", "bias"),
    )
    IN_PLACE = "overwrites"

    def inference_form(self) -> inference.Conv | None:
        if self.spatial_axes != 2 or self.outer_axes != 1 or len(self.bottoms) != 1:
            return None
        bias = self.blobs[1].detach() if len(self.blobs) > 1 else None
        kernel = self.kernel
        stride, pad, dilation = ((pair[0], pair[1]) for pair in (kernel.stride, kernel.pad, kernel.dilation))
        return inference.Conv(self.blobs[0].detach(), bias, stride, pad, dilation, self.group)


@register("Deconvolution")
class Deconvolution(_Convolving):
    """The transpose of Convolution: each input value adds its weighted kernel to the output, plus a bias.

    Blobs: weights (C, num_output/group, kernel…), bias (num_output).
    """

    ONNX_LIMITS = "over more than 3 axes it has none"

    TRAITS = replace(Convolution.TRAITS, class_axes=(1, 0), coordinates="transposed")
    IN_PLACE = "overwrites"
    TRANSPOSED = True

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        conv = param.convolution_param
        if conv.group == conv.num_output > 1:
            # Each map by itself: it enlarges what the bottom has.
            return replace(cls.TRAITS, role="sampling", channels="kept", class_axes=(0, 0))
        return cls.TRAITS


@register("DepthwiseConvolution", "ConvolutionDepthwise")
class DepthwiseConvolution(Convolution):
    """Convolution whose ``group`` is the number of channels, given or not; weights (num_output, 1, kernel…), bias (num_output)."""

    TRAITS = replace(Convolution.TRAITS, role="other")

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        (_, _, *sizes), *others = super().example_shapes(param)
        return [(2, param.convolution_param.num_output, *sizes)] * (1 + len(others))

    def groups(self, channels: int) -> int:
        given = self.param.convolution_param
        if given.HasField("group") and given.group != channels:
            raise self.error(f"group must be the number of input channels, {channels}, or not given; not {given.group}")
        return channels


def _would_be_another_library(x: Tensor, kernel: Kernel) -> bool:
    """Return whether torch computes this convolution by oneDNN in several threads, and by another library in one, with other roundings.

    These are kernels of 1 x 1. Dilation does not change what they compute, and torch takes oneDNN for them in one thread too.
    """
    alone = kernel.size == (1, 1) and x.device.type == "cpu" and torch.get_num_threads() == 1
    return alone and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
