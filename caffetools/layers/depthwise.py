"""DepthwiseConvolution and ConvolutionDepthwise: a Convolution with one group for each channel (MobileNet's forks)."""

from __future__ import annotations

from dataclasses import replace

from caffetools.layers.base import Shapes
from caffetools.layers.convolution import Convolution
from caffetools.layers.registry import register
from caffetools.proto.schema import LayerParameter


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
