"""NumPy's files: what is read, and the one line for what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caffetools.errors import DataError
from caffetools.proto.numpy_files import open_numpy, read_arrays, read_numbers


def test_arrays_are_mapped_and_archives_are_read_whole(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "one.npy", values)
    np.savez(tmp_path / "two.npz", data=values, scale=np.float64(2))
    assert isinstance(read_numbers(tmp_path / "one.npy"), np.memmap)
    np.testing.assert_array_equal(read_arrays(tmp_path / "one.npy"), values)
    read = read_arrays(tmp_path / "two.npz")
    np.testing.assert_array_equal(read["data"], values)
    assert read["scale"] == 2


def declares_more(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})


def cut_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, data=np.zeros(1000), other=np.zeros(3))
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    content[1000:1010] = b"x" * 10
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot read .*: No such file or directory"),
        (lambda path: path.mkdir(), "this is a folder, and .* is expected|cannot read .*: Is a directory"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("these are words"), "this is text, and .* is expected"),
        (declares_more, "cannot be read as .*: it is damaged, or holds Python objects"),
        (cut_archive, "the array 'data' cannot be read"),
        (
            lambda path: np.save(path.open("wb"), np.array([{}], object), allow_pickle=True),
            "cannot be read as .*: it is damaged, or holds Python objects",
        ),
        (lambda path: np.save(path.open("wb"), np.array(["a"])), "it holds values of type <U1, not numbers"),
        (lambda path: np.savez(path.open("wb"), names=np.array(["a"])), "the array 'names' holds values of type <U1, not numbers"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "file.npz"
    write(path)
    with pytest.raises(DataError, match=rf"^\S*file\.npz: ({message})") as caught:
        read_arrays(path)
    assert "allow_pickle" not in str(caught.value)


def test_an_archive_in_place_of_an_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "mean.npz", mean=np.zeros(3))
    with pytest.raises(DataError, match=r"this is a NumPy archive \(\.npz\), and a mean is expected; save the array alone"):
        read_numbers(tmp_path / "mean.npz", "a mean")
    with open_numpy(tmp_path / "mean.npz") as archive:
        assert archive.files == ["mean"]
