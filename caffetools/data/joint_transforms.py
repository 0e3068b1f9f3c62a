"""Random transforms of a picture together with its boxes, as the SSD fork of Caffe defines them.

Each transform draws its parameters once (``make_params``) and applies them to the picture and to the boxes (``transform``), so that
both stay in step. Pictures are (H, W, C) uint8 in BGR order, or (H, W) if gray. Boxes are (N, 4) float32: xmin, ymin, xmax, ymax as
shares of the picture's width and height. Definitions: data_transformer.cpp, im_transforms.cpp, bbox_util.cpp and sampler.cpp of
weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.data.images import Pixels
from caffetools.errors import DataError
from caffetools.proto.schema import BatchSampler, EmitConstraint, ExpansionParameter, NoiseParameter, SampleConstraint, Sampler

Boxes = NDArray[np.float32]
# A region of a picture: xmin, ymin, xmax, ymax as shares of its width and height; may reach beyond the picture.
Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)

_INTERPOLATION = {1: cv2.INTER_LINEAR, 2: cv2.INTER_AREA, 3: cv2.INTER_NEAREST, 4: cv2.INTER_CUBIC, 5: cv2.INTER_LANCZOS4}
_PADDING = {1: cv2.BORDER_CONSTANT, 2: cv2.BORDER_REFLECT_101, 3: cv2.BORDER_REPLICATE}
WARP, FIT_SMALL_SIZE, FIT_LARGE_SIZE_AND_PAD = 1, 2, 3
_MIN_OVERLAP = 1


@dataclass(frozen=True)
class Sample:
    """A picture, its boxes, and what is known of each box.

    Attributes:
        image: (H, W, C) or (H, W), uint8.
        boxes: (N, 4), float32.
        attributes: (N, K): one row a box, kept in step with ``boxes``.
    """

    image: Pixels
    boxes: Boxes
    attributes: NDArray[Any]


def box_sizes(boxes: Boxes) -> NDArray[np.float32]:
    """Return the areas (N) of boxes; 0 where a maximum is below its minimum."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(np.where((sides < 0).any(axis=1), 0, sides[:, 0] * sides[:, 1]), np.float32)


def intersections(region: Region, boxes: Boxes) -> NDArray[np.float32]:
    """Return the areas (N) that boxes share with ``region``."""
    low, high = np.maximum(boxes[:, :2], _corner(region[:2])), np.minimum(boxes[:, 2:], _corner(region[2:]))
    sides = np.maximum(high - low, 0)
    shared: NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return shared


def jaccard_overlaps(region: Region, boxes: Boxes) -> NDArray[np.float32]:
    """Return intersection over union (N) of boxes with ``region``."""
    shared = intersections(region, boxes)
    union = _area(region) + box_sizes(boxes) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0), np.float32)


def coverages(region: Region, boxes: Boxes) -> NDArray[np.float32]:
    """Return which share (N) of each box lies in ``region``."""
    shared, sizes = intersections(region, boxes), box_sizes(boxes)
    return np.asarray(np.divide(shared, sizes, out=np.zeros_like(shared), where=shared > 0), np.float32)


def project_boxes(region: Region, boxes: Boxes) -> tuple[Boxes, NDArray[np.bool_]]:
    """Return the boxes in coordinates of ``region``, clipped to it, and which of the boxes (N) that keeps."""
    low, size = _corner(region[:2]), _corner(region[2:]) - _corner(region[:2])
    inside = (boxes[:, :2] < _corner(region[2:])).all(axis=1) & (boxes[:, 2:] > low).all(axis=1)
    projected = np.clip((boxes - np.tile(low, 2)) / np.tile(size, 2), 0, 1).astype(np.float32)
    keep = inside & (box_sizes(projected) > 0)
    return projected[keep], keep


def keep_boxes(sample: Sample, keep: NDArray[np.bool_]) -> Sample:
    """Return ``sample`` with the boxes that ``keep`` (N) marks."""
    return replace(sample, boxes=sample.boxes[keep], attributes=sample.attributes[keep])


