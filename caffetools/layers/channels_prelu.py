"""ChannelsPReLU: the name under which OpenCV's importer has a PReLU with a slope for each channel."""

from __future__ import annotations

from dataclasses import replace

from caffetools.layers.activation import PReLU
from caffetools.layers.base import Shapes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter


@register("ChannelsPReLU")
class ChannelsPReLU(PReLU):
    """y = max(0, x) + slope · min(0, x) with a learned slope for each channel of (N, C, …); ``channel_shared`` is refused.

    Blobs: slope (C), which starts at 0.25.
    """

    TRAITS = replace(PReLU.TRAITS, fork="OpenCV")

    @classmethod
    def traits(cls, param: LayerParameter) -> Traits:
        return cls.TRAITS

    def setup(self, bottoms: Shapes) -> Shapes:
        if self.param.prelu_param.channel_shared:
            raise self.error("has one slope for each channel; channel_shared is PReLU's")
        return super().setup(bottoms)
