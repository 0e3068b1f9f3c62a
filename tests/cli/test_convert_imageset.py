"""`caffetools convert-imageset` and compute_image_mean, as scripts written for Caffe's tools call them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffetools.data.databases import open_database
from tests.children import run_child
from tests.cli.inprocess import run, without_next
from tests.conftest import GOLDEN

IO = GOLDEN / "io"


def test_the_flags_of_caffes_tool_work_in_its_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(IO)
    flags = ["-resize_height=15", "--resize_width", "21", "--gray=true", "--shuffle=false", "--noencoded", "--backend=lmdb"]
    done = run("convert_imageset", *flags, "images/", "list_mixed.txt", tmp_path / "db")
    assert (done.returncode, done.stderr) == (0, "")
    assert without_next(done.stdout) == [f"Wrote 7 records to {tmp_path / 'db'}"]
    ours, theirs = open_database(tmp_path / "db"), open_database("db/lmdb_resize_gray")
    assert list(ours.records()) == list(theirs.records())


def test_compute_image_mean_takes_the_backend_and_needs_no_output(tmp_path: Path) -> None:
    printed = json.loads((IO / "index.json").read_text())["means"]["lmdb_raw"]["printed"]
    for name in ("compute_image_mean", "compute-image-mean", "mean"):
        done = run(name, "-backend=lmdb", IO / "db" / "lmdb_raw")
        assert (done.returncode, done.stdout.splitlines()) == (0, printed)
    assert run("mean", IO / "db" / "lmdb_raw", "--backend", "rocksdb").returncode == 2


def test_pictures_left_out_are_named_and_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{IO / 'images'}/none.png 0\n{next((IO / 'images').rglob('*.png'))} 1\n")
    done = run("convert-imageset", "", tmp_path / "list", tmp_path / "db", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["records"] == 1 and "none.png" in json.loads(done.stdout)["skipped"][0]
    done = run("convert-imageset", "", tmp_path / "list", tmp_path / "db")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "already exists" in done.stderr
    done = run("convert-imageset", "", tmp_path / "list", tmp_path / "db2", "--strict")
    assert done.returncode == 2 and "none.png" in done.stderr and not (tmp_path / "db2").exists()


def test_a_truncated_jpeg_is_stored_with_a_note(tmp_path: Path) -> None:
    whole = bytes(cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))[1])
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list").write_text(f"{tmp_path}/a.jpg 3\n")
    done = run("convert-imageset", "", tmp_path / "list", tmp_path / "db")
    assert done.returncode == 0 and f"stored all the same, as Caffe's tool does: {tmp_path}/a.jpg: the picture is truncated" in done.stderr
    done = run("convert-imageset", "", tmp_path / "list", tmp_path / "db", "--json", "--force")
    assert json.loads(done.stdout)["skipped"] == [] and "a.jpg" in json.loads(done.stdout)["truncated"][0]


@pytest.mark.parametrize(("backend", "notes"), [("lmdb", 1), ("leveldb", 0)])
def test_an_interrupted_build_mentions_resume_where_it_is_possible(tmp_path: Path, backend: str, notes: int) -> None:
    if backend == "leveldb":
        pytest.importorskip("plyvel")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "list").write_text("a.png 0\n" * 40)
    # The process is interrupted, once, when it begins to write records.
    script = (
        "import os, signal, sys\nfrom caffetools.cli.app import main\n"
        "waiting = [True]\n"
        "def interrupt(event, args):\n    if event == 'open' and 'a.png' in str(args[0]) and waiting:\n"
        "        waiting.clear()\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(interrupt)\nsys.argv = ['caffetools', *sys.argv[1:]]\nmain()\n"
    )
    done = run_child(["-c", script, "convert-imageset", tmp_path, tmp_path / "list", tmp_path / "db", "--backend", backend])
    assert done.returncode == 130 and done.stderr.endswith("caffetools: interrupted\n"), done.stderr
    assert done.stderr.count("the same command with --resume continues") == notes and not (tmp_path / "db").exists()
