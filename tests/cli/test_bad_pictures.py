"""Bad pictures and folders of them: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.inprocess import refused, run, run_well, without_next


@pytest.mark.parametrize("command", ["classify good.prototxt good.caffemodel {}", "classify good.onnx {}"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.jpg", "truncated"),
        ("cut.png", "truncated"),
        ("zero.png", "the picture's file is empty"),
        ("words.png", "it is text"),
        ("good.caffemodel", "not a picture that OpenCV can decode"),
        ("absent.png", "No such file or directory"),
        ("folder", "the folder holds no pictures"),
        ("'*.gif'", "nothing matches this pattern"),
    ],
)
def test_bad_pictures_are_refused_by_name(materials: Path, command: str, name: str, words: str) -> None:
    refused(materials, command.format(name), words)


def test_pictures_of_16_bits_with_alpha_and_of_four_inks_are_classified(materials: Path) -> None:
    done = run_well("classify", "good.prototxt", "good.caffemodel", "deep.png", "alpha.png", "cmyk.jpg", "good.png")
    assert [line for line in without_next(done.stdout) if not line.startswith(" ")] == ["deep.png", "alpha.png", "cmyk.jpg", "good.png"]


def test_the_good_pictures_are_classified_next_to_a_bad_one(materials: Path) -> None:
    done = run("classify", "good.prototxt", "good.caffemodel", "good.png", "zero.png")
    assert done.returncode == 2 and "good.png" in done.stdout
    notes = [line for line in done.stderr.splitlines() if "note:" in line]
    assert len(notes) == 1 and "no mean is subtracted" in notes[0]
    assert [line for line in done.stderr.splitlines() if line not in notes] == [
        "caffetools: error: zero.png: the picture's file is empty (0 bytes)",
        "caffetools: 1 of 2 pictures could not be read",
    ]


@pytest.mark.parametrize("line", ["dataset build {} out --size 8", "finetune {} -o out --model lenet --from-scratch --epochs 1"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none: there are no class folders in it"),
        ("one", "one: there is only one class, 'only'"),
        ("hollow", "hollow/c: the class 'c' has no pictures"),
    ],
)
def test_folders_that_make_no_classes_are_refused(materials: Path, line: str, name: str, words: str) -> None:
    refused(materials, line.format(name), words)


@pytest.mark.parametrize(("kind", "words"), [("zero", "is empty"), ("words", "it is text"), ("cut", "truncated")])
def test_a_class_of_which_no_picture_can_be_used_is_named(materials: Path, kind: str, words: str) -> None:
    refused(
        materials, f"dataset build all_{kind} out --size 8", f"all_{kind}/b/0.png: none of the 1 picture(s) of the class 'b' can be used"
    )
    done = run("finetune", f"all_{kind}", "-o", "out", "--model", "lenet", "--from-scratch", "--epochs", 1)
    assert done.returncode == 2 and words in done.stderr and not (materials / "out").exists()


def test_class_names_may_have_spaces_and_be_of_any_script(materials: Path) -> None:
    assert (materials / "data" / "labels.txt").read_text(encoding="utf-8").splitlines() == ["a b", "große Hunde"]
