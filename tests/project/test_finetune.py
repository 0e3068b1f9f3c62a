"""``caffetools finetune`` from pictures to a verified model, resumed, and refused when it must not be."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.schema import TEST, TRAIN
from caffetools.proto.text import read_net
from caffetools.zoo.fetch import MIRROR
from caffetools.zoo.networks import prototxt_path
from tests.cli.inprocess import Done, error_of, run, run_well
from tests.project.shapes import CLASSES, TRAIN_VAL, draw_shapes


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with pictures and a net."""
    monkeypatch.chdir(tmp_path)
    draw_shapes(tmp_path / "pictures")
    (tmp_path / "shapes.prototxt").write_text(TRAIN_VAL)
    return tmp_path


SCRATCH = ("finetune", "pictures", "-o", "run", "--model", "shapes.prototxt", "--from-scratch", "--epochs", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in it, to be copied."""
    folder = tmp_path_factory.mktemp("once")
    draw_shapes(folder / "pictures")
    (folder / "shapes.prototxt").write_text(TRAIN_VAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_well(*SCRATCH)
    return folder


@pytest.fixture
def finished(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a finished run."""
    shutil.copytree(once, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def again(*more: str) -> Done:
    return run_well(*SCRATCH, *more)


def test_a_net_of_ones_own_learns_from_scratch_and_its_weights_start_another_run(place: Path) -> None:
    done = run_well(*SCRATCH, "--epochs", 8)
    for step in (
        "Build databases",
        "Retarget shapes to 3 classes",
        "Train from scratch",
        "Write the deploy network",
        "Classify the held-out",
    ):
        assert step in done.stdout
    assert "held-out pictures right" in done.stdout and f"Report: {(place / 'run/report.html').as_uri()}" in done.stdout
    assert (place / "run/data/labels.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)
    report = (place / "run/report.html").read_text(encoding="utf-8")
    assert all(name in report for name in CLASSES) and 'src="http' not in report
    weights = next((place / "run/net").glob("*.caffemodel"))
    second = json.loads(
        run_well("finetune", "pictures", "-o", "second", "--model", "shapes.prototxt", "--weights", weights, "--epochs", 3, "--json").stdout
    )
    assert second["accuracy"] >= 0.9 and second["held_out"] == 12 and second["classes"] == list(CLASSES)
    assert second["onnx_largest_difference"] <= 1e-4
    assert all((place / second[name]).is_file() for name in ("deploy", "weights", "onnx", "report"))
    before, after = read_caffemodel(weights).blobs, read_caffemodel(place / second["weights"]).blobs
    assert {"conv1", "ip1"} <= set(before) and {"conv1", "ip1"} <= set(after)
    assert np.abs(before["conv1"][0] - after["conv1"][0]).max() < 0.1, "fine-tuning starts from the weights given"


def test_lenet_of_the_zoo_learns_grey_squares(place: Path) -> None:
    done = run_well("finetune", "pictures", "-o", "run", "--model", "lenet", "--from-scratch", "--epochs", 2, "--batch", 8, "--json")
    assert json.loads(done.stdout)["held_out"] == 12
    assert read_net(place / "run/net/deploy.prototxt").layer[0].input_param.shape[0].dim[:] == [1, 1, 28, 28]


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    files = {path: path.read_bytes() for path in (finished / "run/net").iterdir()}
    done = again()
    assert "already built" in done.stdout and "already trained" in done.stdout
    assert {path: path.read_bytes() for path in (finished / "run/net").iterdir()} == files


@pytest.mark.parametrize("lost", ["data", "data/train_lmdb", "data/dataset.json", "data/mean.binaryproto", "net/train_val.prototxt"])
def test_what_has_vanished_from_a_run_is_made_again(finished: Path, lost: str) -> None:
    path = finished / "run" / lost
    val = (finished / "run/data/val.txt").read_bytes()
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    done = again()
    assert "already trained" in done.stdout and path.exists()
    assert (finished / "run/data/val.txt").read_bytes() == val


def test_a_run_without_its_net_folder_is_trained_again_to_the_same_weights(finished: Path) -> None:
    name = next((finished / "run/net").glob("*.caffemodel"))
    weights = read_caffemodel(name).blobs
    arrays = {layer: [np.array(blob) for blob in blobs] for layer, blobs in weights.items()}
    shutil.rmtree(finished / "run/net")
    assert "already trained" not in again().stdout
    for layer, blobs in read_caffemodel(name).blobs.items():
        for blob, before in zip(blobs, arrays[layer], strict=True):
            np.testing.assert_array_equal(blob, before)


def test_a_run_whose_inputs_have_changed_is_not_mixed_with_what_is_there(finished: Path) -> None:
    content = (finished / "run/net/train_val.prototxt").read_bytes()
    (finished / "shapes.prototxt").write_text(TRAIN_VAL.replace("num_output: 16", "num_output: 12"))
    assert "run holds a run that began before the net shapes.prototxt changed" in error_of(run(*SCRATCH))
    (finished / "shapes.prototxt").write_text(TRAIN_VAL)
    picture = finished / "pictures" / CLASSES[0] / "00.png"
    picture.with_name("new.png").write_bytes(picture.read_bytes())
    assert "run holds a run that began before the pictures in pictures changed" in error_of(run(*SCRATCH))
    picture.with_name("new.png").unlink()
    os.utime(picture, ns=(1, 1))
    assert "began before the pictures in pictures changed" in error_of(run(*SCRATCH))
    assert "holds a run with other settings (seed)" in error_of(run(*SCRATCH, "--seed", 2))
    assert (finished / "run/net/train_val.prototxt").read_bytes() == content


def test_run_json_that_is_damaged_is_reported(finished: Path) -> None:
    (finished / "run/run.json").write_text("{")
    assert "run/run.json: damaged" in error_of(run(*SCRATCH))


def test_weights_of_the_mirror_that_are_not_the_published_ones_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "mirror").mkdir()
    net = Net(read_net(prototxt_path("squeezenet_v1.1", "deploy")), TEST)
    save_weights(net, place / "mirror/squeezenet_v1.1.caffemodel")
    monkeypatch.setenv(MIRROR, str(place / "mirror"))
    done = run("finetune", "pictures", "-o", "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "gives a wrong file: its git object id is" in done.stderr and "--weights" in done.stderr
    assert not (place / "run").exists() and not list((place / "cache").rglob("*.caffemodel"))


def test_squeezenet_starts_from_weights_that_are_given(place: Path) -> None:
    text = prototxt_path("squeezenet_v1.1").read_text().replace("crop_size: 227", "crop_size: 67")
    (place / "squeezenet.prototxt").write_text(text)
    net = Net(read_net(prototxt_path("squeezenet_v1.1", "deploy")), TEST)
    save_weights(net, place / "published.caffemodel")
    done = run_well(
        *("finetune", "pictures", "-o", "run", "--model", "squeezenet_v1.1", "--weights", "published.caffemodel", "--size", 80),
        *("--crop", 67, "--epochs", 1, "--batch", 8, "--device", "cpu", "--json"),
    )
    answer = json.loads(done.stdout)
    assert answer["held_out"] == 12 and answer["onnx_largest_difference"] <= 1e-4
    trained = read_net(place / "run/net/train_val.prototxt")
    assert [layer.transform_param.crop_size for layer in trained.layer if layer.type == "Data"] == [67, 67]
    assert list(trained.layer[0].transform_param.mean_value) == [104, 117, 123]
    assert {layer.phase for layer in trained.layer[0].include} == {TRAIN}
    before, after = read_caffemodel(place / "published.caffemodel").blobs, read_caffemodel(answer["weights"]).blobs
    assert set(before) - set(after) == {"conv10"} and set(after) - set(before) == {"conv10_3"}


def test_every_next_step_of_the_report_works_when_pasted(finished: Path) -> None:
    text = (finished / "run/report.html").read_text(encoding="utf-8")
    section = text[text.index('<section id="next"') : text.index('<section id="card"')]
    # Each word is an element of its own, so that lines break between words.
    blocks = re.findall(r"<code>(.*?)</code>", section, re.DOTALL)
    commands = [html.unescape(re.sub(r"</?span>", "", block)) for block in blocks if "caffetools" in block]
    names = [shlex.split(line)[1:3] for line in commands]
    assert [name[0] for name in names if name[0] not in ("finetune", "visualize")] == ["classify", "quantize", "bundle"]
    for line in commands:
        run_well(*shlex.split(line)[1:])
    assert (finished / "run/errors.png").is_file() == ("visualize" in {name[0] for name in names}) and (
        finished / "run/model.int8.onnx"
    ).is_file()


def page_of(path: Path) -> str:
    """A report without the time at which it was written."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", path.read_text(encoding="utf-8"))


def test_a_report_that_is_made_again_says_all_that_the_run_itself_wrote(
    once: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(once)
    first = page_of(Path("run/report.html"))
    assert "The 7 steps" in first and "from images to ONNX" in first and ">cpu<" in first
    run_well("report", "run", "-o", tmp_path / "again.html")
    assert page_of(tmp_path / "again.html") == first
    # Elsewhere the commands of the steps start where the run was made.
    monkeypatch.chdir(finished / "run")
    run_well("report")
    assert f"Paths start from {once}." in page_of(Path("report.html")) and "The 7 steps" in page_of(Path("report.html"))


def test_the_next_step_of_a_run_that_is_not_finished_is_the_run_itself(finished: Path) -> None:
    solver = finished / "run/net/solver.prototxt"
    solver.write_text(re.sub(r"max_iter: \d+", "max_iter: 1000000", solver.read_text()))
    command = "Next: caffetools finetune pictures -o run --model shapes.prototxt --epochs 4 --from-scratch --device cpu\n"
    assert run_well("report", "run").stdout.endswith(command) and run_well("status", "run").stdout.endswith(command)
    for state in (finished / "run/net").glob("*.solverstate"):
        state.unlink()
    assert run_well("status", "run").stdout.endswith(command)
    shutil.rmtree(finished / "run/net")
    assert run_well("status", "run").stdout.endswith(command), "before there is a solver"
    again()


def test_a_report_of_a_run_without_a_history_measures_again(finished: Path) -> None:
    for damage in ("{", None):
        (finished / "run/history.json").write_text(damage) if damage else (finished / "run/history.json").unlink()
        run_well("report", "run")
        page = page_of(finished / "run/report.html")
        assert "✓ Verified" in page and "The 7 steps" not in page


def test_a_report_is_made_again_from_the_files_of_a_run(finished: Path) -> None:
    before = {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file() and path.name != "report.html"}
    done = run_well("report", "run", "-o", "again.html")
    assert "Report: file://" in done.stdout
    text = (finished / "again.html").read_text(encoding="utf-8")
    assert all(name in text for name in CLASSES) and "✓ Verified" in text and "calibration error" in text and "Grad-CAM at" in text
    assert {path: path.read_bytes() for path in before} == before, "nothing else is written"
    assert "not the folder of a run of caffetools finetune" in error_of(run("report", "pictures"))
    assert "the run is " in error_of(run("report", "run/net")) and "there is no such folder" in error_of(run("report", "absent"))
    (finished / "damaged").mkdir()
    for text, message in (("[]", "run.json: damaged"), ('{"model": "lenet"}', "run.json: the setting 'pictures' is missing")):
        (finished / "damaged/run.json").write_text(text)
        assert message in error_of(run("report", "damaged"))
    for path in (finished / "run/net").glob("*.solverstate"):
        path.unlink()
    assert "the run has no snapshot yet" in error_of(run("report", "run"))
