"""What a layer computes in the TEST phase, in the few forms that the inference plan (``net/inference_plan.py``) fuses and runs natively.

A layer gives its form from :meth:`~caffetools.layers.base.Layer.inference_form`; a layer without one is run by its own ``forward``.
Blobs are (N, C, H, W), parameters float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, int]

# The activations' numbers in the native library (native/conv.h).
NO_ACTIVATION, RELU, LEAKY, PRELU, CLIP = range(5)


@dataclass(frozen=True)
class Activation:
    """y = f(x), value by value.

    Attributes:
        kind: ``RELU``; ``LEAKY`` (slope ``low`` below 0); ``PRELU`` (``slopes`` below 0); ``CLIP`` (to ``low``…``high``).
        low: Slope or lower bound.
        high: Upper bound.
        slopes: (C), for ``PRELU``.
    """

    kind: int = RELU
    low: float = 0.0
    high: float = 0.0
    slopes: Tensor | None = None


@dataclass(frozen=True)
class Affine:
    """y = scale · x + shift for each channel.

    Attributes:
        scale: (C), float32 or float64.
        shift: (C).
    """

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Conv:
    """A two-dimensional convolution.

    Attributes:
        weight: (outputs, C / groups, kh, kw). bias: (outputs), or None.
        stride: (height, width), as are ``pad`` and ``dilation``.
        groups: Number of groups.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    pad: Pair
    dilation: Pair
    groups: int

    def with_affine(self, affine: Affine) -> Conv:
        """Return the convolution followed by ``affine``, as one convolution (computed in float64)."""
        scale, shift = affine.scale.double(), affine.shift.double()
        weight = (self.weight.double() * scale[:, None, None, None]).float()
        bias = shift if self.bias is None else self.bias.double() * scale + shift
        return Conv(weight, bias.float(), self.stride, self.pad, self.dilation, self.groups)


@dataclass(frozen=True)
class Product:
    """x · Wᵀ + b of each image, whose values are taken in the order (C, H, W).

    Attributes:
        weight: (outputs, C · H · W). bias: (outputs), or None.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Pool:
    """The maximum, or Caffe's average (divided by the window clipped to the padded map), of each window.

    Attributes:
        kernel: (height, width), as are ``stride`` and ``pad``. largest: Maximum rather than average.
    """

    kernel: Pair
    stride: Pair
    pad: Pair
    largest: bool


@dataclass(frozen=True)
class CrossChannelNorm:
    """Local response normalization across channels: y = x · (k + alpha / size · (sum of x² over ``size`` channels around))^−beta."""

    size: int
    alpha: float
    beta: float
    k: float


@dataclass(frozen=True)
class ChannelSoftmax:
    """exp(x) divided by its sum over the channels of each pixel."""


@dataclass(frozen=True)
class ChannelConcat:
    """The bottoms one after another along the channel axis."""


@dataclass(frozen=True)
class Sum:
    """The sum of two bottoms of one shape."""


@dataclass(frozen=True)
class Identity:
    """Each top has the bottom's values."""


InferenceForm = Activation | Affine | Conv | Product | Pool | CrossChannelNorm | ChannelSoftmax | ChannelConcat | Sum | Identity


def batch_norm_affine(mean: Tensor, variance: Tensor, eps: float, scale: Tensor | None = None, bias: Tensor | None = None) -> Affine:
    """Return (x − mean) / sqrt(variance + eps) · scale + bias as an affine form.

    Args:
        mean: (C).
        variance: (C).
        eps: Added to the variance.
        scale: (C), or None for 1.
        bias: (C), or None for 0.
    """
    factor = torch.rsqrt(variance.double() + eps)
    if scale is not None:
        factor = factor * scale.double()
    shift = -mean.double() * factor
    return Affine(factor, shift if bias is None else shift + bias.double())
