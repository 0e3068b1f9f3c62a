"""DataAugmentation of FlowNet 2 as it computes in use: a crop at the middle, and the mean subtracted. Ilg et al. (2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits

# The second top holds a value for each field of FlowNet 2's AugmentationCoeff; those of an unchanged picture are 0.
_COEFFICIENTS = 42


@register("DataAugmentation")
class DataAugmentation(Layer):
    """Pictures (N, C, H, W) cropped to the middle ``crop_height`` × ``crop_width`` and less a mean; a second top has the coefficients, all 0.

    The mean is ``mean`` (3 values, with ``mean_per_pixel`` false), or with ``recompute_mean`` that of the batches of the first so many
    passes, in TEST too: of each pixel, or with ``mean_per_pixel`` false of each channel. Blobs, never learned: the number of passes (1, 1, 1,
    1) and, with ``recompute_mean``, the mean of each pixel (1, C, h, w) and of each channel (1, C, 1, 1); weights of another crop size give
    their channels' means. A crop is interpolated as in FlowNet 2, whose last column and row are at most W − 1.05 and H − 1.05. What it
    draws at random when it crops in TRAIN, or with ``augment_during_test``, and coefficients of another layer are not computed.
    """

    TRAITS = Traits(role="sampling", settings="augmentation_param", channels="kept")
    BOTTOMS = (1, 2)
    TOPS = (1, 2)
    NO_GRADIENT = frozenset({0, 1})
    # Passes count, and change the mean while there are few of them.
    STATEFUL = True

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.augmentation_param
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        self.crop = param.HasField("crop_width") and param.HasField("crop_height")
        height, width = (int(param.crop_height), int(param.crop_width)) if self.crop else (h, w)
        if not (1 <= height <= h and 1 <= width <= w):
            raise self.error(f"the crop of {height} x {width} must lie within '{self.bottoms[0]}', {format_shape(bottoms[0])}")
        if self.crop and min(h, w) < 2:
            raise self.error(f"'{self.bottoms[0]}' must be at least 2 x 2 to be cropped, not {h} x {w}")
        self.passes = int(param.recompute_mean)
        self.declare_blob((1, 1, 1, 1), learnable=False)
        if self.passes:
            self.declare_blob((1, c, height, width), learnable=False)
            self.declare_blob((1, c, 1, 1), learnable=False)
        self.fixed_mean = [] if self.passes or param.mean_per_pixel or len(param.mean) != 3 else [float(m) for m in param.mean]
        if self.fixed_mean and c != 3:
            raise self.error(f"mean has 3 values, but '{self.bottoms[0]}' has {c} channels")
        return [(n, c, height, width), (n, _COEFFICIENTS, 1, 1)][: len(self.tops)]

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if coefficients is not None:
            raise self.error(
                "coefficients of another layer are not computed; take the layer out of the net's TEST phase, or give it one bottom"
            )
        param = self.param.augmentation_param
        if self.crop and self._random() and (self.training or param.augment_during_test):
            where = "in the TRAIN phase" if self.training else "with augment_during_test"
            raise self.error(f"its random changes ({', '.join(self._random())}) {where} are not computed; the TEST phase without them is")
        y = self._cropped(x.detach()) if self.crop else x.detach().clone()
        if self.passes:
            self._count(y)
            y = y - (self.blobs[1] if param.mean_per_pixel else self.blobs[2]).detach()
        elif self.fixed_mean:
            y = y - y.new_tensor(self.fixed_mean).reshape(1, 3, 1, 1)
        return y if len(self.tops) == 1 else (y, y.new_zeros(len(y), _COEFFICIENTS, 1, 1))

    def blobs_from_file(self, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Return the blobs for this crop size, those of another one with the means of their channels for each pixel."""
        if not self.passes or len(arrays) != 3 or arrays[1].ndim != 4 or arrays[1].shape[1] != self.specs[1].shape[1]:
            return arrays
        if arrays[1].shape == self.specs[1].shape:
            return arrays
        channels = arrays[1].mean((0, 2, 3)) if self.param.augmentation_param.mean_per_pixel else np.asarray(arrays[2]).reshape(-1)
        column = channels.astype(np.float32).reshape(1, -1, 1, 1)
        return [arrays[0], np.broadcast_to(column, self.specs[1].shape).copy(), column]

    ONNX_LIMITS = "the TEST phase, once the mean is complete"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if len(self.bottoms) > 1 or (self.crop and self._random() and self.param.augmentation_param.augment_during_test):
            raise self.no_onnx_form("its random changes are not computed")
        if self.passes and float(self.blobs[0].detach().reshape(())) < self.passes:
            raise self.no_onnx_form(f"its mean is complete after {self.passes} passes only; load weights that have it")
        n, value = Nodes(graph), self.bottoms[0]
        if self.crop:
            if graph.is_free(value, 2, 3):
                raise self.no_onnx_form("a crop of maps of any size")
            for axis in (2, 3):
                low, part = self._places(axis)
                shape = [-1 if a == axis else 1 for a in range(4)]
                first, second = (n("Gather", value, n.ints(*(low + step).tolist()), axis=axis) for step in (0, 1))
                far, near = (graph.constant("share", share.reshape(shape)) for share in (part, 1 - part))
                value = n("Add", n("Mul", first, near), n("Mul", second, far))
        mean = self._mean()
        graph.node("Identity" if mean is None else "Sub", [value] if mean is None else [value, graph.constant("mean", mean)], self.tops[:1])
        if len(self.tops) > 1:
            items = n("Concat", n.part(n("Shape", self.bottoms[0]), 0, 1, 0), n.ints(_COEFFICIENTS, 1, 1), axis=0)
            graph.node("Expand", [n.number(0), items], self.tops[1:])

    def _random(self) -> list[str]:
        """Return the fields given that draw random changes."""
        return [field.name for field, _ in self.param.augmentation_param.ListFields() if field.message_type is not None]

    def _places(self, axis: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the first of the two rows (axis 2) or columns (3) that each of the top's comes from, and the second's share."""
        whole, count = self.bottom_shapes[0][axis], self.top_shapes[0][axis]
        start = np.float32(0.5) * np.float32(whole) - np.float32(0.5) * np.float32(count)
        place = np.clip(np.arange(count, dtype=np.float32) + start, 0, np.float32(whole) - np.float32(1.05)).astype(np.float32)
        low = np.floor(place)
        return low.astype(np.int64), place - low

    def _cropped(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            low, part = self._places(axis)
            first, share = torch.from_numpy(low).to(x.device), torch.from_numpy(part).to(x)
            share = share.reshape([-1 if a == axis else 1 for a in range(4)])
            x = x.index_select(axis, first) * (1 - share) + x.index_select(axis, first + 1) * share
        return x

    def _count(self, y: Tensor) -> None:
        """Count a pass, and renew the mean while ``recompute_mean`` asks for it."""
        with torch.no_grad():
            self.blobs[0].add_(1)
            count = float(self.blobs[0].reshape(()))
            if count <= self.passes:
                self.blobs[1].copy_((self.blobs[1] * (count - 1) + y.mean(0, keepdim=True)) / count)
                self.blobs[2].copy_(self.blobs[1].mean((2, 3), keepdim=True))

    def _mean(self) -> NDArray[np.float32] | None:
        """Return what is subtracted, of shape (1, C, h, w) or (1, C, 1, 1); None where nothing is."""
        if self.passes:
            return self.array(1 if self.param.augmentation_param.mean_per_pixel else 2)
        return np.array(self.fixed_mean, np.float32).reshape(1, 3, 1, 1) if self.fixed_mean else None
