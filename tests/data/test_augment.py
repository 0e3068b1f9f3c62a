"""Augmentation: pictures, boxes and landmarks stay in step; draws come from the layer's generator alone; off by default."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffetools.data.augment import AugmentConfig, Augmenter, AugmentParams, config_of_fork, load_augment, mixed
from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.errors import CaffeToolsError, DataError
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, TransformationParameter
from caffetools.proto.text import parse
from caffetools.solver.run import train

# Found, not imported: that takes seconds, and every worker imports all files of tests.
pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


def picture(seed: int = 0, shape: tuple[int, ...] = (3, 40, 60)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def square(top: int = 14, left: int = 20, side: int = 12) -> tuple[Any, Any, Any]:
    image = np.zeros((3, 40, 60), np.uint8)
    image[:, top : top + side, left : left + side] = 255
    box = np.float32([[left / 60, top / 40, (left + side) / 60, (top + side) / 40]])
    return image, box, np.float32([[(left + side / 2) / 60, (top + side / 2) / 40]])


def test_a_torchvision_without_what_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.__version__", "0.21.0+cu124")
    with pytest.raises(DataError, match=r"augmentation needs torchvision 0\.24 or newer; 0\.21\.0\+cu124 is installed") as caught:
        Augmenter(AugmentConfig(rotation=1))
    assert "caffetools[augment]" in str(caught.value)
    monkeypatch.setattr("torchvision.__version__", "0.24.0a0")
    Augmenter(AugmentConfig(rotation=1))


def test_the_defaults_change_nothing_and_draw_nothing() -> None:
    augmenter, rng = Augmenter(AugmentConfig()), np.random.default_rng(3)
    image = picture()
    assert AugmentConfig().is_off and not AugmentConfig(rotation=1).is_off
    np.testing.assert_array_equal(augmenter.transform(image, augmenter.make_params(rng, image.shape)).image, image)


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation": 30.0},
        {"scale": (0.7, 1.4)},
        {"translate": 0.2},
        {"shear": 15.0},
        {"random_resized_crop": (50, 50), "crop_area": (0.7, 1.0)},
    ],
)
def test_boxes_and_landmarks_follow_the_picture(settings: dict[str, Any]) -> None:
    augmenter, rng = Augmenter(AugmentConfig(**settings)), np.random.default_rng(5)
    image, box, point = square()
    for _ in range(30):
        after = augmenter.transform(image, augmenter.make_params(rng, image.shape), boxes=box, points=point)
        rows, columns = np.where(after.image[0] > 127)
        height, width = after.image.shape[1:]
        found = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        assert after.kept.all()
        np.testing.assert_allclose(after.boxes[0], found, atol=2 / min(height, width))
        if not (rows.min() == 0 or columns.min() == 0 or rows.max() == height - 1 or columns.max() == width - 1):
            np.testing.assert_allclose(after.points[0], [(columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height], atol=1 / 40)


def test_a_box_that_leaves_the_picture_is_dropped_and_its_neighbour_kept() -> None:
    augmenter = Augmenter(AugmentConfig(translate=0.9))
    image, box, point = square()
    boxes = np.concatenate([box, np.float32([[0.9, 0.0, 1.0, 1.0]])])
    after = augmenter.transform(image, AugmentParams(translate=(-45.0, 0.0)), boxes=boxes, points=point)
    assert after.kept.tolist() == [False, True] and after.points[0, 0] < 0
    np.testing.assert_allclose(after.boxes, [[0.15, 0, 0.25, 1]], atol=1e-6)


def test_draws_come_from_the_generator_alone_and_depend_on_its_seed() -> None:
    config = AugmentConfig(
        rotation=10,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.1,
        lighting=0.1,
        blur=1,
        noise=5,
        cutout=0.3,
        mixup=0.2,
        color_shift=9,
    )
    augmenter, pictures = Augmenter(config), [picture(i) for i in range(4)]
    before = torch.random.get_rng_state()
    results = [augmenter.batch(pictures, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    assert all(p.shape == (3, 40, 60) and p.dtype == np.uint8 for p in results[2])


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [({"brightness": 0.5}, 50, 150), ({"brightness_shift": 40.0}, 60, 140), ({"contrast_range": (0.5, 1.5)}, 50, 150)],
)
def test_levels_are_in_their_range_and_fill_it(settings: dict[str, Any], low: int, high: int) -> None:
    augmenter, rng = Augmenter(AugmentConfig(**settings)), np.random.default_rng(0)
    image = np.full((3, 4, 4), 100, np.uint8)
    values = [int(augmenter.transform(image, augmenter.make_params(rng, image.shape)).image[0, 0, 0]) for _ in range(400)]
    assert low - 1 <= min(values) < low + 10 and high - 10 < max(values) <= high + 1
    assert abs(np.mean(values) - 100) < 5


def test_the_probability_is_that_of_each_change() -> None:
    augmenter, rng = Augmenter(AugmentConfig(rotation=10, probability=0.3)), np.random.default_rng(0)
    turned = sum(augmenter.make_params(rng, (3, 9, 9)).angle != 0 for _ in range(2000))
    assert 530 < turned < 670


def test_colors_are_changed_in_rgb_and_gray_pictures_have_no_hue() -> None:
    augmenter = Augmenter(AugmentConfig(hue=0.5, saturation=0.5))
    blue = np.zeros((3, 4, 4), np.uint8)
    blue[0] = 200
    # A third of the circle turns blue (first channel of BGR) into red (the last).
    turned = augmenter.transform(blue, AugmentParams(factors=(("hue", 1 / 3),))).image
    assert turned[2].min() > 190 and turned[:2].max() < 10
    assert augmenter.make_params(np.random.default_rng(0), (1, 5, 5)).factors == ()


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_pictures_of_any_number_of_channels_are_changed_channel_by_channel(channels: int) -> None:
    """Pairs of siamese nets have two, pictures with a depth map four."""
    config = AugmentConfig(
        rotation=9, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, lighting=1, color_shift=30, blur=1, noise=4, cutout=0.2
    )
    picture = np.random.default_rng(3).integers(60, 190, (channels, 14, 17), dtype=np.uint8)
    (changed,) = Augmenter(config).batch([picture], np.random.default_rng(8))
    assert changed.shape == picture.shape and (changed != picture).mean() > 0.5
    params = AugmentParams(factors=(("contrast", 0.5),))
    halved = Augmenter(config).transform(picture, params).image
    alone = [Augmenter(config).transform(channel[None], params).image[0] for channel in picture]
    np.testing.assert_array_equal(halved, np.stack(alone))


def test_mixing_keeps_the_larger_share() -> None:
    first, second = np.full((1, 2, 2), 200, np.uint8), np.full((1, 2, 2), 100, np.uint8)
    assert mixed(first, second, 0.75)[0, 0, 0] == 175
    rng = np.random.default_rng(0)
    for _ in range(20):
        after = Augmenter(AugmentConfig(mixup=1.0)).batch([first, second], rng)
        assert after[0][0, 0, 0] >= 150 >= after[1][0, 0, 0]


def test_a_yaml_file_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "augment.yaml"
    path.write_text("rotation: 15\nscale: [0.8, 1.2]\nrandom_resized_crop: 224\nmixup: 0.2\n")
    config = load_augment(path)
    assert config == AugmentConfig(rotation=15, scale=(0.8, 1.2), random_resized_crop=(224, 224), mixup=0.2)
    for text, reason in (
        ("rotations: 3", r"'rotations' is unknown; did you mean 'rotation'\?"),
        ("rotation: [1, 2]", "rotation must be a number"),
        ("scale: 2", "scale must be two numbers"),
        ("hue: 0.7", "hue must be between 0 and 0.5"),
        ("- a", "must be a mapping"),
        ("a: [", "not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=f"augment.yaml.*{reason}"):
            load_augment(path)


def test_the_fields_of_forks_are_understood() -> None:
    text = """max_rotation_angle: 20 contrast_brightness_adjustment: true min_contrast: 0.8 max_contrast: 1.2
      max_brightness_shift: 5 apply_probability: 0.7 min_side_min: 30 min_side_max: 40"""
    config = config_of_fork(parse(text, TransformationParameter))
    assert (config.rotation, config.probability, config.min_side, config.brightness_shift) == (20, pytest.approx(0.7), (30, 40), 5)
    assert config.contrast_range == pytest.approx((0.8, 1.2))
    assert config_of_fork(TransformationParameter()).is_off


@pytest.fixture
def source(tmp_path: Path) -> str:
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number in range(8):
            writer.put(b"%08d" % number, array_to_datum(picture(number), number).SerializeToString())
    return str(tmp_path / "lmdb")


def data_layer(source: str, transform: str = "", phase: int = TRAIN) -> Any:
    text = f'name: "d" type: "Data" top: "x" top: "y" data_param {{ source: "{source}" batch_size: 4 }} transform_param {{ {transform} }}'
    made = layer_class("Data")(parse(text, LayerParameter), phase)
    made.seed(2)
    return made


def test_a_data_layer_augments_in_training_only_and_resumes_exactly(source: str) -> None:
    config = AugmentConfig(rotation=20, random_resized_crop=(24, 24), noise=4)
    layer = data_layer(source, "crop_size: 20 mirror: true")
    layer.augment(config)
    layer.configure([])
    assert layer.top_shapes[0] == (4, 3, 20, 20)
    batches = [layer()[0].numpy().copy() for _ in range(4)]
    again = data_layer(source, "crop_size: 20 mirror: true")
    again.augment(config)
    again.configure([])
    again()
    state = again.get_state()
    resumed = data_layer(source, "crop_size: 20 mirror: true")
    resumed.augment(config)
    resumed.set_state(state)
    assert all(np.array_equal(resumed()[0].numpy(), batch) for batch in batches[1:])
    test_layer = data_layer(source, phase=TEST)
    test_layer.augment(config)
    test_layer.configure([])
    np.testing.assert_array_equal(test_layer()[0][0], picture(0))


def test_fork_fields_in_the_prototxt_augment_and_unknown_ones_are_refused(source: str) -> None:
    layer = data_layer(source, "max_rotation_angle: 20 apply_probability: 1")
    layer.configure([])
    assert not np.array_equal(layer()[0][0].numpy(), picture(0))
    layer = data_layer(source, "use_gpu_transform: true")
    layer.configure([])
    np.testing.assert_array_equal(layer()[0][0], picture(0))
    with pytest.raises(CaffeToolsError, match="set crop_size"):
        data_layer(source, "img_rand_resize_lower: 20").configure([])


NET = """
layer {{ name: "d" type: "Data" top: "x" top: "y" data_param {{ source: "{source}" batch_size: 4 }} transform_param {{ crop_size: 24 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param {{ num_output: 8 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }}
"""


def test_a_yaml_next_to_the_solver_augments_a_training_and_a_resumed_one_alike(source: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET.format(source=source))
    solver = tmp_path / "solver.prototxt"
    solver.write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 1e-5 lr_policy: "fixed" max_iter: 4 snapshot: 2 display: 1 random_seed: 1 '
        f'solver_mode: CPU snapshot_prefix: "{tmp_path}/a"'
    )

    def losses(**options: Any) -> list[float]:
        return [stats.loss for stats in train(solver, device="cpu", **options).history.train]

    plain = losses()
    (tmp_path / "augment.yaml").write_text("rotation: 20\nnoise: 9\n")
    augmented = losses()
    assert augmented != plain and "Augmenting the pictures of d as" in (tmp_path / "a.log").read_text()
    assert losses(snapshot=tmp_path / "a_iter_2.solverstate")[-1] == augmented[-1]
    (tmp_path / "augment.yaml").write_text("random_resized_crop: 12\n")
    with pytest.raises(DataError, match="crop_size 24 is larger"):
        losses()
    (tmp_path / "augment.yaml").write_text("rotatoin: 12\n")
    with pytest.raises(DataError, match="augment.yaml: 'rotatoin' is unknown"):
        losses()