def move_to_region(sample: Sample, region: Region, emit_constraint: EmitConstraint | None = None) -> Sample:
    """Return ``sample`` with boxes relative to ``region``; its picture is unchanged.

    Args:
        sample: The picture and boxes.
        region: Region of the picture that becomes the new picture.
        emit_constraint: An ``EmitConstraint``: by the boxes' centers, or by the share of each that must lie in the region. None
            keeps all that touch it.
    """
    if emit_constraint is not None:
        if emit_constraint.emit_type == _MIN_OVERLAP:
            keep = np.asarray(coverages(region, sample.boxes) > emit_constraint.emit_overlap)
        else:
            centers = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
            keep = np.asarray((centers >= _corner(region[:2])).all(axis=1) & (centers <= _corner(region[2:])).all(axis=1))
        sample = keep_boxes(sample, keep)
    boxes, keep = project_boxes(region, sample.boxes)
    return replace(sample, boxes=boxes, attributes=sample.attributes[keep])


def mirror(sample: Sample) -> Sample:
    """Return ``sample`` flipped left to right."""
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 2] = 1 - sample.boxes[:, 2], 1 - sample.boxes[:, 0]
    return replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1]), boxes=boxes)


class Distort:
    """Random brightness, contrast, saturation, hue and order of channels (``distort_param``); boxes stay as they are.

    Args:
        param: A ``DistortionParameter``.

    Raises:
        DataError: A range of it is impossible.
    """

    def __init__(self, param: Any):
        self.param = param
        for name in ("contrast", "saturation"):
            lower, upper = getattr(param, f"{name}_lower"), getattr(param, f"{name}_upper")
            if getattr(param, f"{name}_prob") > 0 and not 0 <= lower <= upper:
                raise DataError(f"distort_param: {name}_lower ({lower:g}) and {name}_upper ({upper:g}) must be 0 <= lower <= upper")
        for name in ("brightness", "hue"):
            if getattr(param, f"{name}_delta") < 0:
                raise DataError(f"distort_param: {name}_delta must be 0 or more")

    def make_params(self, rng: np.random.Generator) -> list[tuple[str, Any]]:
        """Draw the steps, in their order: (name, amount)."""
        param = self.param
        order = ["brightness", "contrast", "saturation", "hue"]
        if rng.random() <= 0.5:
            order = ["brightness", "saturation", "hue", "contrast"]
        steps: list[tuple[str, Any]] = []
        for name in order:
            if rng.random() < getattr(param, f"{name}_prob"):
                if name in ("brightness", "hue"):
                    delta = getattr(param, f"{name}_delta")
                    steps.append((name, rng.uniform(-delta, delta)))
                else:
                    steps.append((name, rng.uniform(getattr(param, f"{name}_lower"), getattr(param, f"{name}_upper"))))
        if rng.random() < param.random_order_prob:
            steps.append(("order", rng.permutation(3)))
        return steps

    def transform(self, sample: Sample, params: list[tuple[str, Any]]) -> Sample:
        """Apply what :meth:`make_params` drew. Raises :class:`DataError` for pictures that are not of three channels."""
        image: Any = sample.image
        if params and (image.ndim != 3 or image.shape[2] != 3):
            raise DataError("distort_param needs pictures of three channels; set force_color: true")
        for name, amount in params:
            if name == "brightness":
                image = cv2.LUT(image, _table(1, amount))
            elif name == "contrast":
                image = cv2.LUT(image, _table(amount, 0)) if abs(amount - 1) > 1e-3 else image
            elif name == "order":
                image = image[:, :, amount]
            else:
                hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
                channel, table = (0, _table(1, amount)) if name == "hue" else (1, _table(amount, 0))
                hsv[:, :, channel] = cv2.LUT(hsv[:, :, channel], table)
                image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return replace(sample, image=np.ascontiguousarray(image))


