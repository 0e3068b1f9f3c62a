"""Larger maps: Upsample (SegNet with a mask, YOLO without), Unpooling (DeconvNet), MaxUnpool (OpenCV), Interp (DeepLab, PSPNet)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shape, Shapes, Size, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.layers.windows import Windows, interpolated, is_power_of_2, repeated
from caffetools.proto.unknown import unknown_fields


class _ByMask(Layer):
    """Puts each value of (N, C, H, W) at the position in the mask of a MAX pooling, in larger maps of zeros."""

    BOTTOMS = (2, 2)
    NO_GRADIENT = frozenset({1})
    NEEDS_TOP = False

    def placed(self, bottoms: Shapes, size: tuple[int, int]) -> Shapes:
        """Return the top's shape for maps of ``size``. Raises :class:`NetError` where data and mask differ, or the size is not positive."""
        n, c, _, _ = self.expect_axes(bottoms[0], 4)
        if bottoms[1] != bottoms[0]:
            raise self.error(
                f"the mask '{self.bottoms[1]}' ({format_shape(bottoms[1])}) must have the shape of the data, {format_shape(bottoms[0])}"
            )
        if min(size) < 1:
            raise self.error(f"its output would be {format_shape(size)}")
        return [(n, c, *size)]

    def scatter(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the maps; a place that the mask names twice keeps the later value. Raises :class:`NetError` for one outside of the maps."""
        height, width = self.top_shapes[0][2:]
        index = mask.detach().flatten(2).long()
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= height * width):
            raise self.error(
                f"the mask '{self.bottoms[1]}' names places outside of maps of {height} x {width}; check the sizes against the pooling"
            )
        maps = x.new_zeros(*x.shape[:2], height * width)
        return maps.scatter(2, index, x.flatten(2)).reshape(*x.shape[:2], height, width)

    def scatter_to_onnx(self, graph: OnnxGraph, size: Sequence[Size]) -> None:
        """Nodes for :meth:`scatter` into maps of ``size``; places that the mask names twice keep one of the values."""
        data, mask = self.bottoms
        flat, places, index, zeros, filled = (graph.value(s) for s in ("flat", "places", "index", "zeros", "filled"))
        outer = [graph.size(data, 0), self.bottom_shapes[0][1]]
        for source, target in ((data, flat), (mask, places)):
            graph.reshape(source, target, [0, 0, -1])
        graph.node("Cast", [places], [index], to=7)
        graph.node("ConstantOfShape", [graph.sizes("maps", [*outer, graph.arithmetic("Mul", *size)])], [zeros])
        graph.node("ScatterElements", [zeros, index, flat], [filled], axis=2)
        graph.reshape(filled, self.tops[0], [0, 0, *size], "maps_shape")

    def sample_bottom(self, index: int, shape: Shape, random: np.random.RandomState) -> NDArray[np.float32] | None:
        """Masks name each place once."""
        if index == 0:
            return None
        places = math.prod(self.top_shapes[0][2:])
        rows = [random.permutation(places)[: math.prod(shape[2:])] for _ in range(math.prod(shape[:2]))]
        return np.stack(rows).reshape(shape).astype(np.float32)


@register("Upsample")
class Upsample(_ByMask):
    """SegNet's upsampling by a pooling mask, or, with one bottom, each value repeated ``scale`` times both ways (YOLO).

    By mask: maps of ``upsample_h`` x ``upsample_w``, or of the bottom's size times ``scale`` (or scale_h, scale_w; 2 by default), one
    less where ``pad_out_h`` or ``pad_out_w`` is set. Badrinarayanan et al. (2017).
    """

    TRAITS = Traits(role="sampling", channels="kept")
    BOTTOMS = (1, 2)

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.upsample_param
        n, c, h, w = self.expect_axes(bottoms[0], 4)
        if len(bottoms) == 1:
            # The forks differ in what they take for granted: YOLO's default keeps the size.
            self.scale = int(param.scale) if param.HasField("scale") else 1
            if self.scale < 1:
                raise self.error(f"scale must be at least 1, not {self.scale}")
            return [(n, c, h * self.scale, w * self.scale)]
        scale = int(param.scale) if param.HasField("scale") else 2
        scales = [int(param.scale_h) or scale, int(param.scale_w) or scale]
        if param.upsample_h and param.upsample_w:
            return self.placed(bottoms, (int(param.upsample_h), int(param.upsample_w)))
        return self.placed(bottoms, (h * scales[0] - param.pad_out_h, w * scales[1] - param.pad_out_w))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="nearest") if mask is None else self.scatter(x, mask)

    def spatial_windows(self) -> Windows | None:
        # A mask names places of the whole map. Other scales than powers of 2 are rounded in float32, which depends on the place.
        return repeated(self.scale) if len(self.bottoms) == 1 and is_power_of_2(self.scale) else None

    def _maps_in_onnx(self, graph: OnnxGraph) -> list[Size]:
        """Return the size of the top's maps when there is a mask."""
        param = self.param.upsample_param
        if param.upsample_h and param.upsample_w:
            return [int(param.upsample_h), int(param.upsample_w)]
        scale = int(param.scale) if param.HasField("scale") else 2
        scales, less = [int(param.scale_h) or scale, int(param.scale_w) or scale], [int(param.pad_out_h), int(param.pad_out_w)]
        grown = [graph.arithmetic("Mul", graph.size(self.bottoms[0], axis), s) for axis, s in zip((2, 3), scales, strict=True)]
        return [graph.arithmetic("Sub", size, n) if n else size for size, n in zip(grown, less, strict=True)]

    ONNX_LIMITS = "a mask must name each place once"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if len(self.bottoms) > 1:
            self.scatter_to_onnx(graph, self._maps_in_onnx(graph))
            return
        scales = graph.constant("scales", np.array([1, 1, self.scale, self.scale], np.float32))
        empty = graph.constant("roi", np.zeros(0, np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        graph.node("Resize", [self.bottoms[0], empty, scales], self.tops, **modes)


class _OfFixedSize(_ByMask):
    """Unpooling into maps whose size follows from settings alone."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.scatter(x, mask)

    ONNX_LIMITS = "a mask must name each place once; needs a fixed height and width"

    def to_onnx(self, graph: OnnxGraph) -> None:
        if graph.is_free(self.bottoms[0], 2, 3):
            raise self.no_onnx_form("maps of any size")
        self.scatter_to_onnx(graph, self.top_shapes[0][2:])


@register("Unpooling")
class Unpooling(_OfFixedSize):
    """MAX unpooling: each value is put at the position in the pooling layer's mask, all else is 0. Noh et al. (2015), DeconvNet.

    Maps of ``unpool_size`` squared, or of (H − 1) · stride + kernel_size − 2 · pad. AVE is refused: copies of Caffe differ in it.
    """

    TRAITS = Traits(role="sampling", channels="kept")

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.unpooling_param
        if param.unpool != 0:
            raise self.error("only MAX unpooling has one definition")
        _, _, h, w = self.expect_axes(bottoms[0], 4)
        if param.unpool_size:
            return self.placed(bottoms, (int(param.unpool_size), int(param.unpool_size)))
        grow = int(param.kernel_size) - 2 * int(param.pad)
        return self.placed(bottoms, ((h - 1) * int(param.stride) + grow, (w - 1) * int(param.stride) + grow))


@register("MaxUnpool")
class MaxUnpool(_OfFixedSize):
    """Puts each value at the position in the mask of a MAX pooling, all else is 0; OpenCV's layer of this name.

    The pooling is named by ``pool_k_h``, ``pool_k_w``, ``pool_stride_h``, ``pool_stride_w``, ``pool_pad_h`` and ``pool_pad_w`` of any block
    of settings; maps of (H − 1) · stride + kernel − 2 · pad.
    """

    TRAITS = Traits(role="sampling", channels="kept", fork="OpenCV")
    READS_UNKNOWN = True

    def setup(self, bottoms: Shapes) -> Shapes:
        fields: dict[str, Any] = {}
        for name, values in unknown_fields(self.param).items():
            for block in values:
                if not (name.endswith("_param") and isinstance(block, dict)):
                    raise self.error(f"has the field {name}, which is not known here")
                fields.update((key, found[-1]) for key, found in block.items())
        names = [f"pool_{what}_{side}" for what in ("k", "stride", "pad") for side in "hw"]
        if strange := sorted(fields.keys() - set(names)):
            raise self.error(f"has fields that are not known here: {', '.join(strange)}")
        missing = [name for name in names if not (type(fields.get(name)) is int and fields[name] >= (0 if "pad" in name else 1))]
        if missing:
            raise self.error(f"needs whole numbers for {', '.join(missing)}")
        _, _, h, w = self.expect_axes(bottoms[0], 4)
        high, wide = (
            (n - 1) * fields[f"pool_stride_{s}"] + fields[f"pool_k_{s}"] - 2 * fields[f"pool_pad_{s}"] for n, s in ((h, "h"), (w, "w"))
        )
        return self.placed(bottoms, (high, wide))


@register("Interp")
class Interp(Layer):
    """Bilinear resizing of (N, C, H, W) whose corner pixels stay corners. Chen et al. (DeepLab), Zhao et al. (PSPNet).

    First ``pad_beg`` and ``pad_end`` (not positive) are cut off. Then the size is ``height`` x ``width``, or that of a second bottom,
    or shrunk: (H − 1) / shrink_factor + 1, then zoomed: H + (H − 1) · (zoom_factor − 1).
    """

    TRAITS = Traits(role="sampling", channels="kept")
    BOTTOMS = (1, 2)
    NO_GRADIENT = SIZE_BOTTOMS = frozenset({1})
    NEEDS_TOP = False

    def setup(self, bottoms: Shapes) -> Shapes:
        param = self.param.interp_param
        n, c, h, w = self.legacy_axes(bottoms[0])
        self.begin, self.end = -int(param.pad_beg), -int(param.pad_end)
        if self.begin < 0 or self.end < 0:
            raise self.error("pad_beg and pad_end only cut off: they must not be positive")
        size = (h - self.begin - self.end, w - self.begin - self.end)
        self.size = self._output(size, self.legacy_axes(bottoms[1], bottom=1) if len(bottoms) > 1 else None)
        if min(size) < 1 or min(self.size) < 1:
            raise self.error(f"nothing is left of maps of {h} x {w}: {format_shape(self.size)}")
        return [(n, c, *self.size)]

    def _output(self, size: Shape, like: Shape | None) -> tuple[int, int]:
        param = self.param.interp_param
        if like is not None:
            return (like[2], like[3])
        if param.HasField("height") or param.HasField("width"):
            return (int(param.height), int(param.width))
        if not (param.HasField("shrink_factor") or param.HasField("zoom_factor")):
            raise self.error("interp_param needs height and width, zoom_factor or shrink_factor")
        shrink, zoom = int(param.shrink_factor), int(param.zoom_factor)
        if shrink < 1 or zoom < 1:
            raise self.error("shrink_factor and zoom_factor must be at least 1")
        small = [(n - 1) // shrink + 1 for n in size]
        height, width = (n + (n - 1) * (zoom - 1) for n in small)
        return (height, width)

    def spatial_windows(self) -> Windows | None:
        # Only where the zoom factor alone gives the size, and divides without rounding, are the weights the same in a part of the map.
        param = self.param.interp_param
        zoom = int(param.zoom_factor)
        if len(self.bottoms) > 1 or param.HasField("height") or param.HasField("width") or self.begin or self.end:
            return None
        return interpolated(zoom) if param.shrink_factor == 1 and is_power_of_2(zoom) else None

    def _size_in_onnx(self, graph: OnnxGraph) -> list[Size]:
        """Return (H, W) of the top where it depends on sizes known at run time."""
        param = self.param.interp_param
        if len(self.bottoms) > 1:
            return [graph.size(self.bottoms[1], axis) for axis in (2, 3)]
        if param.HasField("height") or param.HasField("width"):
            return list(self.size)
        found: list[Size] = []
        for axis in (2, 3):
            size = graph.arithmetic("Sub", graph.size(self.bottoms[0], axis), self.begin + self.end + 1)
            size = graph.arithmetic("Div", size, int(param.shrink_factor)) if param.shrink_factor != 1 else size
            # small − 1 = (n − 1) / shrink, and the top has (small − 1) · zoom + 1.
            found.append(graph.arithmetic("Add", graph.arithmetic("Mul", size, int(param.zoom_factor)), 1))
        return found

    def _cut(self, x: Tensor) -> Tensor:
        return x[:, :, self.begin : x.shape[2] - self.end, self.begin : x.shape[3] - self.end]

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        x = x.reshape(self.legacy_axes(tuple(x.shape)))
        return F.interpolate(self._cut(x), size=self.size, mode="bilinear", align_corners=True)

    def to_onnx(self, graph: OnnxGraph) -> None:
        source = self.bottoms[0]
        h, w = self.bottom_shapes[0][2:]
        if self.begin or self.end:
            source = graph.value("cut")
            last = -self.end if self.end else 2**63 - 1
            bounds = [[self.begin, self.begin], [last, last], [2, 3]]
            names = [graph.constant(s, np.array(v, np.int64)) for s, v in zip(("from", "to", "axes"), bounds, strict=True)]
            graph.node("Slice", [self.bottoms[0], *names], [source])
        if graph.is_free(self.bottoms[0], 2, 3) or (len(self.bottoms) > 1 and graph.is_free(self.bottoms[1], 2, 3)):
            sizes = graph.sizes("sizes", [graph.size(self.bottoms[0], 0), self.bottom_shapes[0][1], *self._size_in_onnx(graph)])
            modes = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
            # Before opset 13 neither input may be left out.
            unused = ["", ""] if graph.opset >= 13 else [graph.constant(hint, np.zeros(0, np.float32)) for hint in ("roi", "scales")]
            graph.node("Resize", [source, *unused, sizes], self.tops, **modes)
            return
        # Scales rather than sizes, which would fix the batch; a hair more, since the output's size is rounded down.
        inner = (h - self.begin - self.end, w - self.begin - self.end)
        factors = [(new + 1e-3) / old for new, old in zip(self.size, inner, strict=True)]
        scales = graph.constant("scales", np.array([1, 1, *factors], np.float32))
        empty = graph.constant("roi", np.zeros(0, np.float32))
        graph.node("Resize", [source, empty, scales], self.tops, mode="linear", coordinate_transformation_mode="align_corners")
