"""Pooling over regions: ROIPooling (Fast R-CNN), PSROIPooling (R-FCN) and ROIAlign (Mask R-CNN)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, Size, format_shape
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter
from caffetools.proto.unknown import Value, unknown_fields

_ALIGN_FIELDS = {"pooled_h", "pooled_w", "spatial_scale", "sampling_ratio", "aligned"}


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

    TRAITS = Traits(role="detection", settings="psroi_pooling_param", class_count=("psroi_pooling_param.output_dim",), class_maps=True)

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


def psroi_to_onnx(graph: OnnxGraph, layer: Layer, g: int, outputs: int, scale: float) -> None:
    """Add the nodes of PSROIPooling for maps (N, D · g · g, H, W) and regions (R, 5) to (R, D, g, g).

    The items of the batch lie one below the other in one map of N · H rows, and a region's rows are those of its item.
    """
    n = Nodes(graph)
    batch, h, w = (graph.size(layer.bottoms[0], axis) for axis in (0, 2, 3))
    regions = n.reshape(layer.bottoms[1], 0, 5)
    rows, columns = _bins(n, g, scale, regions, 2, h), _bins(n, g, scale, regions, 1, w)  # (R, g, H), (R, g, W)
    own = n("Cast", n("Equal", n.column(regions, 0), _range(n, batch)), to=1)  # (R, N)
    spread = n("Mul", n("Unsqueeze", own, axes=[1, 3]), n("Unsqueeze", rows, axes=[2]))  # (R, g, N, H)
    tall_rows = n("Transpose", n.reshape(spread, 0, 0, -1), perm=[1, 0, 2])  # (i, R, N · H)
    grouped = n("Transpose", n.reshape(layer.bottoms[0], 0, outputs, g, g, h, w), perm=[2, 0, 4, 1, 3, 5])
    maps = n.reshape(grouped, g, graph.arithmetic("Mul", batch, h), graph.arithmetic("Mul", w, outputs * g))
    strips = n.reshape(n("MatMul", tall_rows, maps), 0, -1, outputs, g, w)  # (i, R, D, j, W)
    sums = n("ReduceSum", n("Mul", strips, n("Unsqueeze", columns, axes=[0, 2])), axes=[4], keepdims=0)  # (i, R, D, j)
    tall, wide = (n("ReduceSum", bins, axes=[2], keepdims=0) for bins in (rows, columns))
    areas = n("Mul", n("Unsqueeze", tall, axes=[2]), n("Unsqueeze", wide, axes=[1]))  # (R, i, j)
    divisors = n("Unsqueeze", n("Max", areas, n.number(1)), axes=[1])
    graph.node("Div", [n("Transpose", sums, perm=[1, 2, 0, 3]), divisors], layer.tops)


def _bins(n: Nodes, g: int, spatial_scale: float, regions: str, start: int, limit: Size) -> str:
    """Return (R, g, limit) with 1 where a pixel lies in a bin of the regions' axis in columns ``start`` and ``start + 2``."""
    scale, graph = n.number(spatial_scale), n.graph
    first, last = (_rounded_value(n, n.column(regions, index)) for index in (start, start + 2))
    first, last = n("Mul", first, scale), n("Mul", n("Add", last, n.number(1)), scale)
    size = n("Div", n("Max", n("Sub", last, first), n.number(0.1)), n.number(g))
    steps = np.arange(g, dtype=np.float32)[None]
    begin, end = (n("Mul", graph.constant("steps", steps + more), size) for more in (0, 1))
    begin, end = n("Floor", n("Add", begin, first)), n("Ceil", n("Add", end, first))
    high = n("Cast", graph.sizes("limit", [limit]), to=1)
    begin, end = (n("Unsqueeze", n("Min", n("Max", edge, n.number(0)), high), axes=[2]) for edge in (begin, end))
    pixels = _range(n, limit)
    return n("Cast", n("And", n("Not", n("Less", pixels, begin)), n("Less", pixels, end)), to=1)


