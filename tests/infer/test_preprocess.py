"""How pictures become a net's input: sizes, crops, means, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffetools.errors import DataError, ModelFileError
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.infer.preprocess import Preprocessor, read_labels, read_mean
from caffetools.proto.binary import write_binaryproto
from caffetools.results import Preprocessing

BGR = (1, 3, 4, 6)


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("crop", [(9, 12), (6, 7), (5, 5)])
def test_oversampling_cuts_the_crops_of_caffe(golden: Path, crop: tuple[int, int]) -> None:
    with np.load(golden / "io" / "caffe_io.npz") as file:
        pictures = [file["oversample_in:0"], file["oversample_in:1"]]
        expected = file[f"oversample:{crop[0]}x{crop[1]}"]
    preprocessor = Preprocessor((1, 3, *crop), Preprocessing(resize=(12, 9)))
    got = np.concatenate([preprocessor.oversample(picture) for picture in pictures])
    np.testing.assert_array_equal(got.transpose(0, 2, 3, 1), expected)


@pytest.mark.parametrize("case", ["14x16:center", "14x16:oversample", "net:center"])
def test_a_classifier_gives_the_probabilities_of_pycaffe(golden: Path, case: str) -> None:
    folder = golden / "io"
    size, _, how = case.partition(":")
    options = PreprocessOptions(mean=[100, 110, 120], scale=0.5, resize=(16, 14) if size == "14x16" else None)
    classifier = Classifier(folder / "tiny_deploy.prototxt", folder / "tiny.caffemodel", options)
    inputs = []
    for name in ("pic00.png", "pic01.png", "pic 02.png"):
        # pycaffe resizes floats; our own whole-number pixels are the data layers'.
        picture = cv2.imread(str(folder / "images" / "same" / name)).astype(np.float32)
        picture = cv2.resize(picture, classifier.preprocessor.size, interpolation=cv2.INTER_LINEAR)
        make = classifier.preprocessor.oversample if how == "oversample" else classifier.preprocessor.centre
        inputs.append(make(picture))
    with np.load(folder / "caffe_io.npz") as file:
        np.testing.assert_allclose(np.stack(classifier.probabilities(inputs)), file[f"classifier:{case}"], rtol=1e-4, atol=1e-4)


def test_the_centre_is_cut_as_the_data_layer_cuts_it() -> None:
    image = noise(9, 11)
    got = Preprocessor(BGR, Preprocessing(resize=(11, 9))).centre(image)
    np.testing.assert_array_equal(got[0], image[2:6, 2:8].transpose(2, 0, 1))


def test_mean_values_come_off_each_channel_before_the_scale() -> None:
    image = noise(4, 6)
    got = Preprocessor(BGR, Preprocessing(mean_values=(104, 117, 123), scale=0.25)).centre(image)
    np.testing.assert_array_equal(got[0], (image.transpose(2, 0, 1) - np.float32([104, 117, 123]).reshape(3, 1, 1)) * np.float32(0.25))


def test_a_mean_image_determines_how_large_pictures_are_and_is_cropped_with_them() -> None:
    mean = np.random.RandomState(1).rand(3, 8, 10).astype(np.float32) * 255
    preprocessor = Preprocessor(BGR, Preprocessing(mean_image=mean))
    assert preprocessor.size == (10, 8)
    image = noise(8, 10)
    whole = image.transpose(2, 0, 1) - mean
    np.testing.assert_array_equal(preprocessor.centre(image)[0], whole[:, 2:6, 2:8])
    np.testing.assert_array_equal(preprocessor.oversample(image)[3], whole[:, 4:, 4:])


def test_a_mean_image_larger_than_the_pictures_is_cut_in_the_centre() -> None:
    mean = np.random.RandomState(1).rand(3, 8, 10).astype(np.float32) * 255
    image = noise(4, 6)
    got = Preprocessor(BGR, Preprocessing(mean_image=mean, resize=(6, 4))).centre(image)
    np.testing.assert_array_equal(got[0], image.transpose(2, 0, 1) - mean[:, 2:6, 2:8])


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((1, 4, 8, 8), {}, "the net's input is 1 x 4 x 8 x 8; pictures need N x 3"),
        ((1, 10), {}, "the net's input is 1 x 10"),
        (BGR, {"resize": (5, 5)}, "resized to 5x5 are smaller than the net's input of 6x4"),
        (BGR, {"mean_values": (1.0, 2.0)}, "the mean has 2 values, but the net's input has 3 channel"),
        ((1, 1, 4, 6), {"mean_image": np.zeros((3, 4, 6), np.float32)}, "the mean image has 3 channel.*has 1"),
        (
            BGR,
            {"mean_image": np.zeros((3, 3, 3), np.float32), "resize": (6, 4)},
            "mean image of 3x3 is smaller than the net's input of 6x4",
        ),
    ],
)
def test_what_does_not_fit_the_net_is_refused(shape: tuple[int, ...], how: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessor(shape, Preprocessing(**how))


def test_a_grey_net_reads_grey_pictures(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), noise(5, 5))
    preprocessor = Preprocessor((1, 1, 5, 5), Preprocessing(mean_values=(7,)))
    got = preprocessor.centre(preprocessor.read(tmp_path / "a.png"))
    np.testing.assert_array_equal(got[0, 0], cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE).astype(np.float32) - 7)


def test_means_are_read_from_values_files_and_arrays(tmp_path: Path) -> None:
    image = np.random.RandomState(0).rand(1, 3, 2, 4).astype(np.float32)
    write_binaryproto(tmp_path / "mean.binaryproto", image)
    write_binaryproto(tmp_path / "values.binaryproto", np.float32([1, 2, 3]).reshape(1, 3, 1, 1))
    np.save(tmp_path / "mean.npy", image[0])
    assert read_mean(None) == ((), None)
    assert read_mean("104,117.5, 123") == ((104.0, 117.5, 123.0), None)
    assert read_mean("33.3") == ((33.3,), None)
    assert read_mean([1, 2, 3]) == ((1.0, 2.0, 3.0), None)
    assert read_mean(tmp_path / "values.binaryproto") == ((1.0, 2.0, 3.0), None)
    for source in (tmp_path / "mean.binaryproto", str(tmp_path / "mean.npy"), image):
        values, array = read_mean(source)
        assert values == ()
        np.testing.assert_array_equal(array, image[0])


def test_a_mean_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"no")
    (tmp_path / "cut.binaryproto").write_bytes(b"\x2a\xff")
    with pytest.raises(DataError, match="mean '1,,2' is not understood"):
        read_mean("1,,2")
    with pytest.raises(DataError, match=r"bad\.npy: this is text, and a mean as a NumPy array"):
        read_mean(tmp_path / "bad.npy")
    with pytest.raises(ModelFileError, match=r"cut\.binaryproto"):
        read_mean(tmp_path / "cut.binaryproto")
    with pytest.raises(ModelFileError, match=r"none\.binaryproto"):
        read_mean(tmp_path / "none.binaryproto")


def test_labels_are_one_a_line_and_none_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("great white shark\nTürkis\n\n", encoding="utf-8")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("Türkis".encode("latin-1"))
    assert read_labels(tmp_path / "labels.txt") == ("great white shark", "Türkis")
    assert read_labels(["a", "b"]) == ("a", "b")
    for name, message in (
        ("gap", "line 2 is empty"),
        ("empty", "the file is empty"),
        ("latin", "not a UTF-8 text"),
        ("none", "cannot read the labels"),
    ):
        with pytest.raises(DataError, match=message):
            read_labels(tmp_path / f"{name}.txt")
