"""Places that are taken, full, or cannot be written to: one clear line, and nothing left behind."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
from pathlib import Path

import pytest

from caffetools.solver.checkpoints.snapshots import prefix_lock
from caffetools.util.folders import new_folder
from tests.cli.inprocess import below, error_of, refused, run, run_well


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dataset build pictures data", "data: already exists"),
        ("dataset build pictures folder --force", "folder: --force may not replace it"),
        ("dataset build pictures data/train_lmdb --force", "data/train_lmdb: --force may not replace it"),
        ("finetune pictures -o data --model lenet --from-scratch", "data holds other files"),
        ("finetune pictures -o good.png --model lenet --from-scratch", "good.png is a file; choose a folder for the run"),
        ("demo -o pictures", "pictures holds files that are not the demo's"),
        ("demo -o good.png", "good.png is a file; choose a folder for the demo"),
        ("deploy train.prototxt -o good.png", "good.png: already exists; give another name"),
    ],
)
def test_what_is_there_is_not_written_over(materials: Path, line: str, words: str) -> None:
    refused(materials, line, words)


@pytest.mark.parametrize("place", ["good.png/out", "/proc/caffetools/out"])
@pytest.mark.parametrize(
    "line",
    [
        "dataset build pictures {} --size 8",
        "mean data/train_lmdb {}",
        "retarget train.prototxt --classes 3 -o {}",
        "deploy train.prototxt -o {}",
        "export good.prototxt good.caffemodel -o {}",
        "visualize filters good.caffemodel -o {}.png",
        "train solver.prototxt -q --device cpu --log {}",
        "finetune pictures -o {} --model lenet --from-scratch",
        "demo -o {}",
        "zoo fetch squeezenet_v1.1 --to {}",
    ],
)
def test_a_place_that_cannot_be_written_to_is_a_failure_that_names_it(materials: Path, line: str, place: str) -> None:
    refused(materials, line.format(place), place, code=1)


@pytest.mark.parametrize(
    "line", ["mean data/train_lmdb folder", "deploy train.prototxt --force -o folder", "export good.prototxt good.caffemodel -o folder"]
)
def test_a_folder_where_a_file_is_to_be_written_is_left_alone(materials: Path, line: str) -> None:
    refused(materials, line, "cannot write folder: Is a directory; nothing was changed there", code=1)


@pytest.mark.parametrize(
    "line",
    [
        "dataset build pictures out --size 64",
        "mean data/train_lmdb out",
        "retarget train.prototxt --classes 3 -o out",
        "deploy train.prototxt -o out",
        "export good.prototxt good.caffemodel -o out",
        "visualize filters good.caffemodel -o out.png",
        "train solver.prototxt -q --device cpu",
        "finetune pictures -o out --model lenet --from-scratch --epochs 1 --json",
    ],
)
def test_a_disk_that_fills_up_is_a_failure_that_leaves_nothing_half_written(materials: Path, line: str) -> None:
    before = below(materials)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that writing past the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        done = run(*shlex.split(line))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = error_of(done, 1)
    assert "cannot write" in message and ("out" in message or "run/small" in message)
    changed = {path for path, content in below(materials).items() if before.get(path) != content}
    # A log that ends early tells what happened, and --resume continues with what a build has written.
    kept = ".out.part" if line.startswith("dataset build") else "run/small"
    assert kept != ".out.part" or "what is written so far is in .out.part" in message
    assert {path for path in changed if not path.startswith(kept)} <= {"run"}
    for path in changed:
        if (materials / path).is_file():
            (materials / path).unlink()


def test_a_full_disk_is_a_failure_and_the_device_is_unchanged(materials: Path) -> None:
    refused(materials, "mean data/train_lmdb /dev/full", "cannot write /dev/full: No space left on device", code=1)
    assert Path("/dev/full").is_char_device()


def test_a_second_run_in_the_same_folder_is_refused(materials: Path) -> None:
    with prefix_lock("run/small"):
        refused(materials, "train solver.prototxt -q --device cpu", "is writing snapshots named run/small_iter_")
    (materials / "busy").mkdir()
    try:
        with prefix_lock("busy/run"):
            line = "finetune pictures -o busy --model lenet --from-scratch"
            refused(materials, line, "is at work in busy; wait for it, stop it, or choose another folder (-o)")
        with new_folder("busy/data"):
            refused(materials, "dataset build pictures busy/data", "is writing it; wait for it or stop it")
    finally:
        shutil.rmtree(materials / "busy")


@pytest.mark.parametrize(
    "line",
    [
        "retarget train.prototxt --classes 3 --weights googlenet -o locked/out",
        "finetune pictures -o locked/out --model googlenet",
        "zoo fetch googlenet --to locked",
        "export googlenet -o locked/out.onnx",
    ],
)
def test_a_folder_that_may_not_be_written_to_is_named_before_the_work(materials: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing answers there: fetching weights would be the error.
    monkeypatch.setenv("CAFFETOOLS_ZOO_MIRROR", "http://127.0.0.1:9")
    (materials / "locked").mkdir(exist_ok=True)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and not (Path(path).name == "locked" and mode & os.W_OK))
    refused(materials, line, "Permission denied; nothing was changed there", code=1)


def test_retarget_names_files_that_exist_before_it_fetches_weights(materials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFETOOLS_ZOO_MIRROR", "http://127.0.0.1:9")
    run_well("retarget", "train.prototxt", "--classes", 3, "-o", "there")
    refused(materials, "retarget train.prototxt --classes 3 --weights googlenet -o there", "there/train_val.prototxt: already exists")


@pytest.mark.parametrize(
    "line",
    [
        "retarget train.prototxt --classes 3 -o {}/out",
        "finetune {} -o out --model lenet --from-scratch --epochs 1",
        "classify {}/good.onnx good.png",
    ],
)
def test_a_name_that_is_not_utf8_is_named_where_it_cannot_be_written(materials: Path, line: str) -> None:
    named = os.fsdecode(b"pict\xd6\xd0")
    shutil.copytree(materials / "pictures", materials / named)
    if line.startswith("classify"):
        shutil.copy("good.onnx", named)
    try:
        done = run(*shlex.split(line.format(named)))
    finally:
        shutil.rmtree(materials / named)
    assert "pict\\udcd6\\udcd0" in error_of(done) and re.search("rename (that|the) file or folder", done.stderr)
