"""Databases, means and data layers against what real Caffe made of the same pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caffetools.data.databases import open_database, record_key
from caffetools.data.datum import array_to_datum, datum_to_array, encoded_to_datum, image_to_datum, image_to_record, parse_datum
from caffetools.data.images import read_bytes, read_image
from caffetools.data.means import channel_means, compute_mean, format_mean_values, write_binaryproto
from caffetools.data.picture_lists import read_list
from caffetools.layers.registry import layer_class
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import read_net
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "io"
FILES = GOLDEN / "layers_files"
INDEX: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())
FIXED_LAYERS = [case for case in INDEX["data_layers"] if not case.get("random")] + INDEX["window_data"]
RANDOM_LAYERS = [case for case in INDEX["data_layers"] if case.get("random")]
DATABASES = INDEX["databases"]


@pytest.fixture(autouse=True)
def in_golden_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in the golden folder; where a LevelDB is read, in a copy, since its library writes into it."""
    monkeypatch.chdir(FOLDER)
    if "leveldb" in request.node.name:
        pytest.importorskip("plyvel")
        monkeypatch.chdir(shutil.copytree(FOLDER, tmp_path / "io"))


def make_layer(prototxt: Path | str, phase: str) -> Any:
    param = read_net(prototxt).layer[0]
    return layer_class(param.type)(param, TRAIN if phase == "TRAIN" else TEST)


def load(path: Path | str) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("case", FIXED_LAYERS, ids=lambda c: c["name"])
def test_a_data_layer_gives_the_batches_of_caffe(case: dict[str, Any]) -> None:
    layer, expected = make_layer(case["prototxt"], case["phase"]), load(case["npz"])
    assert [list(shape) for shape in layer.configure([])] == [case["shapes"][f"{top}@0"] for top in case["tops"]]
    for step in range(case["passes"]):
        for name, top in zip(case["tops"], layer(), strict=True):
            batch, caffe = top.numpy(), expected[f"{name}@{step}"]
            assert (batch.shape, batch.dtype) == (caffe.shape, caffe.dtype)
            np.testing.assert_allclose(batch, caffe, rtol=1e-6, atol=0)
    layer.close()


@pytest.mark.parametrize("case", RANDOM_LAYERS, ids=lambda c: c["name"])
def test_random_crops_and_flips_are_crops_of_the_right_picture(case: dict[str, Any]) -> None:
    layer, expected = make_layer(case["prototxt"], case["phase"]), load(case["npz"])
    layer.seed(3)
    layer.configure([])
    pictures = [read_image(f"images/{name}").transpose(2, 0, 1).astype(np.float32) for name, _ in read_list("list_same.txt")]
    crop = layer.top_shapes[0][2] if layer.param.transform_param.crop_size else 0
    seen = set()
    for step in range(case["passes"]):
        data, labels = layer()
        np.testing.assert_array_equal(labels.numpy(), expected[f"label@{step}"])
        for item in range(len(labels)):
            place = find_crop(data[item].numpy(), pictures[(step * len(labels) + item) % len(pictures)], crop)
            assert place is not None
            seen.add(place)
    assert len({flip for *_, flip in seen}) == (2 if layer.param.transform_param.mirror else 1)
    assert len(seen) > (10 if crop else 1)
    layer.close()


def find_crop(item: NDArray[Any], picture: NDArray[Any], crop: int) -> tuple[int, int, int] | None:
    height, width = (crop, crop) if crop else picture.shape[1:]
    for y in range(picture.shape[1] - height + 1):
        for x in range(picture.shape[2] - width + 1):
            window = picture[:, y : y + height, x : x + width]
            if np.array_equal(window, item):
                return y, x, 0
            if np.array_equal(window[:, :, ::-1], item):
                return y, x, 1
    return None


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_that_caffe_wrote_is_read(name: str) -> None:
    expected = load("databases.npz")
    rows = DATABASES[name]["rows"]
    database = open_database(f"db/{name}")
    records = list(database.records())
    assert len(database) == len(records) == len(rows)
    for index, ((key, value), row) in enumerate(zip(records, rows, strict=True)):
        datum = parse_datum(value, "record")
        assert (key.decode(), datum.label, datum.encoded) == (row["key"], row["label"], row["encoded"])
        if datum.encoded:
            assert datum.data == expected[f"{name}:{index}:file"].tobytes()
        else:
            np.testing.assert_array_equal(datum_to_array(datum), expected[f"{name}:{index}"], strict=True)
    assert list(database.records(5)) == records[5:]
    database.close()


@pytest.mark.parametrize("name", [name for name in DATABASES if name not in ("lmdb_shuffle", "lmdb_encoded_resize_png")])
def test_pictures_become_the_records_that_convert_imageset_makes(name: str) -> None:
    flags = DATABASES[name]["flags"]
    size = (21, 15) if "--resize_width=21" in flags else None
    database = open_database(f"db/{name}")
    entries = read_list(DATABASES[name]["list"])
    for number, ((picture, label), (key, value)) in enumerate(zip(entries, database.records(), strict=True)):
        if "--encoded" in flags:
            datum = encoded_to_datum(read_bytes(f"images/{picture}"), label)
        else:
            image = read_image(f"images/{picture}", color="--gray" not in flags, size=size)
            datum = image_to_datum(image, label)
            assert image_to_record(image, label) == value
        assert (record_key(number, picture), datum.SerializeToString()) == (key, value)
    database.close()


@pytest.mark.parametrize("name", INDEX["means"])
def test_the_mean_is_that_of_compute_image_mean_to_the_last_byte(name: str, tmp_path: Path) -> None:
    case = INDEX["means"][name]
    mean = compute_mean(f"db/{name}")
    np.testing.assert_array_equal(mean, np.load(case["npy"]), strict=True)
    write_binaryproto(tmp_path / "mean.binaryproto", mean)
    assert (tmp_path / "mean.binaryproto").read_bytes() == (FOLDER / case["binaryproto"]).read_bytes()
    assert format_mean_values(channel_means(mean)) == case["printed"]


def test_arrays_become_the_datums_of_caffe_io() -> None:
    array = load("caffe_io.npz")["datum"]
    assert array_to_datum(array, 7).SerializeToString() == Path("datum_uint8.bin").read_bytes()
    floats = array_to_datum(array.astype(float) / 3, 2)
    assert floats.SerializeToString() == Path("datum_float.bin").read_bytes()
    np.testing.assert_array_equal(datum_to_array(floats), (array.astype(float) / 3).astype(np.float32), strict=True)


def test_hdf5_rows_run_through_the_files_as_in_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILES)
    layer, expected = make_layer("hdf5data.prototxt", "TEST"), load("hdf5data.npz")
    layer.configure([])
    for step in range(5):
        for name, top in zip(layer.tops, layer(), strict=True):
            np.testing.assert_array_equal(top.numpy(), expected[f"pass{step}:{name}"], strict=True)
    layer.close()


def test_memory_data_gives_its_arrays_as_in_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILES)
    layer, expected = make_layer("memorydata.prototxt", "TEST"), load("memorydata.npz")
    assert layer.configure([])[1] == (2,)
    layer.set_arrays(expected["set:data"], expected["set:labels"])
    for step in range(4):
        for name, top in zip(layer.tops, layer(), strict=True):
            np.testing.assert_array_equal(top.numpy(), expected[f"pass{step}:{name}"], strict=True)
