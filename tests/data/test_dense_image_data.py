"""DenseImageData: pictures and maps of labels that are read, mirrored and cropped alike, as SegNet's fork does."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffetools.data.images import read_image
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.graph.inputs import data_shape
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, NetParameter
from caffetools.proto.text import parse
from caffetools.solver.run import train
from caffetools.surgery.deploy import deploy_from

HEIGHT, WIDTH, COUNT = 12, 16, 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures and their maps, in which a pixel's label is its blue value over 64; listed in list.txt."""
    monkeypatch.chdir(tmp_path)
    random, lines = np.random.default_rng(0), []
    for number in range(COUNT):
        picture = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(f"{number}.png", picture)
        cv2.imwrite(f"map {number}.png".replace(" ", "_"), picture[..., 0] // 64)
        lines.append(f"/{number}.png  /map_{number}.png")
    Path("list.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def net_of(settings: str = "", transform: str = "", phase: int = TRAIN, batch: int = 2) -> Net:
    return Net(parse(prototxt(settings, transform, batch), NetParameter), phase)


def prototxt(settings: str = "", transform: str = "", batch: int = 2) -> str:
    how = f'source: "list.txt" root_folder: "{Path.cwd()}" batch_size: {batch} {settings}'
    return (
        'layer { name: "data" type: "DenseImageData" top: "data" top: "label" '
        f"dense_image_data_param {{ {how} }} transform_param {{ {transform} }} }}\n"
    )


def batches(net: Net, count: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    given = [net.layers[0]() for _ in range(count)]
    return [(np.asarray(data), np.asarray(label)) for data, label in given]


def test_pictures_and_maps_are_read_in_the_order_of_the_list(folder: Path) -> None:
    first, second = batches(net_of("", "mean_value: 10 mean_value: 20 mean_value: 30 scale: 0.5"), 2)
    picture = read_image("0.png").transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(first[0][0], (picture - np.array([10, 20, 30], np.float32).reshape(3, 1, 1)) * 0.5)
    # Mean and scale leave the labels as they are; after the third picture the list begins again.
    np.testing.assert_array_equal(first[1][0, 0], picture[0] // 64)
    assert first[1].shape == (2, 1, HEIGHT, WIDTH) and first[1].dtype == np.float32
    np.testing.assert_array_equal(second[1][1], first[1][0])


def test_maps_are_resized_to_the_nearest_value(folder: Path) -> None:
    ((data, label),) = batches(net_of("new_height: 7 new_width: 5"))
    assert data.shape == (2, 3, 7, 5) and label.shape == (2, 1, 7, 5)
    np.testing.assert_array_equal(data[0], read_image("0.png", size=(5, 7)).transpose(2, 0, 1))
    expected = cv2.resize(cv2.imread("map_0.png", cv2.IMREAD_GRAYSCALE), (5, 7), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(label[0, 0], expected)


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_mirrors_and_crops_are_those_of_the_picture(folder: Path, phase: int) -> None:
    net = net_of("mirror: true crop_height: 5 crop_width: 9 shuffle: true", phase=phase)
    seen = set()
    for data, label in batches(net, 30):
        assert data.shape == (2, 3, 5, 9)
        np.testing.assert_array_equal(label[:, 0], data[:, 0] // 64)
        seen |= {picture.tobytes() for picture in data}
    assert len(seen) > 40, "crops and mirrors are drawn anew for each picture"
    assert any(picture.tobytes() in seen for picture in data[..., ::-1].copy()) or len(seen) > 50


def test_gray_pictures_have_one_channel(folder: Path) -> None:
    ((data, _),) = batches(net_of("is_color: false"))
    np.testing.assert_array_equal(data[0, 0], read_image("0.png", color=False))


def test_the_size_is_known_without_the_list() -> None:
    layer = parse(prototxt("new_height: 360 new_width: 480"), NetParameter).layer[0]
    assert data_shape(layer) == (2, 3, 360, 480)
    layer = parse(prototxt("new_height: 360 new_width: 480 crop_height: 64 crop_width: 32 is_color: false"), NetParameter).layer[0]
    assert data_shape(layer, 1) == (1, 1, 64, 32)


@pytest.mark.parametrize(
    ("settings", "transform", "lines", "message"),
    [
        ("new_height: 5", "", None, "new_height and new_width must be given together"),
        ("crop_width: 5", "", None, "crop_height and crop_width must be given together"),
        ("", "mirror: true", None, "transform_param: mirror and crop_size would change the pictures, but not their maps"),
        ("", "crop_size: 5", None, "use mirror, crop_height and crop_width"),
        ("crop_height: 13 crop_width: 5", "", None, "0.png: a picture of 16 x 12 is cropped to 5 x 13"),
        ("", "", "/0.png 3 4", "list.txt:1: two names are expected, of a picture and of its map of labels"),
        ("", "", "\n", "list.txt: the list is empty"),
        ("", "", "/0.png /small.png", r"small.png: the map of labels is 4 x 4, but its picture .*0.png 16 x 12"),
        ("", "", "/0.png /none.png", "none.png"),
        ("rand_skip: 1000000000", "", None, "rand_skip may skip more pictures than the list has"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, settings: str, transform: str, lines: str | None, message: str) -> None:
    cv2.imwrite("small.png", np.zeros((4, 4), np.uint8))
    if lines is not None:
        Path("list.txt").write_text(lines)
    with pytest.raises((DataError, NetError), match=message) as error:
        batches(net_of(settings, transform))
    assert isinstance(error.value, CaffeToolsError)


def test_a_net_learns_the_maps_and_resumes_on_the_same_bits(folder: Path) -> None:
    score = 'layer { name: "score" type: "Convolution" bottom: "data" top: "score" convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }\n'
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }\n'
    text = prototxt("mirror: true crop_height: 8 crop_width: 8 shuffle: true", "scale: 0.02") + score + loss
    Path("net.prototxt").write_text(text)
    solver = 'net: "net.prototxt" base_lr: 0.1 momentum: 0.9 lr_policy: "fixed" random_seed: 3 display: 1 snapshot_prefix: "{}" max_iter: {} snapshot: 20\n'
    Path("whole.prototxt").write_text(solver.format("whole", 40))
    whole = train("whole.prototxt")
    assert whole.history.train[-1].loss < 0.9, "chance is 1.39"
    Path("part.prototxt").write_text(solver.format("part", 20))
    train("part.prototxt")
    Path("part.prototxt").write_text(solver.format("part", 40))
    train("part.prototxt", resume="part_iter_20.solverstate")
    assert Path("part_iter_40.caffemodel").read_bytes() == Path("whole_iter_40.caffemodel").read_bytes()
    deployed = deploy_from(parse(text, NetParameter))
    assert [tuple(shape.dim) for shape in deployed.layer[0].input_param.shape] == [(1, 3, 8, 8)]


def test_a_deploy_net_takes_the_size_of_the_first_picture(folder: Path) -> None:
    score = 'layer { name: "score" type: "Convolution" bottom: "data" top: "score" convolution_param { num_output: 4 kernel_size: 1 } }\n'
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }\n'
    Path("labels.txt").write_text("0.png 1\n")
    images = 'layer { name: "data" type: "ImageData" top: "data" top: "label" image_data_param { source: "labels.txt" batch_size: 2 } }\n'
    for data in (prototxt(), images):
        deployed = deploy_from(parse(data + score + loss, NetParameter))
        assert [tuple(shape.dim) for shape in deployed.layer[0].input_param.shape] == [(1, 3, HEIGHT, WIDTH)]
