"""Nets name databases and means from the folder that they were made in; every command finds them from wherever the user stands."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import caffetools as ct
from caffetools.visualize.picture_net import PictureNet
from tests.cli.inprocess import error_of, run, run_well
from tests.project.shapes import draw_shapes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a net trained on it, two folders below, with names that have spaces and letters outside of ASCII."""
    folder = tmp_path_factory.mktemp("möbel und so")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw_shapes(Path("pictures"), each=8, size=40)
        run_well("dataset", "build", "pictures", "data set", "--size", 32, "--val", 0.5)
        run_well("retarget", "cifar10_quick", "--dataset", "data set", "-o", "nets/é", "--seed", 1, "--train-batch", 12)
        run_well("train", "nets/é/solver.prototxt", "--max-iter", 4)
    return folder


@pytest.fixture
def inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made / "nets" / "é")
    return made


WEIGHTS = "snapshot_iter_4.caffemodel"


def test_sizes_come_from_the_database(inside: Path, tmp_path: Path) -> None:
    assert "12x3x32x32" in run_well("inspect", "train_val.prototxt", "--phase", "train").stdout
    assert ct.inspect("train_val.prototxt").layers[0].shapes[0][1:] == (3, 32, 32)
    run_well("deploy", "train_val.prototxt", "-o", tmp_path / "d.prototxt")
    assert json.loads((tmp_path / "d.json").read_text())["labels"] == ["blue triangles", "green squares", "rote Kreise"]
    assert "Average Forward pass" in run_well("time", "train_val.prototxt", "--iterations", 1).stderr


def test_a_net_for_training_is_shown_with_the_preprocessing_of_its_data_layer(inside: Path, tmp_path: Path) -> None:
    """Without the mean, the scores of the pictures are others."""
    scored = run_well("test", "train_val.prototxt", "--weights", WEIGHTS, "--iterations", 1, "--json").stdout
    accuracy = json.loads(scored)["outputs"]["accuracy"]
    trained, deployed = (PictureNet(net, WEIGHTS) for net in ("train_val.prototxt", "deploy.prototxt"))
    np.testing.assert_array_equal(trained.mean(), deployed.mean())
    assert trained.mean().shape == (3, 32, 32) and trained.labels == deployed.labels
    for net in ("train_val.prototxt", "deploy.prototxt"):
        drawn = run_well("visualize", "confusion", net, WEIGHTS, "../../data set", "-o", tmp_path / f"{net}.png").stdout
        assert float(re.findall(r"\(([\d.]+)%\)", drawn)[0]) == pytest.approx(100 * accuracy, abs=0.01)


@pytest.mark.parametrize("out", ["retargeted", "../two", "OUTSIDE"])
def test_a_net_that_is_retargeted_inside_trains_there_and_outside(
    out: str, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.path.normpath(tmp_path / out if out == "OUTSIDE" else Path(out).absolute()))
    shown = run_well("retarget", "--classes", 4, "-o", folder).stdout
    assert "input" not in shown
    text = (folder / "train_val.prototxt").read_text()
    assert ('source: "data set/train_lmdb"' in text) == (out != "OUTSIDE"), "a name that is found from near the file is kept"
    places = [Path.cwd()] if out == "OUTSIDE" else [inside, folder, folder.parent, tmp_path]
    for place in places:
        monkeypatch.chdir(place)
        run_well("train", os.path.relpath(folder / "solver.prototxt"), "--max-iter", 1)


def test_an_unknown_size_names_the_source_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    (tmp_path / "net.prototxt").write_text((made / "nets" / "é" / "train_val.prototxt").read_text())
    monkeypatch.chdir(tmp_path)
    assert "its source 'data set/val_lmdb' is not there" in run_well("inspect", "net.prototxt").stdout


def test_a_run_is_reported_and_resumed_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_shapes(Path("pictures"), each=8, size=40)
    settings = ("--model", "cifar10_quick", "--from-scratch", "--epochs", 1, "--size", 32, "--device", "cpu")
    run_well("finetune", "pictures", "-o", "run", *settings)
    made = {path.name: path.stat().st_mtime_ns for path in Path("run/net").glob("*.caffemodel")}
    monkeypatch.chdir("run")
    run_well("report")
    again = re.findall(r"caffetools (finetune [^<]*)", re.sub("</?span[^>]*>", "", Path("report.html").read_text()))
    assert again[-1].split()[:4] == ["finetune", "../pictures", "-o", "."]
    run_well(*again[-1].split(), "--device", "cpu")
    assert {path.name: path.stat().st_mtime_ns for path in Path("net").glob("*.caffemodel")} == made, "nothing is trained again"
    run_well("finetune", tmp_path / "pictures", "-o", tmp_path / "run", *settings)
    draw_shapes(Path("other"), each=8, size=40)
    assert "other settings (pictures)" in error_of(run("finetune", "other", "-o", ".", *settings))
