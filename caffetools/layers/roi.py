"""Pooling over regions: ROIPooling (Fast R-CNN) and PSROIPooling (R-FCN)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.roi_onnx import psroi_to_onnx
from caffetools.layers.traits import Traits


class RoiLayer(Layer):
    """Bottoms: maps (N, C, H, W), and regions (R, 5): item of the batch, x1, y1, x2, y2 in pixels of the picture, ends included."""

    BOTTOMS = (2, 2)
    NO_GRADIENT = frozenset({1})
    NEEDS_TOP = False

    def expect_regions(self, bottoms: Shapes) -> int:
        """Return the number of regions. Raises :class:`NetError` unless each has five values."""
        shape = bottoms[1]
        if len(shape) < 2 or shape[1] != 5 or any(n != 1 for n in shape[2:]):
            raise self.error(f"the regions '{self.bottoms[1]}' must be R x 5 (item, x1, y1, x2, y2), not {format_shape(shape)}")
        return shape[0]

    def items(self, rois: Tensor, batch: int) -> Tensor:
        """Return the item that each of the regions (R, 5) lies in, as (R) int64. Raises :class:`NetError` for one that the batch does not have."""
        items = rois[:, 0].long()
        if items.numel() and (int(items.min()) < 0 or int(items.max()) >= batch):
            raise self.error(f"the regions '{self.bottoms[1]}' name items outside of 0 to {batch - 1}")
        return items

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Return regions (R, 5) of the batch's items, over the whole picture of a map that is ``spatial_scale`` of it."""
        if index == 0:
            return None
        param = self.param.roi_pooling_param if self.param.HasField("roi_pooling_param") else self.param.psroi_pooling_param
        return self.sample_regions(shape, random, float(param.spatial_scale))

    def sample_regions(self, shape: Shape, random: np.random.RandomState, scale: float) -> NDArray[np.float32]:
        """Random regions (R, 5) of the batch's items, in whole pixels of a picture of which the maps are ``scale``."""
        items, _, height, width = self.bottom_shapes[0]
        limits = np.array([width, height]) / scale
        corners = np.sort(random.rand(shape[0], 2, 2), axis=1) * limits
        item = random.randint(0, items, (shape[0], 1))
        return np.concatenate([item, np.floor(corners.reshape(-1, 4))], 1).reshape(shape).astype(np.float32)


@register("ROIPooling")
class ROIPooling(RoiLayer):
    """The largest value in each of ``pooled_h`` x ``pooled_w`` bins of each region: (R, C, pooled_h, pooled_w); 0 for an empty bin.

    Corners are scaled by ``spatial_scale`` and rounded (halves away from 0); a region is at least one pixel; bins reach from the
    rounded-down to the rounded-up edge. The gradient goes to the first largest value. Girshick (2015).
    """

    TRAITS = Traits(role="detection", settings="roi_pooling_param")

    def setup(self, bottoms: Shapes) -> Shapes:
        _, c, _, _ = self.expect_axes(bottoms[0], 4)
        param = self.param.roi_pooling_param
        self.bins = (int(param.pooled_h), int(param.pooled_w))
        if len(param.pooled_size):
            raise self.error("pooled_size is a fork's; pooled_h and pooled_w are known")
        if param.pad_ratio:
            raise self.error("pad_ratio is Cascade R-CNN's and not computed; its ROIAlign is")
        if min(self.bins) < 1:
            raise self.error("pooled_h and pooled_w must be at least 1")
        return [(self.expect_regions(bottoms), c, *self.bins)]

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        rois = rois.detach().reshape(rois.shape[0], 5)
        items, (height, width) = self.items(rois, x.shape[0]), x.shape[2:]
        corners = _rounded(rois[:, 1:] * self.param.roi_pooling_param.spatial_scale)
        rows = _bin_edges(corners[:, 1], corners[:, 3], self.bins[0], height)
        columns = _bin_edges(corners[:, 0], corners[:, 2], self.bins[1], width)
        pooled = [_max_bins(x[int(item)], rows[i], columns[i]) for i, item in enumerate(items)]
        return torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], *self.bins)

    ONNX_LIMITS = "up to opset 21, since onnxruntime has no later MaxRoiPool"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if graph.opset >= 22:
            raise self.no_onnx_form("onnxruntime has no MaxRoiPool of opset 22; use --opset 21 or lower")
        regions = graph.value("regions")
        graph.reshape(self.bottoms[1], regions, [0, 5])
        scale = self.param.roi_pooling_param.spatial_scale
        graph.node("MaxRoiPool", [self.bottoms[0], regions], self.tops, pooled_shape=list(self.bins), spatial_scale=scale)


