"""caffe.io, Classifier and Detector against what Caffe's Python module returned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caffetools.errors import DataError
from caffetools.proto.schema import BlobProto, Datum
from caffetools.pycaffe import TEST, Net, io
from caffetools.pycaffe.classifier import Classifier
from caffetools.pycaffe.detector import Detector
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "io"
CASES: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())["caffe_io"]
SETTINGS = {"mean": np.array([100.0, 110.0, 120.0]), "raw_scale": 255, "channel_swap": (2, 1, 0)}


def of(kind: str) -> list[str]:
    return [name for name in CASES if name.split(":")[0] == kind]


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / "caffe_io.npz") as file:
        return dict(file)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(FOLDER)
    return FOLDER


def close(got: NDArray[Any], expected: NDArray[Any], tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", of("load_image"))
def test_load_image(name: str, arrays: dict[str, NDArray[Any]]) -> None:
    path = CASES[name]["call"].split("'")[1]
    close(io.load_image(FOLDER / path, color=name.endswith(":color")), arrays[name])


@pytest.mark.parametrize("name", of("resize"))
def test_resize_image(name: str, arrays: dict[str, NDArray[Any]]) -> None:
    _, source, size = name.split(":")
    dims, order = ((9, 11), 0) if size == "order0" else (tuple(map(int, size.split("x"))), 1)
    close(io.resize_image(arrays[f"resize_in:{source}"], dims, interp_order=order), arrays[name])


@pytest.mark.parametrize("name", of("oversample"))
def test_oversample(name: str, arrays: dict[str, NDArray[Any]]) -> None:
    size = tuple(map(int, name.split(":")[1].split("x")))
    close(io.oversample([arrays["oversample_in:0"], arrays["oversample_in:1"]], size), arrays[name])


@pytest.mark.parametrize("name", of("transformer"))
def test_transformer(name: str, arrays: dict[str, NDArray[Any]]) -> None:
    settings = dict(CASES[name]["settings"])
    transformer = io.Transformer({"data": settings.pop("shape")})
    for key, value in settings.items():
        getattr(transformer, f"set_{key}")("data", arrays[f"{name}:mean_given"] if key == "mean" else value)
    if "mean" in settings:
        np.testing.assert_allclose(transformer.mean["data"], arrays[f"{name}:mean_stored"], rtol=1e-5, atol=1e-5)
    image = arrays["transformer_image"]
    before = image.copy()
    made = transformer.preprocess("data", image)
    close(made, arrays[f"{name}:pre"])
    close(transformer.deprocess("data", made), arrays[f"{name}:de"])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", of("classifier"))
def test_classifier(name: str, arrays: dict[str, NDArray[Any]], here: Path) -> None:
    _, size, crops = name.split(":")
    dims = None if size == "net" else tuple(map(int, size.split("x")))
    classifier = Classifier("tiny_deploy.prototxt", "tiny.caffemodel", image_dims=dims, input_scale=0.5, **SETTINGS)
    pictures = [io.load_image(file) for file in CASES[name]["files"]]
    close(classifier.predict(pictures, oversample=crops == "oversample"), arrays[name], 1e-4)


@pytest.mark.parametrize("name", of("detector"))
def test_detector(name: str, arrays: dict[str, NDArray[Any]], here: Path) -> None:
    pad = 2 if name.endswith("pad2") else None
    detector = Detector("tiny_deploy.prototxt", "tiny.caffemodel", context_pad=pad, **SETTINGS)
    windows = [(file, np.array(boxes)) for file, boxes in CASES[name]["windows_ymin_xmin_ymax_xmax"]]
    found = detector.detect_windows(windows)
    close(np.stack([detection["prediction"] for detection in found]), arrays[name], 1e-4)
    assert [str(d["filename"]) for d in found] == [file for file, boxes in windows for _ in boxes]


def test_blobproto_has_the_bytes_that_caffe_writes(arrays: dict[str, NDArray[Any]]) -> None:
    array = arrays["blobproto"]
    blob = io.array_to_blobproto(array, diff=2 * array)
    expected = BlobProto.FromString((FOLDER / "blobproto.binaryproto").read_bytes())
    assert blob == expected
    np.testing.assert_array_equal(io.blobproto_to_array(expected), array)
    assert io.blobproto_to_array(expected).dtype == np.float64
    np.testing.assert_array_equal(io.blobproto_to_array(expected, return_diff=True), 2 * array)


def test_datum_has_the_fields_that_caffe_writes(arrays: dict[str, NDArray[Any]]) -> None:
    array = arrays["datum"]
    for made, file in (
        (io.array_to_datum(array, 7), "datum_uint8.bin"),
        (io.array_to_datum(array.astype(float) / 3, 2), "datum_float.bin"),
    ):
        expected = Datum.FromString((FOLDER / file).read_bytes())
        assert made == expected
        np.testing.assert_allclose(io.datum_to_array(expected), array if made.data else array / 3, rtol=1e-6)


def test_lists_of_arrays_survive_a_blobprotovector() -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 2, 1, 2), np.float32)]
    back = io.blobprotovector_str_to_arraylist(io.arraylist_to_blobprotovector_str(arrays))
    assert [a.tolist() for a in back] == [a.tolist() for a in arrays]


def test_what_does_not_fit_is_reported() -> None:
    transformer = io.Transformer({"data": (1, 3, 4, 4)})
    with pytest.raises(DataError, match="'dta' is not one of the net's inputs: data"):
        transformer.set_raw_scale("dta", 255)
    with pytest.raises(DataError, match="has 3 channels, the mean 2"):
        transformer.set_mean("data", np.zeros(2))
    with pytest.raises(DataError, match="interp_order 3 is not supported"):
        io.resize_image(np.zeros((4, 4, 3), np.float32), (2, 2), interp_order=3)
    with pytest.raises(DataError, match="do not fit in pictures of 4 x 4"):
        io.oversample([np.zeros((4, 4, 3))], (5, 5))
    with pytest.raises(DataError, match=r"none\.png: cannot read the picture"):
        io.load_image("none.png")


# Every 13th value of the crop of a window, from Caffe 1.0's Detector with whole numbers for its slices, which NumPy asks for today.
CROPS = [
    ([2.6, 3.2, 12.5, 20.1], [0.55281, 0.56931, 0.37789, 0.5, 0.5165, 0.47786, 0.44719, 0.25578, 0.27228]),
    ([0, 0, 20, 25], [0.1, 0.2, 0.56188, 0.58663, 0.2, 0.80817, 0.95792, 0.2, 0.4]),
    ([5, 5, 8, 9], [0.30528, 0.13366, 0.74422, 0.37129, 0.19967, 0.81023, 0.43729, 0.04785, 0.87624]),
    ([-3, -2, 6, 7], [0.1, 0.2, 0.4, 0.1, 0.5396, 0.53651, 0.80693, 0.2, 0.22277]),
]


@pytest.mark.parametrize(("window", "expected"), CROPS)
def test_a_detector_crops_windows_with_context_as_caffes_does(window: list[float], expected: list[float], tmp_path: Path) -> None:
    net = 'input: "data" input_shape { dim: 1 dim: 3 dim: 6 dim: 6 } layer { name: "p" type: "Power" bottom: "data" top: "p" }'
    (tmp_path / "deploy.prototxt").write_text(net)
    picture = ((np.arange(20 * 25 * 3) * 37 % 101) / 101.0).reshape(20, 25, 3).astype(np.float32)
    mean = np.array([25.5, 51, 102.0])
    files = (str(tmp_path / "deploy.prototxt"), str(tmp_path / "deploy.caffemodel"))
    Net(files[0], TEST).save(files[1])
    detector = Detector(*files, mean=mean, raw_scale=255, context_pad=1)
    close(np.asarray(detector.crop(picture, np.array(window))).ravel()[::13], np.array(expected, np.float32), 2e-5)


def test_a_transformer_takes_the_inputs_as_they_are_and_settings_that_are_none() -> None:
    not_shapes: list[Any] = [None, ["data"]]
    for inputs in not_shapes:
        io.Transformer(inputs)
    shapes = {"data": [1, 3, 4, 5]}
    transformer = io.Transformer(shapes)
    shapes["other"] = [1, 3, 2, 2]
    transformer.set_raw_scale("other", 2)
    picture = np.ones((2, 2, 3), np.float32)
    assert (transformer.preprocess("other", picture) == 2).all()
    transformer.raw_scale["other"] = None
    transformer.mean["other"] = None
    assert (transformer.preprocess("other", picture) == 1).all()
    assert (transformer.deprocess("other", picture) == 1).all()


def test_a_label_may_be_a_bool_and_new_dims_may_name_the_channels() -> None:
    assert io.array_to_datum(np.zeros((1, 2, 2)), True).label == 1
    picture = np.arange(48.0).reshape(4, 4, 3)
    np.testing.assert_array_equal(io.resize_image(picture, (2, 2, 3)), io.resize_image(picture, (2, 2)))