class Expand:
    """Place the picture at random on a larger canvas of the mean values (``expand_param``), which makes objects smaller.

    Args:
        param: An ``ExpansionParameter``.
        mean_values: Values of the canvas: one, one a channel, or none for 0.
        emit_constraint: See :func:`move_to_region`.

    Raises:
        DataError: ``max_expand_ratio`` is below 1.
    """

    def __init__(self, param: ExpansionParameter, mean_values: NDArray[np.float32], emit_constraint: EmitConstraint | None = None):
        if param.max_expand_ratio < 1:
            raise DataError(f"expand_param: max_expand_ratio must be 1 or more, not {param.max_expand_ratio:g}")
        self.param, self.mean_values, self.emit_constraint = param, mean_values, emit_constraint

    def make_params(self, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
        """Draw the canvas' (height, width) and the picture's top and left on it; None for no change. ``shape`` is (H, W, …)."""
        if rng.random() > self.param.prob or abs(self.param.max_expand_ratio - 1) < 1e-2:
            return None
        ratio = rng.uniform(1, self.param.max_expand_ratio)
        height, width = int(shape[0] * ratio), int(shape[1] * ratio)
        top, left = math.floor(rng.uniform(0, height - shape[0])), math.floor(rng.uniform(0, width - shape[1]))
        return height, width, top, left

    def transform(self, sample: Sample, params: tuple[int, int, int, int]) -> Sample:
        """Apply what :meth:`make_params` drew. Raises :class:`DataError` if the mean values do not fit the channels."""
        height, width, top, left = params
        rows, columns = sample.image.shape[:2]
        channels = sample.image.shape[2] if sample.image.ndim == 3 else 1
        if self.mean_values.size not in (0, 1, channels):
            raise DataError(f"{self.mean_values.size} mean_value(s) for {channels} channel(s); give one, or one for each")
        canvas = np.zeros((height, width, *sample.image.shape[2:]), np.uint8)
        if self.mean_values.size:
            values = np.clip(np.rint(self.mean_values), 0, 255)
            canvas[...] = values if sample.image.ndim == 3 else values[0]
        canvas[top : top + rows, left : left + columns] = sample.image
        region = (-left / columns, -top / rows, (width - left) / columns, (height - top) / rows)
        return replace(move_to_region(sample, region, self.emit_constraint), image=canvas)


class RandomCrop:
    """Crop to a region that fulfils constraints on its overlap with the boxes (``batch_sampler``).

    Args:
        samplers: ``BatchSampler`` messages. Each contributes regions; one of all is drawn.
        emit_constraint: See :func:`move_to_region`.

    Raises:
        DataError: A sampler's scales or aspect ratios are impossible.
    """

    def __init__(self, samplers: list[Any], emit_constraint: EmitConstraint | None = None):
        self.samplers, self.emit_constraint = samplers, emit_constraint
        for batch_sampler in samplers:
            sampler = batch_sampler.sampler
            if not 0 < sampler.min_scale <= sampler.max_scale <= 1:
                raise DataError(
                    f"batch_sampler: scales {sampler.min_scale:g} to {sampler.max_scale:g} must be in (0, 1], the smaller first"
                )
            if not 0 < sampler.min_aspect_ratio <= sampler.max_aspect_ratio < math.inf:
                raise DataError("batch_sampler: min_aspect_ratio must be above 0 and at most max_aspect_ratio")

    def make_params(self, rng: np.random.Generator, boxes: Boxes) -> Region | None:
        """Draw the region; None if no sampler found one."""
        found: list[Region] = []
        for sampler in self.samplers:
            if sampler.use_original_image:
                found += self._regions(sampler, boxes, rng)
        return found[int(rng.integers(len(found)))] if found else None

    def transform(self, sample: Sample, params: Region) -> Sample:
        """Apply what :meth:`make_params` drew."""
        xmin, ymin, xmax, ymax = (min(max(value, 0.0), 1.0) for value in params)
        height, width = sample.image.shape[:2]
        top, left = int(ymin * height), int(xmin * width)
        rows, columns = max(1, int((ymax - ymin) * height)), max(1, int((xmax - xmin) * width))
        image = sample.image[top : top + rows, left : left + columns]
        return replace(move_to_region(sample, (xmin, ymin, xmax, ymax), self.emit_constraint), image=np.ascontiguousarray(image))

    def _regions(self, batch_sampler: BatchSampler, boxes: Boxes, rng: np.random.Generator) -> list[Region]:
        regions: list[Region] = []
        for _ in range(batch_sampler.max_trials):
            if batch_sampler.HasField("max_sample") and len(regions) >= batch_sampler.max_sample:
                break
            region = draw_region(batch_sampler.sampler, rng)
            if fulfils(region, boxes, batch_sampler.sample_constraint):
                regions.append(region)
        return regions


def draw_region(sampler: Sampler, rng: np.random.Generator) -> Region:
    """Draw a region of the scale and aspect ratio that a ``Sampler`` allows, anywhere in the picture."""
    scale = rng.uniform(sampler.min_scale, sampler.max_scale)
    ratio = rng.uniform(sampler.min_aspect_ratio, sampler.max_aspect_ratio)
    ratio = min(max(ratio, scale**2), 1 / scale**2)
    width, height = min(scale * math.sqrt(ratio), 1.0), min(scale / math.sqrt(ratio), 1.0)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return left, top, left + width, top + height


def fulfils(region: Region, boxes: Boxes, constraint: SampleConstraint) -> bool:
    """Return whether ``region`` fulfils a ``SampleConstraint`` with one of the boxes; always true for an empty constraint.

    Of several kinds of constraint the first counts (overlap, then coverage of the region, then of the object): SSD's loop over the
    boxes never withdraws what that one found.
    """
    kinds = (("jaccard_overlap", jaccard_overlaps), ("sample_coverage", _region_coverages), ("object_coverage", coverages))
    for name, measure in kinds:
        low, high = f"min_{name}", f"max_{name}"
        if constraint.HasField(low) or constraint.HasField(high):
            values = measure(region, boxes)
            good = np.ones(len(boxes), bool)
            if constraint.HasField(low):
                good &= values >= np.float32(getattr(constraint, low))
            if constraint.HasField(high):
                good &= values <= np.float32(getattr(constraint, high))
            return bool(good.any())
    return True


class Resize:
    """Resize to a fixed size, or one side to it (``resize_param``).

    Args:
        param: A ``ResizeParameter``.

    Raises:
        DataError: Height or width is missing.
    """

    def __init__(self, param: Any):
        if not (param.height and param.width):
            raise DataError("resize_param: height and width must both be given")
        self.param = param

    def new_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the (height, width) that a picture of ``shape`` (H, W, …) gets."""
        height, width = int(self.param.height), int(self.param.width)
        if self.param.resize_mode == FIT_SMALL_SIZE:
            aspect = np.float32(shape[1]) / np.float32(shape[0])
            if aspect < np.float32(width) / np.float32(height):
                height = int(np.float32(width) / aspect)
            else:
                width = int(aspect * np.float32(height))
        return height, width

    def make_params(self, rng: np.random.Generator) -> int:
        """Draw OpenCV's number of the interpolation, one of those that are given."""
        modes = list(self.param.interp_mode)
        return _INTERPOLATION[modes[int(rng.integers(len(modes)))]] if modes else cv2.INTER_LINEAR

    def transform(self, sample: Sample, params: int) -> Sample:
        """Resize picture and boxes; boxes that padding moves are moved."""
        return replace(sample, image=self._image(sample.image, params), boxes=self._boxes(sample.boxes, sample.image.shape))

    def _image(self, image: Pixels, interpolation: int) -> Pixels:
        height, width = self.new_size(image.shape)
        if self.param.resize_mode != FIT_LARGE_SIZE_AND_PAD:
            return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation))
        aspect = np.float32(image.shape[1]) / np.float32(image.shape[0])
        inner_height, inner_width = height, width
        if aspect > np.float32(width) / np.float32(height):
            inner_height = max(1, math.floor(np.float32(width) / aspect))
        else:
            inner_width = max(1, math.floor(aspect * np.float32(height)))
        resized = cv2.resize(image, (inner_width, inner_height), interpolation=interpolation)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        channels = image.shape[2] if image.ndim == 3 else 1
        values = list(self.param.pad_value) or [0.0]
        if len(values) not in (1, channels):
            raise DataError(f"resize_param: {len(values)} pad_value(s) for {channels} channel(s); give one, or one for each")
        values = values * channels if len(values) == 1 else values
        borders = (top, height - inner_height - top, left, width - inner_width - left)
        return np.asarray(cv2.copyMakeBorder(resized, *borders, _PADDING[self.param.pad_mode], value=values))

    def _boxes(self, boxes: Boxes, shape: tuple[int, ...]) -> Boxes:
        if self.param.resize_mode != FIT_LARGE_SIZE_AND_PAD:
            return np.clip(boxes, 0, 1)
        height, width, aspect = float(self.param.height), float(self.param.width), shape[1] / shape[0]
        if aspect > width / height:
            axis, size, pad = 1, height, (height - width / aspect) / 2
        else:
            # SSD's code lacks these parentheses and gives upright pictures boxes of negative width.
            axis, size, pad = 0, width, (width - aspect * height) / 2
        moved = np.clip(boxes, 0, 1)
        for column, limit in ((axis, np.maximum), (axis + 2, np.minimum)):
            bound = 0.0 if limit is np.maximum else size
            moved[:, column] = (pad + limit(boxes[:, column] * (size - 2 * pad), bound)) / size
        return moved.astype(np.float32)


