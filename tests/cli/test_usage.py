"""Usage errors are one plain line; ``help``, ``version``, ``doctor`` and a bare ``caffetools`` answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import caffetools
from caffetools.cli.usage import usage_error_text
from tests.cli.inprocess import error_of, run, run_well


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classfy", "a"), "there is no command 'classfy'; did you mean 'classify'?"),
        (("zoo", "lst"), "zoo: there is no command 'lst'; did you mean 'list'?"),
        (("dataset", "foo"), "dataset: there is no command 'foo' (caffetools dataset --help lists them)"),
        (("train", "--solvr", "s.prototxt"), "train: there is no option --solvr; did you mean '--solver'?"),
        (("inspect", "-iterations", "5"), "inspect: there is no option -iterations; it is a flag of "),
        (("upgrade", "a.prototxt", "-o", "b"), "upgrade: there is no option -o; example: "),
        (("export", "-solver", "x"), "export: there is no option -solver; it is a flag of "),
        (("deploy", "a.prototxt"), "deploy: missing option --out (-o); example: caffetools deploy train_val.prototxt -o deploy.prototxt"),
        (("zoo", "fetch"), "zoo fetch: missing argument NAME; example: caffetools zoo fetch squeezenet"),
        (("dataset", "convert", "a"), "dataset convert: missing argument SOURCE; example: caffetools dataset convert "),
        (("retarget", "--classes", "abc"), "retarget: invalid value for '--classes'"),
        (("quantize", "a", "b", "--images", "photos"), "quantize: invalid value for '--images': it must be a valid integer"),
        (("quantize", "a", "b", "--most=few"), "quantize: invalid value for '--most': it must be a valid integer"),
    ],
)
def test_usage_errors_are_one_line_with_the_flag_as_typed(words: tuple[str, ...], message: str) -> None:
    assert error_of(run(*words)).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("8 is not in the range 0<=x<=7.", "it must be less than or equal to 7"),
        ("-1 is not in the range 0<=x<=9223372036854775807.", "it must be greater than or equal to 0"),
        ("-0.5 is not in the range x>=0.0.", "it must be greater than or equal to 0"),
        ("0 is not in the range 0<x<1.", "it must be greater than 0"),
        ("1 is not in the range 0<x<1.", "it must be less than 1"),
        ("1e+30 is not in the range -1000000.0<=x<=1000000.0.", "it must be less than or equal to 1000000"),
    ],
)
def test_limits_have_the_words_of_newer_typers(words: str, message: str) -> None:
    assert usage_error_text(typer.BadParameter(words), []) == f"invalid value: {message}"


def test_long_names_are_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "a" * 70
    assert f"'{name}'" in error_of(run(name))


@pytest.mark.parametrize("words", [("version",), ("-version",), ("--version",)])
def test_version(words: tuple[str, ...]) -> None:
    assert run_well(*words).stdout == f"caffetools {caffetools.__version__}\n"
    assert json.loads(run_well(*words, "--json").stdout) == {"caffetools": caffetools.__version__}
    assert "there is no option --absent" in error_of(run(*words, "--absent"))


@pytest.mark.parametrize("words", [("help", "train"), ("train", "-help"), ("train", "--help"), ("train", "-h")])
def test_help_of_a_command(words: tuple[str, ...]) -> None:
    text = run_well(*words).stdout
    assert "Usage: caffetools train" in text and "Example: caffetools train" in " ".join(text.split())


def test_doctor_shows_what_a_bug_report_needs() -> None:
    facts = json.loads(run_well("doctor", "--json").stdout)
    assert facts["caffetools"] == caffetools.__version__
    assert {"Python", "torch", "onnxruntime", "native kernels", "zoo cache"} <= set(facts)
    assert "torch" in run_well("doctor").stdout


def test_a_bare_call_shows_the_project_of_the_folder_or_the_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Usage: caffetools" in run_well().stdout
    assert run_well("caffe").stdout == run_well("--help").stdout  # the program caffe of `shims install`
    run_well("retarget", "lenet", "--classes", 3, "-o", "net")
    text = run_well().stdout
    assert "LeNet" in text and "0 of 10000 iterations" in text
    assert "one subfolder for each class: caffetools dataset build PICTURES data" in text
    nameless = Path("net/train_val.prototxt")
    nameless.write_text(nameless.read_text().replace('name: "LeNet"', "", 1))
    assert "net        net/train_val.prototxt" in run_well().stdout
    Path("photos/a").mkdir(parents=True)
    Path("photos/b").mkdir()
    for name in ("a", "b"):
        Path("photos", name, "1.png").touch()
    assert "Next: caffetools dataset build photos data" in run_well().stdout
    assert (
        "build a dataset with `caffetools dataset build photos data`" in run_well("retarget", "lenet", "--classes", 3, "-o", "other").stdout
    )


def test_a_bare_call_above_projects_shows_the_newest_and_names_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_well("retarget", "lenet", "--classes", 3, "-o", "old")
    alone = run_well()
    assert "one subfolder for each class: caffetools dataset build PICTURES old/data" in alone.stdout and alone.stderr == ""
    run_well("retarget", "lenet", "--classes", 3, "-o", "new")
    os.utime("old", (1, 1))
    both = run_well()
    assert "one subfolder for each class: caffetools dataset build PICTURES new/data" in both.stdout
    assert both.stderr == "caffetools: note: projects here: new, old; this is new, the newest\n"
    Path("runs").mkdir()
    Path("old").rename("runs/old")
    assert run_well().stderr == "caffetools: note: projects here: new, runs/old; this is new, the newest\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("retarget", "lenet", "--classes", "3", "-o", "-"),
        ("dataset", "build", "pictures", "-"),
        ("dataset", "convert", "mnist", "in", "-"),
        ("trainable", "net.prototxt", "-o", "-"),
        ("zoo", "copy", "lenet", "-"),
        ("finetune", "pictures", "-o", "-"),
        ("demo", "-o", "-"),
        ("bundle", "lenet", "-o", "-"),
        ("parse_log", "log", "-"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_makes_a_folder_for_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "writes no standard output ('-'); name a file or folder" in error_of(run(*arguments))
    assert not list(tmp_path.iterdir())


def test_a_bare_call_above_pictures_shows_how_to_finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my photos/cat", "my photos/dog", "notes/cat"):
        Path(name).mkdir(parents=True)
        Path(name, "a.JPG").touch()
    assert run_well().stdout.splitlines() == [
        "no project yet; folders of pictures, one for each class: my photos",
        "Next: caffetools finetune 'my photos' -o run",
    ]
    assert error_of(run("status", "--json")).startswith(".: no project is here")


@pytest.mark.parametrize("words", [["--help"], ["finetune"], ["zoo", "list"]], ids=" ".join)
def test_a_pipe_closed_early_exits_with_zero(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "caffetools", *words], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, b"error" in done.stderr) == (0, False), done.stderr


def test_help_shows_no_types_of_flags() -> None:
    for words in (["--help"], ["train", "--help"], ["visualize", "filters", "--help"], ["zoo", "list", "--help"]):
        text = run_well(*words).stdout
        assert "bool" not in text and "--help" in text and "-h" in text


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "complete -o default -F"), ("zsh", "#compdef caffetools"), ("fish", "complete --command")]
)
def test_completion_is_shown_and_installed_for_a_shell_by_name(
    shell: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_CAFFETOOLS_COMPLETE", "")
    assert words in run_well("--show-completion", shell).stdout
    monkeypatch.setenv("_CAFFETOOLS_COMPLETE", "")
    done = run_well("--install-completion", shell)
    assert done.stdout.startswith(f"{shell} completion installed in {tmp_path}")
    installed = Path(done.stdout.split(" installed in ")[1].split(";")[0])
    assert words in installed.read_text()


def test_completion_for_an_unknown_shell_is_a_usage_error() -> None:
    assert "'csh' is not one of bash, zsh, fish" in error_of(run("--show-completion", "csh"))