def _range(n: Nodes, size: Size) -> str:
    """0, 1, … below ``size``, float32."""
    end = n("Squeeze", n("Cast", n.graph.sizes("size", [size]), to=1), axes=[0])
    return n("Range", n.number(0), end, n.number(1))


def _rounded_value(n: Nodes, value: str) -> str:
    """To whole numbers, halves away from 0."""
    return n("Mul", n("Sign", value), n("Floor", n("Add", n("Abs", value), n.number(0.5))))


@register("ROIAlign")
class ROIAlign(RoiLayer):
    """Bilinear samples of maps (N, C, H, W) over regions (R, 5), corners scaled by ``spatial_scale`` and not rounded.

    With ``roi_align_param`` (Mask R-CNN, Detectron; ncnn, Ascend): the mean of ``sampling_ratio``² samples (0 or less: one for each pixel's
    step) of each of ``pooled_h`` x ``pooled_w`` bins; a region is at least 1 x 1, or, with ``aligned``, lies half a pixel further left and
    up. Samples more than one pixel outside of the maps are 0.

    With ``roi_pooling_param`` (Cascade R-CNN): one sample at each corner of the bins, (pooled_h + 1) x (pooled_w + 1), half a pixel further
    left and up, of a region grown by ``pad_ratio`` of its size on each side; 0 more than half a pixel outside, and for a region without area.
    """

    TRAITS = Traits(role="detection", fork="Cascade R-CNN, Ascend, ncnn")
    READS_UNKNOWN = True

    def unsupported(self) -> str:
        others = [name for name in unknown_fields(self.param) if name != "roi_align_param"]
        return f"has fields that are not known here ({', '.join(others)})" if others else super().unsupported()

    @classmethod
    def example_shapes(cls, param: LayerParameter) -> Shapes:
        return [(2, 8, 64, 64), (3, 5)]

    def setup(self, bottoms: Shapes) -> Shapes:
        _, c, _, _ = self.expect_axes(bottoms[0], 4)
        given = unknown_fields(self.param).get("roi_align_param", [])
        self.cascade = self.param.HasField("roi_pooling_param")
        if len(given) + self.cascade != 1:
            raise self.error("needs either roi_align_param or roi_pooling_param, once")
        self.samples, self.aligned, self.growth = 0, False, 0.0
        if self.cascade:
            param = self.param.roi_pooling_param
            self.bins, self.scale = (int(param.pooled_h), int(param.pooled_w)), float(param.spatial_scale)
            self.growth = float(param.pad_ratio)
        else:
            self._read(given[0])
        if min(self.bins) < 1:
            raise self.error("pooled_h and pooled_w must be at least 1")
        size = tuple(n + int(self.cascade) for n in self.bins)
        return [(self.expect_regions(bottoms), c, *size)]

    def _read(self, fields: Value) -> None:
        if not isinstance(fields, dict) or not fields.keys() <= _ALIGN_FIELDS | {"roi_end_mode"}:
            strange = sorted(fields.keys() - _ALIGN_FIELDS) if isinstance(fields, dict) else [str(fields)]
            raise self.error(f"roi_align_param has fields that are not known here: {', '.join(strange)}")
        values: dict[str, Any] = {name: found[-1] for name, found in fields.items()}
        if values.get("roi_end_mode", 0) != 0:
            raise self.error("roi_end_mode other than 0 is not known")
        try:
            self.bins = (int(values.get("pooled_h", 0)), int(values.get("pooled_w", 0)))
            self.scale, self.samples = float(values.get("spatial_scale", 1)), max(0, int(values.get("sampling_ratio", -1)))
        except (TypeError, ValueError) as error:
            raise self.error(f"roi_align_param: {error}") from None
        self.aligned = values.get("aligned", False) in (True, 1)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        rois = rois.detach().reshape(rois.shape[0], 5)
        items = self.items(rois, x.shape[0])
        sides = self._in_cascade(rois) if self.cascade else self._in_detectron(rois)
        rows, columns = (self._weights(start, size, x.shape[axis], axis - 2) for axis, (start, size) in zip((2, 3), sides, strict=True))
        pooled = x.new_zeros(len(rois), x.shape[1], rows.shape[1], columns.shape[1])
        for item in sorted(set(items.tolist())):
            of_item = torch.nonzero(items == item).reshape(-1)
            part = torch.einsum("chw,rih,rjw->rcij", x[item], rows[of_item].to(x.dtype), columns[of_item].to(x.dtype))
            pooled = pooled.index_copy(0, of_item, part)
        return pooled

    def _in_detectron(self, rois: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(start, size) of each region, rows then columns."""
        corners = rois[:, 1:] * self.scale - (0.5 if self.aligned else 0.0)
        size = corners[:, 2:] - corners[:, :2]
        size = size if self.aligned else size.clamp(min=1)
        return [(corners[:, 1], size[:, 1]), (corners[:, 0], size[:, 0])]

    def _in_cascade(self, rois: Tensor) -> list[tuple[Tensor, Tensor]]:
        margin = (rois[:, 3:] - rois[:, 1:3] + 1) * self.growth
        first, last = (rois[:, 1:3] - margin) * self.scale - 0.5, (rois[:, 3:] + margin) * self.scale - 0.5
        size = last - first
        size = torch.where((size > 0).all(1, keepdim=True), size, float("nan"))
        return [(first[:, 1], size[:, 1]), (first[:, 0], size[:, 0])]

    def _weights(self, start: Tensor, size: Tensor, limit: int, side: int) -> Tensor:
        """(R, places, limit): the weight that each pixel of one axis has in each place of a region."""
        bins = self.bins[side]
        if self.cascade:
            places = start[:, None] + torch.arange(bins + 1, device=start.device) * (size / bins)[:, None]
            return _bilinear(places, limit, 0.5)
        weights = []
        for first, length in zip(start.tolist(), size.tolist(), strict=True):
            step = np.float32(length) / np.float32(bins)
            samples = self.samples or math.ceil(step)
            if samples < 1:
                weights.append(start.new_zeros(bins, limit))
                continue
            within = (torch.arange(samples, device=start.device) + 0.5) * float(step) / samples
            places = first + torch.arange(bins, device=start.device)[:, None] * float(step) + within
            weights.append(_bilinear(places, limit, 1.0).mean(1))
        return torch.stack(weights) if weights else start.new_zeros(0, bins, limit)

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Return regions (R, 5) of the batch's items within a picture of which the maps are ``spatial_scale``."""
        return None if index == 0 else self.sample_regions(shape, random, self.scale)

    ONNX_LIMITS = "Cascade R-CNN's form has none; from opset 16 for aligned"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if self.cascade:
            raise self.no_onnx_form("Cascade R-CNN's samples at the corners of bins")
        if self.aligned and graph.opset < 16:
            raise self.no_onnx_form("aligned needs opset 16 or higher")
        n = Nodes(graph)
        regions = n.reshape(self.bottoms[1], 0, 5)
        items = n("Cast", n.reshape(n.column(regions, 0), -1), to=7)
        mode = ("half_pixel" if self.aligned else "output_half_pixel") if graph.opset >= 16 else None
        graph.node(
            "RoiAlign",
            [self.bottoms[0], n.part(regions, 1, 5, 1), items],
            self.tops,
            output_height=self.bins[0],
            output_width=self.bins[1],
            sampling_ratio=self.samples,
            spatial_scale=self.scale,
            coordinate_transformation_mode=mode,
        )


def _bilinear(places: Tensor, limit: int, margin: float) -> Tensor:
    """(…, limit): weights of the pixels around each place; all 0 for one more than ``margin`` outside of the first and last pixel.

    With a margin of 1 the last place is ``limit``, a pixel and a bit behind the last one, as in Detectron.
    """
    inside = (places >= -margin) & (places <= (limit if margin == 1 else limit - margin))
    at = torch.where(inside, places, 0.0).clamp(0, limit - 1)
    first = at.floor().clamp(max=max(limit - 2, 0))
    pixels = torch.arange(limit, device=places.device)
    share = (at - first)[..., None]
    weights = (1 - share) * (pixels == first[..., None]) + share * (pixels == first[..., None] + 1)
    return weights * inside[..., None]
