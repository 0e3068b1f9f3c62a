"""RegionYolo: the last layer of YOLO v2 and v3 as OpenVINO names it (RegionYolo-1). Redmon and Farhadi (2017, 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes
from caffetools.layers.onnx_nodes import Nodes
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits


@register("RegionYolo")
class RegionYolo(Layer):
    """Box offsets, objectness and class scores of each pixel's regions (N, R (coords + 1 + classes), H, W), made probabilities.

    The logistic function goes over the first two offsets and the objectness. With ``do_softmax`` (YOLO v2) R is ``num``, the classes get a
    softmax, and the axes from ``flatten_param``'s axis to end_axis become one; without (YOLO v3) R is the number of ``mask`` values and the
    classes get the logistic function. ``anchors`` are for the decoder behind this layer.
    """

    TRAITS = Traits(role="detection", settings="region_yolo_param", class_count=("region_yolo_param.classes",))

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.region_yolo_param
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        self.coords, self.softmax = int(param.coords), bool(param.do_softmax)
        self.regions, self.each = int(param.num) if self.softmax else len(param.mask), int(param.coords + 1 + param.classes)
        if self.coords < 2 or param.classes < 1 or self.regions < 1:
            raise self.error("region_yolo_param needs coords of at least 2, classes, and num (or, without do_softmax, mask)")
        if c != self.regions * self.each:
            raise self.error(f"{self.regions} regions of {self.each} values need {self.regions * self.each} channels, not {c}")
        if not self.softmax:
            return [bottoms[0]]
        first = self.axis(self.param.flatten_param.axis, bottoms[0])
        last = self.axis(self.param.flatten_param.end_axis, bottoms[0], what="end_axis")
        shape = (n, c, h, w)
        return [(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])]

    def forward(self, x: Tensor) -> Tensor:
        regions = x.reshape(x.shape[0], self.regions, self.each, *x.shape[2:])
        place, size, rest = regions[:, :, :2], regions[:, :, 2 : self.coords], regions[:, :, self.coords :]
        objectness, classes = rest[:, :, :1].sigmoid(), rest[:, :, 1:]
        scores = classes.softmax(2) if self.softmax else classes.sigmoid()
        parts = torch.cat([place.sigmoid(), size, objectness, scores], 2)
        return (
            parts.reshape(x.shape[0], *self.top_shapes[0][1:])
            if self.top_shapes[0][:1] == x.shape[:1]
            else parts.reshape(self.top_shapes[0])
        )

    ONNX_LIMITS = "needs a fixed height and width; flatten_param must not include the batch"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if graph.is_free(self.bottoms[0], 2, 3):
            raise self.no_onnx_form("maps of any size")
        if self.top_shapes[0][0] != self.bottom_shapes[0][0]:
            raise self.no_onnx_form("its flatten_param joins the items of a batch")
        n, (h, w) = Nodes(graph), self.bottom_shapes[0][2:]
        regions = n.reshape(self.bottoms[0], 0, self.regions, self.each, h * w)
        place, size = n.part(regions, 0, 2, 2), n.part(regions, 2, self.coords, 2)
        objectness, classes = n.part(regions, self.coords, self.coords + 1, 2), n.part(regions, self.coords + 1, self.each, 2)
        # Softmax over the last axis is the same in all opsets.
        turned = n("Softmax", n("Transpose", classes, perm=[0, 1, 3, 2]), axis=3) if self.softmax else ""
        scores = n("Transpose", turned, perm=[0, 1, 3, 2]) if self.softmax else n("Sigmoid", classes)
        offsets = [n("Sigmoid", place)] + ([size] if self.coords > 2 else [])
        graph.reshape(n("Concat", *offsets, n("Sigmoid", objectness), scores, axis=2), self.tops[0], [0, *self.top_shapes[0][1:]])
