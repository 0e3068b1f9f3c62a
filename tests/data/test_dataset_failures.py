"""Building datasets: what bad pictures and folders do, and what a kill, a full disk or a second run leaves behind."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from caffetools.data.datasets.build import build_dataset, load_card
from caffetools.errors import DataError, RunFailed
from tests.children import Child, run_child
from tests.data.drawing import CLASSES, content, draw, draw_classes, names, rows


def test_classes_that_only_validate_are_an_error(tmp_path: Path) -> None:
    draw_classes(tmp_path / "p" / "train", {"a": 2, "b": 2})
    draw_classes(tmp_path / "p" / "val", {"a": 1, "x": 1})
    with pytest.raises(DataError, match="val has the class 'x', which .*train has not"):
        build_dataset(tmp_path / "p", tmp_path / "out")


def spoil(folder: Path) -> dict[str, str]:
    """Put pictures of every unusable kind into ``folder``; their names and what is wrong with each."""
    buffer = io.BytesIO()
    Image.new("RGB", (60, 50), (200, 30, 90)).save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[:-30])
    (folder / "cut.png").write_bytes(next(folder.glob("*.png")).read_bytes()[:-20])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("words")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return {"cut.jpg": "truncated", "cut.png": "truncated", "zero.jpg": "empty", "text.jpg": "text", "gone.png": "No such file"}


def test_unusable_pictures_are_left_out_and_listed(pictures: Path, tmp_path: Path) -> None:
    bad = spoil(pictures / "日本")
    card = build_dataset(pictures, tmp_path / "out", size=8)
    found = {skipped.path: skipped.reason for skipped in card.skipped}
    assert found.keys() == {f"日本/{name}" for name in bad}
    for name, reason in bad.items():
        assert reason in found[f"日本/{name}"] and str(pictures) not in found[f"日本/{name}"]
    assert card.train_count + card.val_count == sum(CLASSES.values())
    assert load_card(tmp_path / "out").skipped == card.skipped


def test_strict_stops_at_an_unusable_picture(pictures: Path, tmp_path: Path) -> None:
    (pictures / "日本" / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match="bad.png: the picture's file is empty"):
        build_dataset(pictures, tmp_path / "out", size=8, strict=True)
    assert names(tmp_path) == ["pictures"]


@pytest.mark.parametrize("seed", range(6))
def test_each_class_still_trains_and_validates_when_pictures_turn_out_unusable(tmp_path: Path, seed: int) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 2, "b": 6})
    for number in range(3):
        (folder / "a" / f"bad{number}.png").write_bytes(b"x")
    card = build_dataset(folder, tmp_path / "out", size=8, seed=seed, val=0.5)
    assert (card.train_counts[0], card.val_counts[0]) == (1, 1)
    assert len(card.skipped) == 3


def test_a_class_without_a_usable_picture_is_an_error(pictures: Path, tmp_path: Path) -> None:
    for path in (pictures / "Katze_9").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"Katze_9/p 0.png: none of the 6 picture\(s\) of the class 'Katze_9' can be used"):
        build_dataset(pictures, tmp_path / "out", size=8)
    assert names(tmp_path) == ["pictures"]


def test_unusual_pictures_are_used(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "p", {"a": 1, "b": 1})
    for mode, name in (("RGBA", "alpha.png"), ("CMYK", "cmyk.jpg"), ("L", "grey.png"), ("1", "bits.png"), ("P", "palette.gif")):
        Image.open(folder / "a" / "p 0.png").convert(mode).save(folder / "a" / name)
    cv2.imwrite(str(folder / "a" / "sixteen.png"), np.full((20, 30, 3), 30000, np.uint16))
    card = build_dataset(folder, tmp_path / "out", size=8)
    # OpenCV reads GIF from 4.12 on.
    gif = cv2.haveImageReader(str(folder / "a" / "palette.gif"))
    assert [item.path for item in card.skipped] == ([] if gif else ["a/palette.gif"])
    assert gif or "it is a GIF picture" in card.skipped[0].reason
    assert card.train_counts[0] + card.val_counts[0] == 6 + gif


def test_hidden_files_junk_and_files_that_are_no_pictures_are_passed_over(pictures: Path, tmp_path: Path) -> None:
    draw(pictures / ".cache" / "x.png", 1)
    draw(pictures / "__MACOSX" / "x.png", 1)
    draw(pictures / "big dogs" / ".x.png", 1)
    draw(pictures / "big dogs" / "more" / "deep" / "x.png", 20)
    (pictures / "big dogs" / "Thumbs.db").write_bytes(b"x")
    (pictures / "notes.txt").write_text("x")
    draw(pictures / "loose.png", 3)
    (pictures / "big dogs" / "loop").symlink_to(pictures / "big dogs")
    card = build_dataset(pictures, tmp_path / "out", size=8)
    assert len(card.classes) == 4
    assert card.train_counts[0] + card.val_counts[0] == CLASSES["big dogs"] + 1
    assert [(skipped.path, skipped.reason) for skipped in card.skipped] == [
        ("loose.png", "it is not in a class's folder"),
        ("big dogs/loop", "it is a link to a folder that contains it; it is not followed"),
    ]
    assert card.notes == ["1 file(s) are not pictures by their names and were ignored."]


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ({}, "there are no class folders in it"),
        ({"only": 3}, "there is only one class, 'only'"),
        ({"a": 2, "leer": 0}, "leer: the class 'leer' has no pictures"),
        ({"a": 2, "b\nc": 2}, "cannot be written to labels.txt"),
        ({"a": 2, "b\udcff": 2}, "its name must be UTF-8"),
    ],
)
def test_folders_that_make_no_dataset_are_refused(tmp_path: Path, classes: dict[str, int], reason: str) -> None:
    folder = draw_classes(tmp_path / "p", classes)
    folder.mkdir(exist_ok=True)
    for name in classes:
        (folder / name).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=reason):
        build_dataset(folder, tmp_path / "out")
    assert names(tmp_path) == ["p"]


def test_picture_names_may_hold_anything_but_a_line_break(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "p", {"a b": 2, "c": 3})
    draw(folder / "c" / "x.png", 1).rename(os.fsdecode(os.fsencode(folder / "c") + b"/latin \xe9 1.png"))
    draw(folder / "c" / "x.png", 1).rename(folder / "c" / "two\nlines.png")
    card = build_dataset(folder, tmp_path / "out", size=8, val=0.4)
    assert [skipped.reason for skipped in card.skipped] == ["its name has a line break, which no list can hold"]
    listed = (tmp_path / "out" / "train.txt").read_bytes() + (tmp_path / "out" / "val.txt").read_bytes()
    assert listed.count(b"\n") == 6 and b"c/latin \xe9 1.png 1\n" in listed
    assert load_card(tmp_path / "out") == card


@pytest.mark.parametrize("options", [{"val": 0}, {"val": 1}, {"val": -0.1}, {"size": "huge"}, {"seed": -1}])
def test_options_that_make_no_sense_are_refused(pictures: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        build_dataset(pictures, tmp_path / "out", **options)
    assert names(tmp_path) == ["pictures"]


def test_a_dataset_may_not_be_among_its_pictures_nor_over_them(pictures: Path, tmp_path: Path) -> None:
    for out in (pictures / "out", pictures, pictures / "big dogs" / "out"):
        with pytest.raises(DataError, match="is inside of the pictures' folder"):
            build_dataset(pictures, out, force=True)
    with pytest.raises(DataError, match="the pictures are inside of"):
        build_dataset(pictures, tmp_path, force=True)
    assert names(tmp_path) == ["pictures"] and len(names(pictures)) == 4


def test_an_existing_path_is_refused_and_force_replaces_only_datasets(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_dataset(pictures, out, size=8)
    before = content(out)
    with pytest.raises(DataError, match="out: already exists"):
        build_dataset(pictures, out, size=8, seed=2)
    assert content(out) == before
    (pictures / "日本" / "bad.png").write_bytes(b"")
    with pytest.raises(DataError):
        build_dataset(pictures, out, size=8, strict=True, force=True)
    assert content(out) == before
    build_dataset(pictures, out, size=8, seed=2, force=True)
    assert content(out)["train.txt"] != before["train.txt"] and names(tmp_path) == ["out", "pictures"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="may not replace"):
        build_dataset(pictures, tmp_path / "photos", force=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "classes": []}', '{"format": 99}'])
def test_a_damaged_card_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="dataset.json: .*build the dataset again"):
        load_card(tmp_path)
    with pytest.raises(DataError, match="none is not a dataset of caffetools"):
        load_card(tmp_path / "none")


def test_a_card_of_a_later_version_is_read(pictures: Path, tmp_path: Path) -> None:
    card = build_dataset(pictures, tmp_path / "out", size=8)
    path = tmp_path / "out" / "dataset.json"
    path.write_text(path.read_text().replace('"classes"', '"later": [1], "classes"', 1))
    assert load_card(tmp_path / "out") == card


# Builds a dataset, and stops for a line on stdin after every step.
CHILD = """
import sys
from caffetools.data.datasets.build import build_dataset

