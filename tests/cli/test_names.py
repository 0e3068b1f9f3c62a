"""Bare commands take the obvious file, names of the zoo work everywhere, and the next command that is printed is right."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffetools.infer.sidecar import read_preprocessing
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import TEST
from caffetools.zoo.networks import prototxt_path
from tests.cli.inprocess import error_of, run, run_well


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def next_of(text: str) -> list[str]:
    """The words of the last line, which is the next command."""
    last = text.splitlines()[-1]
    assert last.startswith("Next: caffetools "), text
    return shlex.split(last.removeprefix("Next: caffetools "))


def test_a_bare_retarget_takes_the_only_net_for_training() -> None:
    shutil.copy(prototxt_path("squeezenet"), "train_val.prototxt")
    shutil.copy(prototxt_path("squeezenet", "deploy"), "other.prototxt")
    done = run_well("retarget", "--classes", 120, "-o", "net")
    assert "train_val.prototxt: the only net for training here" in done.stderr
    assert "num_output: 120" in Path("net/train_val.prototxt").read_text()


def test_a_bare_retarget_finds_a_net_by_its_solver_or_by_its_loss() -> None:
    shutil.copy(prototxt_path("squeezenet"), "mine.prototxt")
    shutil.copy(prototxt_path("squeezenet", "deploy"), "deploy.prototxt")
    assert "mine.prototxt: the only net" in run_well("retarget", "--classes", 5, "-o", "a").stderr
    shutil.copy("mine.prototxt", "second.prototxt")
    assert "several nets for training are here: mine.prototxt, second.prototxt" in error_of(run("retarget", "--classes", 5, "-o", "b"))
    Path("my_solver.prototxt").write_text('net: "second.prototxt"')
    assert "second.prototxt: the only net" in run_well("retarget", "--classes", 5, "-o", "c").stderr


def test_the_next_step_of_a_published_model_has_its_weights_and_reports_that_data_is_missing() -> None:
    done = run_well("retarget", "squeezenet_v1.1", "--classes", 120, "-o", "net")
    assert next_of(done.stdout) == ["train", "net/solver.prototxt", "--weights", "squeezenet_v1.1"]
    assert "ilsvrc12_train_lmdb" in done.stdout and "give --dataset data" in done.stdout
    assert next_of(run_well("retarget", "lenet", "--classes", 5, "-o", "lenet").stdout) == ["train", "lenet/solver.prototxt"]
    shutil.copy(prototxt_path("squeezenet"), "train_val.prototxt")
    own = run_well("retarget", "train_val.prototxt", "--classes", 5, "-o", "own")
    assert next_of(own.stdout) == ["train", "own/solver.prototxt"]


@pytest.mark.parametrize("words", [("retarget", "AlexNet"), ("retarget", "--model", "alexnet"), ("retarget", "bvlc_alexnet")])
def test_one_name_of_a_model_for_retarget(words: tuple[str, ...]) -> None:
    run_well(*words, "--classes", 5, "-o", "net")
    assert "fc8_5" in Path("net/train_val.prototxt").read_text()


def test_zoo_copy_writes_everything_that_classify_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_well("zoo", "copy", "squeezenet", "here")
    assert sorted(path.name for path in Path("here").iterdir()) == [
        *("deploy.json", "deploy.prototxt", "labels.txt", "solver.prototxt", "train_val.prototxt")
    ]
    how = read_preprocessing("here/deploy.prototxt")
    assert how is not None and how.mean_values == (104.0, 117.0, 123.0) and len(how.labels) == 1000 and how.labels[0].startswith("tench")
    assert "exists" in error_of(run("zoo", "copy", "squeezenet", "here"))
    assert done.stdout.count("Wrote ") == 5


def test_classify_by_name_agrees_with_the_files_and_the_cards_preprocessing() -> None:
    run_well("zoo", "copy", "squeezenet", "here")
    net = Net.from_file("here/deploy.prototxt", TEST)
    save_weights(net, "w.caffemodel")
    cv2.imwrite("photo.png", np.random.default_rng(3).integers(0, 256, (300, 280, 3), np.uint8))
    files = json.loads(run_well("classify", "here/deploy.prototxt", "w.caffemodel", "photo.png", "--json").stdout)
    named = json.loads(run_well("classify", "squeezenet", "w.caffemodel", "photo.png", "--json").stdout)
    option = json.loads(run_well("classify", "--model", "squeezenet", "w.caffemodel", "photo.png", "--json").stdout)
    assert files == named == option
    assert "needs at least one picture" in error_of(run("classify", "squeezenet"))
