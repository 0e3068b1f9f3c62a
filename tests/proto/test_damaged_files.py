from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffetools.errors import ModelFileError, RunFailed
from caffetools.net.weights import read_hdf5_weights
from caffetools.proto import wire
from caffetools.proto.binary import read_binaryproto, read_caffemodel, read_solverstate, write_caffemodel
from caffetools.proto.schema import BlobProto, NetParameter
from tests.proto.test_binary import CAFFEMODELS, MEANS, SOLVERSTATES, small_model


def message_of(read: Any, path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_caffemodel_cut_anywhere_is_an_error_or_a_file_of_fewer_layers(tmp_path: Path) -> None:
    write_caffemodel(tmp_path / "m", small_model())
    data = (tmp_path / "m").read_bytes()
    ends = {field.end: field.number for field in wire.walk(memoryview(data))}
    cut = tmp_path / "cut"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        if ends.get(length) == 100:
            # Between two layers nothing in the format tells that more should follow; loading says which layers got no weights.
            layers = sum(end <= length and number == 100 for end, number in ends.items())
            assert len(read_caffemodel(cut).net.layer) == layers < len(small_model().net.layer)
        else:
            message_of(read_caffemodel, cut)


@pytest.mark.parametrize("read", [read_solverstate, read_binaryproto])
def test_a_solverstate_or_mean_cut_within_a_field_is_an_error(tmp_path: Path, golden: Path, read: Any) -> None:
    path = SOLVERSTATES[0] if read is read_solverstate else MEANS[0]
    data = path.read_bytes()
    ends = {field.end for field in wire.walk(memoryview(data))}
    for length in [n for n in range(0, len(data), 7) if n not in ends]:
        (tmp_path / "cut").write_bytes(data[:length])
        message_of(read, tmp_path / "cut")


def test_the_error_for_a_cut_file_names_the_place_and_what_to_do(tmp_path: Path) -> None:
    write_caffemodel(tmp_path / "m", small_model())
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-10])
    assert "damaged or not a caffemodel: a field of" in (text := message_of(read_caffemodel, tmp_path / "cut"))
    assert f"of {len(data) - 10}); fetch or copy the file again" in text


@pytest.mark.parametrize("read", [read_caffemodel, read_solverstate, read_binaryproto])
@pytest.mark.parametrize(
    "content",
    [
        b"name: 'LeNet'\nlayer {\n  name: 'conv1'\n}\n",
        b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        np.random.default_rng(1).bytes(5000),
    ],
    ids=["prototxt", "web page", "picture", "hdf5", "noise"],
)
def test_another_kind_of_file_is_an_error(tmp_path: Path, read: Any, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    message_of(read, tmp_path / "file")


@pytest.mark.parametrize("read", [read_caffemodel, read_solverstate, read_binaryproto])
def test_an_empty_a_missing_file_and_a_folder_are_errors(tmp_path: Path, read: Any) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert message_of(read, tmp_path / "empty").endswith("empty: the file is empty")
    assert "cannot read: No such file or directory" in message_of(read, tmp_path / "none")
    assert "cannot read: Is a directory" in message_of(read, tmp_path)


def test_one_kind_of_file_read_as_another_is_an_error(tmp_path: Path) -> None:
    message_of(read_solverstate, CAFFEMODELS[0])
    message_of(read_caffemodel, SOLVERSTATES[0])
    message_of(read_binaryproto, CAFFEMODELS[0])
    message_of(read_caffemodel, MEANS[0])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_are_an_error_or_still_a_caffemodel(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(CAFFEMODELS[0].read_bytes()[:600])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "flipped").write_bytes(content)
    try:
        model = read_caffemodel(tmp_path / "flipped")
    except ModelFileError:
        return
    assert all(array.dtype == np.float32 for arrays in model.blobs.values() for array in arrays)


def test_values_that_do_not_fill_the_shape_are_an_error(tmp_path: Path) -> None:
    net = NetParameter()
    net.layer.add(name="ip").blobs.add(shape={"dim": [2, 3]}, data=[1, 2])
    (tmp_path / "m").write_bytes(net.SerializeToString())
    assert "2 values do not fill the shape 2 x 3" in message_of(read_caffemodel, tmp_path / "m")


def test_a_shape_too_large_to_count_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(BlobProto(shape={"dim": [2**33, 2**33, -1]}, data=[1]).SerializeToString())
    message_of(read_binaryproto, tmp_path / "b")


def test_a_folder_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RunFailed, match="cannot write"):
        write_caffemodel(tmp_path / "file" / "m", small_model())
    assert (tmp_path / "file").read_text() == "old"


def test_a_sparse_hdf5_dataset_of_a_trillion_values_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data/fc/0", shape=(10**6, 10**6), dtype="f4", chunks=(100, 1000))
    with pytest.raises(ModelFileError, match=r"w\.caffemodel\.h5: the dataset '/data/fc/0' declares 1000000 x 1000000 values"):
        read_hdf5_weights(path)


def test_a_virtual_dataset_has_the_values_of_its_files_and_is_refused_without_them(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["x"] = values
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("source.h5", "x", (4,))
    with h5py.File(tmp_path / "w.caffemodel.h5", "w") as file:
        file.create_group("data/ip").create_virtual_dataset("0", layout)
    [blob] = read_hdf5_weights(tmp_path / "w.caffemodel.h5").blobs["ip"]
    np.testing.assert_array_equal(blob, values)
    (tmp_path / "source.h5").unlink()
    with pytest.raises(ModelFileError, match=r"w\.caffemodel\.h5: the dataset '/data/ip/0' takes its values from the file 'source\.h5'"):
        read_hdf5_weights(tmp_path / "w.caffemodel.h5")


def test_bytes_of_other_files_and_links_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"abcd")
    path = tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        file.create_group("data/ip").create_dataset("0", (4,), np.uint8, external=[(str(tmp_path / "secret"), 0, 4)])
    with pytest.raises(ModelFileError, match=r"takes its values from the file '.*secret', which is not read"):
        read_hdf5_weights(path)
    for link in (h5py.SoftLink("/nowhere"), h5py.ExternalLink("other.h5", "/x")):
        with h5py.File(path, "w") as file:
            file.create_group("data/ip")["0"] = link
        with pytest.raises(ModelFileError, match=r"w\.caffemodel\.h5: '/data/ip/0' is a link to another place or file"):
            read_hdf5_weights(path)