def step(done, total):
    print(done, total, flush=True)
    sys.stdin.readline()

build_dataset(sys.argv[1], sys.argv[2], size=64, progress=step)
"""


def start(pictures: Path, out: Path, steps: int) -> Child:
    """A process that builds a dataset and waits after ``steps`` steps."""
    child = Child(["-c", CHILD, pictures, out])
    # The last is the mean of all training pictures.
    for number, step in enumerate((*range(1, 19), 32)[:steps], 1):
        assert child.stdout.readline() == f"{step} 32\n"
        if number < steps:
            child.stdin.write("\n")
            child.stdin.flush()
    return child


@pytest.mark.parametrize("steps", [1, 10, 17, 18, 19])
def test_a_killed_build_leaves_nothing_and_the_next_one_works(pictures: Path, tmp_path: Path, steps: int) -> None:
    out = tmp_path / "out"
    child = start(pictures, out, steps)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not out.exists() and ".out.part" in names(tmp_path)
    card = build_dataset(pictures, out, size=64)
    assert names(tmp_path) == ["out", "pictures"]
    assert len(rows(card.train_lmdb)) == 14 and len(rows(card.val_lmdb)) == 4


def test_a_second_build_of_one_folder_is_refused_and_the_first_ends_well(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = start(pictures, out, 3)
    with pytest.raises(DataError, match=f"out: another run \\(process {child.pid}\\) is writing it"):
        build_dataset(pictures, out, size=8, force=True)
    child.communicate("\n" * 40)
    assert child.returncode == 0 and names(tmp_path) == ["out", "pictures"]
    assert load_card(out).width == 64


FULL_DISK = """
import resource, sys
from caffetools.data.datasets.build import build_dataset
from caffetools.errors import RunFailed
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    build_dataset(sys.argv[1], sys.argv[2], size=64)
except RunFailed as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "file"), [(1 << 17, "/train_lmdb"), (40_000, "/train_lmdb"), (0, "")])
def test_a_full_disk_ends_in_one_clear_error_and_the_build_is_resumed(pictures: Path, tmp_path: Path, limit: int, file: str) -> None:
    out = tmp_path / "out"
    done = run_child(["-c", FULL_DISK, pictures, out, limit])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {out}{file}") and done.stdout.count("\n") == 1 and done.stderr == ""
    kept = [".out.part"] if limit else []
    assert names(tmp_path) == [*kept, "pictures"]
    assert done.stdout.endswith(f"what is written so far is in {tmp_path}/.out.part: once there is room, --resume continues\n") == bool(
        kept
    )
    build_dataset(pictures, out, size=64, resume=True)
    build_dataset(pictures, tmp_path / "plain", size=64)
    assert names(tmp_path) == ["out", "pictures", "plain"]
    assert [row[0] for row in rows(out / "train_lmdb")] == [row[0] for row in rows(tmp_path / "plain" / "train_lmdb")]
    assert (out / "mean.binaryproto").read_bytes() == (tmp_path / "plain" / "mean.binaryproto").read_bytes()


def test_a_place_that_cannot_be_written_is_a_clear_error(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot write .*file/out"):
        build_dataset(pictures, tmp_path / "file" / "out")