class Noise:
    """Gray, blur, equalization, JPEG artefacts and the like (``noise_param``), applied to every picture; boxes stay as they are.

    Args:
        param: A ``NoiseParameter``.

    Raises:
        DataError: ``convert_to_lab`` is set: SSD then reads floating-point numbers as bytes, which has no meaning.
    """

    def __init__(self, param: NoiseParameter):
        if param.convert_to_lab:
            raise DataError("noise_param: convert_to_lab gives undefined values in SSD; remove it")
        self.param = param

    def make_params(self, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the rows and columns of the pixels that salt and pepper replaces; ``shape`` is (H, W, …)."""
        count = int(self.param.saltpepper_param.fraction * shape[0] * shape[1]) if self.param.saltpepper else 0
        return rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)

    def transform(self, sample: Sample, params: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Sample:
        """Apply the noise to the picture."""
        param = self.param
        image: Any = sample.image
        color = image.ndim == 3
        if param.decolorize and color:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        if param.gauss_blur:
            image = cv2.GaussianBlur(image, (7, 7), 1.5)
        if param.hist_eq:
            image = _on_luma(image, lambda luma: np.asarray(cv2.equalizeHist(luma), np.uint8))
        if param.clahe:
            image = _on_luma(image, lambda luma: np.asarray(cv2.createCLAHE(clipLimit=4).apply(luma), np.uint8))
        if param.jpeg > 0:
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(param.jpeg)])
            image = cv2.imdecode(data, cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        if param.erode:
            image = cv2.erode(image, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3), (1, 1)))
        if param.posterize:
            image = cv2.LUT(image, (np.arange(256) // 64 * 64 + 32).astype(np.uint8))
        if param.inverse:
            image = cv2.bitwise_not(image)
        if param.saltpepper:
            image = image.copy()
            values = np.asarray(list(param.saltpepper_param.value) or [0], np.float32).astype(np.uint8)
            image[params] = values if color else values[0]
        if param.convert_to_hsv and color:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        return replace(sample, image=np.asarray(image, np.uint8))


def _corner(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _area(region: Region) -> float:
    return max(0.0, region[2] - region[0]) * max(0.0, region[3] - region[1])


def _region_coverages(region: Region, boxes: Boxes) -> NDArray[np.float32]:
    return np.asarray(intersections(region, boxes) / np.float32(max(_area(region), 1e-12)), np.float32)


def _table(scale: float, shift: float) -> NDArray[np.uint8]:
    """Return v · scale + shift of every byte v, rounded to even and saturated, as OpenCV's convertTo gives it."""
    values = np.arange(256, dtype=np.float32) * np.float32(scale) + np.float32(shift)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _on_luma(image: Pixels, function: Callable[[Pixels], Pixels]) -> Pixels:
    if image.ndim == 2:
        return np.asarray(function(image))
    planes = cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)
    planes[:, :, 0] = function(np.ascontiguousarray(planes[:, :, 0]))
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YCrCb2BGR))
