"""HDF5 files that nobody here made, those of MATLAB among them: inspected, verified, compared with nets, and read by HDF5Data."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from caffetools.cli.dataset import app
from caffetools.data.datasets.hdf5 import hdf5_files, inspect_hdf5, verify_hdf5
from caffetools.data.torch_dataset import LmdbDataset
from caffetools.errors import DataError
from caffetools.net.net import Net
from caffetools.proto.schema import TEST
from tests.cli.inprocess import error_of, run_well
from tests.cli.inprocess import run as in_process

_CLASSES = {"f8": "double", "f4": "single", "u1": "uint8"}


def write_matlab(path: Path, **arrays: NDArray[np.generic]) -> Path:
    """Write arrays as MATLAB's ``save -v7.3`` does: axes reversed, columns first, classes as attributes, a header of 512 bytes.

    Args:
        path: The file.
        arrays: Name → array with the axes that it has in MATLAB.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(name, data=np.ascontiguousarray(array.T))
            dataset.attrs["MATLAB_class"] = np.bytes_(_CLASSES[array.dtype.str[1:]])
        file.create_group("#refs#")
        text = file.create_dataset("note", data=np.array([[72], [105]], np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_("char")
        empty = file.create_dataset("nothing", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_class"], empty.attrs["MATLAB_empty"] = np.bytes_("double"), np.uint8(1)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(116) + bytes(8) + b"\0\2IM")
    return path


@pytest.fixture
def pictures() -> NDArray[np.float64]:
    """(W, H, C, N) as in MATLAB: 6 x 8 pixels, 3 channels, 20 pictures."""
    return np.random.default_rng(0).random((6, 8, 3, 20))


LABELS = (np.arange(20) % 4).astype(np.float64)[np.newaxis]

NET = """
layer {{ name: "data" type: "HDF5Data" top: "data" top: "{label}" hdf5_data_param {{ source: "{source}" batch_size: 5 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: {classes} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "{label}" top: "loss" }}
"""


def write_net(folder: Path, source: Path, classes: int = 4, label: str = "label") -> Path:
    path = folder / f"net{classes}{label}.prototxt"
    path.write_text(NET.format(source=source, classes=classes, label=label))
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_file_of_matlab_is_read_as_caffe_reads_it(tmp_path: Path, pictures: NDArray[np.float64]) -> None:
    mat = write_matlab(tmp_path / "train.mat", data=pictures, label=LABELS)
    summary = inspect_hdf5(mat)
    assert summary.matlab and summary.files == [str(mat)]
    assert {name: dataset.shape for name, dataset in summary.datasets.items()} == {"data": "20x3x8x6", "label": "20x1"}
    statistics = summary.datasets["data"].statistics
    assert statistics is not None and statistics.records == 20
    np.testing.assert_allclose(statistics.mean, pictures.mean(axis=(0, 1, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.deviation, pictures.std(axis=(0, 1, 3)), rtol=1e-12)
    assert summary.datasets["label"].labels == {0: 5, 1: 5, 2: 5, 3: 5}
    assert summary.other == {"#refs#": "a group", "note": "char, not an array of numbers", "nothing": "an empty array of MATLAB"}
    assert verify_hdf5(mat, classes=4).faults == []
    (tmp_path / "list.txt").write_text(f"{mat}\n")
    net = Net.from_file(write_net(tmp_path, tmp_path / "list.txt"), TEST)
    data, label = net.layers[0]()
    np.testing.assert_allclose(data.numpy(), pictures[:, :, :, :5].transpose(3, 2, 1, 0), rtol=1e-6)
    np.testing.assert_array_equal(label.numpy().ravel(), LABELS[0, :5])


def test_axes_in_the_wrong_order_are_explained(tmp_path: Path, pictures: NDArray[np.float64]) -> None:
    """N x C x H x W in MATLAB arrives as (W, H, C, N)."""
    mat = write_matlab(tmp_path / "bad.mat", data=pictures.transpose(3, 2, 1, 0), label=LABELS.T)
    (fault,) = verify_hdf5(mat).faults
    assert fault.kind == "rows" and "'data' 6, 'label' 1; they agree in their last axis: reverse the axes (in MATLAB" in fault.message
    (tmp_path / "list.txt").write_text(f"{mat}\n")
    with pytest.raises(DataError, match="they agree in their last axis"):
        Net.from_file(write_net(tmp_path, tmp_path / "list.txt"), TEST)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int64, ">f4"])
def test_all_types_of_numbers_chunked_and_compressed(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(1).integers(0, 100, (50, 2, 3)).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=values, chunks=(7, 2, 3), compression="gzip", shuffle=True)
    found = inspect_hdf5(tmp_path / "a.h5").datasets["data"]
    assert found.shape == "50x2x3" and found.statistics is not None
    np.testing.assert_allclose(found.statistics.mean, values.astype(np.float64).mean(axis=(0, 2)), rtol=1e-12)


def test_faults_of_several_files_are_listed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["label"] = np.array([[np.nan, 1], [np.inf, 2]]), np.array([0.0, -1])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"], file["label"] = np.zeros((1, 3)), np.array([7.0])
    (tmp_path / "c.h5").write_bytes((tmp_path / "b.h5").read_bytes()[:900])
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path / name}\n" for name in ("a.h5", "b.h5", "c.h5", "none.h5")))
    result = verify_hdf5(tmp_path / "list.txt", classes=3)
    assert [(fault.kind, fault.key) for fault in result.faults] == [
        ("size", "data"), ("damaged", ""), ("damaged", ""), ("values", "data"), ("label", "label"), ("label", "label"), ("gap", "label"),
    ]  # fmt: skip
    texts = [fault.message for fault in result.faults]
    assert "b.h5: its rows are 3, those of the files before 2" in texts[0] and "none.h5" in texts[2] and "2 of its values" in texts[3]
    assert "1 row(s) have the label 7, which is not below the number of classes, 3" in texts[5] and texts[6].startswith(
        "no row has the label(s) 1, 2"
    )
    with pytest.raises(DataError, match="c.h5"):
        inspect_hdf5(tmp_path / "list.txt")


def test_several_labels_a_row_and_fractions_are_not_counted_as_classes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "multi.h5", "w") as file:
        file["data"], file["label"], file["target"] = np.zeros((4, 3)), np.eye(4), np.array([0.5, 1, 2, 3])
    summary = inspect_hdf5(tmp_path / "multi.h5")
    assert summary.datasets["label"].shape == "4x4" and not summary.datasets["label"].labels and not summary.datasets["target"].labels
    assert verify_hdf5(tmp_path / "multi.h5").faults == []
    assert [fault.kind for fault in verify_hdf5(tmp_path / "multi.h5", label="target").faults] == ["label"]


def test_what_is_not_stored_is_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sparse.h5", "w") as file:
        file.create_dataset("data", shape=(1 << 40, 3), dtype="f4", chunks=(1024, 3))
        file.create_dataset("wide", shape=(2, 1 << 36), dtype="f4", chunks=(1, 1024))
    with pytest.raises(DataError, match="there are no datasets of numbers in it; 'data' is .* of which none is stored; 'wide' is rows of"):
        inspect_hdf5(tmp_path / "sparse.h5")


def test_other_files_are_not_taken_for_hdf5(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.jpg 0\nb.jpg 1\n")
    (tmp_path / "x.bin").write_bytes(b"\0\1\2")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("l.txt", "x.bin", "empty", "none", "."):
        assert hdf5_files(tmp_path / name) is None
    with pytest.raises(DataError, match="neither an HDF5 file nor a list"):
        inspect_hdf5(tmp_path / "l.txt")


def test_the_commands_take_hdf5(tmp_path: Path, pictures: NDArray[np.float64]) -> None:
    mat = write_matlab(tmp_path / "train.mat", data=pictures, label=LABELS)
    (tmp_path / "list.txt").write_text(f"{mat}\n")
    shown = run("inspect", mat)
    assert shown.exit_code == 0 and "written by MATLAB" in shown.output and "'data': 20x3x8x6, float64" in shown.output
    assert json.loads(run("inspect", tmp_path / "list.txt", "--json").output)["datasets"]["label"]["labels"] == {
        "0": 5,
        "1": 5,
        "2": 5,
        "3": 5,
    }
    assert run("verify", mat, "--classes", "4").exit_code == 0
    assert run("verify", mat, "--classes", "3").exit_code == 1
    fits = run("stats", mat, write_net(tmp_path, tmp_path / "list.txt"))
    assert fits.exit_code == 0 and fits.output.endswith("It fits.\n")
    few = run("stats", mat, write_net(tmp_path, tmp_path / "list.txt", classes=3))
    assert few.exit_code == 1 and "The layer 'ip' has 3 outputs; 5 record(s) have labels from 3 to 3." in few.output
    missing = run("stats", mat, write_net(tmp_path, tmp_path / "list.txt", label="class"))
    assert "The layer 'data' reads class, which the files do not have; they have 'data', 'label'." in missing.output
    refused = error_of(in_process("dataset", "export", mat, tmp_path / "out"))
    assert "this is an HDF5 file, not a database; `caffetools dataset convert hdf5" in refused
    refused = error_of(in_process("dataset", "export", tmp_path / "list.txt", tmp_path / "out"))
    assert f"this is a list of HDF5 files, not a database; `caffetools dataset convert hdf5 {tmp_path / 'list.txt'} OUT`" in refused
    assert run("convert", "hdf5", mat, tmp_path / "db").exit_code == 0
    dataset = LmdbDataset(tmp_path / "db")
    assert [dataset[number][1] for number in range(len(dataset))] == LABELS.ravel().tolist()
    assert run("inspect", mat, "-o", tmp_path / "s.png").exit_code == 0 and (tmp_path / "s.png").exists()


@pytest.mark.filterwarnings("error")
def test_values_near_the_largest_of_their_type_are_no_failure(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.array([[1.0e308], [-1.0e308], [1.0e308]])
    statistics = inspect_hdf5(tmp_path / "a.h5").datasets["data"].statistics
    assert statistics is not None and statistics.maximum == [1.0e308] and statistics.deviation == [np.inf]


def test_a_sheet_is_drawn_of_the_pictures_of_each_label(tmp_path: Path) -> None:
    colors = {0: (255, 0, 0), 3: (0, 255, 0), 1: (0, 0, 255)}  # BGR, as Caffe's
    for name, labels in (("a", [0, 3, 0]), ("b", [1, 3])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["other"] = np.zeros((len(labels), 2))
            file["label"] = np.array(labels, np.float32)[:, np.newaxis]
            file["data"] = np.array([np.full((4, 5, 3), colors[label], np.uint8).transpose(2, 0, 1) for label in labels])
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.h5\n{tmp_path}/b.h5\n")
    run_well("dataset", "inspect", tmp_path / "list.txt", "-o", tmp_path / "sheet.png")
    sheet = np.asarray(cv2.imread(str(tmp_path / "sheet.png")))
    rows = [sheet[6 + 102 * row + 48] for row in range(3)]  # labels 0, 1 and 3; two pictures at most
    assert [tuple(map(int, row[190 + 48])) for row in rows] == [colors[0], colors[1], colors[3]]
    assert [tuple(map(int, row[190 + 102 + 48])) for row in rows] == [colors[0], (255, 255, 255), colors[3]]
    run_well("dataset", "inspect", tmp_path / "a.h5", "-o", tmp_path / "a.png", "--json")
    assert (tmp_path / "a.png").exists()


def test_a_sheet_of_files_without_pictures_is_one_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((4, 7))
    error = error_of(in_process("dataset", "inspect", tmp_path / "a.h5", "-o", tmp_path / "sheet.png"))
    assert "no dataset of pictures (N x C x H x W) to draw a sheet of: 'data' is 4x7" in error
    assert not (tmp_path / "sheet.png").exists()