def _rounded(values: Tensor) -> Tensor:
    """To whole numbers, halves away from 0 as C does; torch rounds them to even ones."""
    return torch.copysign(torch.floor(values.abs() + 0.5), values)


def _bin_edges(first: Tensor, last: Tensor, bins: int, limit: int) -> list[list[tuple[int, int]]]:
    size = (last - first + 1).clamp(min=1) / bins
    steps = torch.arange(bins, device=first.device, dtype=size.dtype)
    start, end = steps * size[:, None], (steps + 1) * size[:, None]
    firsts = (start.floor() + first[:, None]).clamp(0, limit).int().tolist()
    ends = (end.ceil() + first[:, None]).clamp(0, limit).int().tolist()
    return [list(zip(a, b, strict=True)) for a, b in zip(firsts, ends, strict=True)]


def _max_bins(maps: Tensor, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> Tensor:
    """Return the largest value of each bin, (C, rows, columns), of maps (C, H, W)."""
    channels = maps.shape[0]
    bins = []
    for top, bottom in rows:
        for left, right in columns:
            part = maps[:, top:bottom, left:right].reshape(channels, -1)
            bins.append(part.max(1).values if part.shape[1] else maps.new_zeros(channels))
    return torch.stack(bins, 1).reshape(channels, len(rows), len(columns))


@register("PSROIPooling")
class PSROIPooling(RoiLayer):
    """The mean of each of ``group_size``² bins of each region, each bin from maps of its own: (R, output_dim, g, g).

    Output channel d takes its bin (i, j) from channel (d · g + i) · g + j. Corners are rounded, the end pixel counted, then scaled; an
    empty bin gives 0. Dai et al. (2016), R-FCN.
    """

    TRAITS = Traits(role="detection", settings="psroi_pooling_param", class_count=("psroi_pooling_param.output_dim",))

    def setup(self, bottoms: Shapes) -> Shapes:
        _, c, _, _ = self.expect_axes(bottoms[0], 4)
        param = self.param.psroi_pooling_param
        self.group, self.outputs = int(param.group_size), int(param.output_dim)
        if self.group < 1 or self.outputs < 1 or not param.HasField("spatial_scale"):
            raise self.error("psroi_pooling_param needs spatial_scale, output_dim and group_size")
        if c != self.outputs * self.group**2:
            raise self.error(f"output_dim {self.outputs} and group_size {self.group} need {self.outputs * self.group**2} channels, not {c}")
        return [(self.expect_regions(bottoms), self.outputs, self.group, self.group)]

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        rois = rois.detach().reshape(rois.shape[0], 5)
        items, g = self.items(rois, x.shape[0]), self.group
        scale = self.param.psroi_pooling_param.spatial_scale
        first, last = _rounded(rois[:, 1:3]) * scale, (_rounded(rois[:, 3:5]) + 1) * scale
        size = (last - first).clamp(min=0.1) / g
        rows = self._bins(first[:, 1], size[:, 1], x.shape[2])
        columns = self._bins(first[:, 0], size[:, 0], x.shape[3])
        grouped = x.reshape(x.shape[0], self.outputs, g, g, *x.shape[2:])
        sums = x.new_zeros(len(items), self.outputs, g, g)
        for item in sorted(set(items.tolist())):
            of_item = torch.nonzero(items == item).reshape(-1)
            # Sums over bins as products with 0/1 rows and columns: one call for all regions and bins, and differentiable.
            part = torch.einsum("dijhw,rih,rjw->rdij", grouped[item], rows[of_item], columns[of_item])
            sums = sums.index_copy(0, of_item, part)
        areas = rows.sum(2)[:, :, None] * columns.sum(2)[:, None, :]
        return sums / areas.clamp(min=1)[:, None]

    def to_onnx(self, graph: OnnxGraph) -> None:
        psroi_to_onnx(graph, self, self.group, self.outputs, float(self.param.psroi_pooling_param.spatial_scale))

    def _bins(self, first: Tensor, size: Tensor, limit: int) -> Tensor:
        """Return (R, g, limit) with 1 where a pixel lies in a bin."""
        steps = torch.arange(self.group, device=first.device, dtype=size.dtype)
        start = torch.floor(steps * size[:, None] + first[:, None]).clamp(0, limit)
        end = torch.ceil((steps + 1) * size[:, None] + first[:, None]).clamp(0, limit)
        pixels = torch.arange(limit, device=first.device)
        inside: Tensor = (pixels >= start[..., None]) & (pixels < end[..., None])
        return inside.to(size.dtype)
