"""Errors about what does not exist name what was probably meant, and missing words are filled in with what is there."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from caffetools import load_net
from caffetools.errors import DataError
from caffetools.net.weights import to_caffemodel
from caffetools.proto.binary import write_caffemodel
from caffetools.visualize.predictions import labelled_pictures
from tests.cli.inprocess import error_of, run, run_well
from tests.project.shapes import TRAIN_VAL, draw_shapes


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net").mkdir()
    Path("net/solver.prototxt").write_text('net: "train_val.prototxt"\n')
    Path("net/train_val.prototxt").write_text(TRAIN_VAL)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "solver.prototxt"], "net/solver.prototxt"),
        (["train", "net/solverr.prototxt"], "net/solver.prototxt"),
        (["inspect", "nett/train_val.prototxt"], "net/train_val.prototxt"),
        (["inspect", "net/train_vall.prototxt"], "net/train_val.prototxt"),
        (["retarget", "train-val.prototxt", "--classes", "3"], ""),
        (["inspect", "elsewhere/deploy.prototxt"], ""),
        (["curves", "net/snapshot.log"], ""),
    ],
)
def test_a_file_that_does_not_exist_is_answered_with_the_one_that_was_meant(words: list[str], meant: str) -> None:
    message = error_of(run(*words))
    assert message.endswith(f"did you mean '{meant}'?") if meant else "did you mean" not in message


def test_from_inside_the_folder_the_path_from_outside_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("net")
    assert error_of(run("train", "net/solver.prototxt")).endswith("did you mean 'solver.prototxt'?")


def test_a_dataset_whose_name_is_misspelled() -> None:
    draw_shapes(Path("pictures"), each=2)
    run_well("dataset", "build", "pictures", "data", "--size", 32)
    assert error_of(run("retarget", "net/train_val.prototxt", "--dataset", "dta")).endswith("did you mean 'data/dataset.json'?")
    # LeNet reads gray pictures, these have colours.
    assert "`caffetools dataset build --gray`" in error_of(run("retarget", "lenet", "--dataset", "data"))


@pytest.mark.parametrize(("word", "meant"), [("fetch", "zoo fetch"), ("filters", "visualize filters"), ("build", "dataset build")])
def test_a_command_of_a_group_is_found_without_the_group(word: str, meant: str) -> None:
    assert error_of(run(word, "x")) == f"there is no command '{word}'; did you mean '{meant}'?"


def test_a_file_or_a_folder_in_the_place_of_a_command_is_answered_with_what_runs_it() -> None:
    draw_shapes(Path("photos"), each=2)
    for word, meant in (
        ("photos", "fine-tune a network on these pictures by: caffetools finetune photos -o run"),
        ("net", "see what is in this project by: caffetools status net"),
        ("net/solver.prototxt", "train by: caffetools train net/solver.prototxt"),
        ("net/train_val.prototxt", "list its layers by: caffetools inspect net/train_val.prototxt"),
    ):
        assert error_of(run(word)) == f"there is no command '{word}'; {meant}"
    assert error_of(run("w.caffemodel")) == "there is no command 'w.caffemodel' (caffetools --help lists them)"
    assert "did you mean 'list'?" in error_of(run("zoo", "lst"))
    run_well("status", "net")


def test_a_folder_of_pictures_whose_name_is_misspelled() -> None:
    draw_shapes(Path("photos"), each=2)
    message = "photoss: cannot read the folder of pictures: No such file or directory; did you mean 'photos'?"
    assert error_of(run("dataset", "build", "photoss", "data")) == message
    assert error_of(run("finetune", "photoss", "-o", "run")).endswith("did you mean 'photos'?")


def test_a_model_of_the_zoo_where_a_file_is_needed_is_named_as_one() -> None:
    for line in (["train", "lenet"], ["upgrade", "lenet", "new.prototxt"], ["report", "lenet"]):
        assert "it is a model of the zoo; `caffetools zoo copy lenet lenet` writes its files" in error_of(run(*line))
    run_well("zoo", "copy", "lenet", "lenet")
    assert "a model of the zoo" not in error_of(run("train", "lenet"))


def test_the_example_of_a_missing_argument_has_what_was_given_and_the_weights_that_are_there() -> None:
    message = error_of(run("classify", "net/train_val.prototxt", "my pictures"))
    assert message.endswith("for example: caffetools classify net/train_val.prototxt w.caffemodel 'my pictures'")
    run_well("zoo", "copy", "lenet", "lenet")
    write_caffemodel("lenet/lenet.caffemodel", to_caffemodel(load_net("lenet")))
    message = error_of(run("classify", "lenet/deploy.prototxt"))
    assert message.endswith("for example: caffetools classify lenet/deploy.prototxt lenet/lenet.caffemodel photo.jpg")
    message = error_of(run("test", "lenet/train_val.prototxt"))
    assert message.endswith("example: caffetools test lenet/train_val.prototxt --weights lenet/lenet.caffemodel")


def test_a_report_without_a_folder_is_that_of_the_run_here() -> None:
    assert error_of(run("report")) == "no run of caffetools finetune is in this folder; give its folder as RUN"


def test_pictures_in_an_archive_are_written_as_files_by_the_command_that_the_error_names() -> None:
    draw_shapes(Path("pictures"), each=2)
    shutil.make_archive("pictures", "zip", "pictures")
    run_well("dataset", "build", "pictures.zip", "data", "--size", 32)
    with pytest.raises(DataError, match="^data: its pictures are in an archive, pictures.zip; ") as error:
        labelled_pictures("data")
    run_well(*shlex.split(str(error.value.hint).split("`")[1])[1:])
    written = labelled_pictures("data/val_pictures")
    assert written.classes == tuple(Path("data/labels.txt").read_text().splitlines()) and all(path.is_file() for path in written.paths)
