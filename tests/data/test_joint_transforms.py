"""Transforms of pictures with boxes: the boxes follow the picture, and the numbers are those of SSD's definitions."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffetools.data import joint_transforms as joint
from caffetools.data.joint_transforms import Distort, Expand, Noise, RandomCrop, Resize, Sample
from caffetools.errors import DataError
from caffetools.proto.schema import message_class
from caffetools.proto.text import parse


def message(kind: str, text: str) -> Any:
    return parse(text, message_class(kind)) if text else message_class(kind)()


def square_sample(top: int, left: int, side: int = 12, size: tuple[int, int] = (60, 80)) -> Sample:
    """A black picture with one white square, and the square's box."""
    image = np.zeros((*size, 3), np.uint8)
    image[top : top + side, left : left + side] = 255
    box = np.array([[left / size[1], top / size[0], (left + side) / size[1], (top + side) / size[0]]], np.float32)
    return Sample(image, box, np.array([[7.0]]))


def found_box(image: Any) -> Any:
    """The box of the white square, from the pixels."""
    rows, columns = np.where(image[:, :, 0] > 127)
    height, width = image.shape[:2]
    return np.array([columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 48), st.integers(0, 68), st.integers(0, 10**6), st.sampled_from(["expand", "mirror", "warp", "pad", "small", "crop"]))
def test_boxes_follow_the_picture(top: int, left: int, seed: int, kind: str) -> None:
    rng, sample = np.random.default_rng(seed), square_sample(top, left)
    if kind == "expand":
        expand = Expand(message("ExpansionParameter", "prob: 1 max_expand_ratio: 3"), np.zeros(0, np.float32))
        canvas = expand.make_params(rng, sample.image.shape)
        assert canvas is not None
        after = expand.transform(sample, canvas)
    elif kind == "mirror":
        after = joint.mirror(sample)
    elif kind == "crop":
        crop = RandomCrop([message("BatchSampler", "sampler { min_scale: 0.5 } sample_constraint { min_object_coverage: 1 }")])
        params = crop.make_params(rng, sample.boxes)
        if params is None:
            return
        after = crop.transform(sample, params)
    else:
        mode = {"warp": "WARP", "pad": "FIT_LARGE_SIZE_AND_PAD", "small": "FIT_SMALL_SIZE"}[kind]
        resize = Resize(message("ResizeParameter", f"height: 150 width: 120 resize_mode: {mode} interp_mode: NEAREST"))
        after = resize.transform(sample, resize.make_params(rng))
        assert after.image.shape[:2] == resize.new_size(sample.image.shape)
    assert after.attributes.tolist() == [[7.0]]
    height, width = after.image.shape[:2]
    np.testing.assert_allclose(after.boxes[0], found_box(after.image), atol=2.1 / min(height, width))


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("", True),
        ("min_jaccard_overlap: 0.3", True),
        ("min_jaccard_overlap: 0.4", False),
        ("max_jaccard_overlap: 0.3", False),
        ("min_object_coverage: 0.5 max_object_coverage: 0.6", True),
        ("min_sample_coverage: 0.51", False),
    ],
)
def test_constraints_compare_the_overlaps_of_a_region_with_a_box(constraint: str, expected: bool) -> None:
    # Half of a square of side 0.4 lies in the left half of an equal one: 1/3 jaccard, 1/2 of each.
    region = (0.2, 0.2, 0.6, 0.6)
    boxes = np.array([[0.4, 0.2, 0.8, 0.6]], np.float32)
    np.testing.assert_allclose(joint.jaccard_overlaps(region, boxes), [1 / 3], rtol=1e-5)
    np.testing.assert_allclose(joint.coverages(region, boxes), [0.5], rtol=1e-5)
    assert joint.fulfils(region, boxes, message("SampleConstraint", constraint)) == expected


def test_emit_constraints_keep_boxes_by_their_center_or_their_share() -> None:
    boxes = np.array([[0.4, 0.4, 0.5, 0.5], [0.45, 0.4, 0.65, 0.5], [0.8, 0.8, 0.9, 0.9]], np.float32)
    sample = Sample(np.zeros((10, 10, 3), np.uint8), boxes, np.arange(3.0).reshape(3, 1))
    half = (0.0, 0.0, 0.5, 1.0)
    assert joint.move_to_region(sample, half).attributes.ravel().tolist() == [0, 1]
    center = message("EmitConstraint", "emit_type: CENTER")
    moved = joint.move_to_region(sample, half, center)
    assert moved.attributes.ravel().tolist() == [0]
    np.testing.assert_allclose(moved.boxes, [[0.8, 0.4, 1, 0.5]], rtol=1e-6)
    for share, kept in ((0.2, [0, 1]), (0.3, [0])):
        overlap = message("EmitConstraint", f"emit_type: MIN_OVERLAP emit_overlap: {share}")
        assert joint.move_to_region(sample, half, overlap).attributes.ravel().tolist() == kept


