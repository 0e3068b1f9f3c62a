"""`caffetools dataset preview`: a sheet of augmented pictures, from databases, folders and pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from caffetools.proto.schema import AnnotatedDatum, Datum
from tests.cli.inprocess import run
from tests.conftest import GOLDEN
from tests.data.drawing import draw

# Found, not imported: that takes seconds, and every worker imports all files of tests.
pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
IO = GOLDEN / "io"


def test_a_sheet_has_a_row_a_picture_with_the_picture_first(tmp_path: Path) -> None:
    (tmp_path / "augment.yaml").write_text("rotation: 30\nbrightness: 0.5\nmixup: 0.4\n")
    folder = tmp_path / "pictures" / "cats"
    for number in range(5):
        draw(folder / f"{number}.png", number, (160, 80))
    draw(tmp_path / "pictures" / "dogs" / "0.png", 9, (160, 80))
    assert run("dataset", "build", tmp_path / "pictures", tmp_path / "data", "--size", 16).returncode == 0
    for source, rows in ((IO / "db" / "lmdb_raw", 3), (tmp_path / "data", 3), (tmp_path / "pictures", 3), (folder / "0.png", 1)):
        sheet = tmp_path / "sheet.png"
        done = run(
            "dataset", "preview", source, "--augment", tmp_path / "augment.yaml", "-o", sheet, "--count", 3, "--variants", 2, "--force"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"Wrote {sheet} ({3 * 164} x {rows * 164})\n"
        image = cv2.imread(str(sheet))
        assert image is not None and image.shape == (rows * 164, 3 * 164, 3)
    original = cv2.imread(str(folder / "0.png"))
    np.testing.assert_array_equal(image[42:122, 2:162], original)
    assert not np.array_equal(image[42:122, 166:326], original)


def test_mistakes_are_one_line_and_leave_no_sheet(tmp_path: Path) -> None:
    (tmp_path / "augment.yaml").write_text("rotate: 30\n")
    (tmp_path / "good.yaml").write_text("rotation: 30\n")
    (tmp_path / "empty").mkdir()
    for source, conf, reason in (
        (IO / "db" / "lmdb_raw", "augment.yaml", "'rotate' is unknown"),
        (tmp_path / "empty", "good.yaml", "there are no pictures in this folder"),
        (tmp_path / "none", "good.yaml", "no such database"),
    ):
        done = run("dataset", "preview", source, "--augment", tmp_path / conf, "-o", tmp_path / "sheet.png")
        assert (done.returncode, done.stdout) == (2, "") and reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()


def test_pictures_with_boxes_are_shown_and_those_of_floats_refused(tmp_path: Path) -> None:
    (tmp_path / "augment.yaml").write_text("rotation: 30\n")
    floats = Datum(channels=1, height=2, width=2, float_data=[0, 1, 2, 3])
    for name, datum, reason in (
        ("bytes", Datum(channels=1, height=2, width=2, data=bytes(4)), ""),
        ("floats", floats, "it has float_data; augmentation needs pictures of bytes"),
        ("none", Datum(channels=1, height=2, width=2), "the record holds no pixels"),
    ):
        with lmdb.open(str(tmp_path / name), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"00000000_a", AnnotatedDatum(datum=datum, type=0).SerializeToString())
        done = run("dataset", "preview", tmp_path / name, "--augment", tmp_path / "augment.yaml", "-o", tmp_path / f"{name}.png")
        assert done.returncode == (2 if reason else 0) and reason in done.stderr, done.stderr
        assert (tmp_path / f"{name}.png").exists() == (not reason)
