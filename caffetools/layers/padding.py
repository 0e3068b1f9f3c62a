"""Padding: maps with a border of zeros, of a value, or of mirrored pixels (DeepLab, Sophgo's Caffe, OpenCV)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from caffetools.layers.base import Layer, OnnxGraph, Shapes, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.unknown import Value, unknown_fields

_SIDES = ("pad_t", "pad_b", "pad_l", "pad_r")


@register("Padding")
class Padding(Layer):
    """Adds a border to (N, C, H, W), by ``padding_param`` of one of three definitions.

    DeepLab: ``pad_beg`` and ``pad_end`` zeros before and after both axes of the maps; negative ones cut pixels off. Sophgo: ``pad_t``,
    ``pad_b``, ``pad_l``, ``pad_r`` times ``pad_value``. OpenCV: ``paddings``, before and after each axis, with ``type`` constant (``value``)
    or reflect (the pixels next to the border one mirrored), for axes from the first on, or behind the batch where ``input_dims`` is one less
    than the bottom's axes.
    """

    TRAITS = Traits(role="sampling", fork="DeepLab, Sophgo, OpenCV")
    READS_UNKNOWN = True
    NEEDS_TOP = False

    def unsupported(self) -> str:
        others = [name for name in unknown_fields(self.param) if name != "padding_param"]
        return f"has fields that are not known here ({', '.join(others)})" if others else super().unsupported()

    def setup(self, bottoms: Shapes) -> Shapes:
        shape = tuple(bottoms[0])
        given = unknown_fields(self.param).get("padding_param", [])
        fields = given[0] if len(given) == 1 else {}
        if not isinstance(fields, dict) or not fields:
            raise self.error("padding_param is missing, or given more than once")
        self.value, self.reflect = 0.0, False
        if fields.keys() <= {"pad_beg", "pad_end"}:
            self.pads = self._on_maps(shape, *([self._whole(fields, "pad_beg"), self._whole(fields, "pad_end")] * 2))
            if min(min(pair) for pair in self.pads) < 0 < max(max(pair) for pair in self.pads):
                raise self.error("pad_beg and pad_end must both be positive or both be negative")
        elif fields.keys() <= {*_SIDES, "pad_value", "pad_method"}:
            if str(fields.get("pad_method", ["CONSTANT"])[0]) not in ("CONSTANT", "0"):
                raise self.error("pad_method other than CONSTANT has no definition in Sophgo's layer either")
            self.value = self._number(fields, "pad_value")
            self.pads = self._on_maps(shape, *(self._whole(fields, side) for side in _SIDES))
        elif fields.keys() <= {"paddings", "value", "type", "input_dims"}:
            self._as_opencv(shape, fields)
        else:
            raise self.error(f"padding_param has fields of no one definition: {', '.join(sorted(fields))}")
        size = tuple(n + before + after for n, (before, after) in zip(shape, self.pads, strict=True))
        if min(size) < 1:
            raise self.error(f"nothing is left of {format_shape(shape)}: {format_shape(size)}")
        return [size]

    def _on_maps(self, shape: tuple[int, ...], *sides: int) -> list[tuple[int, int]]:
        self.expect_axes(shape, 4)
        return [(0, 0), (0, 0), (sides[0], sides[1]), (sides[2], sides[3])]

    def _as_opencv(self, shape: tuple[int, ...], fields: Mapping[str, list[Value]]) -> None:
        sizes = [self._whole({"paddings": [v]}, "paddings") for v in fields.get("paddings", [])]
        pairs = list(zip(sizes[::2], sizes[1::2], strict=False))
        axes = self._whole(fields, "input_dims") if "input_dims" in fields else -1
        first = int(axes != -1 and len(shape) > axes)
        if not pairs or len(sizes) % 2 or min(sizes) < 0 or first + len(pairs) > len(shape):
            raise self.error(f"paddings must be pairs of numbers of at least 0, for at most {len(shape)} axes")
        self.pads = [*[(0, 0)] * first, *pairs, *[(0, 0)] * (len(shape) - first - len(pairs))]
        kind = str(fields.get("type", ["constant"])[0]).lower()
        if kind not in ("constant", "reflect"):
            raise self.error(f"type {kind} is not known; constant and reflect are")
        self.value, self.reflect = self._number(fields, "value"), kind == "reflect"
        if self.reflect:
            self.expect_axes(shape, 4)
            for n, (before, after) in zip(shape[2:], self.pads[2:], strict=True):
                if max(before, after) >= n:
                    raise self.error(f"type reflect needs maps larger than the paddings; they are {format_shape(shape[2:])}")
            if any(before or after for before, after in self.pads[:2]):
                raise self.error("type reflect is for the axes of the maps only")

    def _number(self, fields: Mapping[str, list[Value]], name: str) -> float:
        value = fields.get(name, [0])[-1]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{name} must be a number, not {value}")
        return float(value)

    def _whole(self, fields: Mapping[str, list[Value]], name: str) -> int:
        value = self._number(fields, name)
        if not value.is_integer():
            raise self.error(f"{name} must be a whole number, not {value}")
        return int(value)

    def forward(self, x: Tensor) -> Tensor:
        if self.reflect:
            (top, bottom), (left, right) = self.pads[2:]
            return F.pad(x, (left, right, top, bottom), mode="reflect")
        return F.pad(x, [n for pair in reversed(self.pads) for n in pair], value=self.value)

    def to_onnx(self, graph: OnnxGraph) -> None:
        pads = graph.constant("pads", np.array([*(p[0] for p in self.pads), *(p[1] for p in self.pads)], np.int64))
        if self.reflect:
            graph.node("Pad", [self.bottoms[0], pads], self.tops, mode="reflect")
            return
        graph.node("Pad", [self.bottoms[0], pads, graph.constant("value", np.array(self.value, np.float32))], self.tops)
