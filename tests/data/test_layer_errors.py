"""Lists, HDF5 files, arrays and window files that a data layer cannot use: each is one error that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from caffetools.errors import DataError, NetError
from tests.data.test_layers import IO, layer


def test_a_list_with_a_bad_line_names_it(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a b.png 3\n\nc.png\n")
    with pytest.raises(DataError, match="list.txt:3: 'c.png' does not end in a label"):
        layer(f"type: 'ImageData' top: 'a' top: 'b' image_data_param {{ source: '{tmp_path}/list.txt' batch_size: 1 }}")
    with pytest.raises(DataError, match="none: cannot read the list"):
        layer(f"type: 'ImageData' top: 'a' top: 'b' image_data_param {{ source: '{tmp_path}/none' batch_size: 1 }}")
    (tmp_path / "list.txt").write_text("a b.png 3\n")
    with pytest.raises(DataError, match="a b.png: cannot read the picture"):
        layer(f"type: 'ImageData' top: 'a' top: 'b' image_data_param {{ source: '{tmp_path}/list.txt' batch_size: 1 }}")


def test_hdf5_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def made(**arrays: Any) -> Any:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name, array in arrays.items():
                file[name] = array
        (tmp_path / "list.txt").write_text(f"{tmp_path}/a.h5\n")
        return layer(f"type: 'HDF5Data' top: 'x' top: 'y' hdf5_data_param {{ source: '{tmp_path}/list.txt' batch_size: 2 }}")

    with pytest.raises(DataError, match="there is no dataset 'y' .*; it has x"):
        made(x=np.zeros(3))
    with pytest.raises(DataError, match="differ in their number of rows: 'x' 3, 'y' 4"):
        made(x=np.zeros(3), y=np.zeros(4))
    with pytest.raises(DataError, match="have no rows"):
        made(x=np.zeros((0, 2)), y=np.zeros(0))
    with pytest.raises(DataError, match="must hold rows of numbers"):
        made(x=np.zeros(2), y=["a", "b"])
    (tmp_path / "a.h5").write_text("text")
    with pytest.raises(DataError, match="a.h5: this is text, and an HDF5 file is expected"):
        layer(f"type: 'HDF5Data' top: 'x' hdf5_data_param {{ source: '{tmp_path}/list.txt' batch_size: 2 }}")


def test_memory_data_takes_only_arrays_that_fit() -> None:
    made = layer("name: 'm' type: 'MemoryData' top: 'a' top: 'b' memory_data_param { batch_size: 2 channels: 1 height: 2 width: 2 }")
    with pytest.raises(NetError, match="has no data yet"):
        made()
    for shape, labels, reason in [
        ((2, 1, 2, 3), 2, "must be M x 1 x 2 x 2"),
        ((3, 1, 2, 2), 3, "multiple of"),
        ((2, 1, 2, 2), 3, "3 labels"),
    ]:
        with pytest.raises(NetError, match=reason):
            made.set_arrays(np.zeros(shape), np.zeros(labels))


def test_a_window_file_that_is_wrong_names_its_line(tmp_path: Path) -> None:
    text = (IO / "win_a.txt").read_text().replace("images/", f"{IO}/images/")
    param = (
        "type: 'WindowData' top: 'a' top: 'b' transform_param { crop_size: 12 } "
        "window_data_param { source: '%s' batch_size: 4 fg_fraction: 0.5 }"
    )

    def made(content: str) -> Any:
        (tmp_path / "win.txt").write_text(content)
        return layer(param % (tmp_path / "win.txt"))

    assert made(text)()[0].shape == (4, 3, 12, 12)
    with pytest.raises(DataError, match="win.txt:7: .* does not fit a window file"):
        made(text.replace("1 0.9 3 2 12 14", "1 0.9 3 2 12"))
    with pytest.raises(DataError, match="stops inside of a block"):
        made(text.replace("\n2\n", "\n3\n"))
    with pytest.raises(DataError, match="no foreground windows"):
        made(text.replace("0.9", "0.2"))
    with pytest.raises(DataError, match="is not inside of the picture"):
        made(text.replace("3 2 12 14", "3 2 12 99"))()
