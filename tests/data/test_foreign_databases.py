"""Databases in the forms that other tools write: each is inspected, verified, exported, averaged and read by a Data layer."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from caffetools.data.datasets.export import export_database
from caffetools.data.datasets.inspect import inspect_database
from caffetools.data.datasets.verify import verify_database
from caffetools.data.means import compute_mean
from caffetools.data.torch_dataset import LmdbDataset
from caffetools.errors import DataError
from caffetools.graph.dataset_fit import dataset_fit
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, Datum
from caffetools.proto.text import read_net

COUNT = 6


def picture(number: int, height: int = 12, width: int = 10, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)


def file_of(image: NDArray[np.uint8 | np.uint16], suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1])


def digits_png(number: int) -> tuple[str, Datum]:
    """DIGITS: PNG or JPEG by Pillow (RGB order is that of the file), sizes stated, keys ``%08d_LABEL``."""
    stream = io.BytesIO()
    Image.fromarray(picture(number)).save(stream, "PNG")
    return f"{number:08d}_{number % 2}", Datum(channels=3, height=12, width=10, data=stream.getvalue(), label=number % 2, encoded=True)


def digits_raw(number: int) -> tuple[str, Datum]:
    """DIGITS without encoding, for gray pictures."""
    image = picture(number, channels=1)
    return f"{number:08d}_{number % 2}", Datum(channels=1, height=12, width=10, data=image.tobytes(), label=number % 2)


def jpeg_without_sizes(number: int) -> tuple[str, Datum]:
    """``convert_imageset --encoded``."""
    return f"{number:08d}_dir/{number}.jpg", Datum(data=file_of(picture(number), ".jpg"), label=number % 2, encoded=True)


def floats(number: int) -> tuple[str, Datum]:
    """``extract_features``: float_data of a feature vector."""
    values = np.random.default_rng(number).normal(size=7)
    return f"{number:010d}", Datum(channels=7, height=1, width=1, float_data=values.tolist(), label=number % 2)


def several_labels(number: int) -> tuple[str, Datum]:
    """A database of label vectors next to one of pictures: float_data without a label."""
    return f"{number:08d}", Datum(channels=4, height=1, width=1, float_data=[float(number >> bit & 1) for bit in range(4)])


def label_maps(number: int) -> tuple[str, Datum]:
    """Segmentation: a label for each pixel, as one channel."""
    return f"{number:08d}", Datum(channels=1, height=5, width=4, data=bytes(number % 3 for _ in range(20)))


def mixed_sizes(number: int) -> tuple[str, Datum]:
    return f"{number:08d}", Datum(data=file_of(picture(number, 8 + number, 9), ".jpg"), label=number % 2, encoded=True)


def sixteen_bits(number: int) -> tuple[str, Datum]:
    deep = np.random.default_rng(number).integers(0, 65536, (5, 6), np.uint16)
    return f"{number:08d}", Datum(data=file_of(deep, ".png"), label=number % 2, encoded=True)


Make = Callable[[int], tuple[str, Datum]]
FORMS: dict[Make, tuple[dict[str, int], dict[str, int]]] = {
    digits_png: ({"3x12x10": 6}, {"PNG": 6}),
    digits_raw: ({"1x12x10": 6}, {"raw": 6}),
    jpeg_without_sizes: ({"3x12x10": 6}, {"JPEG": 6}),
    floats: ({"7x1x1": 6}, {"float_data": 6}),
    several_labels: ({"4x1x1": 6}, {"float_data": 6}),
    label_maps: ({"1x5x4": 6}, {"raw": 6}),
    mixed_sizes: ({f"3x{8 + number}x9": 1 for number in range(6)}, {"JPEG": 6}),
    sixteen_bits: ({"1x5x6": 6}, {"PNG uint16": 6}),
}
forms = pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)


def write(path: Path, make: Make) -> Path:
    """Write an LMDB by the library itself, as other tools do: one transaction, and a lock file next to the data."""
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number in range(COUNT):
            key, datum = make(number)
            transaction.put(key.encode(), datum.SerializeToString())
    return path


@forms
def test_its_records_are_counted_and_sound(make: Make, tmp_path: Path) -> None:
    database = write(tmp_path / "db", make)
    shapes, encodings = FORMS[make]
    summary = inspect_database(database, sheet=tmp_path / "sheet.png")
    assert (summary.records, summary.damaged, summary.shapes, summary.encodings) == (COUNT, 0, shapes, encodings)
    has_labels = make not in (several_labels, label_maps)
    assert (summary.labels, summary.unlabelled) == (({0: 3, 1: 3}, 0) if has_labels else ({}, COUNT))
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None
    faults = verify_database(database).faults
    assert {fault.kind for fault in faults} == ({"size"} if make is mixed_sizes else set())


@forms
def test_its_records_come_back_as_files(make: Make, tmp_path: Path) -> None:
    result = export_database(write(tmp_path / "db", make), tmp_path / "out")
    assert (result.count, result.skipped) == (COUNT, [])
    datum = make(0)[1]
    if datum.encoded:
        assert datum.data in {path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert len(LmdbDataset(tmp_path / "db")) == COUNT


@forms
def test_its_mean_is_that_of_its_values_or_refused(make: Make, tmp_path: Path) -> None:
    database = write(tmp_path / "db", make)
    if make in (mixed_sizes, sixteen_bits):
        with pytest.raises(DataError, match="record '0000000[01]'"):
            compute_mean(database)
        return
    values = [np.asarray(LmdbDataset(database)[number][0], np.float64) for number in range(COUNT)]
    np.testing.assert_allclose(compute_mean(database)[0], np.mean(values, axis=0), rtol=1e-5, atol=1e-6)


NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{source}" batch_size: {batch} backend: LMDB }} {transform} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 2 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""


def net_for(folder: Path, database: Path, batch: int = 3, transform: str = "") -> Path:
    path = folder / "net.prototxt"
    path.write_text(NET.format(source=database, batch=batch, transform=transform))
    return path


@pytest.mark.parametrize("make", [digits_png, digits_raw, jpeg_without_sizes, floats], ids=lambda make: make.__name__)
def test_a_data_layer_reads_it_and_it_fits_the_net(make: Make, tmp_path: Path) -> None:
    database = write(tmp_path / "db", make)
    path = net_for(tmp_path, database)
    data, label = Net.from_file(path, TEST).layers[0]()
    assert list(label) == [0, 1, 0] and data.shape[0] == 3
    fit = dataset_fit(inspect_database(database), read_net(path))
    assert fit.problems == [] and fit.shape == tuple(data.shape[1:])


def test_pictures_of_pillow_are_blue_first_as_caffe_decodes_them(tmp_path: Path) -> None:
    data, _ = Net.from_file(net_for(tmp_path, write(tmp_path / "db", digits_png)), TEST).layers[0]()
    np.testing.assert_array_equal(data[0].numpy(), picture(0)[:, :, ::-1].transpose(2, 0, 1))


def test_mixed_sizes_need_a_crop_or_single_batches(tmp_path: Path) -> None:
    database = write(tmp_path / "db", mixed_sizes)
    summary = inspect_database(database)
    (problem,) = dataset_fit(summary, read_net(net_for(tmp_path, database, transform="transform_param { mirror: true }"))).problems
    assert problem.startswith("The records have 6 sizes, and 'data' has no crop_size")
    assert dataset_fit(summary, read_net(net_for(tmp_path, database, transform="transform_param { crop_size: 8 }"))).problems == []
    small = dataset_fit(summary, read_net(net_for(tmp_path, database, transform="transform_param { crop_size: 9 }"))).problems
    assert small == ["The layer 'data' crops to 9 x 9; 1 record(s) are smaller."]


def test_sixteen_bits_are_refused_by_the_data_layer_as_by_caffe(tmp_path: Path) -> None:
    database = write(tmp_path / "db", sixteen_bits)
    with pytest.raises(DataError, match="has 16 bits a channel; Caffe takes 8 here"):
        Net.from_file(net_for(tmp_path, database), TEST)
    summary, forced = inspect_database(database), "transform_param { force_gray: true }"
    (problem,) = dataset_fit(summary, read_net(net_for(tmp_path, database))).problems
    assert problem == "6 record(s) are pictures of 16 bits a channel, which Caffe reads only with force_color or force_gray."
    assert Net.from_file(net_for(tmp_path, database, transform=forced), TEST).layers[0]()[0].shape == (3, 1, 5, 6)
    assert dataset_fit(summary, read_net(net_for(tmp_path, database, transform=forced))).problems == []


def test_the_folder_of_a_job_of_digits_names_its_databases(tmp_path: Path) -> None:
    write(tmp_path / "train_db", digits_raw)
    write(tmp_path / "val_db", digits_raw)
    with pytest.raises(DataError, match="is not a database .*it holds databases: .*train_db, .*val_db"):
        inspect_database(tmp_path)


def test_several_labels_come_from_a_second_database(tmp_path: Path) -> None:
    dataset = LmdbDataset(write(tmp_path / "db", digits_png), labels=write(tmp_path / "labels", several_labels))
    assert [list(np.asarray(dataset[number][1]).ravel()) for number in (0, 5)] == [[0, 0, 0, 0], [1, 0, 1, 0]]