def test_drawn_regions_have_the_scale_and_aspect_ratio_that_is_asked_for() -> None:
    sampler = message("Sampler", "min_scale: 0.3 max_scale: 0.9 min_aspect_ratio: 0.5 max_aspect_ratio: 2")
    rng = np.random.default_rng(0)
    regions = np.array([joint.draw_region(sampler, rng) for _ in range(4000)])
    width, height = regions[:, 2] - regions[:, 0], regions[:, 3] - regions[:, 1]
    scale, ratio = np.sqrt(width * height), width / height
    assert regions.min() >= 0 and regions.max() <= 1 + 1e-9
    assert 0.3 <= scale.min() < 0.32 and 0.88 < scale.max() <= 0.9
    assert 0.5 <= ratio.min() < 0.55 and 1.9 < ratio.max() <= 2
    np.testing.assert_allclose(scale.mean(), 0.6, atol=0.01)


def test_distortions_are_those_of_opencv_and_are_drawn_as_often_as_asked() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros((0, 1)))
    distort = Distort(
        message("DistortionParameter", "brightness_prob: 0.5 brightness_delta: 32 contrast_prob: 1 contrast_lower: 0.5 contrast_upper: 1.5")
    )
    rng = np.random.default_rng(1)
    draws = [distort.make_params(rng) for _ in range(2000)]
    assert 920 < sum(any(name == "brightness" for name, _ in steps) for steps in draws) < 1080
    assert all([name for name, _ in steps][-1] == "contrast" for steps in draws)
    amounts = [dict(steps)["contrast"] for steps in draws]
    assert 0.5 <= min(amounts) < 0.52 and 1.48 < max(amounts) <= 1.5
    np.testing.assert_array_equal(
        distort.transform(sample, [("brightness", 20.4)]).image, np.clip(image.astype(np.float32) + 20.4, 0, 255).round().astype(np.uint8)
    )
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float32)
    hsv[:, :, 1] = np.clip(np.rint(hsv[:, :, 1] * np.float32(0.6)), 0, 255)
    np.testing.assert_array_equal(
        distort.transform(sample, [("saturation", 0.6)]).image, cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
    )
    np.testing.assert_array_equal(distort.transform(sample, [("order", np.array([2, 0, 1]))]).image, image[:, :, [2, 0, 1]])


@pytest.mark.parametrize(
    "text",
    ["decolorize: true", "gauss_blur: true", "hist_eq: true", "clahe: true", "jpeg: 40", "erode: true", "posterize: true", "inverse: true"],
)
@pytest.mark.parametrize("shape", [(40, 50, 3), (40, 50)])
def test_noise_changes_the_picture_and_keeps_its_form(text: str, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 200, shape, dtype=np.uint8)
    sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros((0, 1)))
    noise = Noise(message("NoiseParameter", text))
    after = noise.transform(sample, noise.make_params(np.random.default_rng(0), shape)).image
    assert after.shape == image.shape and after.dtype == np.uint8
    assert np.array_equal(after, image) == (text.startswith("decolorize") and len(shape) == 2)


def test_salt_and_pepper_sets_the_share_of_pixels_that_is_asked_for() -> None:
    noise = Noise(message("NoiseParameter", "saltpepper: true saltpepper_param { fraction: 0.1 value: 255 value: 0 value: 9 }"))
    sample = Sample(np.full((100, 100, 3), 100, np.uint8), np.zeros((0, 4), np.float32), np.zeros((0, 1)))
    after = noise.transform(sample, noise.make_params(np.random.default_rng(0), (100, 100))).image
    changed = (after == (255, 0, 9)).all(axis=2)
    assert 900 < changed.sum() <= 1000 and (after[~changed] == 100).all() and (sample.image == 100).all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Distort(message("DistortionParameter", "contrast_prob: 1 contrast_lower: 2 contrast_upper: 1")), "lower <= upper"),
        (lambda: Expand(message("ExpansionParameter", "max_expand_ratio: 0.5"), np.zeros(0, np.float32)), "1 or more"),
        (lambda: RandomCrop([message("BatchSampler", "sampler { min_scale: 0 }")]), r"must be in \(0, 1\]"),
        (lambda: Resize(message("ResizeParameter", "height: 3")), "height and width"),
        (lambda: Noise(message("NoiseParameter", "convert_to_lab: true")), "undefined values"),
    ],
)
def test_impossible_settings_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        make()
