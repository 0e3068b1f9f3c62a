"""``caffetools classify``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.inprocess import error_of, run, without_next
from tests.infer.colours import write_labels, write_net, write_pictures
from tests.project.shapes import TRAIN_VAL, draw_shapes


def test_each_picture_is_shown_with_its_most_probable_classes(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    code, out, err = run("classify", *write_net(tmp_path), *pictures, "--labels", write_labels(tmp_path), "--top", 2, "--mean", "0")
    assert (code, err) == (0, "")
    lines = without_next(out)
    assert lines[0::3] == pictures
    assert lines[1::3] == ["  0.8330  blue", "  0.8330  green", "  0.8330  red"]


def test_json_gives_a_script_everything(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    code, out, _ = run("classify", *write_net(tmp_path), tmp_path / "*.png", "--top", 1, "--mean", "20,20,20", "--json")
    answers = json.loads(out)
    assert code == 0
    assert [answer["picture"] for answer in answers] == pictures
    assert [(a["guesses"][0]["index"], a["guesses"][0]["label"], a["error"]) for a in answers] == [
        (0, "0", None),
        (1, "1", None),
        (2, "2", None),
    ]
    assert all(0.8 < answer["guesses"][0]["probability"] < 0.9 for answer in answers)


@pytest.mark.parametrize("placeholder", [[], ["-"]])
def test_an_onnx_file_needs_no_weights(tmp_path: Path, placeholder: list[str]) -> None:
    pictures = write_pictures(tmp_path)
    assert run("export", *write_net(tmp_path), "-o", tmp_path / "a.onnx", "--labels", write_labels(tmp_path))[0] == 0
    code, out, _ = run("classify", tmp_path / "a.onnx", *placeholder, *pictures, "--top", 1)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[1::2]] == ["blue", "green", "red"]


def test_a_folder_with_a_broken_picture_is_classified_but_for_that_one(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_pictures(folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    code, out, err = run("classify", *write_net(tmp_path), folder, "--top", 1)
    assert code == 2
    assert len(out.splitlines()) == 6
    assert f"caffetools: error: {folder / 'broken.png'}: the picture is truncated" in err
    assert "1 of 4 pictures could not be read" in err
    code, out, _ = run("classify", *write_net(tmp_path), folder, "--json")
    answers = json.loads(out)
    assert code == 2
    assert "truncated" in answers[1]["error"]
    assert answers[1]["guesses"] == []


def test_what_is_missing_on_the_line_is_reported(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    code, _, err = run("classify", deploy, weights)
    assert code == 2
    assert "needs the .caffemodel and at least one picture" in " ".join(err.replace("│", " ").split())
    code, _, err = run("classify", tmp_path / "a.onnx")
    assert code == 2
    assert "at least one picture" in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "1;2"], "cannot read: No such file|1;2"),
        (["--resize", "tiny"], "size 'tiny' is not understood"),
        (["--resize", "4"], "resized to 4x4 are smaller than the net's input of 8x6"),
        (["--engine", "tf"], "unknown engine 'tf'"),
        (["--labels", "none.txt"], "none.txt: cannot read the labels"),
        (["--output", "fc8"], "has no output 'fc8'"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_exit_code_2(tmp_path: Path, options: list[str], message: str) -> None:
    import re

    code, _, err = run("classify", *write_net(tmp_path), *write_pictures(tmp_path), *options)
    assert code == 2
    assert re.search(message, err)
    assert "Traceback" not in err


def test_a_picture_or_a_net_for_training_in_place_of_the_deploy_net_is_reported_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_shapes(Path("my pictures"), each=1)
    picture = sorted(Path("my pictures").rglob("*.png"))[0]
    message = error_of(run("classify", picture))
    assert message == f"{picture} is a picture; the model comes before it, for example: caffetools classify googlenet '{picture}'"
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    Path("w.caffemodel").touch()
    message = error_of(run("classify", "train_val.prototxt", "w.caffemodel", picture))
    assert message.endswith("this is a net for training: give its deploy net (`caffetools deploy` writes it)"), message
