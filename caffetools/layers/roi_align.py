"""ROIAlign: bilinear samples of regions, without rounding their corners, in two definitions. He et al. (2017); Cai and Vasconcelos (2018)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import OnnxGraph, Shape, Shapes
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.roi import RoiLayer
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter
from caffetools.proto.unknown import Value, unknown_fields

_ALIGN_FIELDS = {"pooled_h", "pooled_w", "spatial_scale", "sampling_ratio", "aligned"}


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
